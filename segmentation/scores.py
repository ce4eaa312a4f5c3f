"""Scores of a test set from the counts of its frames, and the files that keep them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.csv_files import write_table
from pipeline.data.images import UInt8, image_size, read_raw
from pipeline.data.labels import CITYSCAPES_IDS, IGNORE, LabelSpace
from pipeline.data.listing import Sample, instance_finder
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.files import replacing, sweep, write_json
from pipeline.scoring import cityscapes
from pipeline.scoring.bootstrap import intervals
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.scoring.evaluation import FRAMES_FILE, Evaluation, Frames, Setting
from pipeline.scoring.metrics import Counts, Score, class_iou, scores

PICTURES, IDS, OVERLAYS = "predictions", "predictions_ids", "overlays"
"""The folders of predictions: small pictures, whole ones, drawn over the frame."""

OFFICIAL = "official.json"


@dataclass(frozen=True)
class FrameCounts:
    """What was counted on one frame, in the classes of `counted_in`."""

    table: Counts
    """(K, K + 1) pixels: rows truth, columns prediction, the last one void."""
    hits: Counts | None = None
    """What `cityscapes.instance_hits` says, where the frame's instances are known."""


def counted_in(space: LabelSpace) -> LabelSpace:
    """The label space in which pixels are counted: label ids, where the official script does."""
    return cityscapes.IDS if cityscapes.has_official_scores(space) else space


def label_ids(space: LabelSpace) -> UInt8:
    """(K,) the Cityscapes label id of each class: that of the first of its names which has one.

    Raises:
        UserError: no name of a class has one.
    """
    id_of = {name: value for value, name in CITYSCAPES_IDS.items() if value < 34}
    found = [[id_of[name] for name in c.names if name in id_of] for c in space.classes]
    if missing := [c.name for c, ids in zip(space.classes, found, strict=True) if not ids]:
        raise UserError(
            f"Label space {space.name}: class {missing[0]!r} has no Cityscapes label id, because "
            "none of its `names` is a Cityscapes name. Use train_ids."
        )
    return np.array([ids[0] for ids in found], np.uint8)


def instance_files(
    dataset: DatasetSpec, samples: Sequence[Sample], space: LabelSpace
) -> tuple[list[Path] | None, str]:
    """Each frame's file of instances, or None; and what a protocol says of it."""
    if not cityscapes.has_official_scores(space):
        return None, "none: they are defined for the classes of cityscapes19"
    files = list(map(instance_finder(dataset), [sample.name for sample in samples]))
    found = [file for file in files if file is not None]
    if len(found) < len(files):
        return None, f"none: {len(files) - len(found)} of {len(files)} frames have no instance file"
    sizes = {image_size(file) for file in found}
    if sizes != {cityscapes.SIZE}:
        return None, "none: they are defined for frames of 2048x1024"
    return found, "weighed by the mean sizes of Cityscapes' instances"


def read_instances(path: Path, prediction: UInt8) -> Counts:
    """How well each instance of a frame is found by its prediction, (H, W) uint8 label ids.

    Raises:
        UserError: unreadable file, no 16-bit values, or another size.
    """
    instances = read_raw(path)
    if instances.shape != prediction.shape:
        raise UserError(
            f"{path} holds pixels of shape {instances.shape}, and the ground truth beside it is "
            f"{prediction.shape}. Replace the file, or leave `instances` out of the data set."
        )
    return cityscapes.instance_hits(instances, prediction)


def write_scores(
    folder: Path,
    space: LabelSpace,
    dataset: DatasetSpec,
    names: Sequence[str],
    frames: Sequence[FrameCounts],
    protocol: Mapping[str, Setting],
    *,
    arm: str | None = None,
    seed: int | None = None,
    pictures: Mapping[str, str] | None = None,
) -> Evaluation:
    """Write `evaluation.json`, `per_image.csv`, `per_image.npz`, and for the classes of
    `cityscapes19` also `official.json`.

    `per_image.npz` holds `names` (N,) and `counts` (N, K, K + 1) int64, the last column void.

    Args:
        names: of the N frames.
        frames: what was counted on them, in the classes of `counted_in(space)`.
        protocol: how predictions were made.
        arm, seed: whose predictions they are; None of those in files.
        pictures: frame -> picture of its prediction below `folder`.
    """
    counts = np.stack([frame.table for frame in frames])
    sweep(folder)
    (folder / OFFICIAL).unlink(missing_ok=True)  # of other classes, scored here before
    by_instance: dict[str, Score | dict[str, Score]] = {}
    if cityscapes.has_official_scores(space):
        by_instance = _write_official(folder, space, names, counts, frames)
        counts = cityscapes.by_class(counts)
    with replacing(folder / FRAMES_FILE) as part:
        np.savez_compressed(part, names=np.array(names), counts=counts)
    _write_table(folder / "per_image.csv", space, names, counts)
    matrix = ConfusionMatrix.from_counts(counts.sum(axis=0))
    shared = {
        "label_space": space.name,
        "classes_averaged": _averaged(space),
        "resolution": "ground truth",
    }
    evaluation = Evaluation.model_validate(
        {
            "protocol": {**shared, **protocol, "ignore": IGNORE},
            "dataset": dataset.name,
            "split": dataset.split,
            "images": len(names),
            "arm": arm,
            "seed": seed,
            "pictures": pictures or {},
            "classes": space.class_names,
            "confusion": matrix.counts.tolist(),
            "void_predictions": matrix.void.tolist(),
            **matrix.metrics(space),
            **by_instance,
            "intervals": intervals(counts, space),
            "frames": Frames(list(names), counts),
        }
    )
    evaluation.write(folder)
    return evaluation


def _write_official(
    folder: Path,
    space: LabelSpace,
    names: Sequence[str],
    counts: Counts,
    frames: Sequence[FrameCounts],
) -> dict[str, Score | dict[str, Score]]:
    """Write `official.json`; the scores by instances that are in it."""
    hits = [frame.hits for frame in frames if frame.hits is not None]
    official = cityscapes.official(names, counts, hits if len(hits) == len(frames) else None)
    write_json(folder / OFFICIAL, official)
    return {
        "mean_class_iiou": official["averageScoreInstClasses"],
        "mean_category_iiou": official["averageScoreInstCategories"],
        "class_iiou": {name: official["classInstScores"][name] for name in space.class_names},
        "category_iiou": {n: official["categoryInstScores"][n] for n in space.categories},
    }


def _write_table(path: Path, space: LabelSpace, names: Sequence[str], counts: Counts) -> None:
    """Write pixels, metrics and the classes' IoU of each frame, of counts (N, K, K + 1)."""
    columns: dict[str, Sequence[object]] = {
        "name": names,
        "pixels": counts.sum(axis=(1, 2)).tolist(),
        "void_predictions": counts[:, :, -1].sum(axis=1).tolist(),
        **{key: values.tolist() for key, values in scores(counts, space).items()},
    }
    of_classes = class_iou(counts).T.tolist()
    columns |= {f"iou {n}": v for n, v in zip(space.class_names, of_classes, strict=True)}
    rows = zip(*columns.values(), strict=True)
    write_table(path, list(columns), [dict(zip(columns, row, strict=True)) for row in rows])


def _averaged(space: LabelSpace) -> str:
    """Which classes the means are over, for the protocol."""
    averaged, left_out = ([c.name for c in space.classes if c.averaged is a] for a in (True, False))
    which = f"of {', '.join(averaged)}"
    if len(left_out) < len(averaged):
        which = f"without {', '.join(left_out)}" if left_out else ""
    return ", ".join(filter(None, ["those in the ground truth or predicted", which]))
