"""The data doctor: every file of a data set is decoded once, and what is wrong becomes a finding.

A fault of a file is a finding, never an error. Memory holds a thumbnail of 256 bytes, two hashes
and the file names of each frame, and counts by raw value, whatever the number of pixels.
"""

import csv
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.datasets import DatasetSpec, list_samples, read_quarantine
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.images import SUFFIXES
from pipeline.intake.facts import SIGNATURE, Examiner, Files, FrameFacts
from pipeline.labels import IGNORE, LabelSpace

Severity = Literal["must fix", "look", "note"]
"""`must fix` stops or spoils a training; `look` may be meant; `note` is a fact worth knowing."""
SEVERITIES: tuple[Severity, ...] = ("must fix", "look", "note")

EXAMPLES = 6
"""Frames shown with a finding."""
SHOWN = 6
"""Evenly spaced frames shown of a data set."""
FEW_FRAMES = 20
NEAR_RMS = 1.25
"""Thumbnails (grey levels, root mean square) this near show one picture: JPEG at quality 60 and
resizing stay below .7, different synthetic frames above 8."""
NEAR_RATIO = 0.03
"""The same as a share of the thumbnail's contrast, so that two frames of fog or night, near in
grey levels for want of contrast, are not taken for one picture."""
MUST_FIX_UNNAMED = 0.01
"""Share of all label pixels without a name from which on the table of values must be mended."""
ALIGNED_FRAMES = 200
"""Evenly spaced frames whose edges are compared with their label's borders."""
APART_RATIO = 1.15
"""How much stronger edges must be on a label's borders than on those of the flipped label. In
sets that belong together it is above 1.4, with labels of other frames below 1.1."""
_MOST_FRAMES = 0.5  # a fault of more frames than this is one of the spec or of the whole set
_VALUES = 2048  # values without a name that are counted each by itself
_ROWS = 512  # thumbnails compared with all others at once


@dataclass(frozen=True)
class Kind:
    """One kind of fault: how grave, what it is called, what to do, whether frames are left out."""

    severity: Severity
    title: str
    advice: str
    quarantines: bool = False


