"""Several processes that train one network together, each on a device of its own.

Every process runs the same code and holds the same networks. They differ in their share of each
batch, and in that the first alone writes files.

Under torchrun each of its processes starts one that trains and watches over it: one that waits for
the others' gradients hears nothing else. The first of torchrun's processes does the command and
says which work is next; the others find out themselves what that is. What they tell each other is
in torchrun's store, as JSON, so that nothing that somebody writes there is unpickled by us.
"""

import itertools
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]
    FileStore,
    PrefixStore,
    Store,
    TCPStore,
)

from pipeline.config.settings import ComputeConfig
from pipeline.errors import UserError
from pipeline.runtime.device import accelerator, check_devices
from pipeline.runtime.launch import end_with_parent, torchrun

START = "spawn"
"""How processes begin; CUDA does not survive a fork."""
_PATIENCE = 3.0
"""Seconds between a broken connection and the news of who died, and between asking a process to end
and ending it."""
_TICK = 0.05
"""Seconds between two looks at what the processes have to say."""
# Who started the processes sees a death at once. A first process that fills a cache may keep the
# others waiting for hours.
_TIMEOUT = timedelta(days=1)
_ANSWER = timedelta(seconds=20)
"""How long torchrun's store may take to answer; torch alone tries for minutes when that is gone."""

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
    device: int = 0
    """Which GPU of its machine is its own."""

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


def run_team(
    compute: ComputeConfig,
    work: Callable[..., None],
    *arguments: object,
    task: Sequence[str] = (),
) -> None:
    """Call `work(*arguments, team)` on `compute.processes` devices at once, a process for each.

    One device needs no further process. More get arguments that can be pickled. When one process
    fails or dies, or this one is interrupted or killed, all end.

    Args:
        task: what torchrun's other processes find this call by: `follow` hands it to the function
            that makes the same call there.

    Raises:
        UserError: there are not so many devices; `work` raised it in a process; a process died.
    """
    check_devices(compute)
    size = compute.processes
    if size == 1:
        work(*arguments, ALONE)
    elif torchrun():
        job = _Job(compute, _backend(compute), work, arguments)
        if _place().leads:
            _lead(job, task, size)
        else:
            _take_part(job)
    else:
        with tempfile.TemporaryDirectory(prefix="sim2real-") as folder:
            job = _Job(compute, _backend(compute), work, arguments)
            store = partial(FileStore, str(Path(folder) / "store"), size)
            teams = [Team(rank, size, rank) for rank in range(size)]
            with _members(teams, job, store) as looks:
                _wait(looks)


@dataclass(frozen=True)
class _Job:
    """What every process of a team gets to do."""

    compute: ComputeConfig
    backend: str
    """That of the first process."""
    work: Callable[..., None]
    arguments: tuple[object, ...]


_Look = Callable[[], list[Any]]
"""Returns nothing while a process works; then what it reports: None, an error of the user's, or a
traceback."""


def _backend(compute: ComputeConfig) -> str:
    return "nccl" if accelerator(compute) == "cuda" else "gloo"


@contextmanager
def _members(teams: Sequence[Team], job: _Job, store: Callable[[], Store]) -> Iterator[list[_Look]]:
    """Processes that do a job, for as long as the block lasts.

    Args:
        store: opens what they find each other by.
    """
    context: Any = get_context(START)
    processes: list[BaseProcess] = []
    looks: list[_Look] = []
    try:
        for team in teams:
            reports, reporting = context.Pipe(duplex=False)
            process = context.Process(target=_member, args=(team, job, store, reporting))
            with _no_interrupt():
                process.start()
                processes.append(process)
            looks.append(partial(_look, team.rank, process, reports))
            reporting.close()
        yield looks
    finally:
        _end(processes)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes started in the block never see Ctrl-C: who started them does, and ends them."""
    resource_tracker.ensure_running()  # as a side effect, its start lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _member(team: Team, job: _Job, store: Callable[[], Store], reporting: Connection) -> None:
    """One process of a team: reports None when done, an error of the user's, or a traceback."""
    # Not the default, so that bars and logs are closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    end_with_parent()
    try:
        _join(team, job, store)
        job.work(*job.arguments, team)
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


