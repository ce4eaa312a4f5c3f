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
import numpy.typing as npt

from pipeline.data.labels import LabelSpace

Float = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
"""(N, K, K+1) pixels of each image: rows truth, columns prediction, the last column void. (N, K, K)
where nothing was predicted void."""

RESAMPLES, LEVEL = 1000, 0.95
_BLOCK = 100


def intervals(
    counts: Counts, space: LabelSpace, *, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, tuple[float, float] | None]:
    """Metric -> (low, high) around the score of one network, fractions in [0, 1].

    None where there are fewer than two images or the metric is undefined.
    """
    drawn = resample([counts], space, resamples=resamples)
    return {metric: interval(values, level) for metric, values in drawn.items() if values.ndim == 1}


def resample(
    seeds: Sequence[Counts], space: LabelSpace, *, resamples: int = RESAMPLES
) -> dict[str, Float]:
    """The metrics of an arm in each drawing of images, as means over its seeds.

    Drawing i is the same for every arm scored on N images: subtract the results of two arms to
    compare them on the same frames.

    Args:
        seeds: the counts of each seed, over the same images in the same order.

    Returns:
        `pixel_accuracy`, `mean_class_accuracy`, `mean_iou`, `frequency_weighted_iou`, each
        (resamples,), and `class_iou`, (resamples, K). NaN where a drawing leaves it undefined, and
        everywhere with fewer than two images.
    """
    images, classes = seeds[0].shape[:2]
    averaged = np.array([c.averaged for c in space.classes])
    generator = np.random.default_rng(0)
    flat = [np.asarray(counts.reshape(images, -1), np.float64) for counts in seeds]
    blocks: list[dict[str, Float]] = []
    for start in range(0, resamples, _BLOCK):
        times = generator.multinomial(
            images, np.full(images, 1 / images), size=min(_BLOCK, resamples - start)
        ).astype(np.float64)
        # Sums of counts stay far below 2**53: exact in float64, in whatever order they are added.
        drawn = np.stack([(times @ each).reshape(len(times), classes, -1) for each in flat])
        blocks.append(
            {
                key: _mean_present(np.moveaxis(values, 0, -1))
                for key, values in _metrics(drawn, averaged).items()
            }
        )
    joined = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    return joined if images > 1 else {key: np.full_like(v, np.nan) for key, v in joined.items()}


def interval(values: Float, level: float = LEVEL) -> tuple[float, float] | None:
    """The percentile interval of (resamples,) values, undefined ones left out; None without any."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_better(after: Float, before: Float) -> float | None:
    """The share of the drawings in which `after` is above `before`, both (resamples,).

    None when no drawing defines both.
    """
    difference = after - before
    defined = difference[~np.isnan(difference)]
    return float((defined > 0).mean()) if defined.size else None


def _metrics(counts: Float, averaged: npt.NDArray[np.bool_]) -> dict[str, Float]:
    """The metrics of `ConfusionMatrix`, of (..., K, K or K+1) counts at once."""
    classes = counts.shape[-2]
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    truth = counts.sum(axis=-1)
    accuracy = _ratio(hits, truth)
    iou = _ratio(hits, truth + counts.sum(axis=-2)[..., :classes] - hits)
    scored = truth.sum(axis=-1)
    return {
        "pixel_accuracy": _ratio(hits.sum(axis=-1), scored),
        "mean_class_accuracy": _mean_present(accuracy[..., averaged]),
        "mean_iou": _mean_present(iou[..., averaged]),
        "frequency_weighted_iou": _ratio(np.nansum(truth * iou, axis=-1), scored),
        "class_iou": iou,
    }


def _ratio(part: Float, whole: Float) -> Float:
    ratios = np.full(part.shape, np.nan)
    np.divide(part, whole, out=ratios, where=whole > 0)
    return ratios


def _mean_present(values: Float) -> Float:
    present = ~np.isnan(values)
    return _ratio(np.nansum(values, axis=-1), present.sum(axis=-1).astype(np.float64))
