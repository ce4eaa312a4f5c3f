"""The data doctor: every file of a data set is decoded once, and what is wrong becomes a finding.

A fault of a file is a finding, never an error. Memory holds a thumbnail of 256 bytes, two hashes
and the file names of each frame, and counts by raw value, whatever the number of pixels.
"""

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.data.images import SUFFIXES
from pipeline.data.labels import IGNORE, LabelSpace
from pipeline.data.listing import label_finder, list_samples, not_here, pattern_glob
from pipeline.data.spec import DatasetSpec, pattern_fields
from pipeline.intake.common import Files, some, spaced
from pipeline.intake.compare import NEAR_RMS, nearest
from pipeline.intake.facts import SIGNATURE, Examiner, FrameFacts
from pipeline.intake.findings import (
    EXAMPLES,
    KINDS,
    DatasetReport,
    Example,
    Finding,
    FrameTable,
    ValueUse,
    fact,
    finding,
    ordered,
)
from pipeline.intake.headers import LIKE_LABEL, masks, renumbered
from pipeline.progress import each

SHOWN = 6
"""Evenly spaced frames shown of a data set."""
FEW_FRAMES = 20
MUST_FIX_UNNAMED = 0.01
"""Share of all label pixels without a name from which on the table of values must be mended."""
APART_RATIO = 1.15
"""How much stronger edges must be on a label's borders than on those of the flipped label. In
sets that belong together it is above 1.4, with labels of other frames below 1.1."""
_VALUES = 2048  # values without a name that are counted each by itself


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
    label_files = label_finder(spec)
    for sample in samples:
        label, other, *_ = [*label_files(sample.name), None, None]
        files.append(Files(sample.name, sample.image, label, other))
    return files, _labels_without_image(spec, files)


def _whole(spec: DatasetSpec) -> DatasetSpec:
    """The spec with all frames of its split's folder, or of all folders where it means none."""
    everything: dict[str, Any] = {"limit": None, "quarantine": None}
    if spec.split is None or spec.split in spec.splits:
        everything |= {"splits": {"*": "*"}, "split": "*"}
    return spec.model_copy(update=everything)


