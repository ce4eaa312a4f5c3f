"""The confusion matrix against loops and numbers done by hand."""

import cv2
import numpy as np
import pytest

from pipeline.data.images import UInt8
from pipeline.data.labels import IGNORE, LabelClass, LabelSpace
from pipeline.errors import UserError
from pipeline.scoring.confusion import ConfusionMatrix, count_pairs


def space(*names: str, left_out: str = "") -> LabelSpace:
    """One class a name; `left_out` is predicted but not averaged."""
    classes = [
        LabelClass(name=n, names=(f"test/{n}",), color=(0, 0, 0), averaged=n != left_out)
        for n in names
    ]
    return LabelSpace(name="test", classes=tuple(classes))


def test_metrics_by_hand() -> None:
    matrix = ConfusionMatrix(3)
    truth = np.array([[0, 0, 0, 1], [1, IGNORE, IGNORE, 1]], np.uint8)
    prediction = np.array([[0, 0, 1, 1], [0, 0, 2, 1]], np.uint8)
    matrix.add(truth, prediction)
    assert matrix.counts.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    scores = matrix.metrics(space("a", "b", "c"))
    assert scores["pixel_accuracy"] == pytest.approx(4 / 6)
    assert scores["class_accuracy"] == {
        "a": pytest.approx(2 / 3),
        "b": pytest.approx(2 / 3),
        "c": None,
    }
    assert scores["class_iou"] == {"a": 0.5, "b": 0.5, "c": None}
    assert scores["mean_iou"] == 0.5
    assert scores["frequency_weighted_iou"] == 0.5


def test_class_only_predicted_has_no_accuracy_and_iou_zero() -> None:
    matrix = ConfusionMatrix.from_counts([[3, 1], [0, 0]])
    scores = matrix.metrics(space("a", "b"))
    assert scores["class_accuracy"] == {"a": 0.75, "b": None}
    assert scores["class_iou"] == {"a": 0.75, "b": 0.0}
    assert scores["mean_iou"] == 0.375


def test_a_class_left_out_of_the_means_counts_everywhere_else() -> None:
    matrix = ConfusionMatrix.from_counts([[3, 1, 0], [0, 4, 0], [2, 0, 2]])
    scores = matrix.metrics(space("a", "b", "c", left_out="c"))
    assert scores["mean_iou"] == pytest.approx((3 / 6 + 4 / 5) / 2)
    assert scores["mean_class_accuracy"] == pytest.approx((3 / 4 + 4 / 4) / 2)
    assert scores["class_iou"]["c"] == 0.5
    assert scores["pixel_accuracy"] == pytest.approx(9 / 12)


def test_counts_equal_a_loop_and_add_up() -> None:
    rng = np.random.default_rng(0)
    whole, parts = ConfusionMatrix(5), np.zeros((5, 5), np.int64)
    for _ in range(20):
        truth = rng.choice([0, 1, 2, 3, 4, IGNORE], (9, 7)).astype(np.uint8)
        prediction = rng.integers(0, 5, (9, 7)).astype(np.uint8)
        whole.add(truth, prediction)
        for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
            if t != IGNORE:
                parts[t, p] += 1
    assert (whole.counts == parts).all()


def plain_counts(truth: UInt8, prediction: UInt8) -> list[list[int]]:
    counts = [[0] * 256 for _ in range(256)]
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        counts[t][p] += 1
    return counts


def areas(rng: np.random.Generator, size: tuple[int, int], values: int) -> UInt8:
    """(H, W) uint8 in large areas, as street scenes have them."""
    small = rng.integers(0, values, (5, 4), np.uint8)
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST))


@pytest.mark.parametrize("noise", [0, 0.001, 0.03, 0.05, 0.3, 1])
def test_pairs_are_counted_exactly_whatever_is_shown(noise: float) -> None:
    rng = np.random.default_rng(int(noise * 1000))
    truth, prediction = (areas(rng, (64, 97), 256) for _ in range(2))
    changed = rng.random(truth.shape) < noise
    prediction[changed] = rng.integers(0, 256, changed.sum())
    truth[changed] = rng.integers(0, 256, changed.sum())
    assert count_pairs(truth, prediction).tolist() == plain_counts(truth, prediction)
    # Parts of larger arrays do not lie in one piece.
    truth, prediction = truth[::2, 1:-3], prediction[::2, 1:-3]
    assert count_pairs(truth, prediction).tolist() == plain_counts(truth, prediction)


