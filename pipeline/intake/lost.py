"""Classes that fall to nothing between the labels of a data set and the classes of a run.

A class that no label decodes to scores nothing, whatever is trained. `check`, `run` and the report
say which these are in the words of this module, from counts of the same sample of labels.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, RootModel

from pipeline.data.labels import ASKED, CITYSCAPES_IDS, IGNORE, SKY_AT_TOP, LabelSpace, meaning
from pipeline.data.listing import Sample, evenly
from pipeline.data.reading import LabelReader, below_top, packed, values_at_top
from pipeline.data.spec import DatasetSpec, raw_value
from pipeline.errors import UserError
from pipeline.intake.examine import list_files
from pipeline.intake.facts import BELOW_TOP, Values, count_values
from pipeline.intake.text import percent
from pipeline.progress import each
from pipeline.text import listed
from pipeline.yaml_files import SUFFIXES, line_of, read_yaml

SAMPLE, MOST = 64, 512
"""Labels that are counted, evenly spaced; and where a class is in none of these, at most."""
LOST = 0.005
"""A class with a smaller share of the test's pixels may be lost without a run being refused."""
LARGE, _AT_TOP, _HIGH = 0.05, 0.25, 2.0
"""A region without a class is where skies are if it has these shares of the pixels and of the
frames' first rows, and so many times more of the rows than of the pixels: houses have 1.5."""
_BY_CHANCE = 0.05
"""A class that so few labels may well lack is not refused; its frequency is that in the test."""
MOST_IGNORED = 0.25
"""More pixels without a class than any known set of street scenes has."""
VOID = frozenset({"unlabeled", "static", "dynamic"})
"""Names that do not say what is there."""
NARROWER = {"vehicle": "car", "any vehicle": "car", "bicyclist": "rider"}
"""Names of several things at once -> the one that most of their pixels show."""


class Lost(BaseModel):
    """A class, a name or a value whose pixels come to nothing."""

    part: str
    """`source`, `target` or `test`, or the name of a data set."""
    key: str
    """How `confirmed` of the data set calls it."""
    text: str
    advice: str = ""
    refused: bool
    """Whether nothing is run until this is changed or confirmed."""


class LostClasses(RootModel[list[Lost]]):
    """The content of a `lost_classes.json`."""


@dataclass(frozen=True)
class Census:
    """What a sample of the labels of a data set holds."""

    spec: DatasetSpec
    labels: int
    pixels: Mapping[int, int]
    """Raw value -> pixels; see `BELOW_TOP`."""
    top: Mapping[int, int]
    """The same in the first row of each label."""
    frames: Mapping[int, int]
    """Raw value -> labels that hold it."""

    def share(self, value: int) -> float:
        """Which part of the pixels has a raw value, wherever it lies."""
        both = self.pixels.get(value, 0) + self.pixels.get(value | BELOW_TOP, 0)
        return both / max(1, sum(self.pixels.values()))

    def share_at_top(self, value: int) -> float:
        """Which part of the first rows has a raw value."""
        return self.top.get(value, 0) / max(1, sum(self.top.values()))

    def classes(self, space: LabelSpace) -> dict[str, float]:
        """Class -> its share of all pixels."""
        shares = dict.fromkeys(space.class_names, 0.0)
        for value, name in self._classes(space):
            shares[name] += self.pixels.get(value, 0) / max(1, sum(self.pixels.values()))
        return shares

    def often(self, space: LabelSpace) -> dict[str, float]:
        """Class -> the share of the labels that hold it, at least."""
        shares = dict.fromkeys(space.class_names, 0.0)
        for value, name in self._classes(space):
            shares[name] = max(shares[name], self.frames.get(value, 0) / self.labels)
        return shares

    def _classes(self, space: LabelSpace) -> Iterator[tuple[int, str]]:
        for raw, name in self.spec.values.items():
            if (index := space.index_of(name)) != IGNORE:
                yield raw_value(raw, self.spec.encoding), space.class_names[index]


def like_sky(share: float, at_top: float) -> bool:
    """Whether a value lies where skies do.

    Args:
        share: of all pixels.
        at_top: of the frames' first rows.
    """
    return share >= LARGE and at_top >= max(_AT_TOP, _HIGH * share)


