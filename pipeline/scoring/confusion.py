"""The confusion matrix: counts first, ratios last."""

from collections.abc import Sequence
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.data.images import UInt8
from pipeline.data.labels import IGNORE, LabelSpace

Float = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# Pixels at a time: they stay in the processor's cache, and OpenCV's 32-bit floats are exact.
_BLOCK = 1 << 19


class ConfusionMatrix:
    """Pixel counts of a whole data set: rows are ground truth, columns are predictions.

    Pixels whose truth is `IGNORE` are left out. Pixels that are scored and predicted as `IGNORE`
    (void) are misses: they are in no column of `counts` but in `void`, and so in the number of
    pixels of their class. Metrics are those of Long et al. (CVPR 2015, section 5) as the
    Cityscapes benchmark applies them: computed once from the data set's sums, never averaged over
    images.
    """

    def __init__(self, classes: int) -> None:
        self.counts: Counts = np.zeros((classes, classes), np.int64)
        self.void: Counts = np.zeros(classes, np.int64)

    @classmethod
    def from_counts(cls, counts: npt.ArrayLike, void: Sequence[int] | None = None) -> Self:
        """From counts as `evaluation.json` and `per_image.npz` store them.

        Args:
            counts: (K, K), or (K, K + 1) with the void predictions in the last column.
            void: (K,) void predictions, where `counts` has no column for them.
        """
        table = np.asarray(counts, np.int64)
        matrix = cls(len(table))
        matrix.counts += table[:, : len(table)]
        if table.shape[1] > len(table):
            matrix.void += table[:, -1]
        if void is not None:
            matrix.void += np.asarray(void, np.int64)
        return matrix

    @property
    def table(self) -> Counts:
        """(K, K + 1) counts with the void predictions as the last column."""
        return np.column_stack([self.counts, self.void])

    def add(self, truth: UInt8, prediction: UInt8) -> None:
        """Count the pixels of one image.

        Args:
            truth: (H, W) uint8 class indices, `IGNORE` where not scored.
            prediction: (H, W) uint8 class indices, `IGNORE` where void.

        Raises:
            ValueError: shapes or types differ, or an index is outside the classes.
        """
        if truth.shape != prediction.shape:
            raise ValueError(
                f"prediction is {prediction.shape}, ground truth {truth.shape}: score at the "
                "ground truth's resolution"
            )
        classes = len(self.counts)
        pairs = count_pairs(truth, prediction)
        known = pairs[:classes]
        if known[:, :classes].sum() + known[:, IGNORE].sum() != pairs[:IGNORE].sum():
            rows, columns = np.nonzero(pairs[:IGNORE])
            largest = max(rows.max(), columns[columns != IGNORE].max(initial=0))
            raise ValueError(f"class index {largest} of {classes} classes")
        self.counts += known[:, :classes]
        self.void += known[:, IGNORE]

    @property
    def _truth(self) -> Counts:
        """(K,) scored pixels of each class."""
        return np.asarray(self.counts.sum(axis=1) + self.void)

    @property
    def pixel_accuracy(self) -> float:
        """Correct pixels / scored pixels; NaN when nothing was scored."""
        return _ratio(np.trace(self.counts), self._truth.sum())

    @property
    def class_accuracy(self) -> Float:
        """(K,) recall of each class; NaN where the truth has no pixel of it."""
        return _ratios(np.diag(self.counts), self._truth)

    @property
    def class_iou(self) -> Float:
        """(K,) tp / (tp + fp + fn); NaN where a class is neither in truth nor predicted."""
        hits = np.diag(self.counts)
        return _ratios(hits, self.counts.sum(axis=0) + self._truth - hits)

    @property
    def frequency_weighted_iou(self) -> float:
        """IoU of the classes weighted by their share of the truth."""
        return _ratio(np.nansum(self._truth * self.class_iou), self._truth.sum())

    def category_iou(self, members: Sequence[int]) -> float:
        """IoU of several classes taken as one: confusion among them is no error."""
        inside = self.counts[members]
        hits = inside[:, members].sum()
        return _ratio(hits, self._truth[members].sum() + self.counts[:, members].sum() - hits)

    def metrics(self, space: LabelSpace) -> dict[str, Any]:
        """All metrics as plain data; fractions in [0, 1], None where undefined.

        Means are taken over the classes of `space` that are present and to be averaged, and over
        the categories that are present. `absent_classes` are those without a pixel of the truth.
        """
        class_names = space.class_names
        averaged = np.array([c.averaged for c in space.classes])
        categories = {name: self.category_iou(m) for name, m in space.categories.items()}
        present = self._truth > 0
        scores = {
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "mean_class_accuracy": _plain(_mean_present(self.class_accuracy[averaged])),
            "mean_iou": _plain(_mean_present(self.class_iou[averaged])),
            "frequency_weighted_iou": _plain(self.frequency_weighted_iou),
            "class_accuracy": dict(zip(class_names, map(_plain, self.class_accuracy), strict=True)),
            "class_iou": dict(zip(class_names, map(_plain, self.class_iou), strict=True)),
            "absent_classes": [n for n, here in zip(class_names, present, strict=True) if not here],
        }
        if categories:
            scores["mean_category_iou"] = _plain(_mean_present(np.array([*categories.values()])))
            scores["category_iou"] = {name: _plain(iou) for name, iou in categories.items()}
        return scores


def count_pairs(truth: UInt8, prediction: UInt8) -> Counts:
    """How often each pair of values occurs: (256, 256) int64, rows are `truth`.

    Street scenes are made of large areas: only the ends of runs of equal pairs are looked at, and
    the lengths of the runs are summed. Exact for any content; noise is counted pixel by pixel.

    Args:
        truth: uint8 of any shape.
        prediction: uint8, as many pixels.
    """
    if truth.dtype != np.uint8 or prediction.dtype != np.uint8:
        raise ValueError(f"uint8 is expected, not {truth.dtype} and {prediction.dtype}")
    truth, prediction = truth.ravel(), prediction.ravel()
    pairs = np.zeros(1 << 16, np.int64)
    keys, lengths = [], []
    buffers = np.empty((2, min(_BLOCK, truth.size)), np.bool_)
    for start in range(0, truth.size, _BLOCK):
        t, p = (values[start : start + _BLOCK] for values in (truth, prediction))
        last, other = buffers[:, : t.size]  # whether a pixel is the last of its run
        np.not_equal(t[1:], t[:-1], out=last[:-1])
        np.not_equal(p[1:], p[:-1], out=other[:-1])
        last |= other
        last[-1] = True
        if np.count_nonzero(last) * 16 > t.size:
            both = cv2.merge([p, t]).view("<u2").reshape(1, -1)
            pairs += cv2.calcHist([both], [0], None, [1 << 16], [0, 1 << 16]).ravel().astype(int)
        else:
            ends = np.flatnonzero(last)
            keys.append(t[ends].astype(np.uint16) << 8 | p[ends])
            lengths.append(np.diff(ends, prepend=-1))
    if keys:
        runs = np.bincount(np.concatenate(keys), np.concatenate(lengths), minlength=1 << 16)
        pairs += runs.astype(np.int64)
    return pairs.reshape(256, 256)


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else float("nan")


def _ratios(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> Float:
    ratios = np.full(len(part), np.nan)
    np.divide(part, whole, out=ratios, where=whole > 0)
    return ratios


def _mean_present(values: Float) -> float:
    present = values[~np.isnan(values)]
    return sum(present.tolist()) / present.size if present.size else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
