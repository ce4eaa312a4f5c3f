"""Several processes of one machine that train one network together, each on a device of its own.

Every process runs the same code and holds the same networks. They differ in their share of each
batch, and in that the first alone writes files.
"""

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from pipeline.config import ComputeConfig
from pipeline.errors import UserError
from pipeline.training import accelerator, check_devices

START = "spawn"
"""How processes begin; CUDA does not survive a fork."""
_PATIENCE = 3.0
"""Seconds between a broken connection and the news of who died, and between asking a process to end
and ending it."""
# Who started the processes sees a death at once. A first process that fills a cache may keep the
# others waiting for hours.
_TIMEOUT = timedelta(days=1)

T = TypeVar("T")


class _Total(torch.autograd.Function):
    """The sum over all processes, to the bit the same in all.

    Each uses the sum for a loss of its own, so each value's gradient is the sum of theirs.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Total.forward(ctx, gradient)


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees them; alone, nothing is exchanged."""

    rank: int = 0
    """This process's number, from 0."""
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a whole batch, a multiple of `size` long."""
        return batch if self.size == 1 else batch.chunk(self.size)[self.rank]

    def gather(self, part: Tensor) -> Tensor:
        """The whole batch of everyone's equal parts, in their order; carries no gradient."""
        part = part.detach()
        if self.size == 1:
            return part
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.cat(parts)

    def gather_names(self, part: list[str]) -> list[str]:
        """Everyone's names in their order."""
        if self.size == 1:
            return part
        parts: list[list[str]] = [[]] * self.size
        dist.all_gather_object(parts, part)
        return [name for names in parts for name in names]

    def total(self, value: Tensor) -> Tensor:
        """The sum of everyone's `value`; a gradient goes back to everyone's."""
        if self.size == 1:
            return value
        out: Tensor = _Total.apply(value)
        return out

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, the same to the bit in all."""
        if self.size == 1:
            return
        # One message: many small ones take longer.
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()

    def leader(
        self, make: Callable[[], AbstractContextManager[T]]
    ) -> AbstractContextManager[T | None]:
        """What `make` returns in the first process, a context without a value in the others."""
        return make() if self.leads else nullcontext()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The others enter the block when the first has left it."""
        if not self.leads:
            dist.barrier()
        yield
        if self.leads and self.size > 1:
            dist.barrier()


ALONE = Team()


def run_team(compute: ComputeConfig, work: Callable[..., None], *arguments: object) -> None:
    """Call `work(*arguments, team)` on `compute.devices` devices at once, a process for each.

    One device needs no further process. More get arguments that can be pickled. When one process
    fails or dies, or this one is interrupted or killed, all end.

    Raises:
        UserError: there are not so many devices; `work` raised it in a process; a process died.
    """
    check_devices(compute)
    if compute.devices == 1:
        work(*arguments, ALONE)
        return
    context: Any = get_context(START)
    backend = "nccl" if accelerator(compute) == "cuda" else "gloo"
    members: list[tuple[BaseProcess, Connection]] = []
    with tempfile.TemporaryDirectory(prefix="sim2real-") as folder:
        try:
            for rank in range(compute.devices):
                reports, reporting = context.Pipe(duplex=False)
                team = Team(rank, compute.devices)
                process = context.Process(
                    target=_member,
                    args=(team, backend, Path(folder) / "store", reporting, work, arguments),
                )
                members.append((process, reports))
                with _no_interrupt():
                    process.start()
                reporting.close()
            _wait(members)
        finally:
            _end([process for process, _ in members if process.pid is not None])


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes started in the block never see Ctrl-C: who started them does, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _member(
    team: Team,
    backend: str,
    store: Path,
    reporting: Connection,
    work: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    """One process of a team: reports None when done, an error of the user's, or a traceback."""
    # Not the default, so that bars and logs are closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        torch.set_num_threads(max(1, torch.get_num_threads() // team.size))
        device = None
        if backend == "nccl":
            device = torch.device("cuda", team.rank)
            torch.cuda.set_device(device)
        elif sys.platform == "linux":
            # Gloo would take the address of the machine's name, which may have none.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            backend,
            init_method=f"file://{store}",
            rank=team.rank,
            world_size=team.size,
            timeout=_TIMEOUT,
            device_id=device,
        )
        work(*arguments, team)
        dist.barrier()
        dist.destroy_process_group()
        # Nothing is left to close, and an exit in the middle of Python's own would be a traceback.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        reporting.send(None)
    except Exception as error:
        trace = traceback.format_exc()
        error.add_note(trace)  # for --debug
        reporting.send(error if isinstance(error, UserError | OSError) else trace)
        # The others find a broken connection when this process ends: an error that says nothing.
        while True:
            signal.pause()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _wait(members: Sequence[tuple[BaseProcess, Connection]]) -> None:
    """Return when all are done; raise what one reports, or that it died."""
    working = dict(enumerate(members))
    unexpected, since = "", 0.0
    while working:
        connection.wait([reports for _, reports in working.values()], timeout=0.5)
        for rank, (process, reports) in list(working.items()):
            ended = process.exitcode is not None  # before the look at what it may have said
            if not (reports.poll() or ended):
                continue
            try:
                # Its reading processes may outlive it and keep the connection open.
                if not reports.poll():
                    raise EOFError
                report = reports.recv()
            except EOFError:
                process.join(_PATIENCE)
                raise UserError(_died(rank, process.exitcode)) from None
            del working[rank]
            if isinstance(report, Exception):
                raise report
            if report is not None and not unexpected:
                unexpected, since = report, time.monotonic()
        # A connection breaks when another process dies, and that is the better news.
        if unexpected and (not working or time.monotonic() > since + _PATIENCE):
            raise RuntimeError(f"in a process of {len(members)}:\n{unexpected}")


def _died(rank: int, code: int | None) -> str:
    how = f"with status {code}"
    if code is not None and code < 0:
        how = f"by {signal.Signals(-code).name}"
    return (
        f"The process of device {rank} ended {how} before its work was done. Lack of memory is the "
        "usual cause: give the machine more, or lower compute.workers or compute.devices. Run "
        "again to continue from the last checkpoint."
    )


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()  # one that waits for a device does not hear the request
        process.join()
