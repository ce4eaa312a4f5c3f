"""How label files store their values, and which known table those values are most like.

Nothing in a label file says what its values mean. What is known of street scenes helps: the sky is
above, the road below, poles are few pixels. A table is plausible when the values that it calls sky
lie where skies lie.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.images import read_header, read_raw
from pipeline.data.labels import TABLES, load_label_space
from pipeline.data.spec import DatasetSpec, built_in_specs, spec_fields
from pipeline.errors import UserError
from pipeline.schema import parse

Kind = Literal["ids", "channel", "rgb", "wide", "grey", "many", "photo"]
"""What the pixels of a file look like, from the tamest to the wildest: few small values; few small
values in one channel; few colours; values above 255 (ids of instances); a grey photograph;
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

PLACES: dict[str, tuple[float, float]] = {
    "sky": (0.15, 0.15),
    "traffic light": (0.27, 0.003),
    "vegetation": (0.29, 0.12),
    "building": (0.31, 0.23),
    "bridge": (0.33, 0.004),
    "tunnel": (0.33, 0.004),
    "traffic sign": (0.36, 0.007),
    "pole": (0.40, 0.01),
    "polegroup": (0.40, 0.001),
    "train": (0.43, 0.004),
    "truck": (0.45, 0.006),
    "bus": (0.45, 0.005),
    "wall": (0.52, 0.007),
    "rider": (0.52, 0.003),
    "caravan": (0.52, 0.002),
    "trailer": (0.52, 0.002),
    "fence": (0.54, 0.01),
    "person": (0.54, 0.007),
    "guard rail": (0.55, 0.004),
    "car": (0.57, 0.06),
    "vehicle": (0.57, 0.07),
    "any vehicle": (0.57, 0.07),
    "motorcycle": (0.60, 0.002),
    "bicyclist": (0.60, 0.003),
    "bicycle": (0.62, 0.003),
    "license plate": (0.62, 0.0003),
    "terrain": (0.67, 0.012),
    "sidewalk": (0.70, 0.05),
    "parking": (0.70, 0.01),
    "ground": (0.72, 0.01),
    "rail track": (0.75, 0.004),
    "road line": (0.78, 0.02),
    "road": (0.80, 0.32),
    "ego vehicle": (0.95, 0.04),
}
"""Name -> usual mean height in a street scene (0 top, 1 bottom) and usual share of pixels."""
_HEIGHT_SPREAD, _DECADES = 0.12, 1.0
MUCH_VOID = 0.15
"""A table that gives more of the pixels to names of no place (unlabeled, static) is less likely."""
_RARE = 0.002
_GROUND, _LEAST_GROUND, _GROUND_WEIGHT = ("road", "ground", "terrain"), 0.05, 0.3

ENOUGH, PLAUSIBLE = 0.8, 0.55
"""A table fits that names this share of the pixels and is so plausible."""
SURELY, CLEAR = 0.8, 0.15
"""It is surely the one when it is so plausible, and the next less so by this much."""

VERSIONS = {"carla_old", "carla_new"}
"""Tables of one simulator, which leaves no trace of its version in the files."""
_MORE_COLORS = {
    "0,0,0": "unlabeled",
    "111,74,0": "dynamic",
    "81,0,81": "ground",
    "250,170,160": "parking",
    "230,150,140": "rail track",
    "180,165,180": "guard rail",
    "150,100,100": "bridge",
    "150,120,90": "tunnel",
    "0,0,90": "caravan",
    "0,0,110": "trailer",
}
_SHARED_COLORS = {
    "153,153,153": "or polegroup: the colour does not tell",
    "0,0,142": "or license plate: the colour does not tell",
    "0,0,0": "or ego vehicle, static and other void: the colour does not tell",
}


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
    example: Path
    """The file that holds most of it."""