@pytest.mark.parametrize("noise", [False, True])
def test_counts_are_exact_beyond_the_range_of_a_float(noise: bool) -> None:
    size = 2**24 + 3
    truth = np.full(size, 7, np.uint8)
    prediction = truth.copy()
    if noise:  # no runs: all of it in 32-bit floats, but for the blocks
        prediction[::2] = 9
    pairs = count_pairs(truth, prediction)
    assert pairs.sum() == size
    assert pairs[7, 7] == (size // 2 if noise else size)


def test_nothing_at_all_is_counted_as_nothing() -> None:
    nothing = np.zeros((0, 5), np.uint8)
    assert count_pairs(nothing, nothing).sum() == 0
    assert count_pairs(np.ones((1, 1), np.uint8), np.ones((1, 1), np.uint8))[1, 1] == 1


def test_a_void_prediction_is_a_miss() -> None:
    matrix = ConfusionMatrix(2)
    truth = np.array([0, 0, 0, 1, IGNORE], np.uint8)
    matrix.add(truth, np.array([0, 0, IGNORE, IGNORE, IGNORE], np.uint8))
    assert matrix.void.tolist() == [1, 1]
    assert matrix.table.tolist() == [[2, 0, 1], [0, 0, 1]]
    scores = matrix.metrics(space("a", "b"))
    assert scores["pixel_accuracy"] == 2 / 4
    assert scores["class_accuracy"] == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert scores["class_iou"] == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert scores["frequency_weighted_iou"] == pytest.approx(3 / 4 * 2 / 3)
    for copy in (
        ConfusionMatrix.from_counts(matrix.table),
        ConfusionMatrix.from_counts(matrix.counts, matrix.void.tolist()),
    ):
        assert copy.metrics(space("a", "b")) == scores


def test_categories_forgive_confusion_within_them() -> None:
    matrix = ConfusionMatrix.from_counts([[5, 2, 1, 1], [0, 3, 0, 0], [1, 0, 4, 0]])
    classes = [
        LabelClass(name=n, names=(f"test/{n}",), color=(0, 0, 0), category=c)
        for n, c in (("a", "one"), ("b", "one"), ("c", None))
    ]
    scores = matrix.metrics(LabelSpace(name="test", classes=tuple(classes)))
    assert scores["category_iou"] == {"one": 10 / (12 + 1)}
    assert scores["mean_category_iou"] == 10 / 13


def test_means_leave_absent_classes_out() -> None:
    matrix = ConfusionMatrix.from_counts([[3, 0, 1], [0, 0, 0], [0, 0, 0]])
    scores = matrix.metrics(space("a", "b", "c"))
    assert scores["class_iou"] == {"a": 0.75, "b": None, "c": 0.0}
    assert scores["mean_iou"] == 0.375


def test_classes_to_average_by_name() -> None:
    chosen = space("a", "b", "c", left_out="a").averaging(("b", "a"))
    assert [c.averaged for c in chosen.classes] == [True, True, False]
    assert chosen.averaging(None) is chosen
    with pytest.raises(UserError, match=r"has no class 'bb'. Did you mean 'b'"):
        chosen.averaging(("bb",))


def test_nothing_scored_is_undefined_not_zero() -> None:
    matrix = ConfusionMatrix(2)
    matrix.add(np.full((2, 2), IGNORE, np.uint8), np.zeros((2, 2), np.uint8))
    scores = matrix.metrics(space("a", "b"))
    assert scores["pixel_accuracy"] is None
    assert scores["mean_iou"] is None


def test_wrong_sizes_and_classes_are_refused() -> None:
    matrix = ConfusionMatrix(2)
    with pytest.raises(ValueError, match="ground truth's resolution"):
        matrix.add(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
    two = np.full((2, 2), 2, np.uint8)
    for truth, prediction in ((two * 0, two), (two, two * 0), (two, np.full_like(two, IGNORE))):
        with pytest.raises(ValueError, match="class index 2 of 2"):
            matrix.add(truth, prediction)
    matrix.add(np.full_like(two, IGNORE), two)  # whatever is predicted where nothing is scored
    assert not matrix.table.any()
    with pytest.raises(ValueError, match="uint8 is expected, not uint8 and int64"):
        matrix.add(two, two.astype(np.int64))