def _join(team: Team, job: _Job, store: Callable[[], Store]) -> None:
    """Meet the other processes of the team."""
    launch = torchrun()
    check_devices(job.compute)
    if (backend := _backend(job.compute)) != job.backend:
        raise UserError(
            f"Process 0 works with {job.backend}, and process {team.rank} finds devices for "
            f"{backend} (nccl is for GPUs, gloo for CPUs). Set compute.accelerator to cpu, or see "
            "that torch finds the GPUs of every machine."
        )
    # torchrun has told each process how many threads are its own.
    sharing = team.size if launch is None else 1
    torch.set_num_threads(max(1, torch.get_num_threads() // sharing))
    device = None
    if backend == "nccl":
        device = torch.device("cuda", team.device)
        torch.cuda.set_device(device)
    elif sys.platform == "linux" and (launch is None or launch.local_size == launch.size):
        # Gloo would take the address of the machine's name, which may have none.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = store()
    meeting.set_timeout(_TIMEOUT)
    dist.init_process_group(
        backend,
        store=meeting,
        rank=team.rank,
        world_size=team.size,
        timeout=_TIMEOUT,
        device_id=device,
    )


def _look(rank: int, process: BaseProcess, reports: Connection) -> list[Any]:
    """What a process of this one's reports; that it died, where it does not."""
    ended = process.exitcode is not None  # before the look at what it may have said
    try:
        if reports.poll():
            return [reports.recv()]
        if not ended:
            return []
    except EOFError:
        process.join(_PATIENCE)
    # Its reading processes may outlive it and keep the connection open.
    return [UserError(_died(rank, process.exitcode))]


def _wait(looks: Sequence[_Look]) -> None:
    """Return when all are done; raise what one reports."""
    working = dict(enumerate(looks))
    unexpected, since = "", 0.0
    while working:
        time.sleep(_TICK)
        for rank, look in list(working.items()):
            for report in look():
                del working[rank]
                if isinstance(report, Exception):
                    raise report
                if report is not None and not unexpected:
                    unexpected, since = report, time.monotonic()
        # A connection breaks when another process dies, and that is the better news.
        if unexpected and (not working or time.monotonic() > since + _PATIENCE):
            raise RuntimeError(f"in a process of {len(looks)}:\n{unexpected}")


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


# Under torchrun. Its store holds, for the n-th work, `work-n/job`, a report of each process in
# `work-n/RANK` and, when nobody needs to go on, `work-n/end`; at the end of the command its status
# in `over`.

_works = itertools.count()


def _store(*part: str) -> Store:
    """A part of the store that torchrun keeps for the processes that it started."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # Processes that torchrun starts anew find the same store.
    place = "/".join([os.environ["TORCHELASTIC_RESTART_COUNT"], *part])
    return PrefixStore(place, TCPStore(address, port, wait_for_workers=False, timeout=_ANSWER))


def _lead(job: _Job, task: Sequence[str], size: int) -> None:
    """Have all processes of torchrun do `task`, this one its part."""
    name = f"work-{next(_works)}"

    def look(rank: int) -> list[Any]:
        key = str(rank)
        return [_read_report(store.get(key))] if store.check([key]) else []

    with _connection_lost():
        store = _store(name)
        store.set("job", json.dumps({"task": list(task), "backend": job.backend}))
        try:
            with _members([_place()], job, partial(_store, name, "group")) as looks:
                _wait([*looks, *(partial(look, rank) for rank in range(1, size))])
        finally:
            store.set("end", "")


def _write_report(report: Any) -> str:
    """What a process reports (see `_Look`) as JSON."""
    if isinstance(report, Exception):
        return json.dumps({"mistake": str(report)})
    return json.dumps(report)


def _read_report(text: bytes) -> Any:
    report = json.loads(text)
    return UserError(report["mistake"]) if isinstance(report, dict) else report


@contextmanager
def _connection_lost() -> Iterator[None]:
    try:
        yield
    except dist.DistError as error:
        raise UserError(
            f"torchrun's store does not answer ({error}). Run again to continue from the last "
            "checkpoint."
        ) from error


def _place() -> Team:
    """This process's place among those of torchrun."""
    launch = torchrun()
    assert launch is not None
    return Team(launch.rank, launch.size, launch.local_rank)


@contextmanager
def leading() -> Iterator[None]:
    """The first process of torchrun's does the command in this block; then the others end, too."""
    status: Any = 1
    try:
        yield
        status = 0
    except SystemExit as end:
        status = end.code or 0
        raise
    finally:
        say_over(status)


def say_over(status: int) -> None:
    """Let the other processes of torchrun end."""
    with suppress(dist.DistError):
        _store().set("over", str(status))


def follow(perform: Callable[[list[str]], None]) -> NoReturn:
    """Be one of torchrun's processes after the first: work when it says so, end when it ends.

    Says nothing: the first process does.

    Args:
        perform: makes the call of `run_team` that a `task` stands for.
    """

    def end(status: int) -> NoReturn:
        # A further request must not break off the end: processes would be left, or a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        sys.exit(status)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: end(128 + number))
    try:
        store = _store()
        for name in (f"work-{number}" for number in itertools.count()):
            while not store.check([f"{name}/job"]):
                if store.check(["over"]):
                    status = int(store.get("over"))
                    # torchrun calls the process that ends first the cause, and that is another.
                    time.sleep(_PATIENCE if status else 0)
                    end(status)
                time.sleep(_TICK)
            try:
                perform(json.loads(store.get(f"{name}/job"))["task"])
            except (UserError, OSError) as error:
                store.set(f"{name}/{_place().rank}", _write_report(error))
    except dist.DistError:  # torchrun ended
        pass
    end(1)


def _take_part(job: _Job) -> None:
    """Do this process's part of a work until the first process says that it is over."""
    name = f"work-{next(_works)}"
    store, team = _store(name), _place()
    job = replace(job, backend=json.loads(store.get("job"))["backend"])
    reported: list[Any] = []
    since = 0.0
    with _members([team], job, partial(_store, name, "group")) as (look,):
        while not store.check(["end"]):
            if not reported and (reported := look()):
                store.set(str(team.rank), _write_report(reported[0]))
                since = time.monotonic()
            if reported and reported[0] is not None and time.monotonic() > since + 10 * _PATIENCE:
                sys.exit(1)  # the first process was killed, and its machine's torchrun with it
            time.sleep(_TICK)
