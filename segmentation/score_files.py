"""Scoring predictions that others made: PNGs of label ids or trainIds, no network."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.data.images import UInt8, image_size, read_raw, resize_indices
from pipeline.data.labels import CITYSCAPES_IDS, IGNORE, LabelSpace
from pipeline.data.listing import Sample, evenly, list_samples
from pipeline.data.reading import LabelReader
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.progress import each
from pipeline.scoring.confusion import count_pairs
from pipeline.scoring.evaluation import FILE, Evaluation
from pipeline.scoring.metrics import Counts
from pipeline.text import listed, percent
from segmentation.scores import (
    IDS,
    PICTURES,
    FrameCounts,
    counted_in,
    instance_files,
    read_instances,
    write_scores,
)

Encoding = Literal["label_ids", "train_ids"]

_CALLED: dict[Encoding, str] = {"label_ids": "label ids", "train_ids": "trainIds"}
_LABEL_IDS = range(34)
_BY_CHANCE = 0.05
"""Fewer right pixels come from other ids or other frames."""
_LOOKED_AT = 5  # files that the encoding is guessed from


def score_files(
    dataset: DatasetSpec,
    space: LabelSpace,
    predictions: Path,
    folder: Path,
    encoding: Encoding | Literal["auto"] = "auto",
) -> tuple[Evaluation, list[str]]:
    """Score the PNGs below `predictions` on every labelled frame of `dataset`.

    Writes the files of `segmentation.scores.write_scores` to `folder`. A value of 255, and with
    label ids any id that is not scored, is a void prediction: a miss wherever the truth is scored.

    Args:
        encoding: what the values mean: Cityscapes label ids, or indices of the classes of `space`
            (for `cityscapes19` the trainIds). `auto` looks at them.

    Returns:
        The scores, and what is worth saying about the files.

    Raises:
        UserError: files that are missing, doubled, of another size or no PNG of one 8-bit value a
            pixel; values that do not fit the encoding. Nothing is written then.
    """
    samples = list_samples(dataset, labelled=True)
    predictions, ours = own_predictions(predictions)
    if ours == PICTURES:
        encoding = "train_ids"
    files, others = match_files(samples, predictions)
    enlarged = False
    if ours == PICTURES and (label := samples[0].label) and dataset.decoder is None:
        enlarged = image_size(files[0]) != image_size(label)
    if not enlarged:
        _check_sizes(dataset, samples, files)
    counted = counted_in(space)
    labels, classes = LabelReader(dataset, counted), len(counted.classes)
    instances, instance_scores = instance_files(dataset, samples, space)

    def compare(number: int) -> tuple[Counts, UInt8]:
        """(256, 256) pairs of truth and value of one frame, and its values."""
        truth = labels.read(samples[number], native=True)
        values = read_values(files[number])
        if enlarged:
            values = resize_indices(values, (truth.shape[1], truth.shape[0]))
        if values.shape != truth.shape:
            raise UserError(_sizes(files[number], values.shape[::-1], truth.shape[::-1]))
        return count_pairs(truth, values), values

    kind = encoding
    known: dict[int, tuple[Counts, UInt8]] = {}
    if kind == "auto":
        known = {number: compare(number) for number in evenly(range(len(samples)), _LOOKED_AT)}
        kind = _guess(np.sum([pairs for pairs, _ in known.values()], axis=0), space)
    meaning = _meaning(space, kind)
    # (256, K + 1): in which column a value is counted, the last one for void.
    columns = np.minimum(meaning, classes)[:, None] == np.arange(classes + 1)

    def count(number: int) -> tuple[FrameCounts, tuple[int, int, bool]]:
        pairs, values = known.pop(number) if number in known else compare(number)
        _check_values(pairs, space, kind, files[number])
        hits = None if instances is None else read_instances(instances[number], meaning[values])
        other = _other(kind)
        could_be = not len(_illegal(pairs, space, other))
        agree = _agreement(pairs, space, kind), _agreement(pairs, space, other), could_be
        return FrameCounts(pairs[:classes] @ columns, hits), agree

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        counted_frames = pool.map(count, range(len(samples)))
        frames, agreements = zip(*each(counted_frames, "scoring", len(samples)), strict=True)
    agree, would_agree = (sum(found[i] for found in agreements) for i in (0, 1))
    if would_agree > agree and all(could_be for *_, could_be in agreements):
        raise UserError(
            f"{predictions}: read as {_CALLED[kind]}, {agree:,} pixels agree with the truth; read "
            f"as {_CALLED[_other(kind)]}, {would_agree:,}. Give --encoding {_other(kind)}."
        )
    evaluation = write_scores(
        folder,
        space,
        dataset,
        [sample.name for sample in samples],
        frames,
        {
            "predictions": f"{_CALLED[kind]} in files"
            + (", known by their values" if encoding == "auto" else ""),
            "instance_scores": instance_scores,
        },
    )
    notes = _notes(evaluation, kind, others, predictions)
    if enlarged:
        notes.append(
            f"The pictures in {predictions} are smaller than the truth and were enlarged: the "
            "run's own scores are those of its full predictions."
        )
    return evaluation, notes


def own_predictions(folder: Path) -> tuple[Path, str]:
    """The pictures in a run's folder of scores, and their form; others as they are, without one."""
    if (folder / FILE).is_file():
        form = next((form for form in (IDS, PICTURES) if (folder / form).is_dir()), "")
        return folder / form, form
    return folder, folder.name if (folder.parent / FILE).is_file() else ""


