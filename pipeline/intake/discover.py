"""A first spec for a folder of unknown layout: `discover` looks, `write_first_spec` writes.

What cannot be known from files is never decided silently: the spec's comments say what a name
rests on, and pictures beside the spec show what a value looks like.
"""

import json
import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.images import SUFFIXES, image_size, read_header
from pipeline.data.labels import VOCABULARY
from pipeline.data.listing import list_samples, read_list, read_quarantine, spaced
from pipeline.data.spec import DatasetSpec, built_in_specs, spec_fields
from pipeline.errors import UserError
from pipeline.files import sweep, write_text
from pipeline.intake.encodings import (
    PLAUSIBLE,
    SURELY,
    Fit,
    Kind,
    Observation,
    Value,
    fits,
    look,
    observe,
    odd,
    rivals,
    where,
    wildest,
)
from pipeline.intake.faults import renumbered
from pipeline.intake.findings import write_quarantine
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
from pipeline.intake.preview import preview_name, write_preview
from pipeline.intake.text import percent
from pipeline.schema import CONTROL, parse
from pipeline.yaml_files import expand, parse_yaml

SAMPLE = 64
"""Label files whose values are counted, evenly spaced."""
_LOOKED_AT = 3
"""Files of a series that decide what it shows."""
_MOST_VALUES = 256
"""Raw values that a first spec lists at most."""
_LISTS, _LIST_BYTES = 50, 4 * 1024 * 1024

