"""A look at a folder of unknown layout: names and a few pixels -> series, pairs, the likely table.

What cannot be known from files is never decided silently: what a name rests on is told, and
`first_spec` writes it beside the name.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.images import ARRAY, SUFFIXES, image_size, read_header
from pipeline.data.labels import SKY_AT_TOP
from pipeline.data.listing import list_samples, read_list, spaced
from pipeline.data.reading import scale_of
from pipeline.data.spec import DatasetSpec, built_in_specs, spec_fields
from pipeline.errors import UserError
from pipeline.intake.encodings import Kind, Observation, Value, look, observe, richest
from pipeline.intake.faults import renumbered
from pipeline.intake.layouts import (
    SPLITS,
    Listing,
    Pairs,
    Series,
    check_literals,
    find_series,
    join_alike,
    padding_differs,
    pair,
    walk,
)
from pipeline.intake.legends import foreign_files, foreign_labels, legend_tables
from pipeline.intake.lost import LARGE, LOST, VOID, like_sky
from pipeline.intake.tables import SURELY, Fit, alternatives, fit_of_legend, fits, odd
from pipeline.intake.text import percent
from pipeline.schema import CONTROL, parse

SAMPLE = 64
"""Label files whose values are counted, evenly spaced."""
_LOOKED_AT = 3
"""Files of a series that decide what it shows."""
_DIVISORS = 1000, 256
"""What sets multiply classes by to add the number of an object."""
_SEEN = 1e-4
"""A value without a name that has a smaller share of the pixels is not asked about."""
_LISTS, _LIST_BYTES = 50, 4 * 1024 * 1024

_LABEL_WORDS = re.compile(r"label|lbl|seg|mask|annot|semantic|class|(?<![a-z])(gt|ss)(?![a-z])")
_IMAGE_WORDS = re.compile(r"rgb|image|img|photo|frame|picture|camera|color(?!iz)")
_OTHER_WORDS = re.compile(
    r"instance|inst(?![a-z])|panoptic|object|depth|disp|normal|flow|lidar|edge|boundar|vehicle_?mask"
)
_KINDS: dict[Kind, str] = {
    "ids": "ids",
    "channel": "ids in a channel",
    "rgb": "colours of labels",
    "wide": "values above 255, as ids of instances",
    "grey": "grey pictures",
    "many": "too many values for labels, as depth",
    "photo": "pictures",
}
_LABEL_KINDS: dict[Kind, int] = {"ids": 3, "channel": 3, "rgb": 2, "wide": 1}


Samples = tuple[tuple[Path, Path], ...]
"""Image and label files."""


@dataclass(frozen=True)
class Discovery:
    """What was found in a folder."""

    folder: Path
    name: str
    """Proposed: the folder's own."""
    images: Series
    pairs: Pairs | None
    """None where there are frames only."""
    splits: dict[str, int]
    """Frames in each folder that `{split}` matches."""
    lists: dict[str, str]
    """Split -> `.txt` file below the folder."""
    split: str | None
    observation: Observation | None
    fits: tuple[Fit, ...]
    """The known tables, best first."""
    samples: Samples
    """Image and label of the frames whose labels were counted."""
    label_scale: float
    """As in a spec: not 1 where labels are not as large as their frames, all alike."""
    same_as: tuple[str, ...]
    """Built-in data sets whose patterns and values these are."""
    foreign: str | None
    """What the labels are that are there and are not read."""
    remarks: tuple[str, ...]
    """What the user should know: what was left out, what is not right."""

    @property
    def frames(self) -> int:
        """How many images the pattern matches."""
        return len(self.images.paths)

    @property
    def table(self) -> Fit | None:
        """The best of the tables that fit, if any does."""
        return self.fits[0] if self.fits and self.fits[0].fits else None

    @property
    def sure(self) -> bool:
        """Whether a table fits well, and no other might be meant instead."""
        return self.table is not None and self.table.plausible >= SURELY and not self.alternatives

    @property
    def alternatives(self) -> tuple[Fit, ...]:
        """The tables that might be meant instead of the best."""
        if self.table is None or self.observation is None:
            return ()
        return tuple(alternatives(self.fits, self.observation))

    def names(self) -> dict[str, str]:
        """Observed raw value -> name, for those that the best table names."""
        if self.table is None or self.observation is None:
            return {}
        table = self.table.table.values
        return {v.raw: table[v.raw] for v in self.observation.values if v.raw in table}

    def questions(self) -> dict[str, tuple[str, str]]:
        """Observed raw value -> the name that is proposed, and why a person is to look at it."""
        if self.observation is None:
            return {}
        names, values = self.names(), self.observation.values
        sky = sum(value.share for value in values if names.get(value.raw) == "sky")
        asked = {}
        for value in values:
            name = names.get(value.raw)
            if why := self._doubt(value, name, has_sky=sky >= LOST):
                asked[value.raw] = why
        return asked

    def _doubt(self, value: Value, name: str | None, *, has_sky: bool) -> tuple[str, str] | None:
        void = name is None or name in VOID or name == SKY_AT_TOP
        if void and not has_sky and like_sky(value.share, value.border):
            return SKY_AT_TOP, f"{percent(value.border)} of the upper border"
        if name is None:
            return ("unlabeled", "") if value.share >= _SEEN else None
        assert self.table is not None
        if void:
            return (name, "much for this name") if value.share >= LARGE else None
        if value.share < LOST:
            return None
        if why := self.table.table.asked.get(value.raw):
            return ("unlabeled" if "/" in name else name), why
        if odd(name, value):
            return name, f"an odd place for {name}"
        if self.table.plausible < SURELY:
            return name, "the table is no more than the likeliest"
        return None


