"""`sim2real check` of one data set: every file is decoded once, and faults become findings.

A fault of a file is a finding, never an error. Memory holds a thumbnail of 256 bytes, two hashes,
the names and the counts by raw value of each frame, whatever its number of pixels.
"""

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.data.images import LABEL_SUFFIXES, SUFFIXES
from pipeline.data.labels import IGNORE, LabelSpace
from pipeline.data.listing import (
    Sample,
    label_finder,
    list_samples,
    not_here,
    pattern_glob,
    spaced,
)
from pipeline.data.reading import working_size
from pipeline.data.spec import DatasetSpec, pattern_fields
from pipeline.intake.duplicates import APART_RATIO, add_duplicate_faults
from pipeline.intake.facts import Examiner, FrameFacts
from pipeline.intake.faults import add_faults_of_the_set
from pipeline.intake.findings import (
    EXAMPLES,
    DatasetReport,
    Example,
    Finding,
    ValueUse,
    finding,
    frames_finding,
    kinds,
    ordered,
)
from pipeline.progress import each
from pipeline.text import listed

SHOWN = 6
"""Evenly spaced frames shown of a data set."""
FEW_FRAMES = 20
MUST_FIX_UNNAMED = 0.01
"""Fraction of all label pixels without a name from which on the table of values must be fixed."""
_VALUES = 2048  # values without a name that are counted each by itself


# Listing ------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """The files of a data set."""

    samples: list[Sample]
    """Every frame, with its label where there is one."""
    second: dict[str, Path]
    """Frame -> a second file that the labels' pattern matches for it."""
    orphans: list[Path]
    """Labels without an image."""


def list_files(spec: DatasetSpec) -> Listed:
    """List the frames of a data set and its labels, whatever is missing or there twice.

    Raises:
        UserError: the spec finds no frame.
    """
    frames = list_samples(spec, labelled=False)
    if spec.labels is None:
        return Listed(frames, {}, [])
    label_files = label_finder(spec)
    labels = {frame.name: label_files(frame.name) for frame in frames}
    samples = [replace(s, label=next(iter(labels[s.name]), None)) for s in frames]
    second = {name: files[1] for name, files in labels.items() if len(files) > 1}
    used = {s.image for s in frames} | {path for files in labels.values() for path in files}
    return Listed(samples, second, _labels_without_image(spec, labels.keys(), used))


def _whole(spec: DatasetSpec) -> DatasetSpec:
    """The spec with all frames of its split's folder, or of all folders where it means none."""
    whole = spec.model_copy(update={"limit": None, "quarantine": None})
    if spec.split is None or spec.split in spec.splits:
        return whole.model_copy(update={"splits": {"*": "*"}, "split": "*"})
    return whole


def _labels_without_image(spec: DatasetSpec, known: Collection[str], used: set[Path]) -> list[Path]:
    """The label files, of the folder of the split that is meant, whose frame has no image.

    Args:
        known: the frames that the spec lists; there may be more, which it leaves out.
        used: the files of these frames.
    """
    assert spec.labels is not None
    label_files = label_finder(spec)
    for sample in list_samples(_whole(spec), labelled=False):
        if sample.name not in known:
            used = used | {sample.image, *label_files(sample.name)}
    fixed = {}
    if spec.split is not None and spec.split not in spec.splits:
        fixed = {"split": spec.split}
    ending = Path(spec.labels).suffix
    given = ending.lower() in LABEL_SUFFIXES or (spec.decoder is not None and ending)
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
    files = list_files(spec)
    examiner = Examiner(spec, space, crop)
    with _threads(workers) as pool:
        found = pool.map(examiner.look, files.samples)
        frames = list(each(found, f"check: {spec.name}", len(files.samples)))
    for facts in frames:
        if other := files.second.get(facts.name):
            assert facts.sample.label is not None
            facts.faults["two-labels"] = f"{facts.sample.label.name} and {other.name}"
    drawn = [i for i, facts in enumerate(frames) if facts.like_label]
    add_faults_of_the_set(
        [facts.faults for facts in frames],
        [facts.name for facts in frames],
        [facts.palette for facts in frames],
        drawn if len(drawn) < len(frames) else [],  # else they are grey frames
    )
    add_duplicate_faults(frames)
    return _report(examiner, frames, files.orphans)


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end with what they are at when the block is interrupted."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # a call: calls run beside each other
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(before)


