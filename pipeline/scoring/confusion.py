"""The confusion matrix: counts first, ratios last."""

from collections.abc import Sequence
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.data.images import UInt8
from pipeline.data.labels import IGNORE, LabelSpace
from pipeline.scoring import metrics
from pipeline.scoring.metrics import Counts, Score

# Pixels at a time: they stay in the processor's cache, and OpenCV's 32-bit floats are exact.
_BLOCK = 1 << 19


class ConfusionMatrix:
    """Pixel counts of a whole data set: rows are ground truth, columns are predictions.

    Pixels whose truth is `IGNORE` are left out. Pixels that are scored and predicted as `IGNORE`
    (void) are misses: they are in no column of `counts` but in `void`, and so in the number of
    pixels of their class.
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
    def pixel_accuracy(self) -> float:
        """Correct pixels / scored pixels; NaN when nothing was scored."""
        return float(metrics.pixel_accuracy(self.table))

    def metrics(self, space: LabelSpace) -> dict[str, Score | dict[str, Score]]:
        """All metrics as plain data; fractions in [0, 1], None where undefined.

        Means are taken over the classes of `space` that are defined and to be averaged, and over
        the categories that are defined.
        """
        return metrics.flat_scores(self.table, space)


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