KINDS: dict[str, Kind] = {
    "empty-file": Kind(
        "must fix", "Files without content", "Copy them again, or quarantine the frames.", True
    ),
    "unreadable": Kind(
        "must fix",
        "Files that cannot be decoded",
        "Copy them again from the original, or quarantine the frames.",
        True,
    ),
    "no-label": Kind(
        "must fix", "Images without a label", "Add the labels, or quarantine the frames.", True
    ),
    "two-labels": Kind(
        "must fix",
        "Frames with two label files",
        "Remove one, or give the `labels` pattern a file name ending.",
        True,
    ),
    "size-differs": Kind(
        "must fix",
        "Label of another size than its image",
        "Find out which file belongs to another frame; quarantine what cannot be mended.",
        True,
    ),
    "label-colours": Kind(
        "must fix",
        "Labels are colour images, and the spec says ids",
        "Set `encoding` (and `values`) to what the labels hold.",
        True,
    ),
    "label-ids": Kind(
        "must fix",
        "Labels hold one value a pixel, and the spec says colours",
        "Set `encoding: ids` and name the ids in `values`.",
        True,
    ),
    "label-channel": Kind(
        "must fix",
        "The channel that is read says nothing",
        "Set `channel` to the one that varies (0 is red).",
        True,
    ),
    "label-depth": Kind(
        "must fix",
        "Labels of another depth than their ids",
        "Use the files that hold plain ids, or convert these.",
        True,
    ),
    "palette-differs": Kind(
        "must fix",
        "Palettes that contradict the ids",
        "A program renumbered the indices: convert the colours back to ids, or quarantine.",
        True,
    ),
    "label-jpeg": Kind(
        "must fix",
        "Labels stored as JPEG",
        "Get the lossless originals: JPEG mixes ids at every border.",
        True,
    ),
    "resampled-label": Kind(
        "must fix",
        "Labels that were resized smoothly or drawn antialiased",
        "Get the originals, and resize labels with nearest neighbour only.",
        True,
    ),
    "train-ids": Kind(
        "must fix",
        "Labels look like trainIds, and the spec names ids",
        "Use the `labelIds` files, or name 0..18 in `values` in the order of the trainIds.",
    ),
    "mirrored-labels": Kind(
        "must fix",
        "Labels look mirrored or upside down",
        "Flip the labels, or the images.",
    ),
    "blank-frame": Kind(
        "must fix", "Blank frames", "Render them again, or quarantine the frames.", True
    ),
    "duplicates-disagree": Kind(
        "must fix",
        "One picture with different labels",
        "Find out which label is right; quarantine the other frame.",
        True,
    ),
    "copied-label": Kind(
        "must fix",
        "One label for different pictures",
        "A label file was copied over others: get the right ones, or quarantine the frames.",
        True,
    ),
    "shared-frames": Kind(
        "must fix",
        "Frames that are also among those scored on",
        "Quarantine them here: a score on frames that were trained on says nothing.",
        True,
    ),
    "frame-depth": Kind(
        "must fix", "Frames of more than 8 bits", "Convert them to 8 bits a channel.", True
    ),
    "rotated-frame": Kind(
        "must fix",
        "Frames to be turned by their EXIF data",
        "Turn the pixels and remove the tag; training reads the pixels as they are stored.",
    ),
    "labels-apart": Kind(
        "look",
        "Labels do not follow the edges of their images",
        "Look at the frames: labels of other frames, shifted, or turned?",
    ),
    "unnamed-values": Kind(
        "look",
        "Label values without a name",
        "Name them in `values`; 'unlabeled' ignores their pixels.",
    ),
    "wrong-ending": Kind(
        "look",
        "Files whose ending is not their format",
        "Rename them: other programs go by the ending.",
    ),
    "duplicate-frames": Kind(
        "look", "The same picture twice", "Quarantine all but the first.", True
    ),
    "ignored-label": Kind(
        "look",
        "Labels without a pixel of any class",
        "Nothing is learnt from them: quarantine the frames, or look at `values`.",
        True,
    ),
    "constant-label": Kind(
        "look", "Labels of one value", "Look at these frames: the label may be a placeholder."
    ),
    "no-image": Kind(
        "look", "Labels without an image", "They are not used; add the images if they are missing."
    ),
    "same-drive": Kind(
        "look",
        "Drives that are in both parts",
        "Frames of one drive resemble each other; score on drives that no part trains on.",
    ),
    "class-only-scored": Kind(
        "look",
        "Classes that are scored and never learnt",
        "Expect an IoU of 0 there, or choose a label space that groups them.",
    ),
    "grey-frame": Kind(
        "look", "Frames without colour", "Look whether colour was lost on the way."
    ),
    "frame-depth-cut": Kind(
        "look", "Frames of 16 bits a channel", "Convert them: the lower 8 bits are cut off."
    ),
    "alpha-frame": Kind(
        "look", "Frames with an alpha channel", "It is dropped; see that the colours are as meant."
    ),
    "frame-mode": Kind(
        "look", "Frames in another colour model", "Convert them to RGB, and compare the colours."
    ),
    "few-frames": Kind("look", "Very few frames", "Check `root`, `split` and `limit`."),
    "shared-unscored": Kind(
        "look", "Frames that are also in another part", "See whether the two are meant to overlap."
    ),
    "sizes-vary": Kind(
        "note", "Frames of several sizes", "Nothing, where `width` brings them to one."
    ),
    "near-duplicates": Kind(
        "note",
        "Nearly the same picture twice",
        "Usual in video, for example before a red light; no frame is left out for it.",
    ),
    "upscaled": Kind(
        "note", "Frames narrower than the working width", "Lower `width`, or accept their blur."
    ),
    "names-unused": Kind(
        "note", "Named values that never occur", "Nothing, if the names fit the data set."
    ),
    "class-absent": Kind(
        "note", "Classes that never occur", "Nothing of them is learnt from these frames."
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A frame shown with a finding: its files, what was seen, and the image that it is like."""

    frame: str
    image: Path | None
    label: Path | None
    detail: str
    beside: Path | None = None


@dataclass(frozen=True)
class Finding:
    """One kind of fault of a data set.

    `count` and `share` are of frames, or for faults of the whole set, of what the title names;
    `share` is then None. With `quarantines`, `write_quarantine` leaves out the `frames`.
    """

    kind: str
    severity: Severity
    title: str
    detail: str
    advice: str
    count: int
    share: float | None
    quarantines: bool
    frames: tuple[str, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class ValueUse:
    """How often a raw label value occurs; `name` is None where the spec has none."""

    value: str
    name: str | None
    pixels: int
    share: float
    frames: int
    example: str | None


@dataclass(frozen=True)
class FrameTable:
    """What is kept of each frame to compare it with others.

    `names` (N), `files` (N), `hashes` (N) of the image files, b"" where unreadable, and
    `signatures` (N, 256) uint8 grey thumbnails, with `signed` (N) bool: there is one.
    """

    files: tuple[Files, ...]
    hashes: tuple[bytes, ...]
    signatures: npt.NDArray[np.uint8]
    signed: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DatasetReport:
    """All that was found in one data set."""

    spec: DatasetSpec
    space: LabelSpace
    frames: int
    labelled: int
    sizes: dict[str, int]
    """`WIDTHxHEIGHT` -> frames, most frequent first."""
    image_bytes: int
    label_bytes: int
    decoded_bytes: int
    """What the frames take as RGB at the working width."""
    class_pixels: dict[str, int]
    """Class -> pixels, in the order of the label space; empty without labels."""
    ignored_pixels: int
    values: tuple[ValueUse, ...]
    findings: tuple[Finding, ...]
    shown: tuple[Example, ...]
    table: FrameTable

    @property
    def must_fix(self) -> int:
        """How many findings must be mended before a training."""
        return sum(finding.severity == "must fix" for finding in self.findings)

    @property
    def class_shares(self) -> dict[str, float]:
        """Class -> its share of the pixels that belong to any."""
        total = sum(self.class_pixels.values())
        return {name: n / total if total else 0.0 for name, n in self.class_pixels.items()}

    def quarantined(self) -> dict[str, str]:
        """Frame -> the reasons why it is of no use, in the order of the findings."""
        reasons: dict[str, list[str]] = defaultdict(list)
        for finding in self.findings:
            if finding.quarantines:
                for frame in finding.frames:
                    reasons[frame].append(finding.kind)
        return {frame: "; ".join(reasons[frame]) for frame in sorted(reasons)}

    def as_json(self) -> dict[str, Any]:
        """What `check.json` holds of the data set."""
        return {
            "name": self.spec.name,
            "split": self.spec.split,
            "label_space": self.space.name,
            "frames": self.frames,
            "labelled": self.labelled,
            "sizes": self.sizes,
            "image_bytes": self.image_bytes,
            "label_bytes": self.label_bytes,
            "decoded_bytes": self.decoded_bytes,
            "must_fix": self.must_fix,
            "class_pixels": self.class_pixels,
            "ignored_pixels": self.ignored_pixels,
            "values": [vars(value) for value in self.values],
            "findings": [
                vars(finding)
                | {"frames": list(finding.frames)}
                | {
                    "examples": [
                        {
                            "frame": example.frame,
                            "image": str(example.image) if example.image else None,
                            "label": str(example.label) if example.label else None,
                            "detail": example.detail,
                        }
                        for example in finding.examples
                    ]
                }
                for finding in self.findings
            ],
            "quarantined": self.quarantined(),
        }


# Listing ------------------------------------------------------------------------------------------


def list_files(spec: DatasetSpec) -> tuple[list[Files], list[Path]]:
    """The frames of a data set, each with its label where there is one, and labels without image.

    Raises:
        UserError: the spec finds no frame.
    """
    samples = list_samples(spec, labelled=False)
    if spec.labels is None:
        return [Files(s.name, s.image, None) for s in samples], []
    files = []
    for sample in samples:
        label, other, *_ = [*_labels_of(spec, sample.name), None, None]
        files.append(Files(sample.name, sample.image, label, other))
    whole = spec.limit is None and spec.quarantine is None
    names = {s.name for s in (samples if whole else list_samples(_all_of(spec), labelled=False))}
    return files, _labels_without_image(spec, names)


def _fields(pattern: str) -> list[str]:
    """The fields of a pattern, in the order in which a frame's name joins them."""
    parts = (part.split("}")[0] for part in pattern.split("{")[1:])
    return list(dict.fromkeys(parts))


def _labels_of(spec: DatasetSpec, name: str) -> list[Path]:
    """Every file that is the label of a frame: one, if all is well."""
    assert spec.labels is not None
    stem = spec.labels
    for field, value in zip(_fields(spec.images), name.split("/"), strict=True):
        stem = stem.replace("{" + field + "}", value)
    ending = Path(spec.labels).suffix
    given = ending.lower() in SUFFIXES or (spec.decoder is not None and ending)
    root = spec.label_root or spec.root
    paths = (root / (stem + suffix) for suffix in (("",) if given else SUFFIXES))
    return [path for path in paths if path.is_file()]


def _all_of(spec: DatasetSpec, **changes: Any) -> DatasetSpec:
    """The spec without what leaves frames out, other than its split."""
    return spec.model_copy(update={"limit": None, "quarantine": None} | changes)


def _labels_without_image(spec: DatasetSpec, names: set[str]) -> list[Path]:
    """The label files whose frame is none of `names`."""
    assert spec.labels is not None
    lists = {
        name: str(spec.root / rule) if rule.endswith(".txt") or ".mat:" in rule else rule
        for name, rule in spec.splits.items()
    }
    labels = _all_of(
        spec, images=spec.labels, labels=None, root=spec.label_root or spec.root, splits=lists
    )
    try:
        found = list_samples(labels, labelled=False)
    except UserError:  # no label at all, or none of this split: every image says so
        return []
    order = [_fields(spec.labels).index(field) for field in _fields(spec.images)]
    return [s.image for s in found if "/".join(s.name.split("/")[i] for i in order) not in names]


def split_specs(spec: DatasetSpec) -> dict[str, DatasetSpec]:
    """Split -> the spec that means it: the folders of `{split}`, else the named `splits`."""
    fields = _fields(spec.images)
    if "split" not in fields:
        return {name: spec.model_copy(update={"split": name}) for name in spec.splits}
    everything = _all_of(spec, splits={"*": "*"}, split="*")
    place = fields.index("split")
    found = list_samples(everything, labelled=False)
    names = {sample.name.split("/")[place] for sample in found}
    if spec.labels is not None:
        # `{split}/{frame}` matches folders of labels, too; they have no labels themselves.
        with_labels = {s.name.split("/")[place] for s in found if _labels_of(spec, s.name)}
        names = with_labels or names
    return {name: spec.model_copy(update={"split": name}) for name in sorted(names)}


# Examining ----------------------------------------------------------------------------------------


def examine(
    spec: DatasetSpec, space: LabelSpace, *, workers: int = 0, labelled: bool = True
) -> DatasetReport:
    """Decode every frame and label of a data set and say what is wrong with it.

    Args:
        workers: threads that decode; 0 takes all cores. Decoders let go of Python's lock, so
            threads are as fast as processes, and start at once.
        labelled: look at the labels, if the spec has any; without, as a target that no arm learns
            the labels of.

    Raises:
        UserError: the spec finds no frame. Faults of files are findings.
    """
    if not labelled:
        spec = spec.model_copy(update={"labels": None})
    files, orphans = list_files(spec)
    examiner = Examiner(spec, space)
    gathered = _Gathered(examiner, len(files))
    with _progress(f"check {spec.name}", len(files)) as advance:
        for facts in _each(examiner, files, workers or os.cpu_count() or 1):
            gathered.add(facts)
            advance()
    return gathered.report(files, orphans)


def _each(examiner: Examiner, files: list[Files], workers: int) -> Iterator[FrameFacts]:
    """The facts of all frames, in order, with few of them waiting."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    waiting: deque[Future[FrameFacts]] = deque()
    aligned = set(_spaced(len(files), ALIGNED_FRAMES))
    rest = ((item, i in aligned) for i, item in enumerate(files))
    try:
        if workers == 1:
            yield from (examiner.look(*item) for item in rest)
            return
        with ThreadPoolExecutor(workers) as pool:
            waiting = deque(pool.submit(examiner.look, *item) for item in islice(rest, 4 * workers))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(examiner.look, *item) for item in islice(rest, 1))
    finally:
        for future in waiting:
            future.cancel()
        cv2.setNumThreads(before)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Any]:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


class _Gathered:
    """Sums over the frames of one data set."""

    def __init__(self, examiner: Examiner, total: int) -> None:
        self.examiner = examiner
        self.spec = examiner.spec
        self.marks: dict[str, list[Example]] = defaultdict(list)
        self.marked: dict[str, list[str]] = defaultdict(list)
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.pixels: Counter[int] = Counter()
        self.in_frames: Counter[int] = Counter()
        self.seen_most: dict[int, tuple[int, str]] = {}
        self.image_bytes = self.label_bytes = self.label_pixels = self.unnamed_pixels = 0
        self.image_hashes: list[bytes] = []
        self.label_hashes: list[bytes] = []
        self.signatures = np.zeros((total, SIGNATURE * SIGNATURE), np.uint8)
        self.signed = np.zeros(total, bool)
        self.alignments: list[tuple[float, float, float]] = []

    def add(self, facts: FrameFacts) -> None:
        files, place = facts.files, len(self.image_hashes)
        for kind, detail in facts.marks.items():
            self.mark(kind, files, detail)
        if facts.size:
            self.sizes[facts.size] += 1
            if self.spec.width is not None and facts.size[0] < self.spec.width:
                self.mark("upscaled", files, f"{facts.size[0]} pixels wide")
        self.image_bytes += facts.image_bytes
        self.label_bytes += facts.label_bytes
        self.label_pixels += facts.label_pixels
        self.unnamed_pixels += facts.unnamed_pixels
        for value, pixels in facts.values:
            if value in self.pixels or value in self.examiner.names or len(self.pixels) < _VALUES:
                self.pixels[value] += pixels
                self.in_frames[value] += 1
                if pixels > self.seen_most.get(value, (0, ""))[0]:
                    self.seen_most[value] = pixels, files.name
        if facts.alignment:
            self.alignments.append(facts.alignment)
        self.image_hashes.append(facts.image_hash)
        plain = facts.marks.keys() & {"constant-label", "ignored-label"}
        self.label_hashes.append(b"" if plain else facts.label_hash)
        if facts.signature is not None:
            self.signatures[place] = facts.signature
            self.signed[place] = True

    def mark(self, kind: str, files: Files, detail: str, like: Files | None = None) -> None:
        self.marked[kind].append(files.name)
        if len(self.marks[kind]) < EXAMPLES:
            beside = like.image if like else None
            self.marks[kind].append(Example(files.name, files.image, files.label, detail, beside))

    def report(self, files: list[Files], orphans: list[Path]) -> DatasetReport:
        space, names = self.examiner.space, self.examiner.names
        table = FrameTable(tuple(files), tuple(self.image_hashes), self.signatures, self.signed)
        self._duplicates(table)
        findings = [
            _finding(kind, len(files), self.marked[kind], self.marks[kind])
            for kind in KINDS
            if self.marked[kind]
        ]
        findings = [self._graver(finding) for finding in findings]
        findings += self._of_the_set(len(files), orphans)
        labels = any(f.label for f in files)
        classes = dict.fromkeys(space.class_names, 0) if labels else {}
        for value, pixels in self.pixels.items():
            if (index := self.examiner.classes.get(value, IGNORE)) != IGNORE:
                classes[space.class_names[index]] += pixels
        width = self.spec.width
        decoded = sum(
            n * 3 * (w * h if width is None else width * max(1, round(h * width / w)))
            for (w, h), n in self.sizes.items()
        )
        order = sorted(self.pixels, key=lambda value: -self.pixels[value])
        return DatasetReport(
            spec=self.spec,
            space=space,
            frames=len(files),
            labelled=sum(f.label is not None for f in files),
            sizes={f"{w}x{h}": n for (w, h), n in self.sizes.most_common()},
            image_bytes=self.image_bytes,
            label_bytes=self.label_bytes,
            decoded_bytes=decoded,
            class_pixels=classes,
            ignored_pixels=self.label_pixels - sum(classes.values()),
            values=tuple(
                ValueUse(
                    self.examiner.show(value),
                    names.get(value),
                    self.pixels[value],
                    self.pixels[value] / self.label_pixels,
                    self.in_frames[value],
                    self.seen_most[value][1],
                )
                for value in [v for v in order if v in names]
                + [v for v in order if v not in names][:64]
            ),
            findings=_ordered(findings),
            shown=tuple(
                Example(f.name, f.image, f.label, "")
                for f in (files[i] for i in _spaced(len(files), SHOWN))
            ),
            table=table,
        )

    def _graver(self, finding: Finding) -> Finding:
        """Values without a name are grave where they are many, or where the spec is strict."""
        if finding.kind != "unnamed-values":
            return finding
        share = self.unnamed_pixels / self.label_pixels
        strange = [v for v in self.pixels if v not in self.examiner.names]
        strange.sort(key=lambda value: -self.pixels[value])
        seen = ", ".join(
            f"{self.examiner.show(v)} ({self.pixels[v] / self.label_pixels:.2%})"
            for v in strange[:6]
        )
        more = f" and {len(strange) - 6} more" if len(strange) > 6 else ""
        grave = self.spec.strict or share > MUST_FIX_UNNAMED
        return replace(
            finding,
            severity="must fix" if grave else finding.severity,
            detail=f"{share:.2%} of all label pixels: {seen}{more}",
        )

    def _duplicates(self, table: FrameTable) -> None:
        """Mark frames that show what an earlier one shows, and labels copied from another."""
        first: dict[bytes, int] = {}
        copies: set[int] = set()
        for i, digest in enumerate(table.hashes):
            if not digest or not table.signed[i]:
                continue
            j = first.setdefault(digest, i)
            if i == j:
                continue
            copies.add(i)
            one, two = self.label_hashes[j], self.label_hashes[i]
            mine, first_one = table.files[i], table.files[j]
            if one and two and one != two:
                detail = f"the image of {first_one.name}, with another label"
                self.mark("duplicates-disagree", mine, detail)
            else:
                same = f"the same file as {first_one.name}"
                self.mark("duplicate-frames", mine, same, first_one)
        for i, (j, rms) in nearest(table, table, earlier=True).items():
            if i not in copies:
                same = f"like {table.files[j].name} (differs by {rms:.1f} grey levels)"
                self.mark("near-duplicates", table.files[i], same, table.files[j])
        groups: dict[bytes, list[int]] = defaultdict(list)
        for i, digest in enumerate(self.label_hashes):
            if digest and table.signed[i]:
                groups[digest].append(i)
        grey = table.signatures.astype(np.float32)
        for group in groups.values():
            apart = [
                i
                for i in group[1:]
                if np.sqrt(np.mean((grey[i] - grey[group[0]]) ** 2)) > 4 * NEAR_RMS
            ]
            for i in [group[0], *apart] if apart else []:
                other = group[0] if i != group[0] else apart[0]
                detail = f"the label of {table.files[other].name}"
                self.mark("copied-label", table.files[i], detail)

    def _of_the_set(self, total: int, orphans: list[Path]) -> list[Finding]:
        """Findings that no single frame has."""
        found = []
        names, space = self.examiner.names, self.examiner.space
        if orphans:
            shown = [Example(p.stem, None, p, str(p.name)) for p in orphans[:EXAMPLES]]
            # These frames are not listed, so there is nothing to leave out.
            found.append(_finding("no-image", 0, [p.stem for p in orphans], shown))
        if total < FEW_FRAMES:
            found.append(_fact("few-frames", total, f"{total} frames"))
        if len(self.sizes) > 1:
            sizes = [f"{n} of {w}x{h}" for (w, h), n in self.sizes.most_common(4)]
            more = f" and {len(self.sizes) - 4} more sizes" if len(self.sizes) > 4 else ""
            found.append(_fact("sizes-vary", len(self.sizes), ", ".join(sizes) + more))
        if not self.label_pixels:
            return found
        used = {names[v] for v in self.pixels if v in names}
        unused = [
            f"{name} ({self.examiner.show(value)})"
            for value, name in names.items()
            if name not in used and self.examiner.classes[value] != IGNORE
        ]
        if unused:
            found.append(_fact("names-unused", len(unused), _some(unused, 12)))
        absent = [c.name for c in space.classes if not used & set(c.names)]
        if absent:
            found.append(_fact("class-absent", len(absent), _some(absent, 20)))
        if self._like_train_ids():
            low = sum(self.pixels[v] for v in range(7)) / self.label_pixels
            top = max(v for v in self.pixels if v != IGNORE)
            detail = f"no id above {top} but 255, and {low:.0%} of the pixels are 0 to 6"
            found.append(_fact("train-ids", top + 1, detail))
        return found + self._not_aligned()

    def _not_aligned(self) -> list[Finding]:
        if len(self.alignments) < FEW_FRAMES:
            return []
        own, *flipped = (float(v) for v in np.median(np.array(self.alignments), axis=0))
        if own > APART_RATIO * max(flipped):
            return []
        count = len(self.alignments)
        seen = f"edges are {own:.2f} times the mean on the borders of the labels of {count} frames"
        if max(flipped) > APART_RATIO * own:
            how = "mirrored" if flipped[0] >= flipped[1] else "upside down"
            seen += f", {max(flipped):.2f} times when the labels are {how}"
            return [_fact("mirrored-labels", count, seen)]
        return [_fact("labels-apart", count, f"{seen}, and as strong when the labels are flipped")]

    def _like_train_ids(self) -> bool:
        names = self.examiner.names
        if self.spec.encoding == "rgb" or [names.get(i) for i in (7, 23, 26)] != [
            *("road", "sky", "car")
        ]:
            return False
        ids = set(self.pixels) - {IGNORE}
        low = sum(self.pixels[v] for v in range(7))
        return len(ids) > 4 and max(ids) <= 18 and low > 0.2 * self.label_pixels


def _finding(kind: str, total: int, frames: list[str], examples: list[Example]) -> Finding:
    """A finding of frames; where most frames have it, it is none of single frames' fault."""
    known = KINDS[kind]
    share = len(frames) / total if total else None
    return Finding(
        kind=kind,
        severity=known.severity,
        title=known.title,
        detail="",
        advice=known.advice,
        count=len(frames),
        share=share,
        quarantines=known.quarantines and share is not None and share <= _MOST_FRAMES,
        frames=tuple(frames),
        examples=tuple(examples),
    )


def _fact(kind: str, count: int, detail: str) -> Finding:
    """A finding of the whole set."""
    known = KINDS[kind]
    return Finding(
        kind, known.severity, known.title, detail, known.advice, count, None, False, (), ()
    )


def _ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    kinds = list(KINDS)
    return tuple(
        sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.kind)))
    )


