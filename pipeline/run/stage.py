"""A stage: what its result depends on, whether that has changed, and how it is done.

The inputs of a stage are everything that its result depends on. Settings at their defaults are left
out of what is recorded, so a setting that is added later changes no run that does not use it; a
default that changes needs a higher `version` in the stage's inputs.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from pipeline.errors import UserError
from pipeline.files import remove_tree, sweep
from pipeline.progress import recorded as recorded_progress
from pipeline.run.folder import (
    STAGE_FILE,
    Inputs,
    begin_stage,
    check_results,
    differences,
    fingerprint,
    finish_stage,
    read_stage,
    recorded_inputs,
    refuse,
    stage_state,
)
from pipeline.run.lock import lock
from pipeline.runtime.cost import begin_counting
from pipeline.runtime.launch import run_ranks, torchrun


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    """Its folder below the run, e.g. `segmentation/adapted/seed-0`."""
    command: str
    """The command that runs it alone."""
    reads: tuple[str, ...]
    """Names of the stages whose results it reads."""
    inputs: Callable[[], Inputs]
    """Everything its result depends on, without what `reads` adds. Values are plain data, or
    `Settings`."""
    work: Callable[[Path], None]
    """Fills the folder; continues where an earlier call was interrupted."""
    results: tuple[str, ...] = ()
    """Patterns of the files in the folder that other stages, reports and commands read."""
    devices: int | None = None
    """Processes that do it together, one on each device; None: it is not made for several."""
    part: Callable[[Path, int, int], None] | None = None
    """Does part i of n of the work, in any order and on any machine; `work` then finds it done, and
    the result is the same to the bit. None: it is not made for parts."""


@dataclass(frozen=True)
class Settings:
    """Settings as a part of a stage's inputs."""

    model: BaseModel
    without: frozenset[str] = frozenset()
    """Fields that the result does not depend on."""
    instead: Mapping[str, object] = field(default_factory=dict)
    """Fields that are recorded with other values, such as a file's content for its path."""

    def recorded(self) -> Inputs:
        """What is recorded: the fields that differ from their defaults."""
        fields = self.model.model_dump(
            mode="json", exclude=set(self.without), exclude_defaults=True
        )
        return {**fields, **self.instead}

    def changes(self, before: object, place: str) -> list[str]:
        """How these settings differ from recorded ones, as lines `a.b: old -> new`.

        A record that lacks a field has its default. Fields that no longer exist are ignored.
        """
        if not isinstance(before, dict):
            return [f"{place}: {before!r} -> {self.recorded()!r}"]
        lines = []
        for name, info in type(self.model).model_fields.items():
            if name in self.without:
                continue
            value = self.instead.get(name, getattr(self.model, name))
            if name in before:
                old = before[name]
            elif name in self.instead:
                old = None
            else:
                default = info.get_default(call_default_factory=True)
                old = default.model_dump() if isinstance(default, BaseModel) else default
            new = Settings(value) if isinstance(value, BaseModel) else value
            lines += changes(old, new, f"{place}.{name}")
        return lines


_CONTENT = {"content", "instances_content"}
"""Inputs that early versions did not record; where they are not recorded, they are not compared."""


def plain(value: object) -> object:
    """Inputs as they are recorded: plain data."""
    if isinstance(value, Settings):
        return value.recorded()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def changes(before: object, now: object, place: str = "") -> list[str]:
    """In what inputs differ from recorded ones, as lines `a.b: old -> new`."""
    if isinstance(now, Settings):
        return now.changes(before, place)
    if isinstance(now, dict) and isinstance(before, dict):
        return [
            line
            for key in dict.fromkeys([*before, *now])
            if key in before or key not in _CONTENT
            for line in changes(before.get(key), now.get(key), f"{place}.{key}".strip("."))
        ]
    # Through JSON, so that tuples and lists, paths and texts compare equal.
    return differences(_json(before), _json(plain(now)), place)


def _json(value: object) -> object:
    return json.loads(json.dumps(value, default=str))


def all_inputs(stages: list[Stage]) -> dict[str, Inputs]:
    """Each stage's inputs by name, with the fingerprints of what it reads."""
    return _compared(stages, {}, {})[0]


def _compared(
    stages: list[Stage], recorded: Mapping[str, Inputs], begun: Mapping[str, Inputs]
) -> tuple[dict[str, Inputs], dict[str, list[str]]]:
    """Each stage's inputs, and how they differ from those that it was begun with.

    Args:
        recorded: inputs of stages that are taken as they were when the stage was done.
        begun: inputs that stages were begun with; they stand where nothing has changed, so that
            fingerprints stay those of the version that made the stage.

    Returns:
        The inputs, and for stages that were begun with others, in what these differ.
    """
    inputs: dict[str, Inputs] = dict(recorded)
    changed: dict[str, list[str]] = {}
    for stage in stages:
        if stage.name in inputs:
            continue
        reads = {name: fingerprint(inputs[name]) for name in stage.reads}
        made = {**stage.inputs(), "reads": reads}
        before = begun.get(stage.name)
        inputs[stage.name] = {key: plain(value) for key, value in made.items()}
        if before is not None:
            if lines := changes(before, made):
                changed[stage.name] = lines
            else:
                inputs[stage.name] = before
    return inputs, changed


