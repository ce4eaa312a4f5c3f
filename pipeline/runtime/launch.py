"""Processes: what torchrun tells those that it starts, and how ours end with who started them."""

import os
import threading
from dataclasses import dataclass
from multiprocessing import connection, parent_process


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


def end_with_parent(*_: object) -> None:
    """Let this process, started by multiprocessing, end when who started it has, also by a kill."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
