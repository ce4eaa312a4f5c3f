"""The flow that a worker does: one unit of a run."""

from pathlib import Path

from prefect import flow

from flows.plan import plan
from flows.units import do, units
from pipeline.errors import UserError
from pipeline.run.folder import check_version, read_run
from pipeline.runtime.threads import choose_threads


@flow(name="stage", log_prints=True)
def stage(run: str, unit: str, parts: int, code: str) -> None:
    """Do what is left of one unit of a run.

    Args:
        run: the run folder.
        unit: its name; `sim2real status` shows them.
        parts: into how many units each translation is divided.
        code: version and source of the code that made the plan.

    Raises:
        UserError: this worker has other code, or the unit cannot be done.
    """
    check_version(code)
    choose_threads()
    folder = Path(run)
    stages = plan(read_run(folder), folder)
    known = {item.name: item for item in units(stages, parts)}
    if unit not in known:
        raise UserError(f"{run} has no unit {unit!r}. It has: {', '.join(known)}.")
    do(folder, stages, known[unit])
