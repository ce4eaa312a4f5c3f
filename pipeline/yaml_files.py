"""YAML that is read with suspicion: plain values as they look, unique keys, no aliases."""

import os
import re
from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from pipeline.errors import UserError, short
from pipeline.files import open_regular, write_text

SUFFIXES = (".yaml", ".yml")
MAX_YAML_BYTES = 256 * 1024
"""Far above what people write; the parser needs seconds for it."""
MAX_YAML_DEPTH = 32


def write_yaml(path: Path, value: object) -> None:
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


def yaml_text(value: object) -> str:
    """`value` as YAML in the order given, its texts such that `expand` gives them back."""
    return yaml.dump(escape(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def escape(value: object) -> object:
    """What `expand` makes `value` of."""
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escape(item) for item in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


def expand(value: object, place: str, problems: list[str]) -> object:
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

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _error(f"alias *{event.anchor} is not supported", event)
        if self.depth == MAX_YAML_DEPTH:
            raise _error(f"nested deeper than {MAX_YAML_DEPTH} lists and mappings", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
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

    def construct_word(self, node: yaml.ScalarNode) -> int | float | bool | None:
        """A word that a tag of the file may call something that it is not."""
        text, kind = self.construct_scalar(node), node.tag.removeprefix(_TAG)
        if len(text) > 100 or not re.fullmatch(_WORDS[kind], text):
            raise _error(f"{short(text)} cannot be read as {kind}", node)
        if kind == "int":
            return int(text, 16 if "x" in text else 10)
        if kind == "float":
            return float(re.sub(r"\.(?=[in])", "", text.lower()))  # Python writes inf and nan
        return None if kind == "null" else text.lower() == "true"

    def construct_misread(self, node: yaml.Node) -> NoReturn:
        if not isinstance(node, yaml.ScalarNode):  # a tag of the file says that it is one
            self.construct_foreign(node)
        text = node.value
        number = re.sub(r"^([-+]?)0+(?=[0-9])", r"\1", text.replace("_", ""))
        number = number if re.fullmatch(f"{_WORDS['int']}|{_WORDS['float']}", number) else ""
        plain = _TRUTH.get(text.lower(), number)
        raise _error(
            f"YAML 1.1 reads {short(text)} as something else than it looks; write "
            f"{plain and f'{plain}, or '}{short(text)} in quotes for text",
            node,
        )

    def construct_foreign(self, node: yaml.Node) -> NoReturn:
        raise _error(
            f"tag {short(node.tag)} is not supported; write texts, numbers, lists and mappings",
            node,
        )

    yaml_constructors: ClassVar[dict[str | None, object]] = {
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


def line_of(path: Path, *keys: str) -> int | None:
    """The line (from 1) in which the value below `keys` begins to be said, where it is said."""
    node: yaml.Node | None = yaml.compose(path.read_text(encoding="utf-8"), _Loader)
    line = None
    for key in keys:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(name, value) for name, value in entries if name.value == key]
        if not found:
            return None
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line


def read_yaml(path: Path) -> object:
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


def read_settings(path: Path, what: str, given: Collection[str] = ()) -> dict[str, object]:
    """The mapping in a YAML file, with environment variables in place.

    Args:
        what: is expected there, for messages.
        given: keys that are given elsewhere, and left out.

    Raises:
        UserError: as `read_yaml`; something else than a mapping; or a variable that is not set.
    """
    fields = read_yaml(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected {what}, found {short(fields)}")
    problems: list[str] = []
    expanded = {k: expand(v, str(k), problems) for k, v in fields.items() if k not in given}
    if problems:
        raise UserError("\n".join([f"{path}:", *problems]))
    return expanded


def parse_yaml(text: str, origin: str = "the text") -> object:
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
