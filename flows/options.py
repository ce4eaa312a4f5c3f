"""Options that several commands share, and the values of options that are more than a word."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from typer import Argument, Option

from pipeline.errors import short


class Shard(NamedTuple):
    """A part of many, as `--shard I/N` names it."""

    part: int
    """From 0."""
    parts: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Raises: `typer.BadParameter` for what is not I/N."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found and 1 <= int(found[1]) <= int(found[2]) <= 100_000:
            return cls(int(found[1]) - 1, int(found[2]))
        raise typer.BadParameter(f"{short(text)} is not I/N with 1 <= I <= N. Give it so: 2/4.")

    def __str__(self) -> str:
        return f"{self.part + 1}/{self.parts}"


class Size(NamedTuple):
    """Sides in pixels, as `--size WIDTHxHEIGHT` names them."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Raises: `typer.BadParameter` for what is not WIDTHxHEIGHT."""
        if found := re.fullmatch(r"([0-9]{2,5})x([0-9]{2,5})", text):
            return cls(int(found[1]), int(found[2]))
        raise typer.BadParameter(f"{short(text)}: give WIDTHxHEIGHT in pixels, e.g. 1024x512.")


def frame_counts(text: str) -> Sequence[int]:
    """The numbers of labelled target frames in a list such as `1,4,16,64`, ascending.

    Raises:
        typer.BadParameter: something in it is no whole number of 1 or more, or stands there twice.
    """
    parts = [part.strip() for part in text.split(",")]
    legal = all(re.fullmatch(r"[1-9][0-9]{0,8}", part) for part in parts)
    if not legal or len(set(parts)) < len(parts):
        raise typer.BadParameter(
            f"{short(text)}: give whole numbers of labelled target frames, each once, e.g. "
            "1,4,16,64."
        )
    return sorted(map(int, parts))


RunFolder = Annotated[Path, Argument(metavar="RUN", help="The run's folder.")]
SetConfig = Annotated[
    Path | None, Option("--config", help="Configure the run first, as `run` would.")
]
Settings = Annotated[
    list[str] | None, Option("--set", metavar="A.B=VALUE", help="Override one setting.")
]
Translation = Annotated[
    str | None, Option(metavar="NAME", help="Which of a run's translations [translated].")
]
Part = Annotated[
    Shard | None,
    Option(
        "--shard",
        metavar="I/N",
        parser=Shard.parse,
        help="The I-th of N parts alone; the same command without it puts them together.",
    ),
]
UNREADABLE = 0.1
"""The share of frames that may be unreadable, unless another is given."""
Unreadable = Annotated[float, Option(min=0, max=1, help="Share of frames that may be unreadable.")]
Root = Annotated[Path | None, Option(metavar="DIR", help="Where the data set is.")]
LabelSpace = Annotated[
    str | None, Option(metavar="NAME_OR_FILE", help="For a data set [cityscapes19].")
]
