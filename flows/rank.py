"""One rank of a stage that several devices train together: `python -m flows.rank RUN STAGE`.

torchrun starts it for `compute.devices`. Of a torchrun of the user's own, which runs the command
line, rank zero does the command and the other ranks follow it here.
"""

import sys
from pathlib import Path

from flows.plan import plan
from pipeline.errors import UserError, explain
from pipeline.run.folder import read_run
from pipeline.runtime.distributed import Ranks
from pipeline.runtime.launch import as_rank


def work(run: Path, name: str) -> None:
    """Do this rank's part of a stage."""
    (stage,) = (stage for stage in plan(read_run(run), run) if stage.name == name)
    try:
        stage.work(run / name)
    except OSError as error:
        raise UserError(explain(error)) from error


def follow_rank_zero(ranks: Ranks) -> None:
    """Do this rank's part of each stage that rank zero names, until it names none."""
    while (task := ranks.broadcast()) is not None:
        run, name = task
        work(Path(run), name)


if __name__ == "__main__":
    as_rank(lambda: work(Path(sys.argv[1]), sys.argv[2]))
