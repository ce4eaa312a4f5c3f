"""Files that are either whole or absent, and YAML that is read with suspicion."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError

R = TypeVar("R", bound=BaseModel)

PART, REMOVED, TAKEN = ".part-", ".removed-", ".taken-"
"""How the names begin of files that are being written, and of folders that are being removed or
filled. A kill leaves them; they are no content, and `sweep` removes them."""
_PARTS = re.compile(re.escape(PART) + "[0-9a-f]{12}")
_HALF_MADE = re.compile(f"({re.escape(REMOVED)}|{re.escape(TAKEN)})[a-z0-9_]{{8}}")
LOCK = ".lock"
"""The file in a run's folder by which other processes are kept out."""
MAX_YAML_BYTES = 256 * 1024
"""Far above what people write; the parser needs seconds for it."""
MAX_YAML_DEPTH = 32


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


def sweep(folder: Path, *, below: bool = False) -> None:
    """Remove from a folder what kills left there: files that nobody writes any more.

    Args:
        below: the folder is locked: also from all folders below it, but for those with a lock of
            their own, and half-made folders.
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
            if not name.startswith(".") and not Path(place, name, LOCK).exists()
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


def write_json(path: Path, value: Any) -> None:
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


def read_json(path: Path, way_out: str = "Remove it and run again.") -> Any:
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


def write_yaml(path: Path, value: Any) -> None:
    """Write `value` as `yaml_text`, whole or not at all.

    Raises:
        UserError: `read_yaml` would not take it back.
    """
    text = yaml_text(value)
    if (size := len(text.encode())) > MAX_YAML_BYTES:
        raise UserError(
            f"{path} would take {size:,} bytes, and YAML files of at most {MAX_YAML_BYTES:,} bytes "
            "are read. Shorten the tables of `values`."
        )
    write_text(path, text)


def yaml_text(value: Any) -> str:
    """`value` as YAML in the order given, its texts such that `expand` gives them back."""
    return yaml.dump(escape(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def escape(value: Any) -> Any:
    """What `expand` makes `value` of."""
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escape(item) for item in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


def expand(value: Any, place: str, problems: list[str]) -> Any:
    """Replace `${NAME}` and `$NAME` in every text below `value` by the environment variable.

    `$$` is a plain `$`. Keys stay as they are.

    Args:
        place: what `value` is, for messages.
        problems: gets a line for every `$` that cannot be replaced.
    """
    if isinstance(value, dict):
        return {k: expand(v, f"{place}.{k}".strip("."), problems) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(item, place, problems) for item in value]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if match[0] == "$$":
            return "$"
        if name and name in os.environ:
            return os.environ[name]
        what = f"environment variable {name} is not set" if name else "`$` names no variable"
        problems.append(
            f"  {place}: {what} (in {short(value)}). "
            f"{'Set it' if name else 'Write ${NAME}'}, or write $$ for a plain $."
        )
        return match[0]

    return re.sub(r"\$(?:\$|(\w+)|\{(\w+)\})?", replacement, value)


def short(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


_TAG = "tag:yaml.org,2002:"
_MISREAD = "!misread"
_WORDS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
"""What a word without quotes may be besides text, as YAML 1.2 has it; the first that fits."""
_TRUTH = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_RESOLVERS = {
    None: [
        *((_TAG + kind, re.compile(f"(?:{words})$")) for kind, words in _WORDS.items()),
        # What YAML 1.1, and with it PyYAML, reads as something else than it looks: octal 011,
        # 1_000, 0b1, 12:30 (sexagesimal), yes, 2024-01-05. 08 is text there, unlike 07.
        (_MISREAD, re.compile(r"[-+]?0o?[0-9]+$")),
        *(
            (_MISREAD, words)
            for pairs in yaml.SafeLoader.yaml_implicit_resolvers.values()
            for tag, words in pairs
            if tag.removeprefix(_TAG) in {"bool", "int", "float", "timestamp"}
        ),
    ]
}


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that `_Loader` would not read as text."""

    yaml_implicit_resolvers = _RESOLVERS