# Reporting ----------------------------------------------------------------------------------------


@dataclass
class _Count:
    """How often a raw value occurs, and the frame that holds most of it."""

    pixels: int = 0
    frames: int = 0
    most: int = 0
    example: str = ""


def _report(
    examiner: Examiner, frames: Sequence[FrameFacts], orphans: Sequence[Path]
) -> DatasetReport:
    spec, space = examiner.spec, examiner.space
    counts = _count_values(examiner, frames)
    label_pixels = sum(facts.label_pixels for facts in frames)
    labelled = sum(facts.sample.label is not None for facts in frames)
    classes = dict.fromkeys(space.class_names, 0) if labelled else {}
    for value, count in counts.items():
        if (index := examiner.classes.get(value, IGNORE)) != IGNORE:
            classes[space.class_names[index]] += count.pixels
    sizes = Counter(facts.size for facts in frames if facts.size)
    findings = [
        *_of_frames(examiner, frames, counts, label_pixels),
        *_of_the_set(spec, len(frames), orphans, sizes),
    ]
    if label_pixels:
        findings += _of_the_labels(examiner, counts, label_pixels)
        findings += _of_the_alignment(frames)
    return DatasetReport(
        spec=spec,
        space=space,
        frames=len(frames),
        labelled=labelled,
        sizes={f"{w}x{h}": n for (w, h), n in sizes.most_common()},
        image_bytes=sum(facts.image_bytes for facts in frames),
        label_bytes=sum(facts.label_bytes for facts in frames),
        decoded_bytes=sum(3 * n * math.prod(working_size(spec, s)) for s, n in sizes.items()),
        class_pixels=classes,
        ignored_pixels=label_pixels - sum(classes.values()),
        values=_value_uses(examiner, counts, label_pixels),
        findings=ordered(findings),
        shown=tuple(Example.of(frames[i]) for i in spaced(len(frames), SHOWN)),
        facts=tuple(frames),
    )


def _count_values(examiner: Examiner, frames: Sequence[FrameFacts]) -> dict[int, _Count]:
    """Raw value -> its count; of the values without a name, the first `_VALUES`."""
    counts: dict[int, _Count] = {}
    for facts in frames:
        for value, pixels in facts.values.tolist():
            if value not in counts and value not in examiner.names and len(counts) >= _VALUES:
                continue
            count = counts.setdefault(value, _Count())
            count.pixels += pixels
            count.frames += 1
            if pixels > count.most:
                count.most, count.example = pixels, facts.name
    return counts


def _value_uses(
    examiner: Examiner, counts: Mapping[int, _Count], label_pixels: int
) -> tuple[ValueUse, ...]:
    """The named values, then some without a name, each the most frequent first."""
    order = sorted(counts, key=lambda value: -counts[value].pixels)
    named = [value for value in order if value in examiner.names]
    unnamed = [value for value in order if value not in examiner.names]
    return tuple(
        ValueUse(
            examiner.show(value),
            examiner.names.get(value),
            counts[value].pixels,
            counts[value].pixels / label_pixels,
            counts[value].frames,
            counts[value].example,
        )
        for value in [*named, *unnamed[:64]]
    )