def census(spec: DatasetSpec, space: LabelSpace) -> Census:
    """Count the raw values of a sample of the labels of `spec`; files that are damaged are not.

    More labels are read where a class that the spec names is in none of the first.

    Raises:
        UserError: the spec finds no frame.
    """
    samples = [sample for sample in list_files(spec).samples if sample.label is not None]
    first = evenly(samples, SAMPLE)
    found = _counted(spec, space, first)
    shares, named = found.classes(space), {space.index_of(name) for name in spec.names()}
    if any(not shares[name] and i in named for i, name in enumerate(space.class_names)):
        more = [sample for sample in evenly(samples, MOST) if sample not in first]
        found = _counted(spec, space, more, found)
    return found


def _counted(
    spec: DatasetSpec, space: LabelSpace, samples: Sequence[Sample], before: Census | None = None
) -> Census:
    pixels: Counter[int] = Counter(before.pixels if before else {})
    top: Counter[int] = Counter(before.top if before else {})
    frames: Counter[int] = Counter(before.frames if before else {})
    labels = before.labels if before else 0
    count = partial(_count, LabelReader(spec, space), values_at_top(spec))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        counts = pool.map(count, samples)
        for both in each(counts, f"classes: {spec.name}", len(samples), unit="labels"):
            if both is not None:
                pixels.update(both[0])
                frames.update(both[0].keys())
                top.update(both[1])
                labels += 1
    return Census(spec, labels, pixels, top, frames)


def _count(
    reader: LabelReader, skies: Iterable[int], sample: Sample
) -> tuple[dict[int, int], dict[int, int]] | None:
    assert sample.label is not None
    try:
        values: Values = packed(reader.raw(sample.label))
    except UserError:  # what is wrong with a file is found and said elsewhere
        return None
    pixels = count_values(values)
    for value in skies:
        if below := int(below_top(values == value).sum()):
            pixels[value] -= below
            pixels[value | BELOW_TOP] = below
    return pixels, count_values(values[:1])


def lost_classes(
    parts: Mapping[str, DatasetSpec], space: LabelSpace, file: Path | None = None
) -> list[Lost]:
    """What comes to nothing in data sets whose labels are read, those that are refused first.

    Args:
        parts: `source`, `test` and so on of a run; what the source lacks is told by the share that
            it has of the test's pixels. Or one data set by its name.
        file: the configuration, or the data set's YAML file, for the line that is to be changed.

    Raises:
        UserError: as `census`.
    """
    counted = {part: census(spec, space) for part, spec in parts.items()}
    counted = {part: found for part, found in counted.items() if found.labels}
    found = []
    for part, of_part in counted.items():
        place = _Place(file, part if len(parts) > 1 or "source" in parts else None)
        found += list(_of_values(part, of_part, space, place))
        if part == "source" and "test" in counted:
            found += list(_of_classes(of_part, counted["test"], space, place))
    return sorted(found, key=lambda lost: not lost.refused)


@dataclass(frozen=True)
class _Place:
    """Where a data set is written down."""

    file: Path | None
    part: str | None
    """Its place in a configuration."""

    def of(self, key: str, raw: str = "") -> str:
        """The file, and where it is known the line, that says a field, or a value of a field."""
        file, keys = self.file, [self.part] if self.part else []
        while file is not None:
            fields = read_yaml(file)
            for name in keys:
                fields = fields.get(name) if isinstance(fields, dict) else None
            if not isinstance(fields, dict):
                break
            if isinstance(fields.get(key), dict) and raw in map(str, fields[key]):
                return f"{file}, line {line_of(file, *keys, key, raw)}"
            named = str(fields.get("dataset", ""))
            if not named.endswith(SUFFIXES):
                return f"{file}{f', `{self.part}`' if keys else ''}"
            file, keys = file.parent / named, []
        return f"`{key}` of {self.part or 'the data set'}"