def discover(folder: Path) -> Discovery:
    """Find the frames of a folder, their labels, the encoding and the likeliest names.

    Names are read once; of the pixels, a few files a series and `SAMPLE` labels.

    Raises:
        UserError: no such folder, nothing to use in it, labels that pair with no image, or names
            that a pattern cannot hold.
    """
    listing = _list(folder)
    remarks: list[str] = []
    found = find_series(listing.images)
    enough = _LOOKED_AT if len(found) <= 20 else 1
    found = [replace(one, kind=_kind(folder, one, enough, remarks)) for one in found]
    joined = join_alike(found)
    foreign = foreign_labels(folder, listing.others)
    pairs = None if foreign and "COCO" in foreign else _choose_pairs(joined)
    if not foreign and (pairs is None or 2 * pairs.count < len(pairs.images.paths)):
        # What looks alike need not be one series: images of two cameras, labels of one.
        pairs = _choose_pairs([*joined, *(one for one in found if one not in joined)])
    images = pairs.images if pairs else _choose_images(joined, listing)
    if pairs is None and not foreign:
        _refuse_unpaired(images, joined)
    check_literals(images)
    if pairs:
        check_literals(pairs.labels)
    remarks += [*_left_out(joined, images, pairs), *foreign_files(listing.others)]

    fields = images.fields
    splits: dict[str, int] = {}
    if "split" in fields:
        splits = dict(sorted(Counter(key[fields.index("split")] for key in images.keys).items()))
    given = {"name": str(folder), "root": folder, "images": images.pattern()}
    spec = parse(DatasetSpec, given, str(folder))
    _verify(spec, images, splits)
    lists = _lists(spec, listing, images, remarks)
    samples: Samples = ()
    observation = None
    if pairs:
        chosen = [pairs.files[i] for i in spaced(pairs.count, SAMPLE)]
        samples = tuple((folder / image, folder / label) for image, label in chosen)
        observation = _observe(samples, pairs.labels.kind, remarks)
    name = folder.absolute().resolve().name or "dataset"
    ranked = fits(observation) if observation else []
    if observation:
        legends = legend_tables(folder, [*listing.others, *listing.lists], name, observation)
        named = [fit_of_legend(table, observation.values) for table in legends]
        ranked = [*(fit for fit in named if fit.fits), *ranked]
    return Discovery(
        folder=folder,
        name=name,
        foreign=foreign if pairs is None else None,
        images=images,
        pairs=pairs,
        splits=splits,
        lists=lists,
        split=_first_split(splits, lists),
        observation=observation,
        fits=tuple(ranked),
        samples=samples,
        label_scale=_label_scale(samples, remarks),
        same_as=_same_as(images, pairs, ranked),
        remarks=tuple(remarks),
    )


def _observe(samples: Samples, kind: Kind, remarks: list[str]) -> Observation:
    """Count the values of sampled labels; remarks on what is odd about them."""
    files = [label for _, label in samples]
    if kind == "ids" and 2 * len(renumbered(_palettes(files))) >= len(files):
        remarks.append("label files have palettes that differ: their colours are read")
        kind = "rgb"
    observation = observe(files, kind)
    if kind == "wide":
        tried = [observation, *(observe(files, kind, divide) for divide in _DIVISORS)]
        observation = max(tried, key=_likelihood)
        if observation.divide != 1:
            remarks.append(
                f"label values hold numbers of objects, too: class * {observation.divide} + number"
            )
    remarks += observation.remarks
    if observation.unreadable:
        remarks.append(
            f"{len(observation.unreadable)} of {len(samples)} label files cannot be read, "
            f"first {observation.unreadable[0]}"
        )
    return observation


def _likelihood(observation: Observation) -> float:
    """How well the best known table suits what was observed."""
    return max((fit.covered * fit.plausible for fit in fits(observation)), default=0.0)


