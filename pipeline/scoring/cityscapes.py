"""Scores to the letter of Cityscapes' own script, evalPixelLevelSemanticLabeling.py.

The script counts label ids, scored or not, and so do these functions. iIoU (Cordts et al., CVPR
2016, section 4.1) weighs the pixels of an instance by the mean size of its class's instances over
its own size, so that small instances count as much as large ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.images import UInt8
from pipeline.data.labels import (
    CITYSCAPES_IDS,
    CITYSCAPES_TRAIN_IDS,
    IGNORE,
    LabelClass,
    LabelSpace,
)
from pipeline.scoring.metrics import Counts

SIZE = (2048, 1024)
"""Width and height of the frames that the mean sizes of instances belong to."""

CATEGORIES: dict[str, range] = {
    "void": range(7),
    "flat": range(7, 11),
    "construction": range(11, 17),
    "object": range(17, 21),
    "nature": range(21, 23),
    "sky": range(23, 24),
    "human": range(24, 26),
    "vehicle": range(26, 34),
}
"""Category -> its label ids, scored or not."""

INSTANCE_SIZE = {
    24: 3462.4756337644,
    25: 3930.4788056518,
    26: 12794.0202738185,
    27: 27855.1264367816,
    28: 35732.1511111111,
    31: 67583.7075812274,
    32: 6298.7200839748,
    33: 4672.3249222261,
}
"""Label id -> mean pixels of an instance, of the scored classes that have instances."""

_INSTANCE_CATEGORIES = ("human", "vehicle")  # those in which every class has instances

_NAMES = [CITYSCAPES_IDS[i] for i in range(34)]
_TRAIN_NAMES = [CITYSCAPES_TRAIN_IDS[i] for i in range(19)]


def _held(name: str) -> tuple[str, ...]:
    """The vocabulary names that are scored as a class of Cityscapes."""
    return ("road", "road line") if name == "road" else (name,)


IDS = LabelSpace(
    name="cityscapes label ids",
    classes=tuple(LabelClass(name=n, names=_held(n), color=(0, 0, 0)) for n in _NAMES),
)
"""The label ids 0..33 as a label space: the index of a class is its id."""

LABEL_ID = np.array([_NAMES.index(name) for name in _TRAIN_NAMES], np.uint8)
"""(19,) index in `cityscapes19` -> label id."""

CLASS_OF_ID = np.full(len(_NAMES), IGNORE, np.uint8)
"""(34,) label id -> index in `cityscapes19`, `IGNORE` where it is not scored."""
CLASS_OF_ID[LABEL_ID] = np.arange(len(LABEL_ID))


def has_official_scores(space: LabelSpace) -> bool:
    """Whether the classes of a label space are those of `cityscapes19`."""
    return [(c.name, c.names) for c in space.classes] == [(n, _held(n)) for n in _TRAIN_NAMES]


def by_class(counts: Counts) -> Counts:
    """(N, 34, 35) counts of label ids -> (N, 19, 20) of classes; void predictions are last.

    Ids that are not scored are left out as truth, and void as predictions.
    """
    scored = counts[:, LABEL_ID]
    classes = scored[:, :, LABEL_ID]
    return np.concatenate([classes, (scored.sum(2) - classes.sum(2))[:, :, None]], axis=2)


def instance_hits(instances: npt.NDArray[np.integer], prediction: UInt8) -> Counts:
    """How well each instance of one frame is found.

    Args:
        instances: (H, W) label id * 1000 + number, as `*_gtFine_instanceIds.png` holds them;
            up to 1000 there is no instance.
        prediction: (H, W) uint8 label ids.

    Returns:
        (M, 4) int64, by rising instance id: label id, pixels, pixels predicted as this label id,
        pixels predicted as any id of its category. Classes that are not scored are left out.
    """
    category = np.full(256, -1)
    for index, members in enumerate(CATEGORIES.values()):
        category[list(members)] = index
    inside = instances > 1000
    ids, predicted = instances[inside].astype(np.int64), prediction[inside]
    labels = ids // 1000
    sizes = np.bincount(ids)
    hits = np.bincount(ids[predicted == labels], minlength=len(sizes))
    near = category[predicted] == category[np.minimum(labels, 255)]
    category_hits = np.bincount(ids[near], minlength=len(sizes))
    rows = np.stack([np.arange(len(sizes)) // 1000, sizes, hits, category_hits], axis=1)
    return rows[(sizes > 0) & np.isin(rows[:, 0], list(INSTANCE_SIZE))]


def official(names: Sequence[str], counts: Counts, hits: Sequence[Counts] | None) -> dict[str, Any]:
    """What the script writes to its JSON file, with None where it writes NaN.

    The script's own `perImageScores` count ignored pixels as scored, and errors as correct. Here
    they are what their names say.

    Args:
        names: of the N frames.
        counts: (N, 34, 35) int64 counts of label ids: rows truth, columns prediction, the last
            column void, which the script can only be shown as id 0, unlabeled.
        hits: of each frame, what `instance_hits` returns; None leaves instance scores undefined.
    """
    each = counts[:, :, :-1].copy()
    each[:, :, 0] += counts[:, :, -1]
    total = each.sum(axis=0)
    truth, pixels = total.sum(axis=1), int(total.sum())

    def score(members: list[int], columns: list[int], found: float, missed: float) -> float | None:
        """found / (found + false + missed), of pixels of other classes predicted as `columns`."""
        false = int(total[np.ix_([i for i in LABEL_ID if i not in members], columns)].sum())
        whole = found + false + missed
        return found / whole if whole else None

    def iou(members: list[int]) -> float | None:
        members = [i for i in members if i in LABEL_ID]
        found = int(total[np.ix_(members, members)].sum())
        return score(members, members, found, int(truth[members].sum()) - found)

    weighed = None if hits is None else _weighed(hits)
    class_scores = {name: iou([i]) for i, name in enumerate(_NAMES)}
    category_scores = {name: iou(list(members)) for name, members in CATEGORIES.items()}
    class_instances: dict[str, float | None] = dict.fromkeys(class_scores)
    category_instances: dict[str, float | None] = dict.fromkeys(category_scores)
    if weighed is not None:
        for i in INSTANCE_SIZE:
            class_instances[_NAMES[i]] = score([i], [i], *weighed[_NAMES[i]])
        for name in _INSTANCE_CATEGORIES:
            ids = list(CATEGORIES[name])
            # Here the script takes ids that are not scored, like caravan, for hits of the category.
            category_instances[name] = score(ids, ids, *weighed[name])
    correct = each[:, LABEL_ID, LABEL_ID].sum(axis=1)
    scored = each[:, LABEL_ID].sum(axis=(1, 2))
    return {
        "confMatrix": total.tolist(),
        "priors": {n: int(truth[i]) / pixels if pixels else None for i, n in enumerate(_NAMES)},
        "labels": {name: i for i, name in enumerate(_NAMES)},
        "classScores": class_scores,
        "classInstScores": class_instances,
        "categoryScores": category_scores,
        "categoryInstScores": category_instances,
        "averageScoreClasses": _average(class_scores),
        "averageScoreInstClasses": _average(class_instances),
        "averageScoreCategories": _average(category_scores),
        "averageScoreInstCategories": _average(category_instances),
        "perImageScores": {
            name: {"nbNotIgnoredPixels": int(s), "nbCorrectPixels": int(c)}
            for name, s, c in zip(names, scored, correct, strict=True)
        },
    }


def _weighed(hits: Sequence[Counts]) -> dict[str, tuple[float, float]]:
    """Class or category -> its weighed hits and misses.

    Added one after the other, as the script does: floats depend on the order.
    """
    sums = dict.fromkeys([*_NAMES, *_INSTANCE_CATEGORIES], (0.0, 0.0))
    category = {i: name for name in _INSTANCE_CATEGORIES for i in CATEGORIES[name]}
    for frame in hits:
        for label, size, found, near in frame.tolist():
            weight = INSTANCE_SIZE[label] / size
            for name, pixels in ((_NAMES[label], found), (category[label], near)):
                hit, miss = sums[name]
                sums[name] = hit + pixels * weight, miss + (size - pixels) * weight
    return sums


def _average(scores: dict[str, float | None]) -> float | None:
    present = [score for score in scores.values() if score is not None]
    return sum(present) / len(present) if present else None