_LABEL_WORDS = re.compile(r"label|lbl|seg|mask|annot|semantic|class|(?<![a-z])(gt|ss)(?![a-z])")
_IMAGE_WORDS = re.compile(r"rgb|image|img|photo|frame|picture|camera|color(?!iz)")
_OTHER_WORDS = re.compile(
    r"instance|inst(?![a-z])|panoptic|depth|disp|normal|flow|lidar|edge|boundar|vehicle_?mask"
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
    samples: tuple[tuple[Path, Path], ...]
    """Image and label of the frames whose labels were counted."""
    same_as: tuple[str, ...]
    """Built-in data sets whose patterns and values these are."""
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
        return self.table is not None and self.table.plausible >= SURELY and not self.doubts

    @property
    def doubts(self) -> tuple[Fit, ...]:
        """The tables that might be meant instead of the best."""
        if self.table is None or self.observation is None:
            return ()
        return tuple(rivals(self.fits, self.observation))

    def names(self) -> dict[str, str]:
        """Observed raw value -> name, for those that the best table names."""
        if self.table is None or self.observation is None:
            return {}
        table = self.table.table.values
        return {v.raw: table[v.raw] for v in self.observation.values if v.raw in table}

    def unnamed(self) -> list[Value]:
        """The observed values that no table names."""
        values = () if self.observation is None else self.observation.values
        return [value for value in values if value.raw not in self.names()]


def discover(folder: Path) -> Discovery:
    """Find the frames of a folder, their labels, the encoding and the likeliest names.

    Names are read once; of the pixels, a few files a series and `SAMPLE` labels.

    Raises:
        UserError: no such folder, nothing to use in it, labels that pair with no image, or names
            that a pattern cannot hold.
    """
    listing = _list(folder)
    found = find_series(listing.images)
    remarks: list[str] = []
    kind = _looker(folder, remarks, _LOOKED_AT if len(found) <= 20 else 1)
    joined = join_alike(found, kind)
    pairs = _choose_pairs(joined, kind)
    if pairs is None or 2 * pairs.count < len(pairs.images.paths):
        # What looks alike need not be one series: images of two cameras, labels of one.
        pairs = _choose_pairs([*joined, *(one for one in found if one not in joined)], kind)
    images = pairs.images if pairs else _choose_images(joined, kind)
    if pairs is None:
        _refuse_unpaired(images, joined, kind)
    check_literals(images)
    if pairs:
        check_literals(pairs.labels)
    remarks += _left_out(joined, images, pairs, kind)

    fields = images.fields
    splits: dict[str, int] = {}
    if "split" in fields:
        splits = dict(sorted(Counter(key[fields.index("split")] for key in images.keys).items()))
    spec = _frames_spec(folder, images)
    _verify(spec, images, splits)
    lists = _lists(spec, listing, images, remarks)
    samples: tuple[tuple[Path, Path], ...] = ()
    observation, ranked = None, list[Fit]()
    if pairs:
        samples = _sample(folder, pairs)
        files = [label for _, label in samples]
        shown = kind(pairs.labels)
        if shown == "ids" and 2 * len(renumbered(_palettes(files))) >= len(files):
            remarks.append("label files have palettes that differ: their colours are read")
            shown = "rgb"
        observation = observe(files, shown)
        ranked = fits(observation)
        remarks += _sizes(samples)
        remarks += observation.remarks
        if observation.unreadable:
            remarks.append(
                f"{len(observation.unreadable)} of {len(samples)} label files cannot be read, "
                f"first {observation.unreadable[0]}"
            )
    return Discovery(
        folder=folder,
        name=folder.absolute().resolve().name or "dataset",
        images=images,
        pairs=pairs,
        splits=splits,
        lists=lists,
        split=_first_split(splits, lists),
        observation=observation,
        fits=tuple(ranked),
        samples=samples,
        same_as=_same_as(images, pairs, ranked),
        remarks=tuple(remarks),
    )


def _list(folder: Path) -> Listing:
    if not folder.exists():
        raise UserError(f"No folder {folder}. Give the folder that holds the frames.")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Give the folder that holds the frames.")
    listing = walk(folder)
    if not listing.images:
        held = f"{listing.others + len(listing.lists)} other file(s)"
        raise UserError(
            f"No image file in {folder} or below ({held}). Unpack archives first, and give the "
            "folder that holds the frames."
        )
    return listing


def _looker(folder: Path, remarks: list[str], enough: int) -> Callable[[Series], Kind]:
    """A function that says what a series shows, from a few of its files, each read once."""
    kinds: dict[str, Kind | None] = {}

    def of_file(path: str) -> Kind | None:
        if path not in kinds:
            try:
                kinds[path] = look(folder / path)
            except UserError as error:
                kinds[path] = None
                remarks.append(f"unreadable, skipped: {error}")
        return kinds[path]

    def of_series(series: Series) -> Kind:
        # A joined series needs no new look at files: its parts' are known, and of one kind.
        known = [kind for path in series.paths if (kind := kinds.get(path)) is not None]
        if len(known) >= min(enough, len(series.paths)):
            return wildest(known)
        order = spaced(len(series.paths), 4 * enough)
        for path in (series.paths[i] for i in order[1::2] + order[::2]):  # the middle ones first
            if path not in kinds and (kind := of_file(path)) is not None:
                known.append(kind)
            if len(known) == enough:
                break
        return wildest(known) if known else "many"

    results: dict[int, tuple[Series, Kind]] = {}

    def cached(series: Series) -> Kind:
        if id(series) not in results:
            results[id(series)] = series, of_series(series)  # kept, so that its id stays its own
        return results[id(series)][1]

    return cached


def _choose_pairs(every: Sequence[Series], kind: Callable[[Series], Kind]) -> Pairs | None:
    """The images and labels that are most likely meant, of all series that pair."""
    photos = [one for one in every if kind(one) == "photo"]
    photos = photos or [one for one in every if kind(one) == "grey"]
    labels = [one for one in every if kind(one) in _LABEL_KINDS]
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
            _LABEL_KINDS[kind_of(pairs.labels)],
            bool(_LABEL_WORDS.search(text)),
            "train" not in text.replace("{split}", ""),  # ids of training leave classes out
            bool(_IMAGE_WORDS.search(pairs.images.text)),
            pairs.count,
        )

    def kind_of(series: Series) -> Kind:
        return next(kind(one) for one in every if one.paths == series.paths)

    return max(found, key=merit)