def _of_frames(
    examiner: Examiner,
    frames: Sequence[FrameFacts],
    counts: Mapping[int, _Count],
    label_pixels: int,
) -> Iterator[Finding]:
    """A finding for each kind of fault that frames have."""
    for kind in kinds():
        having = [facts for facts in frames if kind in facts.faults]
        if not having:
            continue
        twins = kind in {"duplicate-frames", "near-duplicates"}
        found = frames_finding(
            kind,
            len(frames),
            [facts.name for facts in having],
            [Example.of(f, f.faults[kind], f.twin if twins else None) for f in having[:EXAMPLES]],
        )
        if kind == "ignored-label" and found.share == 1:  # nothing can be learnt at all
            found = replace(found, severity="must fix")
        if kind == "unnamed-values":
            unnamed = sum(facts.unnamed_pixels for facts in frames) / label_pixels
            strange = [value for value in counts if value not in examiner.names]
            strange.sort(key=lambda value: -counts[value].pixels)
            seen = [
                f"{examiner.show(value)} ({counts[value].pixels / label_pixels:.2%})"
                for value in strange
            ]
            must = examiner.spec.strict or unnamed > MUST_FIX_UNNAMED
            found = replace(
                found,
                severity="must fix" if must else found.severity,
                detail=f"{unnamed:.2%} of all label pixels: {listed(seen, 6)}",
            )
        yield found


def _of_the_set(
    spec: DatasetSpec, total: int, orphans: Sequence[Path], sizes: Counter[tuple[int, int]]
) -> Iterator[Finding]:
    if orphans:
        shown = [Example(p.stem, None, p, p.name) for p in orphans[:EXAMPLES]]
        yield frames_finding("no-image", 0, [p.stem for p in orphans], shown)
    if total < FEW_FRAMES:
        yield finding("few-frames", total, f"{total} frames")
    if seen := not_here(spec):
        yield finding("listed-absent", 1, seen)
    if len(sizes) > 1:
        shares = [f"{n} of {w}x{h}" for (w, h), n in sizes.most_common(4)]
        more = f" and {len(sizes) - 4} more sizes" if len(sizes) > 4 else ""
        yield finding("sizes-vary", len(sizes), ", ".join(shares) + more)


def _of_the_labels(
    examiner: Examiner, counts: Mapping[int, _Count], label_pixels: int
) -> Iterator[Finding]:
    names, space = examiner.names, examiner.space
    used = {names[value] for value in counts if value in names}
    unused = [
        f"{name} ({examiner.show(value)})"
        for value, name in names.items()
        if name not in used and examiner.classes[value] != IGNORE
    ]
    if unused:
        yield finding("names-unused", len(unused), listed(unused, 12))
    if absent := [c.name for c in space.classes if not used & set(c.names)]:
        yield finding("class-absent", len(absent), listed(absent, 20))
    expected = [names.get(i) for i in (7, 23, 26)] == ["road", "sky", "car"]
    ids = counts.keys() - {IGNORE}
    low = sum(counts[value].pixels for value in range(7) if value in counts) / label_pixels
    if examiner.spec.encoding == "rgb" or not expected or len(ids) < 5:
        return
    if (top := max(ids)) <= 18 and low > 0.2:
        seen = f"no id above {top} but 255, and {low:.0%} of the pixels are 0 to 6"
        yield finding("train-ids", top + 1, seen)


def _of_the_alignment(frames: Sequence[FrameFacts]) -> Iterator[Finding]:
    """Whether the labels of a set lie on the edges of its images."""
    measured = [facts.alignment for facts in frames if facts.alignment is not None]
    count = len(measured)
    if count < FEW_FRAMES:
        return
    own, *flipped = (float(v) for v in np.median(np.array(measured), axis=0))
    if own > APART_RATIO * max(flipped):
        return
    seen = f"edges are {own:.2f} times the mean on the borders of the labels of {count} frames"
    if max(flipped) > APART_RATIO * own:
        how = "mirrored" if flipped[0] >= flipped[1] else "upside down"
        seen += f", {max(flipped):.2f} times when the labels are {how}"
        yield finding("mirrored-labels", count, seen)
    else:
        yield finding("labels-apart", count, f"{seen}, and as strong when the labels are flipped")
