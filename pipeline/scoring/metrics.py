"""Every metric, once: what it is called, its formula over counts of pixels, where it is shown.

Formulas take counts (..., K, K + 1): rows are the truth, columns the prediction, the last column is
void. So one formula gives the score of a test set, of each frame, and of a thousand resamplings.
They are those of Long et al. (CVPR 2015, section 5) as the Cityscapes benchmark applies them:
computed once from the sums of a data set, never averaged over images. A void prediction is a miss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.data.labels import LabelSpace

Float = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
N = TypeVar("N", float, Float)
Score = float | None
"""A number as plain data; None where it is undefined."""
Formula = Callable[[Counts | Float, LabelSpace], Float]
"""(..., K, K + 1) counts of the classes of a label space -> (...) for a `Metric`, (..., K) or
(..., categories) for a `Breakdown`; NaN where it is undefined."""


@dataclass(frozen=True)
class Metric:
    """One number of a set of frames."""

    key: str
    """Its name in `evaluation.json`, `report.json` and CSV files."""
    title: str
    formula: Formula | None
    """None: needs more than counts, see `pipeline.scoring.cityscapes`."""
    short: str = ""
    """The title where there is little room."""
    unit: str = "%"
    """`%`: a fraction in [0, 1] that is shown in percent. Else the unit behind a plain number."""
    higher_is_better: bool = True
    headline: bool = False
    """Shown on top of reports and by commands. The first of these tells how much of the gap was
    closed."""
    table: bool = False
    """Shown in all tables of scores, with an interval over the test frames."""
    steps: bool = False
    """Shown with its change in the table of steps, and below single frames."""
    ranks: bool = False
    """The one by which arms are ranked."""

    @property
    def name(self) -> str:
        """The short title, or else the title."""
        return self.short or self.title

    def gain(self, after: N, before: N) -> N:
        """How much better `after` is than `before`."""
        return after - before if self.higher_is_better else before - after


@dataclass(frozen=True)
class Breakdown:
    """A metric of each class, or of each category of classes."""

    key: str
    title: str
    """What a column of it is called."""
    of: Literal["classes", "categories"]
    mean: str
    """The key of the `Metric` that is its mean."""
    formula: Formula | None
    about: str = ""
    """The heading of its own table; without one, it is a column of the table of classes."""
    compared: bool = False
    """Whether arms are compared in it, class by class, with intervals."""

    @property
    def column(self) -> str:
        """How the names of its columns begin in a CSV file of classes."""
        return self.key.removeprefix("class_")


def pixel_accuracy(counts: Counts | Float, space: LabelSpace | None = None) -> Float:
    """Correct pixels / scored pixels."""
    return ratio(_hits(counts).sum(axis=-1), counts.sum(axis=(-2, -1)))


def class_accuracy(counts: Counts | Float, space: LabelSpace | None = None) -> Float:
    """Recall of each class; undefined where the truth has no pixel of it."""
    return ratio(_hits(counts), counts.sum(axis=-1))


def class_precision(counts: Counts | Float, space: LabelSpace | None = None) -> Float:
    """Correct pixels / predicted ones of each class; undefined where none is predicted."""
    hits = _hits(counts)
    return ratio(hits, counts.sum(axis=-2)[..., : hits.shape[-1]])


def class_iou(counts: Counts | Float, space: LabelSpace | None = None) -> Float:
    """tp / (tp + fp + fn); undefined where a class is neither in the truth nor predicted."""
    hits = _hits(counts)
    predicted = counts.sum(axis=-2)[..., : hits.shape[-1]]
    return ratio(hits, predicted + counts.sum(axis=-1) - hits)


def category_iou(counts: Counts | Float, space: LabelSpace) -> Float:
    """IoU of classes that are taken as one: confusion among them is no error."""
    found = np.full((*counts.shape[:-2], len(space.categories)), np.nan)
    for index, members in enumerate(space.categories.values()):
        truth, predicted = counts[..., members, :], counts[..., members]
        hits = truth[..., members].sum(axis=(-2, -1))
        whole = truth.sum(axis=(-2, -1)) + predicted.sum(axis=(-2, -1)) - hits
        found[..., index] = ratio(hits, whole)
    return found


def _mean(of_classes: Callable[[Counts | Float], Float]) -> Formula:
    """The mean of a score of classes over those that are averaged and defined."""

    def formula(counts: Counts | Float, space: LabelSpace) -> Float:
        averaged = np.array([one.averaged for one in space.classes])
        return mean_defined(of_classes(counts)[..., averaged])

    return formula


mean_iou = _mean(class_iou)
"""(..., K, K + 1) counts -> (...) mean IoU of the classes that are averaged and defined."""


def mean_category_iou(counts: Counts | Float, space: LabelSpace) -> Float:
    """Mean IoU of the categories that are defined."""
    return mean_defined(category_iou(counts, space))


def frequency_weighted_iou(counts: Counts | Float, space: LabelSpace) -> Float:
    """IoU of the classes weighted by their pixels of the truth."""
    truth = counts.sum(axis=-1)
    weighted = np.nansum(truth * class_iou(counts), axis=-1)
    return ratio(weighted, truth.sum(axis=-1))


METRICS = {
    metric.key: metric
    for metric in (
        Metric(
            "pixel_accuracy",
            "per-pixel accuracy",
            pixel_accuracy,
            short="per-pixel",
            headline=True,
            table=True,
            steps=True,
        ),
        Metric(
            "mean_class_accuracy",
            "mean class accuracy",
            _mean(class_accuracy),
            headline=True,
            table=True,
        ),
        Metric("mean_iou", "mean IoU", mean_iou, headline=True, table=True, steps=True, ranks=True),
        Metric(
            "frequency_weighted_iou", "frequency-weighted IoU", frequency_weighted_iou, table=True
        ),
        Metric("mean_class_precision", "mean class precision", _mean(class_precision)),
        Metric("mean_category_iou", "mean category IoU", mean_category_iou),
        Metric("mean_class_iiou", "mean class iIoU", None),
        Metric("mean_category_iiou", "mean category iIoU", None),
    )
}
"""Key -> metric, in the order in which they are shown."""

BREAKDOWNS = {
    breakdown.key: breakdown
    for breakdown in (
        Breakdown("class_accuracy", "accuracy", "classes", "mean_class_accuracy", class_accuracy),
        Breakdown("class_iou", "IoU", "classes", "mean_iou", class_iou, compared=True),
        Breakdown(
            "class_precision", "precision", "classes", "mean_class_precision", class_precision
        ),
        Breakdown(
            "category_iou",
            "IoU",
            "categories",
            "mean_category_iou",
            category_iou,
            about="IoU of the categories: confusion among the classes of one is no error",
        ),
        Breakdown(
            "class_iiou",
            "iIoU",
            "classes",
            "mean_class_iiou",
            None,
            about="iIoU of the classes: small instances count as much as large ones",
        ),
        Breakdown(
            "category_iiou",
            "iIoU",
            "categories",
            "mean_category_iiou",
            None,
            about="iIoU of the categories",
        ),
    )
}
"""Key -> metric of each class or category."""


def headline() -> list[Metric]:
    """The metrics on top of reports."""
    return [metric for metric in METRICS.values() if metric.headline]


def tabled() -> list[Metric]:
    """The metrics in tables of scores; all have a formula."""
    return [metric for metric in METRICS.values() if metric.table]


def class_columns() -> list[Breakdown]:
    """The breakdowns that are columns of the table of classes."""
    return [breakdown for breakdown in BREAKDOWNS.values() if not breakdown.about]


def further() -> list[Breakdown]:
    """The breakdowns with a table of their own, which some label spaces and data sets have."""
    return [breakdown for breakdown in BREAKDOWNS.values() if breakdown.about]


def in_steps() -> list[Metric]:
    """The metrics in the table of steps."""
    return [metric for metric in METRICS.values() if metric.steps]


def ranking() -> Metric:
    """The metric by which arms are ranked."""
    return next(metric for metric in METRICS.values() if metric.ranks)


def parts_of(breakdown: Breakdown, space: LabelSpace) -> list[str]:
    """The classes or categories that a breakdown has numbers of, in order."""
    return space.class_names if breakdown.of == "classes" else list(space.categories)


def scores(counts: Counts, space: LabelSpace) -> dict[str, Float]:
    """The metrics of counts (..., K, K + 1) by key, each (...).

    Without those that need more than counts, and means over categories where there are none.
    """
    empty = {b.mean for b in BREAKDOWNS.values() if not parts_of(b, space)}
    return {
        key: metric.formula(counts, space)
        for key, metric in METRICS.items()
        if metric.formula and key not in empty
    }


def flat_scores(counts: Counts, space: LabelSpace) -> dict[str, Score | dict[str, Score]]:
    """All that (K, K + 1) counts say, as `evaluation.json` holds it: metrics and breakdowns."""
    found: dict[str, Score | dict[str, Score]] = {
        key: plain(value) for key, value in scores(counts, space).items()
    }
    for key, breakdown in BREAKDOWNS.items():
        parts = parts_of(breakdown, space)
        if breakdown.formula and parts:
            values = breakdown.formula(counts, space)
            found[key] = dict(zip(parts, map(plain, values), strict=True))
    return found


def plain(value: float | Float) -> Score:
    """A number as plain data, None for NaN."""
    return None if np.isnan(value) else float(value)


def ratio(part: npt.NDArray[np.number], whole: npt.NDArray[np.number]) -> Float:
    """part / whole, NaN where `whole` is 0; of one shape."""
    ratios = np.full(np.shape(part), np.nan)
    np.divide(part, whole, out=ratios, where=np.asarray(whole) > 0)
    return ratios


def mean_defined(values: Float) -> Float:
    """Means over the last axis without NaN; NaN where there is nothing else."""
    defined = ~np.isnan(values)
    # Added one after the other, as Cityscapes' script does: floats depend on the order.
    total = np.zeros(values.shape[:-1])
    for column in np.moveaxis(np.where(defined, values, 0), -1, 0):
        total += column
    return ratio(total, defined.sum(axis=-1))


def _hits(counts: Counts | Float) -> Counts | Float:
    index = np.arange(counts.shape[-2])
    return counts[..., index, index]