def _some(items: list[str], count: int) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more


def _spaced(total: int, count: int) -> list[int]:
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


# Comparing ----------------------------------------------------------------------------------------


def nearest(
    frames: FrameTable, others: FrameTable, *, earlier: bool = False
) -> dict[int, tuple[int, float]]:
    """For each frame that shows the picture of one of the others: which, and how far (RMS).

    Thumbnails are compared by matrix products, a block of frames with all others at once: 25,000
    frames with each other take seconds and a block's memory.

    Args:
        earlier: compare only with others of a lower position, for a set and itself.
    """
    a, b = np.flatnonzero(frames.signed), np.flatnonzero(others.signed)
    if not len(a) or not len(b):
        return {}
    columns = others.signatures[b].astype(np.float32)
    mean = columns.mean(axis=0)  # near zero, float32 loses less
    columns -= mean
    column_norms = (columns**2).sum(axis=1)
    found: dict[int, tuple[int, float]] = {}
    for start in range(0, len(a), _ROWS):
        rows = frames.signatures[a[start : start + _ROWS]].astype(np.float32)
        limit = np.minimum(NEAR_RMS, NEAR_RATIO * rows.std(axis=1))
        rows -= mean
        width = min(start + _ROWS, len(b)) if earlier else len(b)
        squares = rows @ columns[:width].T
        squares *= -2
        squares += column_norms[:width]
        squares += (rows**2).sum(axis=1)[:, None]
        if earlier:
            squares[a[start : start + _ROWS, None] <= b[None, :width]] = np.inf
        best = squares.argmin(axis=1)
        rms = np.sqrt(np.maximum(squares[np.arange(len(rows)), best], 0) / columns.shape[1])
        for i in np.flatnonzero(rms <= limit):
            found[int(a[start + i])] = int(b[best[i]]), float(rms[i])
    return found


