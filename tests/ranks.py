"""Ranks without torchrun: forked processes, which are quick and take patches along."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from pipeline.errors import UserError
from pipeline.runtime.distributed import connected


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def in_ranks(world_size: int, work: Callable[..., None], *arguments: object) -> None:
    """Call `work(*arguments, ranks)` in every rank; the first that fails ends all.

    Raises:
        UserError: a rank raised it.
        ChildProcessError: a rank ended otherwise.
    """
    context: Any = multiprocessing.get_context("fork")
    variables = {
        "TORCHELASTIC_RUN_ID": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
    }
    mistakes = context.SimpleQueue()

    def rank(number: int) -> None:
        os.environ.update(variables, RANK=str(number), LOCAL_RANK=str(number))
        try:
            with connected() as ranks:
                work(*arguments, ranks)
        except UserError as error:
            mistakes.put(str(error))
            os._exit(1)

    processes = [context.Process(target=rank, args=(number,)) for number in range(world_size)]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    try:
        while running:
            for sentinel in wait(list(running)):
                process = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    if not mistakes.empty():
                        raise UserError(mistakes.get())
                    number = processes.index(process)
                    raise ChildProcessError(f"rank {number} ended with {process.exitcode}")
    finally:
        for process in processes:
            with suppress(ValueError):
                process.kill()
            process.join()
