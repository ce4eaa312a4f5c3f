"""What all our YAML models share: frozen, no unknown keys, every error shown at once."""

import difflib
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from pipeline.errors import UserError, short

LARGEST = 2**31 - 1
"""What whole numbers are at most: libraries below us count in 32 bits."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
"""Control characters, and what is no character: not every file, table or page can hold them."""
Side = Annotated[int, Field(ge=16, le=65_535)]
"""Width or height in pixels."""


class Schema(BaseModel):
    """A frozen value read from YAML; unknown keys are errors, field docstrings describe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_used(cls, value: object) -> object:
        _check(value)
        return value


def _check(value: object) -> None:
    """Raise `ValueError` unless files and libraries can hold every text and number in `value`."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"key {key!r} is no text; write it in quotes")
            _check(key)
            _check(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)
    elif isinstance(value, str | Path):
        if control := CONTROL.search(str(value)):
            raise ValueError(
                f"character {control[0]!a} in {short(str(value))}; write printable text on one line"
            )
    elif isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError(f"a whole number must be at most {LARGEST}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")


@dataclass(frozen=True)
class Located:
    """Marks a path that is relative to the file that says it: `Annotated[Path, Located()]`.

    `suffixes` are for texts that may be a name or a file, `Annotated[str, Located((".yaml",))]`:
    only what ends in one of them is a path. `:NAME` behind it, a function in the file, is no part
    of the ending.
    """

    suffixes: tuple[str, ...] = ()

    def names_file(self, text: str) -> bool:
        """Whether the text is a path."""
        return not self.suffixes or re.sub(r":\w+$", "", text).endswith(self.suffixes)


def located(model: type[BaseModel], fields: dict[str, object], base: Path) -> dict[str, object]:
    """Raw fields of `model`, as YAML gives them, with every path that is `Located` absolute.

    Models, mappings and lists inside are walked, too. What is no field, or not what its field
    expects, stays for `parse` to refuse.

    Args:
        base: the folder that relative paths start from.
    """
    known = model.model_fields
    return {
        key: _located(Annotated[known[key].annotation, None, *known[key].metadata], value, base)
        if key in known
        else value
        for key, value in fields.items()
    }


def _located(annotation: object, value: object, base: Path) -> object:
    """A raw value of the type `annotation`, its paths absolute."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        marks = [mark for mark in inner[1:] if isinstance(mark, Located)]
        if isinstance(value, str) and any(mark.names_file(value) for mark in marks):
            return str(base.absolute() / value)
        return _located(inner[0], value, base)
    if origin in (Union, UnionType):
        for branch in inner:
            value = _located(branch, value, base)
        return value
    if isinstance(value, dict):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return located(annotation, value, base)
        if origin is dict:
            return {key: _located(inner[1], item, base) for key, item in value.items()}
    elif isinstance(value, list) and origin in (list, tuple):
        return [_located(inner[0], item, base) for item in value]
    return value


S = TypeVar("S", bound=Schema)
FORM = "form:"
"""How the tag of a legal form begins that `Discriminator` chooses by what is written."""
_FORM = re.compile(rf"(dict|literal)\[|{FORM}")
"""What pydantic adds to the place of an error to say which of several legal forms it means."""


def parse(model: type[S], data: object, origin: str) -> S:
    """Validate `data` as `model`.

    Args:
        origin: where the data came from, for the message (a file name).

    Raises:
        UserError: names every wrong field at once, with its value and what was expected.
    """
    if not isinstance(data, dict):
        raise UserError(
            f"{origin}: expected a mapping of settings, found {type(data).__name__}. "
            f"Keys: {', '.join(model.model_fields)}."
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(model, detail) for detail in error.errors()]
        count = f"{len(lines)} error{'s' if len(lines) > 1 else ''}"
        raise UserError("\n".join([f"{origin}: {count}", *lines])) from error


def parse_record(model: type[S], data: object, origin: str) -> S:
    """Validate what an earlier version recorded; settings that are no more are named and ignored.

    Args:
        origin: where the data came from, for messages.

    Raises:
        UserError: as `parse`.
    """
    dropped: list[str] = []
    known = _known(model, data, "", dropped) if isinstance(data, dict) else data
    if dropped:
        print(
            f"{origin}: settings of another version are ignored: {', '.join(dropped)}",
            file=sys.stderr,
            flush=True,
        )
    return parse(model, known, origin)


def _known(
    model: type[BaseModel], fields: dict[str, object], place: str, dropped: list[str]
) -> dict[str, object]:
    """The fields that a model has, also in the models inside it; `dropped` gets the others."""
    known = {}
    for key, value in fields.items():
        if key not in model.model_fields:
            dropped.append(f"{place}{key}")
            continue
        annotation = model.model_fields[key].annotation
        inner = None if get_origin(annotation) is dict else _inner_model(annotation)
        if inner is not None and isinstance(value, dict):
            value = _known(inner, value, f"{place}{key}.", dropped)
        known[key] = value
    return known


def near(name: str, legal: Iterable[str]) -> str:
    """A hint ` Did you mean 'x'?` when a legal name is near `name`, else an empty string."""
    matches = difflib.get_close_matches(name, list(legal), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""


def _explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    place = ".".join(str(part) for part in detail["loc"] if not _FORM.match(str(part)))
    if detail["type"] == "extra_forbidden":
        legal = _fields_at(model, detail["loc"][:-1])
        hint = near(str(detail["loc"][-1]), legal)
        return f"  {place}: unknown key.{hint} Keys here: {', '.join(legal)}."
    if detail["type"] == "missing":
        return f"  {place}: required, but not given."
    message = detail["msg"].removeprefix("Value error, ")
    value = detail["input"]
    if detail["type"] == "string_type" and isinstance(value, int | float):
        message += f"; write it in quotes: '{value}'"
    shown = (
        "" if isinstance(value, dict | list) and len(str(value)) > 80 else f" (got {short(value)})"
    )
    return f"  {place}: {message}{shown}" if place else f"  {message}"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The legal keys of the nested model that `path` leads to."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:  # else a key of a dict or an index of a list: its values' model
            model = _inner_model(field.annotation) or model
    return list(model.model_fields)


def _inner_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _inner_model(argument):
            return found
    return None
