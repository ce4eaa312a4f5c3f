"""Locks on storage that several machines share: a stage is worked on by one process at a time.

A lock is a file `.locks/NAME.N` that its holder touches every few seconds. Who finds a lock waits
until it is gone, or until its holder is dead: on the same machine when the process has ended, on
another one when the file has not changed for `EXPIRES` seconds of the waiting process's own clock,
so that clocks may differ. Who takes over creates the file of the next number, which only one
process can do.
"""

import os
import random
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError
from pipeline.runtime.cost import WORKER

FOLDER = ".locks"
BEAT = 10.0
"""Seconds between two signs of life."""
EXPIRES = 120.0
"""Seconds without a sign of life after which a process of another machine counts as dead."""
_LOOK = 0.5
"""Seconds between two looks at a lock that another one holds."""
_Seen = dict[Path, tuple[int, float]]
"""File of a lock -> the time of its last sign of life, and when that was seen first."""


class Holder(BaseModel):
    """Who holds a lock: the content of its file."""

    host: str = "a machine that has not said its name"
    pid: int = 0
    worker: str | None = None
    machine: str | None = None
    """Tells the running systems and containers of equally named machines apart."""
    start: str | None = None
    """When the process started, by its machine's own count: numbers of processes are used again."""
    token: str = ""
    """Tells this time from all others that the same process holds a lock."""

    def __str__(self) -> str:
        return f"{self.worker or 'a process'} (process {self.pid} on {self.host})"

    def has_ended(self) -> bool:
        """Whether it was a process of this machine, and is no more."""
        here = self.machine is not None and self.machine == _machine()
        return here and self.start != _start(self.pid)


@contextmanager
def lock(folder: Path, name: str, *, wait: bool = True) -> Iterator[None]:
    """Keep other processes out of a part of a folder for as long as the block lasts.

    A process that was silent for so long that another one took its lock over ends at once.

    Args:
        wait: for a living holder to finish, which is said once.

    Raises:
        UserError: without `wait`, somebody else holds it.
        OSError: the folder cannot be written.
    """
    path, own = _acquire(folder / FOLDER, name, wait)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, own, over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        if _read(path) == own:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # others hold locks there
            path.parent.rmdir()


def wait_until_free(folder: Path, name: str) -> None:
    """Wait until no living process holds a lock."""
    seen: _Seen = {}
    while _look(folder / FOLDER, _key(name), seen)[0] is not None:
        time.sleep(_LOOK)


def holders(folder: Path) -> dict[str, Holder]:
    """Name of each lock in a folder -> its holder, for as far as this machine knows a living one.

    Of another machine's holder it is not known whether it has died a short time ago.
    """
    found = {}
    for path in sorted(_files(folder / FOLDER)):
        holder = _read(path)
        if holder is not None and not holder.has_ended():
            found[path.stem.replace("+", "/")] = holder
    return found


def _key(name: str) -> str:
    return name.replace("/", "+")


def _acquire(place: Path, name: str, wait: bool) -> tuple[Path, Holder]:
    """Create the file of the lock."""
    key = _key(name)
    own = Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        worker=os.environ.get(WORKER) or None,
        machine=_machine(),
        start=_start(os.getpid()),
        token=secrets.token_hex(8),
    )
    seen: _Seen = {}
    told = False
    while True:
        alive, dead = _look(place, key, seen)
        if alive is None:
            numbers = [int(path.suffix[1:]) for path in dead]
            path = place / f"{key}.{max(numbers, default=0) + 1}"
            # Another one was faster, or has just removed the folder as the last to leave.
            with suppress(FileExistsError, FileNotFoundError):
                place.mkdir(parents=True, exist_ok=True)
                with path.open("x") as file:
                    file.write(own.model_dump_json())
                # Another one may have done the same since, by what is no longer true here.
                others = set(_files(place, key)) - {path}
                if all(_read(p) in (None, dead.get(p)) for p in others):
                    for old in dead:
                        old.unlink(missing_ok=True)
                    return path, own
                path.unlink(missing_ok=True)
            time.sleep(random.uniform(0, 0.1))
            continue
        if not wait:
            raise UserError(f"{name} is being worked on by {alive}. Wait for it, or end it first.")
        if not told:
            print(f"{name} is being worked on by {alive}; waiting", file=sys.stderr, flush=True)
            told = True
        time.sleep(_LOOK)


def _look(place: Path, key: str, seen: _Seen) -> tuple[Holder | None, dict[Path, Holder | None]]:
    """Who holds a lock and lives, and the files of those that are dead."""
    dead: dict[Path, Holder | None] = {}
    alive = None
    for path in _files(place, key):
        holder = _read(path)
        if holder is None or _is_dead(path, holder, seen):
            dead[path] = holder
        else:
            alive = holder
    return alive, dead


def _files(place: Path, key: str | None = None) -> list[Path]:
    """The files of one lock, or of all."""
    with suppress(FileNotFoundError):
        paths = [place / name for name in os.listdir(place)]
        return [path for path in paths if key in (None, path.stem)]
    return []


def _read(path: Path) -> Holder | None:
    """Who holds a lock; None: it is gone."""
    try:
        return Holder.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:  # it is being written, or its writer was killed
        return Holder()


def _is_dead(path: Path, holder: Holder, seen: _Seen) -> bool:
    """Whether a holder has ended, or has shown no sign of life since it was `seen` first."""
    if holder.has_ended():
        return True
    with suppress(FileNotFoundError):
        beat, now = path.stat().st_mtime_ns, time.monotonic()
        before, since = seen.setdefault(path, (beat, now))
        if beat != before:
            seen[path] = beat, now
            return False
        here = holder.machine is not None and holder.machine == _machine()
        return not here and now - since > EXPIRES
    return True


def _beat(path: Path, own: Holder, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with suppress(OSError):  # the storage does not answer: once more
            if _read(path) == own:
                os.utime(path)
                continue
            print(
                f"Error: {path} is another's, or gone: this process was silent for so long that "
                "another one took its work over, or the folder was removed. It ends here.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)


def _machine() -> str | None:
    """This running system, and the processes that can be seen here; None where it is not told."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def _start(pid: int) -> str | None:
    """When a process of this machine started; None: there is none, or it is not told."""
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    return None
