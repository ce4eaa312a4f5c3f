"""How image files store their pixels, and which values a sample of label files holds."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.images import ARRAY, read_header, read_raw
from pipeline.data.reading import divided
from pipeline.errors import UserError

Kind = Literal["ids", "channel", "rgb", "wide", "grey", "many", "photo"]
"""What the pixels of a file look like, from the simplest to the richest: few small values; few
small values in one channel; few colours; values above 255 (ids of instances); a grey photograph;
too many values for labels (depth); a photograph."""
KINDS: tuple[Kind, ...] = ("ids", "channel", "rgb", "wide", "grey", "many", "photo")
Encoding = Literal["ids", "rgb", "channel"]
Raw = npt.NDArray[np.integer]
Codes = npt.NDArray[np.int64]
"""Raw values (H, W) as one number a pixel."""

MOST_VALUES = 100
"""Labels of one frame have at most so many different values."""
HIGHEST_ID = 66
"""Above any class id that simulators write into one channel of a colour image."""
_PIXELS = 200_000
"""Pixels of one file that are looked at: every n-th row and column of a larger one."""


@dataclass(frozen=True)
class Value:
    """One raw value in the sampled label files."""

    raw: str
    """As a key of a spec's `values`."""
    code: int
    """As `codes` gives it."""
    share: float
    """Of all pixels."""
    frames: int
    """Files that hold it."""
    height: float
    """Mean position of its pixels: 0 is the top of the frame, 1 the bottom."""
    border: float
    """Its share of the first rows of the frames."""
    example: Path
    """The file that holds most of it."""


@dataclass(frozen=True)
class Observation:
    """The values of a sample of label files, most frequent first."""

    encoding: Encoding
    channel: int
    divide: int
    """As in a spec: not 1 where values hold numbers of objects, too."""
    values: tuple[Value, ...]
    files: int
    unreadable: tuple[Path, ...]
    remarks: tuple[str, ...]


def look(path: Path) -> Kind:
    """What the pixels of one image file look like; an array of many values is no frame.

    Raises:
        UserError: the file cannot be read.
    """
    kind = _look(path)
    return "many" if path.suffix.lower() == ARRAY and kind in {"grey", "photo"} else kind


def _look(path: Path) -> Kind:
    header = read_header(path)
    if header.format in {"JPEG", "MPO", "WEBP"} and header.mode != "L":
        return "photo"  # lossy: whatever it shows, it holds no exact values
    raw = read_raw(path)
    if raw.ndim == 3 and all((raw[:, :, 0] == raw[:, :, i]).all() for i in range(1, _colors(raw))):
        flat: Raw = raw[:, :, 0]
        few: Kind = "channel"
    else:
        flat, few = raw, "ids"
    if flat.ndim == 2:
        values = np.unique(_thinned(flat))
        if values.size > MOST_VALUES:
            return "grey" if raw.dtype == np.uint8 else "many"
        return "wide" if values[-1] > 255 else few
    thin = _thinned(flat)[:, :, :3]
    count = np.unique(_packed(thin)).size
    # Beside ids there are constants or ids of instances, flat as well: a dark photo is not.
    flat_ids = count <= MOST_VALUES or _flatness(raw) > 0.8
    if flat_ids and _id_channels([np.unique(thin[:, :, i]) for i in range(thin.shape[2])]):
        return "channel"
    if count <= MOST_VALUES:
        return "rgb"
    return "many" if count <= 600 and _flatness(raw) > 0.95 else "photo"


def _colors(raw: Raw) -> int:
    """How many channels of an (H, W, C) array hold colour: the fourth is opacity."""
    return min(int(raw.shape[2]), 3)


def richest(kinds: Sequence[Kind]) -> Kind:
    """The kind of a series from those of some of its files: a black frame says little."""
    return max(kinds, key=KINDS.index)


