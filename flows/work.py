"""The flow that a worker does: one unit of a run, with its progress as an artifact."""

import contextvars
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.plan import plan
from flows.roots import check_roots, files_named
from flows.units import Unit, do, units
from pipeline.errors import UserError
from pipeline.progress import Recorded, part_folder, recorded
from pipeline.run.folder import check_version, read_run
from pipeline.runtime.cost import WORKER
from pipeline.runtime.threads import choose_threads
from pipeline.text import duration

_SECONDS = 5.0
"""Between two looks at how far a stage is."""


@flow(name="stage", log_prints=True)
def stage(run: str, unit: str, parts: int, code: str) -> None:
    """Do what is left of one unit of a run.

    Args:
        run: the run folder.
        unit: its name; `sim2real status` shows them.
        parts: into how many units each translation is divided.
        code: version and source of the code that made the plan.

    Raises:
        UserError: this worker has other code or may not use the files, or the unit cannot be done.
    """
    print(f"{unit} of {run}: begun by {os.environ.get(WORKER) or 'a process'}")
    check_version(code)
    choose_threads()
    folder = Path(run)
    check_roots([folder])
    config = read_run(folder)
    check_roots(files_named(config))
    stages = plan(config, folder)
    known = {item.name: item for item in units(stages, parts)}
    if unit not in known:
        raise UserError(f"{run} has no unit {unit!r}. It has: {', '.join(known)}.")
    with _watched(folder, known[unit]):
        do(folder, stages, known[unit])


def key(*names: str) -> str:
    """What an artifact is found by: small letters, digits and `-`."""
    return re.sub("[^a-z0-9]+", "-", " ".join(names).lower()).strip("-")


@contextmanager
def _watched(run: Path, unit: Unit) -> Iterator[None]:
    """Show how far a unit is in Prefect's UI for as long as the block lasts."""
    artifact = cast(
        UUID, create_progress_artifact(0.0, key=key(run.name, unit.name), description=unit.name)
    )
    over = threading.Event()

    def watch() -> None:
        before: tuple[str, Recorded] | None = None
        while not over.wait(_SECONDS):
            for name in unit.stages:
                folder = part_folder(run / name, *unit.part) if unit.part else run / name
                if not (run / name / "stage.json").exists() and (found := recorded(folder)):
                    first = before[1] if before and before[0] == name else found
                    before = name, first
                    said = f"{name}: {found.done}/{found.total} {found.unit}" + _rate(first, found)
                    share = 100.0 * found.done / max(found.total, 1)
                    update_progress_artifact(artifact, share, description=said)

    # With the context of the flow, whose artifact it is.
    context = contextvars.copy_context()
    watcher = threading.Thread(target=context.run, args=(watch,), daemon=True)
    watcher.start()
    try:
        yield
        over.set()
        watcher.join()
        update_progress_artifact(artifact, 100.0, description=f"{unit.name}: done")
    finally:
        over.set()


def _rate(first: Recorded, now: Recorded) -> str:
    """How fast it is and what is left, as far as that can be told."""
    done, seconds = now.done - first.done, now.seconds - first.seconds
    if done <= 0 or seconds <= 0:
        return ""
    speed = done / seconds
    return f", {speed:.1f} {now.unit}/s, {duration((now.total - now.done) / speed)} left"