def _labels_without_image(spec: DatasetSpec, files: list[Files]) -> list[Path]:
    """The label files, of the folder of the split that is meant, whose frame has no image.

    Args:
        files: the frames that the spec lists; there may be more, which it leaves out.
    """
    assert spec.labels is not None
    listed = {item.name for item in files}
    used = {path for item in files for path in (item.image, item.label, item.other_label)}
    label_files = label_finder(spec)
    for sample in list_samples(_whole(spec), labelled=False):
        if sample.name not in listed:
            used |= {sample.image, *label_files(sample.name)}
    fixed = {}
    if spec.split is not None and spec.split not in spec.splits:
        fixed = {"split": spec.split}
    ending = Path(spec.labels).suffix
    given = ending.lower() in SUFFIXES or (spec.decoder is not None and ending)
    root = spec.label_root or spec.root
    found = root.glob(pattern_glob(spec.labels, fixed) + ("" if given else ".*"))
    return sorted(
        path
        for path in found
        if path not in used
        and (given or path.suffix.lower() in SUFFIXES)
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def split_specs(spec: DatasetSpec) -> dict[str, DatasetSpec]:
    """Split -> the spec that means it, for each folder of `{split}`; without one, nothing."""
    fields = pattern_fields(spec.images)
    if "split" not in fields:
        return {}
    place = fields.index("split")
    found = list_samples(_whole(spec.model_copy(update={"split": None})), labelled=False)
    names = {sample.name.split("/")[place] for sample in found}
    if spec.labels is not None:
        # `{split}/{frame}` matches folders of labels, too; they have no labels themselves.
        label_files = label_finder(spec)
        with_labels = {s.name.split("/")[place] for s in found if label_files(s.name)}
        names = with_labels or names
    return {name: spec.model_copy(update={"split": name}) for name in sorted(names)}


# Examining ----------------------------------------------------------------------------------------


def examine(
    spec: DatasetSpec,
    space: LabelSpace,
    *,
    workers: int = 0,
    labelled: bool = True,
    crop: tuple[int, int] | None = None,
) -> DatasetReport:
    """Decode every frame and label of a data set and say what is wrong with it.

    Args:
        workers: threads that decode; 0 takes all cores. Decoders let go of Python's lock, so
            threads are as fast as processes, and start at once.
        labelled: look at the labels, if the spec has any; without, as a target that no arm learns
            the labels of.
        crop: what CycleGAN is to cut out of the frames, width and height.

    Raises:
        UserError: the spec finds no frame. Faults of files are findings.
    """
    if not labelled:
        spec = spec.model_copy(update={"labels": None})
    files, orphans = list_files(spec)
    examiner = Examiner(spec, space, crop)
    gathered = _Gathered(examiner, len(files))
    found = _facts(examiner, files, workers or os.cpu_count() or 1)
    for facts in each(found, f"check: {spec.name}", len(files)):
        gathered.add(facts)
    return gathered.report(files, orphans)


def _facts(examiner: Examiner, files: list[Files], workers: int) -> Iterator[FrameFacts]:
    """The facts of all frames, in order, with few of them waiting."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    waiting: deque[Future[FrameFacts]] = deque()
    rest = iter(files)
    try:
        if workers == 1:
            yield from map(examiner.look, rest)
            return
        with ThreadPoolExecutor(workers) as pool:
            waiting = deque(pool.submit(examiner.look, item) for item in islice(rest, 4 * workers))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(examiner.look, item) for item in islice(rest, 1))
    finally:
        for future in waiting:
            future.cancel()
        cv2.setNumThreads(before)


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
        self.palettes: list[bytes] = []
        self.like_labels: list[int] = []
        self.signatures = np.zeros((total, SIGNATURE * SIGNATURE), np.uint8)
        self.signed = np.zeros(total, bool)
        self.alignments: list[tuple[float, float, float] | None] = []

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
        self.alignments.append(facts.alignment)
        self.palettes.append(facts.palette)
        if facts.like_label:
            self.like_labels.append(place)
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
        among = masks([item.name for item in files])
        if len(self.like_labels) < len(files):
            among |= dict.fromkeys(self.like_labels, LIKE_LABEL)
        for i, detail in sorted(among.items()):
            self.mark("mask-frames", files[i], detail)
        for i, detail in renumbered(self.palettes).items():
            if files[i].name not in self.marked["palette-differs"]:
                self.mark("palette-differs", files[i], detail)
        findings = [
            finding(kind, len(files), self.marked[kind], self.marks[kind])
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
            findings=ordered(findings),
            shown=tuple(
                Example(f.name, f.image, f.label, "")
                for f in (files[i] for i in spaced(len(files), SHOWN))
            ),
            table=table,
        )

    def _graver(self, finding: Finding) -> Finding:
        """Values without a name are grave where they are many, or where the spec is strict; labels
        without a class where all are such."""
        if finding.kind == "ignored-label" and finding.share == 1:
            return replace(finding, severity="must fix")
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
        self._shared_labels(table)

    def _shared_labels(self, table: FrameTable) -> None:
        """Mark frames of unlike pictures whose labels are the same."""
        groups: dict[bytes, list[int]] = defaultdict(list)
        for i, digest in enumerate(self.label_hashes):
            if digest and table.signed[i]:
                groups[digest].append(i)
        grey = table.signatures.astype(np.float32)
        for first, *rest in groups.values():
            apart = [
                i for i in rest if np.sqrt(np.mean((grey[i] - grey[first]) ** 2)) > 4 * NEAR_RMS
            ]
            members = [first, *apart] if apart else []
            # One view in two weathers shares a label, and follows it.
            owners = [i for i in members if _follows(self.alignments[i])]
            wrong = [i for i in members if owners and _follows(self.alignments[i]) is False]
            for i in wrong:
                detail = f"the label of {table.files[owners[0]].name}, whose edges it follows"
                self.mark("copied-label", table.files[i], detail)
            members = [i for i in members if i not in wrong]
            if len(members) > 1:
                for i in members:
                    other = members[0] if i != members[0] else members[1]
                    detail = f"the label of {table.files[other].name}"
                    self.mark("shared-label", table.files[i], detail)

    def _of_the_set(self, total: int, orphans: list[Path]) -> list[Finding]:
        """Findings that no single frame has."""
        found = []
        names, space = self.examiner.names, self.examiner.space
        if orphans:
            shown = [Example(p.stem, None, p, str(p.name)) for p in orphans[:EXAMPLES]]
            # These frames are not listed, so there is nothing to leave out.
            found.append(finding("no-image", 0, [p.stem for p in orphans], shown))
        if total < FEW_FRAMES:
            found.append(fact("few-frames", total, f"{total} frames"))
        if seen := not_here(self.spec):
            found.append(fact("listed-absent", 1, seen))
        if len(self.sizes) > 1:
            sizes = [f"{n} of {w}x{h}" for (w, h), n in self.sizes.most_common(4)]
            more = f" and {len(self.sizes) - 4} more sizes" if len(self.sizes) > 4 else ""
            found.append(fact("sizes-vary", len(self.sizes), ", ".join(sizes) + more))
        if not self.label_pixels:
            return found
        used = {names[v] for v in self.pixels if v in names}
        unused = [
            f"{name} ({self.examiner.show(value)})"
            for value, name in names.items()
            if name not in used and self.examiner.classes[value] != IGNORE
        ]
        if unused:
            found.append(fact("names-unused", len(unused), some(unused, 12)))
        absent = [c.name for c in space.classes if not used & set(c.names)]
        if absent:
            found.append(fact("class-absent", len(absent), some(absent, 20)))
        if self._like_train_ids():
            low = sum(self.pixels[v] for v in range(7)) / self.label_pixels
            top = max(v for v in self.pixels if v != IGNORE)
            detail = f"no id above {top} but 255, and {low:.0%} of the pixels are 0 to 6"
            found.append(fact("train-ids", top + 1, detail))
        return found + self._not_aligned()

    def _not_aligned(self) -> list[Finding]:
        measured = [numbers for numbers in self.alignments if numbers is not None]
        if len(measured) < FEW_FRAMES:
            return []
        own, *flipped = (float(v) for v in np.median(np.array(measured), axis=0))
        if own > APART_RATIO * max(flipped):
            return []
        count = len(measured)
        seen = f"edges are {own:.2f} times the mean on the borders of the labels of {count} frames"
        if max(flipped) > APART_RATIO * own:
            how = "mirrored" if flipped[0] >= flipped[1] else "upside down"
            seen += f", {max(flipped):.2f} times when the labels are {how}"
            return [fact("mirrored-labels", count, seen)]
        return [fact("labels-apart", count, f"{seen}, and as strong when the labels are flipped")]

    def _like_train_ids(self) -> bool:
        names = self.examiner.names
        if self.spec.encoding == "rgb" or [names.get(i) for i in (7, 23, 26)] != [
            *("road", "sky", "car")
        ]:
            return False
        ids = set(self.pixels) - {IGNORE}
        low = sum(self.pixels[v] for v in range(7))
        return len(ids) > 4 and max(ids) <= 18 and low > 0.2 * self.label_pixels


def _follows(alignment: tuple[float, float, float] | None) -> bool | None:
    """Whether a frame's edges are where its label's borders are; None where neither can tell."""
    if alignment is None:
        return None
    own, *flipped = alignment
    return own > APART_RATIO * max(flipped)