def match_files(samples: Sequence[Sample], folder: Path) -> tuple[list[Path], int]:
    """The prediction of each frame, and how many PNGs belong to none.

    A frame `val/town/town_000001_000019` is matched by its whole name as a path, by
    `town_000001_000019.png` wherever it lies, and, as in Cityscapes' own script, by a longer name
    that begins so, like `town_000001_000019_pred.png`; the image's and the label's file names will
    do, too. The first of these ways that finds a file counts.

    Raises:
        UserError: no folder, no PNG, frames without a prediction or with several.
    """
    files = _pngs(folder)
    whole = {path.relative_to(folder).with_suffix("").as_posix(): [path] for path in files}
    by_stem: dict[str, list[Path]] = {}
    by_start: dict[str, list[Path]] = {}
    for path in files:
        by_stem.setdefault(path.stem, []).append(path)
        for cut in re.finditer(r"[^A-Za-z0-9]", path.stem):
            by_start.setdefault(path.stem[: cut.start()], []).append(path)
    missing, doubled, matched = [], [], []
    owner: dict[Path, str] = {}
    for sample in samples:
        assert sample.label is not None
        last = sample.name.rsplit("/", 1)[-1]
        fitting = (
            whole.get(sample.name)
            or by_stem.get(last)
            or by_stem.get(sample.image.stem)
            or by_stem.get(sample.label.stem)
            or by_start.get(last)
            or []
        )
        if not fitting:
            missing.append(sample.name)
        elif len(fitting) > 1:
            doubled.append(f"{sample.name} ({', '.join(str(path) for path in fitting[:2])})")
        elif (other_name := owner.setdefault(fitting[0], sample.name)) != sample.name:
            doubled.append(f"{sample.name} and {other_name} share {fitting[0]}")
        matched += fitting[:1]
    unused = [path for path in files if path not in owner]
    _check_matches(samples, folder, missing, doubled, unused)
    return matched, len(files) - len(matched)


def _pngs(folder: Path) -> list[Path]:
    """The PNGs below a folder, one at least."""
    if not folder.is_dir():
        raise UserError(f"No folder {folder}. Give the one that holds the predictions as PNGs.")
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name[0] != "."]
    files = [path for path in found if path.suffix.lower() == ".png"]
    if not files:
        kinds = sorted({path.suffix or path.name for path in found})[:5]
        other = f"; it holds {', '.join(kinds)}" if kinds else ""
        raise UserError(
            f"No PNG below {folder}{other}. Predictions are PNGs of one 8-bit value a pixel: label "
            "ids or trainIds."
        )
    return files


def _check_matches(
    samples: Sequence[Sample],
    folder: Path,
    missing: list[str],
    doubled: list[str],
    unused: Sequence[Path],
) -> None:
    if missing:
        last = missing[0].rsplit("/", 1)[-1]
        raise UserError(
            f"{len(missing)} of {len(samples)} frames have no prediction below {folder}: "
            f"{listed(missing, 3)}. Files without a frame: "
            f"{listed([path.relative_to(folder) for path in unused], 3) or 'none'}. Files are "
            f"found by the frame's name: {last}.png or {last}_*.png in any folder."
        )
    if doubled:
        raise UserError(
            f"{len(doubled)} of {len(samples)} frames do not have one prediction of their own "
            f"below {folder}: {listed(doubled)}. Remove what is too much, or name each file by "
            f"the frame's whole name: {samples[0].name}.png."
        )


def read_values(path: Path) -> UInt8:
    """The values of a prediction, (H, W) uint8.

    Raises:
        UserError: unreadable, a colour picture, or not of 8 bits.
    """
    raw = read_raw(path)
    if raw.ndim != 2:
        raise UserError(
            f"{path} is a colour picture ({raw.shape[2]} channels); predictions are PNGs of one "
            "8-bit value a pixel: label ids or trainIds. Save the ids, not their colours."
        )
    if raw.dtype != np.uint8:
        bits = "1 bit" if raw.dtype == np.bool_ else "16 bits"
        raise UserError(
            f"{path} has {bits} a pixel; predictions are PNGs of 8 bits. Save the values as uint8."
        )
    return np.asarray(raw, np.uint8)


