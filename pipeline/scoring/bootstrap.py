"""Intervals over images: how far a score would move had other frames been drawn.

The bootstrap of Efron (Annals of Statistics 7, 1979): the test set's N images are drawn anew, N
times with replacement, and the metric is computed from the sums of each drawing. Drawings are the
same for all seeds and arms, so differences between arms are paired. What it says holds for other
images like these and for the networks that were scored: the spread of other trainings, or of other
translators, is not in it. Images count as independent; frames of one drive resemble each other, and
their intervals are too narrow.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.data.labels import LabelSpace
from pipeline.scoring.metrics import (
    Counts,
    Float,
    Formula,
    class_columns,
    mean_defined,
    tabled,
)

Interval = tuple[float, float]
"""Low and high end."""

RESAMPLES, LEVEL = 1000, 0.95
_BLOCK = 100


def intervals(
    counts: Counts, space: LabelSpace, *, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, Interval | None]:
    """Metric -> (low, high) around the score of one network, fractions in [0, 1].

    None where there are fewer than two images or the metric is undefined.
    """
    drawn = resample([counts], space, resamples=resamples)
    return {metric.key: interval(drawn[metric.key], level) for metric in tabled()}


def resample(
    seeds: Sequence[Counts], space: LabelSpace, *, resamples: int = RESAMPLES
) -> dict[str, Float]:
    """The metrics of an arm in each drawing of images, as means over its seeds.

    Drawing i is the same for every arm scored on N images: subtract the results of two arms to
    compare them on the same frames.

    Args:
        seeds: the counts (N, K, K + 1) of each seed, over the same images in the same order.

    Returns:
        The metrics that tables show, each (resamples,), and the columns of the table of classes,
        each (resamples, K). NaN where a drawing leaves it undefined, and everywhere with
        fewer than two images.
    """
    images = len(seeds[0])
    generator = np.random.default_rng(0)
    flat = [np.asarray(counts.reshape(images, -1), np.float64) for counts in seeds]
    blocks: list[dict[str, Float]] = []
    for start in range(0, resamples, _BLOCK):
        times = generator.multinomial(
            images, np.full(images, 1 / images), size=min(_BLOCK, resamples - start)
        ).astype(np.float64)
        # Sums of counts stay far below 2**53: exact in float64, in whatever order they are added.
        drawn = np.stack([(times @ each).reshape(-1, *seeds[0].shape[1:]) for each in flat])
        blocks.append(
            {
                key: mean_defined(np.moveaxis(formula(drawn, space), 0, -1))
                for key, formula in _formulas().items()
            }
        )
    joined = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    return joined if images > 1 else {key: np.full_like(v, np.nan) for key, v in joined.items()}


def _formulas() -> dict[str, Formula]:
    """What is computed in each drawing."""
    of_set = {metric.key: metric.formula for metric in tabled()}
    of_parts = {b.key: b.formula for b in class_columns()}
    return {key: formula for key, formula in (of_set | of_parts).items() if formula}


def interval(values: Float, level: float = LEVEL) -> Interval | None:
    """The percentile interval of (resamples,) values, undefined ones left out; None without any."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_better(gain: Float) -> float | None:
    """The share of the drawings with a gain above 0, (resamples,); None when none is defined."""
    defined = gain[~np.isnan(gain)]
    return float((defined > 0).mean()) if defined.size else None