def _list(folder: Path) -> Listing:
    if not folder.exists():
        raise UserError(f"No folder {folder}. Give the folder that holds the frames.")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Give the folder that holds the frames.")
    listing = walk(folder)
    if not listing.images:
        held = f"{len(listing.others) + len(listing.lists)} other file(s)"
        foreign = "".join(f" {line}." for line in foreign_files(listing.others))
        raise UserError(
            f"No image file in {folder} or below ({held}).{foreign} Give the folder that holds the "
            "frames."
        )
    return listing


def _kind(folder: Path, series: Series, enough: int, remarks: list[str]) -> Kind:
    """What a series shows, by `enough` of its files; a remark for each that cannot be read."""
    known: list[Kind] = []
    order = spaced(len(series.paths), 4 * enough)
    for i in order[1::2] + order[::2]:  # the middle ones first
        try:
            known.append(look(folder / series.paths[i]))
        except UserError as error:
            remarks.append(f"unreadable, skipped: {error}")
        if len(known) == enough:
            break
    return richest(known) if known else "many"


def _choose_pairs(every: Sequence[Series]) -> Pairs | None:
    """The images and labels that are most likely meant, of all series that pair."""
    photos = [one for one in every if one.kind == "photo"]
    photos = photos or [one for one in every if one.kind == "grey"]
    labels = [one for one in every if one.kind in _LABEL_KINDS]
    found = [
        pairs
        for image in photos
        for label in labels
        if label is not image and (pairs := pair(image, label))
    ]
    if not found:
        return None
    most = max(pairs.count for pairs in found)

    def merit(pairs: Pairs) -> tuple[object, ...]:
        text = pairs.labels.text
        return (
            pairs.count >= most / 2,
            not _OTHER_WORDS.search(pairs.images.text),
            not _OTHER_WORDS.search(text),
            _LABEL_KINDS[pairs.labels.kind],
            bool(_LABEL_WORDS.search(text)),
            "train" not in text.replace("{split}", ""),  # ids of training leave classes out
            bool(_IMAGE_WORDS.search(pairs.images.text)),
            pairs.count,
        )

    return max(found, key=merit)


def _choose_images(joined: Sequence[Series], listing: Listing) -> Series:
    for kind in ("photo", "grey"):
        if photos := [one for one in joined if one.kind == kind]:
            return max(
                photos,
                key=lambda one: (
                    not _OTHER_WORDS.search(one.text),
                    bool(_IMAGE_WORDS.search(one.text)),
                    len(one.paths),
                ),
            )
    shown = "; ".join(f"{one.pattern()}: {_KINDS[one.kind]}" for one in joined[:5])
    if any(Path(path).suffix == ARRAY for one in joined for path in one.paths[:1]):
        shown += f"; of {ARRAY} files labels alone are read: save frames as PNG"
    foreign = "".join(f" {line}." for line in foreign_files(listing.others))
    raise UserError(
        f"No frames were found: no series of files looks like photographs ({shown}).{foreign} Give "
        "the folder that holds frames and labels."
    )


def _refuse_unpaired(images: Series, joined: Sequence[Series]) -> None:
    """Say why labels that are there pair with no image; a few stray pictures are none."""
    for labels in joined:
        many = len(labels.paths) >= 0.2 * len(images.paths)
        if labels.kind not in _LABEL_KINDS or not (many or _LABEL_WORDS.search(labels.text)):
            continue
        seen = (
            f"{len(images.paths):,} images {images.pattern()!r} and {len(labels.paths):,} files "
            f"that look like labels, {labels.pattern()!r}, were found"
        )
        if differ := padding_differs(images, labels):
            raise UserError(
                f"{seen}, but their numbers are padded differently ({differ[0]}, {differ[1]}), "
                "which no file pattern can pair. Rename one of them to as many digits as the other."
            )
        raise UserError(
            f"{seen}, but no image and label have the same name ({images.paths[0]}, "
            f"{labels.paths[0]}). Rename them so that they differ in folders or in the beginnings "
            "or ends of names only, take the labels out of the folder, or write the spec by hand: "
            "a pattern may have several fields, `{drive}_camera_{frame}`."
        )


def _left_out(
    joined: Sequence[Series],
    images: Series,
    pairs: Pairs | None,
) -> list[str]:
    """A line for each series that is not used, and for copies of the labels."""
    used = set(images.paths) | (set(pairs.labels.paths) if pairs else set())
    lines = []
    for series in joined:
        rest = set(series.paths) - used
        if not rest:
            continue
        what = _KINDS[series.kind]
        line = f"not used: {len(rest):,} files {series.pattern()} ({what})"
        if pairs and series.kind == "rgb" and pair(images, series):
            line += "; labels are read as ids, which tell more than colours"
        lines.append(line)
    if pairs and pairs.lone_labels:
        lines.append(
            f"{len(pairs.lone_labels):,} labels have no image, first {pairs.lone_labels[0]}"
        )
    return lines