def _check_sizes(dataset: DatasetSpec, samples: Sequence[Sample], files: Sequence[Path]) -> None:
    if dataset.decoder is not None:
        return  # no header to look at: sizes are compared when labels are read
    wrong = []
    for sample, file in zip(samples, files, strict=True):
        assert sample.label is not None
        size, wanted = image_size(file), image_size(sample.label)
        if size != wanted:
            wrong.append(_sizes(file, size, wanted))
    if wrong:
        raise UserError(f"{len(wrong)} of {len(files)} predictions: {wrong[0]}")


def _sizes(file: Path, size: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    return (
        f"{file} is {size[0]}x{size[1]}, and its ground truth is {wanted[0]}x{wanted[1]}. Scores "
        "are taken at the ground truth's resolution: resize the logits (better) or the predictions "
        "(nearest neighbour) to it."
    )


def _meaning(space: LabelSpace, kind: Encoding) -> UInt8:
    """(256,) value in a file -> class that is counted, `IGNORE` for none."""
    counted = counted_in(space)
    table = np.full(256, IGNORE, np.uint8)
    if kind == "label_ids":
        names = [CITYSCAPES_IDS[value] for value in _LABEL_IDS]
    else:
        names = [label_class.names[0] for label_class in space.classes]
    table[: len(names)] = [counted.index_of(name) for name in names]
    return table


def _other(kind: Encoding) -> Encoding:
    return "train_ids" if kind == "label_ids" else "label_ids"


def _legal(kind: Encoding, space: LabelSpace) -> int:
    """Values below this one are legal, and 255."""
    return len(_LABEL_IDS if kind == "label_ids" else space.classes)


def _illegal(pairs: Counts, space: LabelSpace, kind: Encoding) -> Counts:
    """The values that occur and are not legal."""
    legal = _legal(kind, space)
    return legal + np.flatnonzero(pairs[:, legal:IGNORE].any(axis=0))


def _agreement(pairs: Counts, space: LabelSpace, kind: Encoding) -> int:
    """How many scored pixels agree with the truth, of (256, 256) pairs of truth and value."""
    meaning = _meaning(space, kind)
    scored = [space.index_of(c.names[0]) != IGNORE for c in counted_in(space).classes]
    return sum(
        int(pairs[meaning[v], v]) for v in np.flatnonzero(meaning != IGNORE) if scored[meaning[v]]
    )


def _guess(pairs: Counts, space: LabelSpace) -> Encoding:
    """What values must be, from how they agree with the truth, (256, 256) pairs.

    Raises:
        UserError: they could be either.
    """
    kinds: tuple[Encoding, ...] = ("label_ids", "train_ids")
    found = np.flatnonzero(pairs[:, :IGNORE].any(axis=0))
    legal = [kind for kind in kinds if not len(_illegal(pairs, space, kind))]
    if len(legal) != 2 or not found.size:
        return next(iter(legal), "label_ids")  # what is illegal is said where a file is at hand
    agree = {kind: _agreement(pairs, space, kind) for kind in kinds}
    if agree["label_ids"] == agree["train_ids"]:
        raise UserError(
            f"The predictions hold the values {listed(found.tolist())}, which could be label ids "
            "or trainIds alike. Give --encoding label_ids or train_ids."
        )
    return max(kinds, key=agree.__getitem__)


def _check_values(pairs: Counts, space: LabelSpace, kind: Encoding, file: Path) -> None:
    wrong = _illegal(pairs, space, kind)
    if not wrong.size:
        return
    hint = ""
    if kind == "train_ids" and wrong.max() < len(_LABEL_IDS):
        hint = " These look like label ids: give --encoding label_ids."
    raise UserError(
        f"{file} holds the value(s) {listed(wrong.tolist())}; {_CALLED[kind]} of label space "
        f"{space.name} are 0..{_legal(kind, space) - 1}, and 255 is void.{hint}"
    )


def _notes(evaluation: Evaluation, kind: Encoding, others: int, folder: Path) -> list[str]:
    notes = [f"The values are read as {_CALLED[kind]}."]
    right = evaluation.scores.get("pixel_accuracy")
    if right is not None and right < _BY_CHANCE:
        notes.append(
            f"Warning: {percent(right)} of the scored pixels are right, as by chance. Are these "
            f"ids of label space {evaluation.protocol['label_space']}? Else give another "
            "--label-space or --encoding, or the predictions of these frames."
        )
    if void := sum(evaluation.void_predictions):
        notes.append(
            f"{percent(void / evaluation.table.sum(), 2)} of the scored pixels are predicted as "
            "void (255, or an id that is not scored): they count as misses."
        )
    if others:
        notes.append(f"{others} other PNG(s) below {folder} belong to no frame and are left out.")
    return notes