def _choose_images(joined: Sequence[Series], kind: Callable[[Series], Kind]) -> Series:
    for kinds in (("photo",), ("grey",)):
        photos = [one for one in joined if kind(one) in kinds]
        if photos:
            return max(
                photos,
                key=lambda one: (
                    not _OTHER_WORDS.search(one.text),
                    bool(_IMAGE_WORDS.search(one.text)),
                    len(one.paths),
                ),
            )
    shown = "; ".join(f"{one.pattern()}: {_KINDS[kind(one)]}" for one in joined[:5])
    raise UserError(
        f"No frames were found: no series of files looks like photographs ({shown}). Give the "
        "folder that holds frames and labels."
    )


def _refuse_unpaired(
    images: Series, joined: Sequence[Series], kind: Callable[[Series], Kind]
) -> None:
    """Say why labels that are there pair with no image; a few stray pictures are none."""
    for labels in joined:
        many = len(labels.paths) >= 0.2 * len(images.paths)
        if kind(labels) not in _LABEL_KINDS or not (many or _LABEL_WORDS.search(labels.text)):
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
            "or ends of names only, or take the labels out of the folder."
        )


def _left_out(
    joined: Sequence[Series],
    images: Series,
    pairs: Pairs | None,
    kind: Callable[[Series], Kind],
) -> list[str]:
    """A line for each series that is not used, and for copies of the labels."""
    used = set(images.paths) | (set(pairs.labels.paths) if pairs else set())
    lines = []
    for series in joined:
        rest = set(series.paths) - used
        if not rest:
            continue
        what = _KINDS[kind(series)]
        line = f"not used: {len(rest):,} files {series.pattern()} ({what})"
        if pairs and kind(series) == "rgb" and pair(images, series):
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


def _sample(folder: Path, pairs: Pairs) -> tuple[tuple[Path, Path], ...]:
    """Image and label files of evenly spaced pairs."""
    back = [pairs.order.index(i) for i in range(len(pairs.order))]
    ours = pairs.images.keys
    both = []
    for key, label in pairs.labels.keys.items():
        image = ours.get((*(key[i] for i in back), key[-1]))
        if image is not None:
            both.append((image, label))
    both.sort()
    chosen = (both[i] for i in spaced(len(both), SAMPLE))
    return tuple((folder / image, folder / label) for image, label in chosen)


def _sizes(samples: Iterable[tuple[Path, Path]]) -> list[str]:
    """A remark where an image and its label differ in size."""
    differ = []
    for image, label in samples:
        try:
            one, other = image_size(image), image_size(label)
        except UserError:
            continue
        if one != other:
            differ.append(f"{image} is {one[0]}x{one[1]}, its label {other[0]}x{other[1]}")
    return [f"sizes differ in {len(differ)} sampled pairs: {differ[0]}"] if differ else []


def _palettes(files: Iterable[Path]) -> list[bytes]:
    palettes = []
    for file in files:
        with suppress(UserError):
            palettes.append(read_header(file).palette)
    return palettes


def _frames_spec(folder: Path, images: Series) -> DatasetSpec:
    fields = {"name": str(folder), "root": folder, "images": images.pattern()}
    return parse(DatasetSpec, fields, str(folder))


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
            if ours == (bare(fields["images"]), bare(fields["labels"])):
                found.append(name)
    return tuple(found)


