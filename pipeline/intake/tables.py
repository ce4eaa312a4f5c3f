"""Known tables of label values, and which of them the values of a data set are most like.

Nothing in a label file says what its values mean. What is known of street scenes helps: the sky is
above, the road below, poles are few pixels. A table is plausible when the values that it calls sky
lie where skies lie.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.data.labels import SKY_AT_TOP, TABLES, load_label_space
from pipeline.data.spec import DatasetSpec, built_in_specs, spec_fields
from pipeline.intake.encodings import Encoding, Observation, Value
from pipeline.intake.lost import like_sky
from pipeline.schema import parse
from pipeline.yaml_files import read_yaml

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
_ASKED = {"carla_old": {"10": "any vehicle, from bicycle to train"}}
_CARLA_COLORS = {
    "0": "0,0,0", "1": "70,70,70", "2": "100,40,40", "3": "55,90,80", "4": "220,20,60",
    "5": "153,153,153", "6": "157,234,50", "7": "128,64,128", "8": "244,35,232",
    "9": "107,142,35", "10": "0,0,142", "11": "102,102,156", "12": "220,220,0",
    "13": "70,130,180", "14": "81,0,81", "15": "150,100,100", "16": "230,150,140",
    "17": "180,165,180", "18": "250,170,30", "19": "110,190,160", "20": "170,120,50",
    "21": "45,60,150", "22": "145,170,100",
}  # fmt: skip
"""Tag of `carla_old` -> what its colour converter draws (LibCarla image/CityScapesPalette.h)."""
_CARLA_TO_0_9_9 = {"2": "190,153,153", "3": "250,170,160"}
_SHARED_COLORS = {
    "153,153,153": "or polegroup: the colour does not tell",
    "0,0,142": "or license plate: the colour does not tell",
    "0,0,0": "or ego vehicle, static and other void: the colour does not tell",
}


@dataclass(frozen=True)
class Table:
    """A known meaning of raw values."""

    name: str
    encoding: Encoding
    values: dict[str, str]
    remarks: dict[str, str] = field(default_factory=dict)
    """Raw value -> what to know of its name."""
    asked: dict[str, str] = field(default_factory=dict)
    """Raw value -> why its name is to be looked at where it occurs."""
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
    """The name that fits worst, in words; may be empty."""

    @property
    def fits(self) -> bool:
        """Whether the table may be the one."""
        return self.covered >= ENOUGH and self.plausible >= PLAUSIBLE


def known_tables() -> list[Table]:
    """The tables of the built-in data sets and of Cityscapes; equal ones are listed once."""
    tables: list[Table] = []

    def add(name: str, encoding: Encoding, values: dict[str, str]) -> None:
        for i, table in enumerate(tables):
            if table.values == values:
                tables[i] = replace(table, users=(*table.users, name))
                return
        tables.append(Table(name, encoding, values, asked=_ASKED.get(name, {})))

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
    old = parse(DatasetSpec, {**spec_fields("carla_old", Path()), "root": "."}, "carla_old").values
    for name, changed in (("CARLA colours", {}), ("CARLA colours to 0.9.9", _CARLA_TO_0_9_9)):
        drawn = {raw: changed.get(raw, color) for raw, color in _CARLA_COLORS.items()}
        asked = {drawn[raw]: why for raw, why in _ASKED["carla_old"].items()}
        named = {color: old[raw] for raw, color in drawn.items()}
        tables.append(Table(name, "rgb", named, asked=asked))
    return [*tables, Table("Cityscapes colours", "rgb", colors, _SHARED_COLORS)]


@cache
def places() -> dict[str, tuple[float, float]]:
    """Name -> usual mean height in a street scene (0 top, 1 bottom), usual fraction of pixels."""
    path = Path(__file__).with_name("places.yaml")
    return TypeAdapter(dict[str, tuple[float, float]]).validate_python(read_yaml(path))


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


def fit_of_legend(table: Table, values: Sequence[Value]) -> Fit:
    """How well a table suits that was found beside the data: surely, if it names the values."""
    return replace(_fit(table, values), plausible=1.0, oddest="")


def _fit(table: Table, values: Sequence[Value]) -> Fit:
    # A street scene has ground to drive on, and most of it means something.
    weights, scores, worst = _GROUND_WEIGHT, 0.0, (0.0, "")
    covered = ground = void = 0.0
    for value in values:
        name = name_of(table, value)
        if name is None:
            continue
        covered += value.share
        ground += value.share * (name in _GROUND)
        weight = math.sqrt(value.share)
        if name in places():
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


def name_of(table: Table, value: Value) -> str | None:
    """What a table calls an observed value, for its place in the frame."""
    # 255 is what no class claims: in many tables, written down in few.
    name = table.values.get(value.raw, "unlabeled" if value.raw == "255" else None)
    if name == SKY_AT_TOP:
        return "sky" if like_sky(value.share, value.border) else "unlabeled"
    return name


def _plausibility(name: str, value: Value) -> float:
    height, share = places()[name]
    away = (value.height - height) / _HEIGHT_SPREAD
    decades = math.log10(value.share / share) / _DECADES
    return math.exp(-0.5 * (away**2 + decades**2))


def odd(name: str, value: Value) -> bool:
    """Whether a value that is no rarity lies where a name's pixels seldom do."""
    return name in places() and value.share > _RARE and _plausibility(name, value) < 0.1


def where(height: float) -> str:
    """A mean height in words."""
    if height < 0.25:
        return "at the top"
    if height < 0.45:
        return "above the middle"
    return "in the middle" if height < 0.62 else "at the bottom"


def alternatives(ranked: Sequence[Fit], observation: Observation) -> Iterator[Fit]:
    """The tables that may be meant instead of the first of `ranked`.

    They fit nearly as well and read the observed values otherwise, or are its other version.
    """
    first = ranked[0]
    for other in ranked[1:]:
        near = first.covered * first.plausible - other.covered * other.plausible < CLEAR
        likely = near and other.fits and _differ(first.table, other.table, observation)
        if likely or {first.table.name, other.table.name} <= VERSIONS:
            yield other


def _differ(one: Table, other: Table, observation: Observation) -> bool:
    """Whether two tables read some observed value differently, names of no place aside."""
    names = [(one.values.get(v.raw), other.values.get(v.raw)) for v in observation.values]
    return any(a != b and (a in places() or b in places()) for a, b in names)
