"""Files that are either whole or absent."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError

R = TypeVar("R", bound=BaseModel)

PART, REMOVED, TAKEN = ".part-", ".removed-", ".taken-"
"""How the names begin of files that are being written, and of folders that are being removed or
filled. A kill leaves them; they are no content, and `sweep` removes them."""

_PARTS = re.compile(re.escape(PART) + "[0-9a-f]{12}")

_HALF_MADE = re.compile(f"({re.escape(REMOVED)}|{re.escape(TAKEN)})[a-z0-9_]{{8}}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it into place when the block succeeds.

    Readers see the old file or the new one, never a part. On any error the temporary file is
    removed and `path` is left as it was.

    Raises:
        OSError: with the name of `path`, also where a library says no more than that it failed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = _new_part(path)
    try:
        with naming(path):
            try:
                yield part
            except (RuntimeError, OSError) as error:
                if getattr(error, "errno", None) is None:
                    _ask_for_room(handle)
                raise
            os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _new_part(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, held by a lock that ends with the process, for `sweep` to see."""
    while True:
        # The suffix is kept because image writers choose the format by it.
        part = path.with_name(f"{PART}{secrets.token_hex(6)}{path.suffix}")
        with naming(path):
            handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if part.exists():  # or it was swept before it was locked
            return handle, part
        os.close(handle)


def _ask_for_room(handle: int) -> None:
    """Raise the `OSError` of a full disk, if it is full: torch and OpenCV keep it to themselves."""
    try:
        os.posix_fallocate(handle, os.fstat(handle).st_size, 1 << 24)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an `OSError` that names no file the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def sweep(folder: Path, *, below: bool = False, but: Sequence[str] = ()) -> None:
    """Remove from a folder what kills left there: files that nobody writes any more.

    Args:
        below: the folder is locked: also from all folders below it, and half-made folders.
        but: not from folders below it in which there is a file or folder of one of these names.
    """
    for place, folders, files in os.walk(folder):
        for name in files:
            if _PARTS.match(name):
                _remove_abandoned(Path(place, name))
        if not below:
            return
        for name in folders:
            if _HALF_MADE.fullmatch(name):
                shutil.rmtree(Path(place, name), ignore_errors=True)
        folders[:] = [
            name
            for name in folders
            if not (name.startswith(".") or any(Path(place, name, own).exists() for own in but))
        ]


def _remove_abandoned(part: Path) -> None:
    with suppress(OSError), part.open("r+b") as file:  # NFS locks only what may be written
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()


def open_regular(path: Path) -> BufferedReader:
    """Open a file that others made for reading; never waits for a pipe or reads a device.

    Raises:
        UserError: `path` is a folder, pipe, device or socket, or a link to one.
        FileNotFoundError, PermissionError: as of any file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:  # what a socket answers
            raise
        handle = -1
    if handle < 0 or not stat.S_ISREG(os.fstat(handle).st_mode):
        if handle >= 0:
            os.close(handle)
        raise UserError(
            f"{path} is no regular file (a folder, pipe, device or socket). Remove it, or give the "
            "path of a file."
        )
    return os.fdopen(handle, "rb")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def explain_damage(path: Path, way_out: str) -> Iterator[None]:
    """Turn whatever reading a damaged file, or using its content, raises into one `UserError`.

    Args:
        way_out: what to do about it, a sentence.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a parser, or what its result is used for, may raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:300] or "it ends too early"
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise UserError(
            f"{path} is damaged, or something else than expected ({kind}{reason}). {way_out}"
        ) from error


def read_json(path: Path, way_out: str = "Remove it and run again.") -> object:
    """Read a JSON file this program wrote; `UserError` when it is damaged."""
    with explain_damage(path, way_out), open_regular(path) as file:
        return json.loads(file.read())


def read_record(path: Path, kind: type[R], way_out: str) -> R:
    """Read a JSON file of a known form that this program wrote; `UserError` when it is damaged."""
    with explain_damage(path, way_out), open_regular(path) as file:
        try:
            return kind.model_validate_json(file.read())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}".removeprefix(": ")) from error


def stats(folder: Path, pattern: str) -> dict[Path, os.stat_result]:
    """What of a folder matches a glob pattern, and its state; others may remove it meanwhile."""
    found = {}
    with suppress(FileNotFoundError):
        for path in folder.glob(pattern):
            with suppress(FileNotFoundError):
                found[path] = path.stat()
    return found


def remove_tree(path: Path) -> None:
    """Remove a folder so that a kill half way leaves no half-emptied folder at `path`."""
    if path.exists():
        doomed = Path(tempfile.mkdtemp(prefix=REMOVED, dir=path.parent))
        os.replace(path, doomed / path.name)
        shutil.rmtree(doomed)
