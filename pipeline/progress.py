"""Progress of long work: a bar on a terminal, lines in logs, a file for `status`."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.files import read_record, write_json
from pipeline.text import duration

T = TypeVar("T")

FILE = "progress.json"
_FILE_SECONDS = 2.0
_LINE_SECONDS = 30.0
_FIRST_LINE_SECONDS = 5.0
"""A rate and what is left are said early: many a work takes less or far more than is thought."""


class Recorded(BaseModel):
    """How far a stage is: the content of a `progress.json`."""

    done: int = Field(ge=0)
    total: int = Field(ge=0)
    unit: str
    seconds: float = Field(ge=0, allow_inf_nan=False)


def part_folder(folder: Path, part: int, parts: int) -> Path:
    """Where part i of n of a stage, from 0, says how far it is."""
    return folder / "parts" / f"{part + 1}-of-{parts}"


def recorded(folder: Path) -> Recorded | None:
    """How far the stage in `folder` is, and what all of its parts took; None: it has not said."""
    own = _own(folder)
    parts = [found for place in folder.glob("parts/*") if (found := _own(place))]
    if not parts:
        return own
    seconds = sum(part.seconds for part in parts)
    if own:
        return own.model_copy(update={"seconds": own.seconds + seconds})
    done, total = sum(part.done for part in parts), sum(part.total for part in parts)
    return Recorded(done=done, total=total, unit=parts[0].unit, seconds=seconds)


def part_is_done(folder: Path, part: int, parts: int) -> bool:
    """Whether part i of n of a stage has come to its end."""
    found = _own(part_folder(folder, part, parts))
    return found is not None and found.done == found.total


def _own(folder: Path) -> Recorded | None:
    path = folder / FILE
    way_out = "Remove it: it only tells how far the stage is and how long that took."
    return read_record(path, Recorded, way_out) if path.is_file() else None


@contextmanager
def progress(
    folder: Path,
    title: str,
    total: int,
    *,
    done: int = 0,
    unit: str = "steps",
    images_per_unit: int | None = None,
) -> Iterator[Callable[[int], None]]:
    """Show and record how far a stage is.

    Args:
        folder: the stage's folder; `progress.json` there holds `done`, `total`, `unit` and the
            `seconds` worked so far, over all the runs that it took.
        done: units finished earlier.
        images_per_unit: where given, the rate is shown in images.

    Yields:
        A function to call with the number of units finished since the last call.
    """
    path = folder / FILE
    earlier = _own(folder) if done else None
    before = earlier.seconds if earlier else 0.0
    start = last_file = time.monotonic()
    now_done = done

    def record() -> None:
        seconds = round(before + time.monotonic() - start, 1)
        write_json(path, {"done": now_done, "total": total, "unit": unit, "seconds": seconds})

    with _shown(title, total, done, unit, images_per_unit) as show:

        def advance(count: int) -> None:
            nonlocal now_done, last_file
            now_done += count
            show(count)
            if time.monotonic() - last_file > _FILE_SECONDS:
                last_file = time.monotonic()
                record()

        record()
        yield advance
        record()


def each(items: Iterable[T], title: str, total: int, *, unit: str = "images") -> Iterator[T]:
    """`items`, showing how many have been worked on; no stage's progress, so nothing is recorded.

    Args:
        total: how many there are.
    """
    with _shown(title, total, 0, unit, None, transient=True) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def _shown(
    title: str,
    total: int,
    done: int,
    unit: str,
    images_per_unit: int | None,
    *,
    transient: bool = False,
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, which vanishes at the end if `transient`; else a line now and then."""
    start = time.monotonic()
    last_line = start + _FIRST_LINE_SECONDS - _LINE_SECONDS
    now_done = done
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=transient,
    ) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="")

        def advance(count: int) -> None:
            nonlocal now_done, last_line
            now_done += count
            now = time.monotonic()
            rate = (now_done - done) / max(now - start, 1e-9)
            speed = f"{rate * (images_per_unit or 1):.1f} {'images' if images_per_unit else unit}/s"
            bar.update(task, completed=now_done, rate=speed)
            if not console.is_terminal and now - last_line > _LINE_SECONDS:
                last_line = now
                left = (total - now_done) / rate
                print(
                    f"{title}: {now_done}/{total} {unit}, {speed}, {duration(left)} left",
                    file=sys.stderr,
                    flush=True,
                )

        yield advance
