"""Starting the ranks of a training with torchrun, and what torchrun tells each rank.

`run_ranks` starts one child process, this module as a program. It runs `torch.distributed.run` and
reports the first failure. The child ends when its parent has ended, also by a kill: it reads a pipe
that then closes. Ranks end when the process that started them has (`end_with_parent`).
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import NoReturn

from pipeline.errors import UserError

_ROOT = Path(__file__).parents[2]
_SHUTDOWN_SECONDS = 10
"""How long a rank may take to end when it is asked to, before it is killed."""


@dataclass(frozen=True)
class Launch:
    """One of the processes that torchrun started with the same command."""

    rank: int
    """This process's number, from 0."""
    world_size: int
    """How many there are, on all machines."""
    local_rank: int
    """This process's number on its machine, from 0: which GPU is its own."""
    local_world_size: int
    """How many there are on its machine."""


def torchrun() -> Launch | None:
    """How torchrun started this process; None when something else did."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Launch(*(int(os.environ[name]) for name in names))


def end_with_parent(*_: object) -> None:
    """Let this process end when the process that started it has ended, also by a kill."""

    def wait() -> None:
        if parent := parent_process():  # started by multiprocessing, perhaps through a fork server
            connection.wait([parent.sentinel])
        else:
            started_by = os.getppid()
            while os.getppid() == started_by:
                time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclass(frozen=True)
class _Failure:
    """The first failure among the ranks of a launch."""

    rank: int
    status: int
    """Of the process; the negative number of the signal that ended it."""
    message: str | None
    """Name and text of the exception; None where the process ended without one."""
    traceback: str = ""


def run_ranks(module: str, arguments: Sequence[str | Path], processes: int) -> None:
    """Run `python -m MODULE ARGUMENTS` under torchrun, as ranks of one machine, until all end.

    Ctrl-C and SIGTERM reach this process alone, which then ends them.

    Raises:
        UserError: a rank raised it, or was killed.
        RuntimeError: a rank raised something else; has its traceback.
    """
    reading, writing = os.pipe()
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)) // processes
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (
        open(reading) as results,
        subprocess.Popen(
            # -P: nothing is imported from the working folder, which may be anyone's.
            [sys.executable, "-P", "-m", __name__, str(writing), str(processes), module]
            + [str(argument) for argument in arguments],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONSAFEPATH": "1",
                "OMP_NUM_THREADS": str(max(1, threads)),
                "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SHUTDOWN_SECONDS),
            },
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            start_new_session=True,
        ) as launcher,
    ):
        os.close(writing)
        try:
            text = results.read()  # until the launcher ends
        finally:
            assert launcher.stdin is not None
            launcher.stdin.close()  # which asks it to end, after Ctrl-C or SIGTERM here
            launcher.wait()
    if not text:
        raise UserError(_died("torchrun", launcher.returncode))
    if failure := json.loads(text):
        _raise(_Failure(**failure), processes)


def as_rank(work: Callable[[], None]) -> None:
    """Do the work of a process that `run_ranks` started, and leave for torchrun how it failed."""
    from torch.distributed.elastic.multiprocessing.errors import record

    # Not the default, so that bars and logs are closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        record(work)()
    except SystemExit as end:
        leave(end.code)
    except Exception:
        leave(1)


def leave(code: int | str | None) -> NoReturn:
    """End a rank that failed at once, with the `code` of a `SystemExit`.

    Python would first free what is left, also the process group, whose threads then ask for an
    interpreter that is gone, and abort the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def _raise(failure: _Failure, processes: int) -> None:
    if failure.message is None:
        raise UserError(_died(f"rank {failure.rank}", failure.status))
    mistake = failure.message.removeprefix(f"{UserError.__name__}: ")
    if mistake == failure.message:
        raise RuntimeError(f"rank {failure.rank} of {processes}:\n{failure.traceback}")
    error = UserError(mistake)
    error.add_note(failure.traceback)  # for --debug
    raise error


def _died(who: str, status: int) -> str:
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    return (
        f"The process of {who} ended {how} before its work was done. Lack of memory is the usual "
        "cause: give the machine more, or lower compute.workers or compute.devices. Run again to "
        "continue from the last checkpoint."
    )


def _launch(processes: str, command: list[str], folder: str) -> _Failure | None:
    """Run torchrun in this process; `folder` is for its files."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    launch = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", processes]
    files = ["--max-restarts", "0", "--log-dir", folder]
    try:
        run(parse_args([*launch, *files, "-m", *command]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if isinstance(first.message, str):  # torch's own words: there is no error file
            return _Failure(rank, first.exitcode, None)
        recorded = first.message
        trace = recorded["extraInfo"]["py_callstack"]
        return _Failure(rank, first.exitcode, recorded["message"], trace)
    return None


def _end_with_stdin() -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """`python -m pipeline.runtime.launch FILE_DESCRIPTOR PROCESSES MODULE [ARGUMENT...]`."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    descriptor, processes, *command = sys.argv[1:]
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    logging.disable()  # the parent says what failed
    try:
        with tempfile.TemporaryDirectory(prefix="sim2real-") as folder:
            failure = _launch(processes, command, folder)
    except SignalException as end:
        sys.exit(128 + end.sigval)
    os.write(int(descriptor), json.dumps(failure and asdict(failure)).encode())
    os._exit(0)  # at once: the parent closes its pipe now, too, which asks this process to end


if __name__ == "__main__":
    main()