def describe(discovery: Discovery, out: Path | None = None) -> list[str]:
    """The findings in words, one a line, and the next step.

    Args:
        out: the spec that was written, for the next step.
    """
    pairs, observation = discovery.pairs, discovery.observation
    lines = [f"{discovery.frames:,} images: {discovery.images.pattern()}"]
    if pairs is None or observation is None:
        lines.append("no labels: a set of frames only")
    else:
        lines.append(f"{len(pairs.labels.paths):,} labels: {pairs.label_pattern()}")
        lines.append(f"{pairs.count:,} pairs, {len(pairs.lone_images):,} images without a label")
    if discovery.splits:
        parts = [f"{name} {count:,}" for name, count in discovery.splits.items()]
        lines.append(f"splits: {', '.join(parts)}; the spec means {discovery.split}")
    if discovery.lists:
        lines.append(f"lists of frames: {', '.join(discovery.lists.values())}")
    lines += discovery.remarks
    if observation is not None:
        lines.append(
            f"{len(observation.values)} values in {observation.files} label files, encoding "
            f"{observation.encoding}"
        )
        lines += table_lines(discovery)
        for value in discovery.unnamed():
            lines.append(f"no name for {value.raw}: {_facts(value)}")
    if discovery.same_as:
        names = " or ".join(f"`dataset: {name}`" for name in discovery.same_as)
        lines.append(f"patterns and values are built in: {names} says the same as this spec")
    if out is not None:
        edit = "Look at the pictures, edit the names" if observation else "Look over the file"
        lines.append(f"Next: {edit} in {out}, then `sim2real check {out}`")
    return lines


def table_lines(discovery: Discovery) -> list[str]:
    """What the names rest on."""
    best = discovery.table
    if best is None:
        if not discovery.fits:
            return ["no known table: name the values yourself"]
        nearest = discovery.fits[0]
        return [f"no known table fits (the nearest is {_score(nearest)}): name the values yourself"]
    doubts = discovery.doubts
    if discovery.sure:
        lines = [f"names: {best.table.name}"]
    else:
        lines = [f"names: {best.table.name}? Files do not say whose table they follow: make sure"]
    if best.table.users:
        lines[0] += f" (as in {', '.join(best.table.users)})"
    others = doubts or [fit for fit in discovery.fits[1:2] if fit.plausible > PLAUSIBLE / 2]
    return lines + [f"  {_score(fit)}" for fit in (best, *others[:3])]


def _score(fit: Fit) -> str:
    text = f"{fit.table.name}: {fit.plausible:.0%} plausible by where its names lie in the frames"
    if fit.covered < 0.9995:
        text += f", without names for {percent(1 - fit.covered)} of the pixels"
    return text + (f" ({fit.oddest})" if fit.oddest else "")


def _facts(value: Value) -> str:
    return f"{percent(value.share)} of the pixels, {where(value.height)}"


def write_first_spec(discovery: Discovery, out: Path) -> list[Path]:
    """Write the spec as YAML with comments, and pictures into `NAME.preview/` beside it.

    Images without a label are written into `NAME.quarantine.csv`, which the spec leaves out.

    Returns:
        What was written: the spec, the pictures' folder and the quarantine list, where made.

    Raises:
        UserError: a file is already there, `out` is no YAML file name, or a name that a spec
            cannot hold.
    """
    if out.suffix not in {".yaml", ".yml"}:
        raise UserError(f"{out} does not end in .yaml. Give the spec another name with --out.")
    _check_names(_root(discovery, out), discovery.name, out.name)
    quarantine = out.with_name(f"{out.stem}.quarantine.csv")
    preview = out.with_name(f"{out.stem}.preview")
    lone = discovery.pairs.lone_images if discovery.pairs else ()
    reasons = {"/".join(key): "no label" for key in lone}
    # A list of the same frames is left by a call that was killed before it wrote the spec.
    other = quarantine.exists() and read_quarantine(quarantine) != reasons
    for path, taken in ((out, out.exists()), (quarantine, bool(lone) and other)):
        if taken:
            raise UserError(f"{path} is there already. Remove it, or name another with --out.")
    written = [out]
    text = spec_text(discovery, out, quarantine.name if lone else None)
    parse(DatasetSpec, expand(parse_yaml(text), "", []), str(out))
    sweep(out.parent)
    if discovery.observation is not None:
        unnamed = discovery.unnamed()
        sweep(preview)
        write_preview(preview, discovery.samples, discovery.observation, discovery.names(), unnamed)
        written.append(preview)
    if lone:
        write_quarantine(reasons, quarantine)
        written.append(quarantine)
    write_text(out, text)  # last: where the spec is, all of it is
    return written


