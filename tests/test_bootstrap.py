"""Bootstrap intervals against the confusion matrix's metrics, loops and known laws."""

import numpy as np
import pytest

from pipeline.data.labels import LabelClass, LabelSpace
from pipeline.scoring.bootstrap import interval, intervals, resample, share_better
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.scoring.metrics import Counts, class_columns


def space(classes: int, *left_out: int) -> LabelSpace:
    return LabelSpace(
        name="test",
        classes=tuple(
            LabelClass(
                name=f"c{i}", names=(f"test/{i}",), color=(0, 0, 0), averaged=i not in left_out
            )
            for i in range(classes)
        ),
    )


def draw(images: int, classes: int = 4, seed: int = 0, void: bool = False) -> Counts:
    """Counts in which class 1 is on few images and class 2 is in no truth."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 50, (images, classes, classes + 1))
    counts[3:, 1] = 0
    counts[3:, :, 1] = 0
    counts[:, 2] = 0
    if not void:
        counts[:, :, -1] = 0
    return counts


def accuracy(correct: list[int], wrong: list[int]) -> Counts:
    """Images of two classes with so many correct and wrong pixels of class 0."""
    counts = np.zeros((len(correct), 2, 2), np.int64)
    counts[:, 0, 0], counts[:, 0, 1] = correct, wrong
    return counts


CLASSES = {breakdown.key for breakdown in class_columns()}


def test_each_drawing_has_the_metrics_of_its_images() -> None:
    counts, chosen = draw(9), space(4, 3)
    drawn = resample([counts], chosen, resamples=130)

    rng = np.random.default_rng(0)
    times = [*rng.multinomial(9, [1 / 9] * 9, 100), *rng.multinomial(9, [1 / 9] * 9, 30)]
    for i, weights in enumerate(times):
        images = np.repeat(np.arange(9), weights)
        matrix = ConfusionMatrix.from_counts(counts[images, :, :-1].sum(axis=0).tolist())
        expected = matrix.metrics(chosen)
        classes = list(expected["class_iou"].values())
        assert [None if np.isnan(v) else v for v in drawn["class_iou"][i]] == classes
        for metric in drawn.keys() - CLASSES:
            assert drawn[metric][i] == pytest.approx(expected[metric]), metric
    # Class 1 is on 3 of 9 images: some drawings lack it.
    assert 0 < np.isnan(drawn["class_iou"][:, 1]).sum() < 20


def test_void_predictions_are_misses() -> None:
    counts = np.zeros((2, 2, 3), np.int64)
    counts[:, 0] = [6, 0, 4]  # 4 of 10 pixels void
    counts[:, 1] = [0, 10, 0]
    drawn = resample([counts], space(2), resamples=3)

    assert drawn["pixel_accuracy"] == pytest.approx([0.8] * 3)
    assert drawn["class_iou"] == pytest.approx(np.array([[0.6, 1.0]] * 3))
    assert drawn["frequency_weighted_iou"] == pytest.approx([0.8] * 3)


def test_interval_of_independent_images_is_that_of_the_normal_law() -> None:
    rng = np.random.default_rng(1)
    correct = rng.integers(0, 101, 400)
    low, high = intervals(accuracy(list(correct), list(100 - correct)), space(2))[
        "pixel_accuracy"
    ] or (0, 0)

    half = 1.96 * correct.std() / 100 / 20
    assert low == pytest.approx(correct.mean() / 100 - half, abs=0.15 * half)
    assert high == pytest.approx(correct.mean() / 100 + half, abs=0.15 * half)


def test_level_and_undefined_drawings() -> None:
    values = np.array([*range(101), np.nan], np.float64)

    assert interval(values, 0.9) == pytest.approx((5, 95))
    assert interval(np.full(3, np.nan)) is None


def test_seeds_are_averaged_in_each_drawing() -> None:
    one, two = draw(8, seed=1), draw(8, seed=2)
    both = resample([one, two], space(4), resamples=50)
    alone = [resample([each], space(4), resamples=50) for each in (one, two)]

    for metric in both.keys() - CLASSES:
        np.testing.assert_allclose(both[metric], (alone[0][metric] + alone[1][metric]) / 2)


def test_a_seed_in_which_a_class_is_undefined_is_left_out_of_its_mean() -> None:
    never = np.zeros((6, 2, 2), np.int64)
    never[:, 0, 0] = 10
    falsely = never.copy()
    falsely[:, 0, 1] = 10

    drawn = resample([never, falsely], space(2), resamples=5)

    assert drawn["class_iou"] == pytest.approx(np.array([[0.75, 0.0]] * 5))


def test_arms_are_paired_image_by_image() -> None:
    # Images differ by far more than the arms do, yet the second is better on every image.
    before = accuracy([10, 40, 70, 95], [90, 60, 30, 5])
    after = accuracy([11, 41, 71, 96], [89, 59, 29, 4])
    drawn = [resample([counts], space(2))["pixel_accuracy"] for counts in (before, after)]

    assert share_better(drawn[1] - drawn[0]) == 1
    assert share_better(drawn[0] - drawn[1]) == 0
    assert interval(drawn[1] - drawn[0]) == pytest.approx((0.01, 0.01))
    assert np.ptp(drawn[0]) > 0.3


def test_equal_arms_are_not_better() -> None:
    drawn = resample([draw(5)], space(4))["mean_iou"]

    assert share_better(drawn - drawn) == 0
    assert share_better(drawn - np.full_like(drawn, np.nan)) is None


def test_one_image_has_no_interval() -> None:
    found = intervals(draw(1), space(4))

    assert set(found) == {
        *["pixel_accuracy", "mean_class_accuracy", "mean_iou", "frequency_weighted_iou"]
    }
    assert set(found.values()) == {None}


def test_nothing_scored_has_no_interval() -> None:
    assert set(intervals(np.zeros((5, 3, 4), np.int64), space(3)).values()) == {None}


def test_the_same_numbers_every_time() -> None:
    assert intervals(draw(20), space(4)) == intervals(draw(20), space(4))