class _Loader(yaml.SafeLoader):
    """Texts, numbers, truth values, lists and mappings, each as it looks, and nothing else.

    PyYAML keeps the last of two equal keys without a word; here that is an error. Aliases are
    refused too: nothing we read needs them and they are what YAML bombs are made of.
    """

    yaml_implicit_resolvers = _RESOLVERS
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _error(f"alias *{event.anchor} is not supported", event)
        if self.depth == MAX_YAML_DEPTH:
            raise _error(f"nested deeper than {MAX_YAML_DEPTH} lists and mappings", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # a tag of the file says that it is one
            raise _error("a mapping was expected", node)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise _error(f"key {short(key)} is no text or number", key_node)
            if key in seen:
                raise _error(f"key {short(key)} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_word(self, node: yaml.ScalarNode) -> Any:
        """A word that a tag of the file may call something that it is not."""
        text, kind = self.construct_scalar(node), node.tag.removeprefix(_TAG)
        if len(text) > 100 or not re.fullmatch(_WORDS[kind], text):
            raise _error(f"{short(text)} cannot be read as {kind}", node)
        if kind == "int":
            return int(text, 16 if "x" in text else 10)
        if kind == "float":
            return float(re.sub(r"\.(?=[in])", "", text.lower()))  # Python writes inf and nan
        return None if kind == "null" else text.lower() == "true"

    def construct_misread(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):  # a tag of the file says that it is one
            return self.construct_foreign(node)
        text = node.value
        number = re.sub(r"^([-+]?)0+(?=[0-9])", r"\1", text.replace("_", ""))
        number = number if re.fullmatch(f"{_WORDS['int']}|{_WORDS['float']}", number) else ""
        plain = _TRUTH.get(text.lower(), number)
        raise _error(
            f"YAML 1.1 reads {short(text)} as something else than it looks; write "
            f"{plain and f'{plain}, or '}{short(text)} in quotes for text",
            node,
        )

    def construct_foreign(self, node: yaml.Node) -> Any:
        raise _error(
            f"tag {short(node.tag)} is not supported; write texts, numbers, lists and mappings",
            node,
        )

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        **dict.fromkeys((_TAG + kind for kind in _WORDS), construct_word),
        _TAG + "str": yaml.SafeLoader.construct_scalar,
        _TAG + "seq": yaml.SafeLoader.construct_yaml_seq,
        _TAG + "map": yaml.SafeLoader.construct_yaml_map,
        _MISREAD: construct_misread,
        None: construct_foreign,
    }


def _error(problem: str, place: Any) -> yaml.MarkedYAMLError:
    """What is wrong at a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of at most 256 KiB: plain values as they look, unique keys, no aliases.

    Raises:
        UserError: no such file, too large, not UTF-8, or not YAML; the message gives the line.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise UserError(f"No file {path}. Give the path of a YAML file.") from error
    except UserError:
        raise
    except (OSError, ValueError) as error:  # of a path that no file system can have, too
        raise UserError(f"{path} cannot be read: {error}. Give the path of a YAML file.") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_YAML_BYTES:
            raise UserError(
                f"{path} has {size:,} bytes; a YAML file of at most {MAX_YAML_BYTES:,} bytes was "
                "expected."
            )
        content = file.read()
    try:
        return parse_yaml(content.decode("utf-8"), str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as YAML: {error}") from error


def read_settings(path: Path, what: str, said: Collection[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, with environment variables in place.

    Args:
        what: is expected there, for messages.
        said: keys that are said elsewhere, and not wanted.

    Raises:
        UserError: as `read_yaml`; something else than a mapping; or a variable that is not set.
    """
    fields = read_yaml(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected {what}, found {short(fields)}")
    problems: list[str] = []
    wanted = {key: value for key, value in fields.items() if key not in said}
    expanded: dict[str, Any] = expand(wanted, "", problems)
    if problems:
        raise UserError("\n".join([f"{path}:", *problems]))
    return expanded


def parse_yaml(text: str, origin: str = "the text") -> Any:
    """Parse YAML `text` as `read_yaml` does; raises `yaml.YAMLError` and nothing else.

    Args:
        origin: where it comes from, for messages.
    """
    loader = _Loader(text)
    loader.name = origin
    try:
        return loader.get_single_data()
    except yaml.YAMLError:
        raise
    except (ValueError, OverflowError) as error:  # of an escape or directive with a huge number
        mark = loader.get_mark()
        raise yaml.MarkedYAMLError(problem=str(error), problem_mark=mark) from error
    finally:
        loader.dispose()


def remove_tree(path: Path) -> None:
    """Remove a folder so that a kill half way leaves no half-emptied folder at `path`."""
    if path.exists():
        doomed = Path(tempfile.mkdtemp(prefix=REMOVED, dir=path.parent))
        os.replace(path, doomed / path.name)
        shutil.rmtree(doomed)
