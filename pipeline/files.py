"""Files that are either whole or absent, and YAML that is read with suspicion."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from pipeline.errors import UserError

PART_PREFIX = ".part-"
"""How the names of files begin that are being written."""
MAX_YAML_BYTES = 4 * 1024 * 1024


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it into place when the block succeeds.

    Readers see the old file or the new one, never a part. On any error the temporary file is
    removed and `path` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept because image writers choose the format by it.
    handle, name = tempfile.mkstemp(prefix=PART_PREFIX, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def open_regular(path: Path) -> BinaryIO:
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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file this program wrote; `UserError` when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}). Remove it and run again.") from error


def write_yaml(path: Path, value: Any) -> None:
    """Write `value` as YAML in the order given, whole or not at all."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error.

    Aliases are refused too: nothing we read needs them and they are what YAML bombs are made of.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"alias *{event.anchor} is not supported", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is no text or number", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of at most 4 MiB with unique keys and no aliases.

    Raises:
        UserError: no such file, too large, not UTF-8, or not YAML; the message gives the line.
    """
    if not path.is_file():
        raise UserError(f"No file {path}. Give the path of a YAML file.")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes; a YAML file of at most "
            f"{MAX_YAML_BYTES:,} bytes was expected."
        )
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not readable as YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """Parse YAML `text` with unique keys and no aliases; raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a subclass of SafeLoader


def remove_tree(path: Path) -> None:
    """Remove a folder so that a kill half way leaves no half-emptied folder at `path`."""
    if path.exists():
        doomed = Path(tempfile.mkdtemp(prefix=".removed-", dir=path.parent))
        os.replace(path, doomed / path.name)
        shutil.rmtree(doomed)