def compare(
    reports: Mapping[str, DatasetReport], *, scored: Iterable[str] = ("test", "val")
) -> dict[str, DatasetReport]:
    """Add what is found only when sets are seen together: shared frames, drives and classes.

    Args:
        reports: part -> its report: `source`, `target`, `test` of a configuration, or the splits
            of one data set.
        scored: the parts that networks are scored on. A frame of another part that is in one of
            these must be taken out of that other part.

    Returns:
        The reports with further findings, in the same order.
    """
    scored = set(scored) & reports.keys()
    more: dict[str, list[Finding]] = {part: [] for part in reports}
    parts = list(reports)
    for i, one in enumerate(parts):
        for two in parts[i + 1 :]:
            # The frame is left out of the part that is not scored on.
            mine, other = (two, one) if one in scored and two not in scored else (one, two)
            held_out = other in scored
            more[mine] += _shared(reports[mine], reports[other], other, held_out)
            more[mine] += _same_drives(reports[mine], reports[other], other, held_out)
    for part in parts:
        if part in scored and "source" in reports:
            more[part] += _never_learnt(reports["source"], reports[part])
    return {
        part: replace(report, findings=_ordered([*report.findings, *more[part]]))
        for part, report in reports.items()
    }


def _shared(
    mine: DatasetReport, theirs: DatasetReport, other: str, held_out: bool
) -> list[Finding]:
    positions = {digest: j for j, digest in enumerate(theirs.table.hashes) if digest}
    pairs = {i: (j, rms) for i, (j, rms) in nearest(mine.table, theirs.table).items()}
    for i, digest in enumerate(mine.table.hashes):
        if digest in positions and mine.table.signed[i]:
            pairs[i] = positions[digest], 0.0
    if not pairs:
        return []
    frames: list[str] = []
    examples: list[Example] = []
    for i, (j, rms) in sorted(pairs.items()):
        files = mine.table.files[i]
        frames.append(files.name)
        how = "the same as" if rms == 0 else f"within {rms:.1f} grey levels of"
        detail = f"{how} {other} frame {theirs.table.files[j].name}"
        if len(examples) < EXAMPLES:
            beside = theirs.table.files[j].image
            examples.append(Example(files.name, files.image, files.label, detail, beside))
    kind = "shared-frames" if held_out else "shared-unscored"
    found = _finding(kind, mine.frames, frames, examples)
    return [replace(found, detail=f"also in {other}")]


