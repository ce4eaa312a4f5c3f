"""What torchrun tells each process that it starts, in environment variables."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One of the processes that torchrun started with the same command."""

    rank: int
    """This process's number, from 0."""
    size: int
    """How many there are, on all machines."""
    local_rank: int
    """This process's number on its machine, from 0: which GPU is its own."""
    local_size: int
    """How many there are on its machine."""


def torchrun() -> Launch | None:
    """How torchrun started this process; None when something else did."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Launch(*(int(os.environ[name]) for name in names))