def _root(discovery: Discovery, out: Path) -> str:
    """The folder as the spec says it, relative to the spec."""
    return os.path.relpath(discovery.folder.absolute(), out.absolute().parent)


def _check_names(*names: str) -> None:
    for name in names:
        if CONTROL.search(name):
            raise UserError(
                f"A spec cannot hold {name!r}: it is plain UTF-8 text. Rename the folder, link to "
                "it under another name, or name another --out."
            )


def spec_text(discovery: Discovery, out: Path, quarantine: str | None) -> str:
    """The YAML text of the first spec that is to stand at `out`."""
    pairs, observation = discovery.pairs, discovery.observation
    preview = f"{out.stem}.preview"
    lines = [f"# First spec of {discovery.frames:,} frames, made by looking at the folder."]
    if observation is not None:
        lines.append(f"# Compare the names with {preview}/frames.png and edit them, then:")
    lines.append(f"#   sim2real check {out.name}")
    lines += [f"name: {_quoted(discovery.name)}", f"root: {_quoted(_root(discovery, out))}"]
    lines.append(f"images: {_quoted(discovery.images.pattern())}")
    if pairs is not None and observation is not None:
        lines.append(f"labels: {_quoted(pairs.label_pattern())}")
        lines.append(f"encoding: {observation.encoding}")
        if observation.encoding == "channel":
            lines.append(f"channel: {observation.channel}")
    if discovery.split is not None:
        known = ", ".join(f"{name} {count:,}" for name, count in discovery.splits.items())
        lines.append(f"split: {_quoted(discovery.split)}" + (f"  # of {known}" if known else ""))
    if discovery.lists:
        lines.append("splits:")
        lines += [
            f"  {json.dumps(k, ensure_ascii=False)}: {_quoted(path)}"
            for k, path in discovery.lists.items()
        ]
    if quarantine is not None:
        assert pairs is not None
        lines.append(f"quarantine: {_quoted(quarantine)}  # {len(pairs.lone_images):,} unlabelled")
    if observation is not None:
        words = table_lines(discovery)
        if discovery.unnamed():
            words.append(f"Names: {', '.join(sorted(VOCABULARY))}; or your own, DATASET/NAME.")
        lines += [f"# {line}" for line in _wrapped(words)]
        lines += _value_lines(discovery, observation, preview)
    return "\n".join(lines) + "\n"


def _value_lines(discovery: Discovery, observation: Observation, preview: str) -> list[str]:
    table = discovery.table.table if discovery.table else None
    seen = {value.raw: value for value in observation.values[:_MOST_VALUES]}
    rest = [raw for raw in (table.values if table else {}) if raw not in seen]
    rows: list[tuple[str, str]] = []
    for raw in sorted([*seen, *rest], key=lambda raw: [int(n) for n in raw.split(",")]):
        name = table.values.get(raw) if table else None
        notes = [_facts(seen[raw])] if raw in seen else ["not in the sample"]
        if name and raw in seen and odd(name, seen[raw]):
            notes.append(f"an odd place for {name}")
        if table and name and raw in table.remarks:
            notes.append(table.remarks[raw])
        if name is None:
            notes.append(f"name it: {preview}/{preview_name(raw)}")
        key = _quoted(raw) if "," in raw else raw
        rows.append((f"  {key}: {name or 'unlabeled'}", "; ".join(notes)))
    width = max(len(entry) for entry, _ in rows)
    lines = ["values:", *(f"{entry:<{width}}  # {note}" for entry, note in rows)]
    if len(observation.values) > _MOST_VALUES:
        more = len(observation.values) - _MOST_VALUES
        lines.append(f"  # and {more:,} rarer values: are these labels, or ids of instances?")
    return lines


def _quoted(text: object) -> str:
    """A value as YAML takes it whatever it holds: JSON's strings are YAML's, but for `$`."""
    return json.dumps(str(text).replace("$", "$$"), ensure_ascii=False)


def _wrapped(lines: Iterable[str]) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line.strip(), 96)]