def _thinned(raw: Raw) -> Raw:
    step = max(1, math.isqrt(raw.shape[0] * raw.shape[1] // _PIXELS))
    return raw[step // 2 :: step, step // 2 :: step]


def _packed(rgb: Raw) -> Codes:
    """(..., 2 or 3) channels of at most 16 bits as one number a pixel."""
    packed = np.zeros(rgb.shape[:-1], np.int64)
    for i in range(rgb.shape[-1]):
        packed = packed << 16 | rgb[..., i].astype(np.int64)
    return packed


def codes(raw: Raw, encoding: Encoding, channel: int, divide: int = 1) -> Codes:
    """The (H, W) values of a label file as numbers, colours packed into one."""
    if encoding == "rgb":
        return _packed(raw[:, :, :3])
    return divided(raw if encoding == "ids" else raw[:, :, channel], divide).astype(np.int64)


def _flatness(raw: Raw) -> float:
    """Share of pixels that equal their right neighbour."""
    rows = raw[:: max(1, raw.shape[0] // 200), :, :3]
    return float((rows[:, 1:] == rows[:, :-1]).all(axis=-1).mean()) if rows.shape[1] > 1 else 0.0


def _id_channels(distinct: Sequence[npt.NDArray[np.integer]]) -> list[int]:
    """The channels whose values may be class ids: small numbers, more than one."""
    return [i for i, values in enumerate(distinct) if values.size > 1 and values[-1] <= HIGHEST_ID]


class _Tally:
    """Adds up pixels by value over files."""

    def __init__(self) -> None:
        self.pixels: dict[int, int] = defaultdict(int)
        self.heights: dict[int, float] = defaultdict(float)
        self.border: dict[int, int] = defaultdict(int)
        self.frames: dict[int, int] = defaultdict(int)
        self.example: dict[int, tuple[int, Path]] = {}

    def add(self, path: Path, codes: Codes) -> None:
        """Count one file's (H, W) values."""
        values, places = np.unique(codes, return_inverse=True)
        places = places.reshape(codes.shape)
        counts = np.bincount(places.ravel())
        rows = np.repeat((np.arange(codes.shape[0]) + 0.5) / codes.shape[0], codes.shape[1])
        sums = np.bincount(places.ravel(), weights=rows)
        for value, count, total in zip(values.tolist(), counts.tolist(), sums, strict=True):
            self.pixels[value] += count
            self.heights[value] += float(total)
            self.frames[value] += 1
            if count > self.example.get(value, (0, path))[0]:
                self.example[value] = count, path
        for value, count in zip(*np.unique(codes[0], return_counts=True), strict=True):
            self.border[int(value)] += int(count)

    def values(self, text: Callable[[int], str]) -> tuple[Value, ...]:
        """What was counted, most frequent first."""
        total, border = sum(self.pixels.values()), sum(self.border.values())
        order = sorted(self.pixels, key=lambda value: (-self.pixels[value], value))
        return tuple(
            Value(
                text(value),
                value,
                self.pixels[value] / total,
                self.frames[value],
                self.heights[value] / self.pixels[value],
                self.border[value] / border,
                self.example[value][1],
            )
            for value in order
        )


def observe(paths: Sequence[Path], kind: Kind, divide: int = 1) -> Observation:
    """Count the values of label files of one kind; files that cannot be read are left out.

    Args:
        divide: as in a spec.

    Raises:
        UserError: none of the files can be read.
    """
    encoding: Encoding = "rgb" if kind == "rgb" else "channel" if kind == "channel" else "ids"
    tallies = [_Tally() for _ in range(3 if encoding == "channel" else 1)]
    unreadable = []
    for path in paths:
        try:
            raw = read_raw(path, colors=encoding == "rgb")
        except UserError:
            unreadable.append(path)
            continue
        thin = _thinned(raw)
        if (thin.ndim == 2) != (encoding == "ids") or (thin.ndim == 3 and thin.shape[2] < 3):
            unreadable.append(path)  # a grey file among colours, or the other way about
        else:
            for i, tally in enumerate(tallies):
                tally.add(path, codes(thin, encoding, i, divide))
    files = len(paths) - len(unreadable)
    if not files:
        raise UserError(f"None of {len(paths)} label files can be read, first {paths[0]}.")
    remarks: list[str] = []
    channel = _choose_channel(tallies, remarks) if kind == "channel" else 0
    values = tallies[channel].values(_color_text if kind == "rgb" else str)
    return Observation(encoding, channel, divide, values, files, tuple(unreadable), tuple(remarks))


def _choose_channel(tallies: Sequence[_Tally], remarks: list[str]) -> int:
    distinct = [np.array(sorted(tally.pixels)) for tally in tallies]
    names = ("red", "green", "blue")
    if tallies[0].pixels == tallies[1].pixels == tallies[2].pixels:
        remarks.append("the label files are colour images with three equal channels; red is read")
        return 0
    able = _id_channels(distinct)
    channel = able[0] if able else 0
    others = [
        f"{names[i]} is {values[0]} everywhere"
        if values.size == 1
        else f"{names[i]} has {values.size} values"
        for i, values in enumerate(distinct)
        if i != channel
    ]
    remarks.append(f"the label is in the {names[channel]} channel ({', '.join(others)})")
    if len(able) > 1:
        remarks.append(
            f"channels {', '.join(names[i] for i in able)} all look like ids; the first is taken, "
            "the others may be ids of instances: check the pictures"
        )
    return channel


def _color_text(packed: int) -> str:
    return f"{packed >> 32},{packed >> 16 & 0xFFFF},{packed & 0xFFFF}"