def _lists(
    spec: DatasetSpec, listing: Listing, images: Series, remarks: list[str]
) -> dict[str, str]:
    """The text files that list frames of this folder: split -> file."""
    ours = {"/".join(key) for key in images.keys}
    found: dict[str, str] = {}
    taken: dict[str, str] = {}  # frame -> the list that has it

    def rank(path: str) -> int:
        """Lists of splits go before lists of other parts, which may overlap them."""
        return SPLITS.index(stem) if (stem := Path(path).stem.lower()) in SPLITS else len(SPLITS)

    for path in sorted(listing.lists[:_LISTS], key=rank):
        file = spec.root / path
        if CONTROL.search(path) or not file.is_file() or file.stat().st_size > _LIST_BYTES:
            continue
        split = Path(path).stem
        chosen = spec.model_copy(update={"splits": {split: path}, "split": split})
        try:
            lines = {line.strip() for line in read_list(file).split("\n") if line.strip()}
            samples = list_samples(chosen, labelled=False)
        except UserError:  # it lists others than frames, too
            continue
        names = [sample.name for sample in samples]
        if len(names) < 0.8 * len(lines) or split in found:
            continue
        lists = f"not used: {path} lists frames, but"
        if other := [sample for sample in samples if sample.name not in ours]:
            remarks.append(f"{lists} {spec.images!r} finds {other[0].image} there")
        elif len(names) > len(lines):
            remarks.append(f"{lists} its {len(lines):,} lines fit {len(names):,} of them")
        elif shared := [name for name in names if name in taken]:
            remarks.append(f"{lists} {len(shared):,} of them are in {taken[shared[0]]}, too")
        else:
            found[split] = path
            taken |= dict.fromkeys(names, path)
    return dict(sorted(found.items()))


def _first_split(splits: Mapping[str, int], lists: Iterable[str]) -> str | None:
    """The split that is trained on; where folders are splits, one must be meant."""
    train = [name for name in (splits or lists) if name.lower() in {"train", "training"}]
    if train or not splits:
        return train[0] if train else None
    return max(splits, key=lambda name: splits[name])


def _label_scale(samples: Iterable[tuple[Path, Path]], remarks: list[str]) -> float:
    """How many times as wide as their frames all sampled labels are; a remark if not once."""
    scales, differ = set(), []
    for image, label in samples:
        with suppress(UserError):
            one, other = image_size(image), image_size(label)
            scales.add(1.0 if one == other else scale_of(one, other))
            if one != other:
                differ.append(f"{image} is {one[0]}x{one[1]}, its label {other[0]}x{other[1]}")
    if differ:
        remarks.append(f"sizes differ in {len(differ)} sampled pairs: {differ[0]}")
    return (scales.pop() or 1.0) if len(scales) == 1 else 1.0


def _palettes(files: Iterable[Path]) -> list[bytes]:
    palettes = []
    for file in files:
        with suppress(UserError):
            palettes.append(read_header(file).palette)
    return palettes


def _verify(spec: DatasetSpec, images: Series, splits: Iterable[str]) -> None:
    """Match the images' pattern as every later stage will.

    Raises:
        UserError: it matches other files too.
    """
    ours = {"/".join(key) for key in images.keys}
    each: list[str | None] = [*splits]
    for split in each or [None]:
        chosen = spec.model_copy(update={"split": split})
        for sample in list_samples(chosen, labelled=False):
            if sample.name not in ours:
                raise UserError(
                    f"No pattern takes the frames alone: {spec.images!r} matches {sample.image} "
                    "too, which is none or was met by another link. Move the frames into a folder "
                    "of their own."
                )
            ours.remove(sample.name)
    assert not ours, f"{spec.images} misses {min(ours)}"


def _same_as(images: Series, pairs: Pairs | None, ranked: Sequence[Fit]) -> tuple[str, ...]:
    """The built-in data sets with the patterns found and the best table."""
    if pairs is None or not ranked or not ranked[0].fits:
        return ()

    def bare(pattern: str) -> str:
        words = "|".join(SPLITS)
        path = re.sub(rf"\{{\w+\}}|(?<![^/])({words})(?![^/])", "{}", pattern)
        return path.removesuffix(Path(path).suffix) if Path(path).suffix in SUFFIXES else path

    ours = bare(images.pattern()), bare(pairs.label_pattern())
    known = built_in_specs()
    found = []
    for name in (ranked[0].table.name, *ranked[0].table.users):
        if name in known:
            fields = spec_fields(name, Path())
            if ours == (bare(str(fields["images"])), bare(str(fields["labels"]))):
                found.append(name)
    return tuple(found)
