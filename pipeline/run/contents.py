"""Hashes of files' contents, computed once: data are the same when what is in their files is.

A run keeps what it knows in one file. A hash holds for as long as the size of its file and the
time of its last change stay.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from pydantic import RootModel

from pipeline.errors import UserError
from pipeline.files import open_regular, read_record, write_text
from pipeline.progress import each

STORE = ".contents.json"
_SETTLED = 2_000_000_000
"""Nanoseconds: what changed a shorter time ago could change once more without a trace, since the
clocks of file systems are coarse."""

Known = dict[str, tuple[int, int, str]]
"""Absolute path -> size, time of the last change in nanoseconds, sha256."""


class _Store(RootModel[Known]):
    pass


_STORES: dict[Path, Known] = {}
"""What the stores hold that this process has used."""
_SEEN: Known = {}
"""What this process has hashed, for whatever run."""


def hashes(paths: Sequence[Path], run: Path, title: str) -> list[str]:
    """The sha256 of each file's content, from what `run` knows wherever that still holds.

    Args:
        title: what is being looked at, for the bar that is shown meanwhile.

    Raises:
        UserError: a file that is not regular.
        OSError: a file that is gone or cannot be read.
    """
    store = run.absolute() / STORE
    if store not in _STORES:
        _STORES[store] = _read(store)
    known = _STORES[store]
    absolute = [str(path.absolute()) for path in paths]
    missing, news = [], False
    for path in dict.fromkeys(absolute):
        found = os.stat(path)
        for memory in (known, _SEEN):
            if path in memory and memory[path][:2] == (found.st_size, found.st_mtime_ns):
                news |= memory is _SEEN
                known[path] = memory[path]
                break
        else:
            missing.append(path)
    if missing:
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            looks = each(pool.map(_look, missing), title, len(missing), unit="files")
            fresh = dict(zip(missing, looks, strict=True))
        _SEEN.update(fresh)
        known.update(fresh)
    if missing or news:
        _write(store, known)
    return [known[path][2] for path in absolute]


def _read(store: Path) -> Known:
    with suppress(UserError, OSError):  # none, or a damaged one: it is made anew
        return read_record(store, _Store, "").root
    return {}


def _write(store: Path, known: Known) -> None:
    settled = time.time_ns() - _SETTLED
    kept = {path: entry for path, entry in known.items() if entry[1] < settled}
    with suppress(OSError):  # a run that may only be read
        write_text(store, json.dumps(kept))


def sha256(path: Path) -> str:
    """The sha256 of a file's content as it is now."""
    return _look(str(path))[2]


def _look(path: str) -> tuple[int, int, str]:
    with open_regular(Path(path)) as file:
        found = os.fstat(file.fileno())
        return found.st_size, found.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()