@dataclass(frozen=True)
class Observation:
    """The values of a sample of label files, most frequent first."""

    encoding: Encoding
    channel: int
    values: tuple[Value, ...]
    files: int
    unreadable: tuple[Path, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A known meaning of raw values."""

    name: str
    encoding: Encoding
    values: dict[str, str]
    remarks: dict[str, str] = field(default_factory=dict)
    """Raw value -> what to know of its name."""
    users: tuple[str, ...] = ()
    """Further data sets with the same table."""


@dataclass(frozen=True)
class Fit:
    """How well a table suits what was observed; each share in 0..1."""

    table: Table
    covered: float
    """Share of the pixels that it names."""
    plausible: float
    """How much its names are where such things are in street scenes."""
    oddest: str
    """The name that speaks most against it, in words; may be empty."""

    @property
    def fits(self) -> bool:
        """Whether the table may be the one."""
        return self.covered >= ENOUGH and self.plausible >= PLAUSIBLE


def look(path: Path) -> Kind:
    """What the pixels of one image file look like.

    Raises:
        UserError: the file cannot be read.
    """
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


def wildest(kinds: Sequence[Kind]) -> Kind:
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


def codes(raw: Raw, encoding: Encoding, channel: int) -> Codes:
    """The (H, W) values of a label file as numbers, colours packed into one."""
    if encoding == "rgb":
        return _packed(raw[:, :, :3])
    return (raw if encoding == "ids" else raw[:, :, channel]).astype(np.int64)


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

    def values(self, text: Callable[[int], str]) -> tuple[Value, ...]:
        """What was counted, most frequent first."""
        total = sum(self.pixels.values())
        order = sorted(self.pixels, key=lambda value: (-self.pixels[value], value))
        return tuple(
            Value(
                text(value),
                value,
                self.pixels[value] / total,
                self.frames[value],
                self.heights[value] / self.pixels[value],
                self.example[value][1],
            )
            for value in order
        )


def observe(paths: Sequence[Path], kind: Kind) -> Observation:
    """Count the values of label files of one kind; files that cannot be read are left out.

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
                tally.add(path, codes(thin, encoding, i))
    files = len(paths) - len(unreadable)
    if not files:
        raise UserError(f"None of {len(paths)} label files can be read, first {paths[0]}.")
    remarks: list[str] = []
    channel = _choose_channel(tallies, remarks) if kind == "channel" else 0
    values = tallies[channel].values(_color_text if kind == "rgb" else str)
    return Observation(encoding, channel, values, files, tuple(unreadable), tuple(remarks))


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


def known_tables() -> list[Table]:
    """The tables of the built-in data sets and of Cityscapes; equal ones are listed once."""
    tables: list[Table] = []

    def add(name: str, encoding: Encoding, values: dict[str, str]) -> None:
        for i, table in enumerate(tables):
            if table.values == values:
                tables[i] = replace(table, users=(*table.users, name))
                return
        tables.append(Table(name, encoding, values))

    for word, values in TABLES.items():
        add(word, "ids", {str(raw): name for raw, name in values.items()})
    for name in built_in_specs():
        spec = parse(DatasetSpec, {**spec_fields(name, Path()), "root": "."}, name)
        if spec.values:
            add(name, spec.encoding, spec.values)
    palette = {
        ",".join(map(str, one.color)): one.name for one in load_label_space("cityscapes19").classes
    }
    colors = _MORE_COLORS | palette
    return [*tables, Table("Cityscapes colours", "rgb", colors, _SHARED_COLORS)]


def fits(observation: Observation) -> list[Fit]:
    """Every known table of the same sort of values, the best first."""
    colored = observation.encoding == "rgb"
    found = [
        _fit(table, observation.values)
        for table in known_tables()
        if (table.encoding == "rgb") == colored
    ]

    def order(fit: Fit) -> tuple[float, int, bool]:
        named = sum(value.raw in fit.table.values for value in observation.values)
        score = round(fit.covered * fit.plausible, 3)
        return -score, -named, fit.table.encoding != observation.encoding

    return sorted(found, key=order)


def _fit(table: Table, values: Sequence[Value]) -> Fit:
    # A street scene has ground to drive on, and most of it means something.
    weights, scores, worst = _GROUND_WEIGHT, 0.0, (0.0, "")
    covered = ground = void = 0.0
    for value in values:
        # 255 is what no class claims: in many tables, written down in few.
        name = table.values.get(value.raw, "unlabeled" if value.raw == "255" else None)
        if name is None:
            continue
        covered += value.share
        ground += value.share * (name in _GROUND)
        weight = math.sqrt(value.share)
        if name in PLACES:
            score = _plausibility(name, value)
            weights += weight
            scores += weight * score
        else:
            score = 0.0 if value.share > MUCH_VOID else 1.0
            void += value.share
        if value.share > _RARE and weight * (0.3 - score) > worst[0]:
            words = f"{value.raw} would be {name}: {value.share:.1%} of the pixels"
            worst = weight * (0.3 - score), f"{words}, {where(value.height)}"
    scores += _GROUND_WEIGHT * min(1.0, ground / _LEAST_GROUND)
    if void > MUCH_VOID:
        weights += math.sqrt(void)
    return Fit(table, covered, scores / weights if covered else 0.0, worst[1])


def _plausibility(name: str, value: Value) -> float:
    height, share = PLACES[name]
    away = (value.height - height) / _HEIGHT_SPREAD
    decades = math.log10(value.share / share) / _DECADES
    return math.exp(-0.5 * (away**2 + decades**2))


def odd(name: str, value: Value) -> bool:
    """Whether a value that is no rarity lies where a name's pixels seldom do."""
    return name in PLACES and value.share > _RARE and _plausibility(name, value) < 0.1


def where(height: float) -> str:
    """A mean height in words."""
    if height < 0.25:
        return "at the top"
    if height < 0.45:
        return "above the middle"
    return "in the middle" if height < 0.62 else "at the bottom"


def rivals(ranked: Sequence[Fit], observation: Observation) -> Iterator[Fit]:
    """The tables that may be meant instead of the first of `ranked`.

    They fit nearly as well and read the observed values otherwise, or are its other version.
    """
    first = ranked[0]
    for other in ranked[1:]:
        near = first.covered * first.plausible - other.covered * other.plausible < CLEAR
        rival = near and other.fits and _differ(first.table, other.table, observation)
        if rival or {first.table.name, other.table.name} <= VERSIONS:
            yield other


def _differ(one: Table, other: Table, observation: Observation) -> bool:
    """Whether two tables read some observed value differently, names of no place aside."""
    names = [(one.values.get(v.raw), other.values.get(v.raw)) for v in observation.values]
    return any(a != b and (a in PLACES or b in PLACES) for a, b in names)
