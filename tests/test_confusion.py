"""The confusion matrix against loops and numbers done by hand."""

import numpy as np
import pytest

from pipeline.confusion import ConfusionMatrix
from pipeline.labels import IGNORE, LabelClass, LabelSpace


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
    with pytest.raises(ValueError, match="class index 2 of 2"):
        matrix.add(np.zeros((2, 2), np.uint8), np.full((2, 2), 2, np.uint8))