def check(
    run: Path,
    stages: list[Stage],
    *,
    only: Callable[[Stage], bool] = lambda _: True,
    forced: Collection[str] = (),
) -> dict[str, Inputs]:
    """The inputs of all stages, after comparing them with what the run holds.

    Args:
        only: look at these stages only; the others are taken as they were done, so that a report
            can be made where the data is not.
        forced: stages that are about to be removed, and need not agree.

    Raises:
        UserError: a stage was made from other inputs.
    """
    recorded = {
        stage.name: read_stage(run, stage.name).inputs
        for stage in stages
        if not only(stage) and is_done(run, stage.name)
    }
    begun = {
        stage.name: found
        for stage in stages
        if stage.name not in forced and (found := recorded_inputs(run, stage.name)) is not None
    }
    inputs, changed = _compared(stages, recorded, begun)
    for stage in stages:
        if stage.name in changed:
            refuse(run, stage.name, changed[stage.name])
        if stage.name not in forced:
            stage_state(run, stage.name, inputs[stage.name])
    return inputs


_TEST_CONTENT = {"test.content", "instances_content"}


def scored_on_other_data(run: Path, stages: list[Stage]) -> list[str]:
    """The evaluations of the same test files, whose content alone has changed since."""
    outdated = []
    for stage in stages:
        before = recorded_inputs(run, stage.name) if stage.command == "evaluate" else None
        if before is not None:
            lines = changes({**before, "reads": None}, {**stage.inputs(), "reads": None})
            changed = {line.partition(":")[0] for line in lines}
            if changed and changed <= _TEST_CONTENT:
                outdated.append(stage.name)
    return outdated


def reports_of_others(run: Path, stages: list[Stage]) -> list[str]:
    """The reports of other arms or seeds, or with other settings, than those of `stages`.

    Such a report is no reason to stop: it is made in seconds from results that stay.
    """
    found = []
    for stage in stages:
        before = recorded_inputs(run, stage.name) if stage.command == "report" else None
        if before is not None:
            reads = before.get("reads")
            same = isinstance(reads, dict) and reads.keys() == set(stage.reads)
            if not same or changes({**before, "reads": None}, {**stage.inputs(), "reads": None}):
                found.append(stage.name)
    return found


def run_stage(run: Path, stage: Stage, inputs: Inputs, *, anew: bool = False) -> bool:
    """Do one stage, or what is left of it; False when it was complete already.

    Where another process is at it, waits for that one.

    Args:
        anew: also when it is complete.

    Raises:
        UserError: it was made from other inputs, or what it reads is not complete.
    """
    if is_done(run, stage.name) and not anew:  # which needs no lock, and may not be written
        stage_state(run, stage.name, inputs)
        return False
    with lock(run, stage.name):
        if anew:
            remove_tree(run / stage.name)
        if not _begin(run, stage, inputs):
            return False
        folder = run / stage.name
        begin_counting()
        start = time.monotonic()
        _perform(run, stage)
        progress = recorded_progress(folder)
        seconds = progress.seconds if progress else time.monotonic() - start
        finish_stage(
            run,
            stage.name,
            inputs,
            seconds=seconds,
            devices=stage.devices or 1,
            results=stage.results,
        )
    return True


def run_part(run: Path, stage: Stage, inputs: Inputs, part: int, parts: int) -> None:
    """Do one part of a stage's work, or what is left of it; `run_stage` then does what remains.

    Args:
        part: its number, from 0 to `parts` - 1.

    Raises:
        UserError: as `run_stage`.
    """
    assert stage.part is not None, f"{stage.name} is not made for parts"
    with lock(run, part_name(stage.name, part, parts)):
        with lock(run, stage.name):
            left = _begin(run, stage, inputs)
        if left:
            stage.part(run / stage.name, part, parts)


def part_name(stage: str, part: int, parts: int) -> str:
    """What part i of n of a stage, from 0, is called; its lock has this name."""
    return f"{stage} {part + 1} of {parts}"


def _begin(run: Path, stage: Stage, inputs: Inputs) -> bool:
    """Make a stage's folder ready for its work; False when it is complete already."""
    folder = run / stage.name
    if folder.is_dir():
        sweep(folder, below=True)
    state = stage_state(run, stage.name, inputs)
    if state == "done":
        return False
    for name in stage.reads:
        if not is_done(run, name):
            raise UserError(
                f"Stage {stage.name} reads {name}, which is not complete in {run}. "
                f"Run `sim2real run` or the command of that stage first."
            )
    for name in stage.reads:
        check_results(run, name)
    if state == "absent":
        begin_stage(folder, inputs)
    return True


def _perform(run: Path, stage: Stage) -> None:
    """Do the work of a stage, by the ranks of torchrun where it uses several devices."""
    if stage.devices is not None:
        if torchrun():
            from pipeline.runtime.distributed import connected

            with connected() as ranks:  # the others wait in `flows.rank.follow_rank_zero`
                ranks.broadcast((str(run.absolute()), stage.name))
        elif stage.devices > 1:
            run_ranks("flows.rank", [run.absolute(), stage.name], stage.devices)
            return
    stage.work(run / stage.name)


def named(stages: list[Stage], wanted: list[str]) -> list[str]:
    """The stages of these names or below these folders, and every stage that reads one of them.

    Raises:
        UserError: a name that no stage has.
    """
    found: list[str] = []
    for name in wanted:
        if not any(stage.name == name or stage.name.startswith(name + "/") for stage in stages):
            raise UserError(
                f"--force {name!r}: no such stage. Stages: {', '.join(s.name for s in stages)}; "
                "or a folder of them."
            )
    for stage in stages:
        if any(stage.name == name or stage.name.startswith(name + "/") for name in wanted) or set(
            stage.reads
        ) & set(found):
            found.append(stage.name)
    return found


def remove(run: Path, names: list[str]) -> None:
    """Remove stages, those that read others first: a kill leaves none without what it reads.

    Raises:
        UserError: another process is at work on one.
    """
    for name in reversed(names):
        if (run / name).exists():
            with lock(run, name, wait=False):
                remove_tree(run / name)


def is_done(run: Path, name: str) -> bool:
    """Whether a stage of a run is complete."""
    return (run / name / STAGE_FILE).is_file()
