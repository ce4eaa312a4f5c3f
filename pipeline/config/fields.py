"""What several settings share: types of fields, and settings over settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.schema import Located, Side
from pipeline.yaml_files import SUFFIXES

Size = tuple[Side, Side]
"""Width and height in pixels."""

FilePath = Annotated[Path, Located()]

FILES = (*SUFFIXES, ".pth", ".pt", ".safetensors")

NameOrFile = Annotated[str, Located(FILES)]
"""A name, or the path of a file, which ends in one of `FILES`."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


def overlay(fields: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Settings of segmentation with those of `own` in their place; `options` are replaced whole."""
    merged = dict(fields)
    for key, value in own.items():
        below = merged.get(key)
        nested = isinstance(value, dict) and isinstance(below, dict) and key != "options"
        merged[key] = {**below, **value} if nested else value  # type: ignore[dict-item]
    return merged
