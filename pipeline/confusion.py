"""The confusion matrix: counts first, ratios last."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.labels import IGNORE, LabelSpace

Float = npt.NDArray[np.float64]


class ConfusionMatrix:
    """Pixel counts of a whole data set: rows are ground truth, columns are predictions.

    Pixels whose truth is `IGNORE` are left out. Metrics are those of Long et al. (CVPR 2015,
    section 5) as the Cityscapes benchmark applies them: computed once from the data set's sums,
    never averaged over images.
    """

    def __init__(self, classes: int) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    @classmethod
    def from_counts(cls, counts: Sequence[Sequence[int]]) -> Self:
        """From a square table of counts, as `evaluation.json` stores it."""
        matrix = cls(len(counts))
        matrix.counts += np.asarray(counts, np.int64)
        return matrix

    def add(self, truth: npt.NDArray[np.integer], prediction: npt.NDArray[np.integer]) -> None:
        """Count the pixels of one image.

        Args:
            truth: (H, W) class indices, `IGNORE` where not scored.
            prediction: (H, W) class indices below the number of classes.

        Raises:
            ValueError: shapes differ, or an index is outside the classes.
        """
        if truth.shape != prediction.shape:
            raise ValueError(
                f"prediction is {prediction.shape}, ground truth {truth.shape}: score at the "
                "ground truth's resolution"
            )
        classes = len(self.counts)
        scored = truth != IGNORE
        rows, columns = truth[scored], prediction[scored]
        if rows.size == 0:
            return
        if max(rows.max(), columns.max()) >= classes:
            raise ValueError(f"class index {max(rows.max(), columns.max())} of {classes} classes")
        keys = rows.astype(np.intp) * classes + columns
        self.counts += np.bincount(keys, minlength=classes**2).reshape(classes, classes)

    @property
    def pixel_accuracy(self) -> float:
        """Correct pixels / scored pixels; NaN when nothing was scored."""
        return _ratio(np.trace(self.counts), self.counts.sum())

    @property
    def class_accuracy(self) -> Float:
        """(K,) recall of each class; NaN where the truth has no pixel of it."""
        return _ratios(np.diag(self.counts), self.counts.sum(axis=1))

    @property
    def class_iou(self) -> Float:
        """(K,) tp / (tp + fp + fn); NaN where a class is neither in truth nor predicted."""
        hits = np.diag(self.counts)
        return _ratios(hits, self.counts.sum(axis=0) + self.counts.sum(axis=1) - hits)

    @property
    def frequency_weighted_iou(self) -> float:
        """IoU of the classes weighted by their share of the truth."""
        share = self.counts.sum(axis=1)
        return _ratio(np.nansum(share * self.class_iou), share.sum())

    def metrics(self, space: LabelSpace) -> dict[str, Any]:
        """All metrics as plain data; fractions in [0, 1], None where undefined.

        Means are taken over the classes of `space` that are present and to be averaged.
        """
        class_names = space.class_names
        averaged = np.array([c.averaged for c in space.classes])
        return {
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "mean_class_accuracy": _plain(_mean_present(self.class_accuracy[averaged])),
            "mean_iou": _plain(_mean_present(self.class_iou[averaged])),
            "frequency_weighted_iou": _plain(self.frequency_weighted_iou),
            "class_accuracy": dict(zip(class_names, map(_plain, self.class_accuracy), strict=True)),
            "class_iou": dict(zip(class_names, map(_plain, self.class_iou), strict=True)),
        }


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else float("nan")


def _ratios(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> Float:
    ratios = np.full(len(part), np.nan)
    np.divide(part, whole, out=ratios, where=whole > 0)
    return ratios


def _mean_present(values: Float) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