def _same_drives(
    mine: DatasetReport, theirs: DatasetReport, other: str, held_out: bool
) -> list[Finding]:
    """Drives by the first part of the file names, as in `0001TP_006690`, within one data set."""
    if not held_out or mine.spec.root != theirs.spec.root:
        return []
    drives = [
        Counter(
            stem.split("_")[0]
            for files in report.table.files
            if "_" in (stem := PurePosixPath(files.name).name)
        )
        for report in (mine, theirs)
    ]
    both = sorted(drives[0].keys() & drives[1].keys())
    if not both or len(drives[0].keys() | drives[1].keys()) < 2:
        return []
    seen = [f"{drive} ({drives[0][drive]} frames, {drives[1][drive]} in {other})" for drive in both]
    return [_fact("same-drive", len(both), f"also in {other}: {_some(seen, 6)}")]


def _never_learnt(source: DatasetReport, scored: DatasetReport) -> list[Finding]:
    if not source.class_pixels or not scored.class_pixels:
        return []
    shares = scored.class_shares
    only = [
        f"{name} ({shares[name]:.2%} of the pixels)"
        for name, pixels in scored.class_pixels.items()
        if pixels and not source.class_pixels.get(name)
    ]
    return [_fact("class-only-scored", len(only), _some(only, 12))] if only else []


# Quarantine ---------------------------------------------------------------------------------------


def write_quarantine(report: DatasetReport, path: Path) -> int:
    """Write the frames that are of no use to a CSV file `name,reason`, whole or not at all.

    Frames that the file already lists stay in it, with their reasons.

    Returns:
        How many frames were added.

    Raises:
        UserError: the file is there and is no such list.
    """
    known = read_quarantine(path) if path.is_file() else {}
    new = {name: why for name, why in report.quarantined().items() if name not in known}
    if not new and path.is_file():
        return 0
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["name", "reason"])
        rows.writerows(sorted((known | new).items()))
    return len(new)