def _of_values(part: str, found: Census, space: LabelSpace, place: _Place) -> Iterable[Lost]:
    """Values and names without a class."""
    spec, confirmed = found.spec, set(found.spec.confirmed)
    shares, names = found.classes(space), {}
    for raw, name in spec.values.items():
        names[raw_value(raw, spec.encoding)] = raw, name
    skies = [c.name for c in space.classes if "sky" in c.names]
    whole = max(1, sum(found.pixels.values()))
    ignored = 0.0
    broad: dict[str, list[int]] = defaultdict(list)
    for value in sorted({v & (BELOW_TOP - 1) for v in found.pixels} | names.keys()):
        raw, name = names.get(value, (_text(value, spec.encoding), "unlabeled"))
        share, named = found.share(value), value in names
        ignored += found.pixels.get(value | BELOW_TOP, 0) / whole
        seen = f"value {raw} of data set {spec.name} ({percent(share)} of its pixels)"
        if name.endswith(ASKED):
            plain = name.removesuffix(ASKED)
            yield Lost(
                part=part,
                key=raw,
                text=f"{seen} is asked about: {name}",
                advice=f"{place.of('values', raw)}: write `{raw}: {plain}` if that is right, or "
                "another name; `unlabeled` ignores it.",
                refused=True,
            )
        if space.index_of(name) != IGNORE:
            continue
        ignored += share
        if name.endswith(ASKED):
            continue
        at_top = found.share_at_top(value)
        if meaning(name) not in VOID:
            broad[meaning(name)].append(value)
        elif skies and like_sky(share, at_top) and shares[skies[0]] < LOST:
            yield Lost(
                part=part,
                key=raw,
                text=f"{skies[0]} is lost: {seen} is {name} and {percent(at_top)} of the upper "
                "border, where skies are",
                advice=f"{place.of('values', raw)}: write `{raw}: {SKY_AT_TOP}`"
                f"{'' if named else ' below `values`'}. {_confirm(raw)}",
                refused=raw not in confirmed,
            )
    for name, values in broad.items():
        share = sum(map(found.share, values))
        official = name in CITYSCAPES_IDS.values()  # what the evaluation of Cityscapes leaves out
        if not share or official:
            continue
        raws = ", ".join(names[value][0] for value in values)
        first = names[values[0]][0]
        better = NARROWER.get(name)
        if better and space.index_of(better) != IGNORE:
            change = f"{place.of('values', first)}: write `{first}: {better}`."
        else:
            change = f"Group {name} in a label space of your own, or name value {raws} otherwise."
        yield Lost(
            part=part,
            key=name,
            text=f"{name} is lost: no class of label space {space.name} holds it. It is value "
            f"{raws} of data set {spec.name} ({percent(share)} of its pixels)",
            advice=f"{change} {_confirm(name)}",
            refused=share >= LOST and name not in confirmed,
        )
    if ignored > MOST_IGNORED:
        yield Lost(
            part=part,
            key="ignored",
            text=f"{percent(ignored)} of the pixels of data set {spec.name} belong to no class of "
            f"label space {space.name}",
            advice=f"{place.of('values')}: name what they show. {_confirm('ignored')}",
            refused="ignored" not in confirmed,
        )


def _of_classes(source: Census, test: Census, space: LabelSpace, place: _Place) -> Iterable[Lost]:
    """Classes of the test set that no label of the source decodes to."""
    spec, here, wanted = source.spec, source.classes(space), test.classes(space)
    often, unnamed = test.often(space), []
    for label_class in space.classes:
        name, share = label_class.name, wanted[label_class.name]
        if here[name] or not share:
            continue
        raws = [raw for raw, own in spec.values.items() if meaning(own) in label_class.names]
        if not raws:
            unnamed.append(f"{name} ({percent(share)})")
            continue
        named = listed([f"{raw} ({spec.values[raw]})" for raw in raws], 3)
        by_chance = (1 - often[name]) ** source.labels > _BY_CHANCE
        is_lost = share >= LOST and not by_chance
        yield Lost(
            part="source",
            key=name,
            text=f"{name} is lost: {named} never occurs in {source.labels:,} labels of data set "
            f"{spec.name}. It is {percent(share)} of the test's pixels",
            advice=f"{place.of('values', raws[0])}: find the value that {name} has, and name it so."
            f" {_confirm(name)}"
            if is_lost
            else "",
            refused=is_lost and name not in spec.confirmed,
        )
    if unnamed:
        yield Lost(
            part="source",
            key="unnamed",
            text=f"no value of data set {spec.name} is named {', '.join(unnamed)}: lost with these "
            "shares of the test's pixels",
            refused=False,
        )


def _confirm(key: str) -> str:
    return f'If it is meant, give the data set `confirmed: ["{key}"]`.'


def _text(value: int, encoding: str) -> str:
    if encoding != "rgb":
        return str(value)
    return f"{value >> 16},{value >> 8 & 255},{value & 255}"


def refuse(found: Iterable[Lost]) -> None:
    """Raise `UserError` if a class is lost that is not confirmed."""
    lines = [f"{lost.text}. {lost.advice}" for lost in found if lost.refused]
    if lines:
        raise UserError("\n".join(lines))
