"""Units of work: what one worker does in one go, as a graph made of a run's plan.

A unit trains one network and looks at it, or makes a part of a translation's frames. The units
that others wait for are those of the critical path.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.progress import part_is_done
from pipeline.run.folder import Inputs
from pipeline.run.stage import Stage, check, is_done, part_name, run_part, run_stage

_LOOKS = ("evaluate", "select")
"""Commands whose stages are done by the unit that made the network that they look at."""


@dataclass(frozen=True)
class Unit:
    """Some stages that are done one after the other, or a part of one."""

    name: str
    """The name of its first stage; of a part with its number, e.g. `translated 1 of 2`."""
    stages: tuple[str, ...]
    reads: tuple[str, ...]
    """Units that must be done before it."""
    part: tuple[int, int] | None = None
    """(i, n): it is part i of n of its stage, from 0."""
    light: bool = False
    """Whether it needs no accelerator: reports, and what is left when all parts are done."""
    urgent: bool = False
    """Whether a unit that is not `light` waits for it, at once or after others."""


def units(stages: list[Stage], parts: int = 1) -> list[Unit]:
    """The units of a plan, each after those that it reads.

    Args:
        parts: into how many units the work of a stage is divided that is made for it.
    """
    owner = {s.name: s.reads[0] if s.command in _LOOKS else s.name for s in stages}
    found: list[Unit] = []
    for first in dict.fromkeys(owner.values()):
        mine = [stage for stage in stages if owner[stage.name] == first]
        names = tuple(stage.name for stage in mine)
        reads = {owner[name]: None for stage in mine for name in stage.reads}
        before = tuple(name for name in reads if name != first)
        light = mine[0].command == "report"
        if mine[0].part and parts > 1:
            found += [
                Unit(part_name(first, i, parts), names, before, (i, parts)) for i in range(parts)
            ]
            before, light = tuple(unit.name for unit in found[-parts:]), True
        found.append(Unit(first, names, before, light=light))
    urgent: set[str] = set()
    for unit in reversed(found):
        if not unit.light or unit.name in urgent:
            urgent.update(unit.reads)
    return [replace(unit, urgent=unit.name in urgent) for unit in found]


def left(run: Path, unit: Unit) -> bool:
    """Whether there is something to do: the run folder alone tells."""
    if unit.part and part_is_done(run / unit.stages[0], *unit.part):
        return False  # what was removed since is made when the parts are put together
    return not all(is_done(run, name) for name in unit.stages)


def do(run: Path, stages: list[Stage], unit: Unit, inputs: dict[str, Inputs] | None = None) -> bool:
    """Do what is left of a unit; False when it was complete already.

    Args:
        inputs: of all stages, where the caller has them; what the unit does not make is taken as
            it was done.
    """
    if inputs is None:
        known = [s for s in stages if s.name in unit.stages or is_done(run, s.name)]
        inputs = check(run, known, only=lambda stage: stage.name in unit.stages)
    worked = False
    for stage in stages:
        if stage.name not in unit.stages:
            continue
        if unit.part:
            run_part(run, stage, inputs[stage.name], *unit.part)
            worked = True
        else:
            worked |= run_stage(run, stage, inputs[stage.name])
    return worked
