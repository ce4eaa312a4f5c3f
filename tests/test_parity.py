"""Our scores against those of others, where their definitions are ours.

Cityscapes' own script is run on files in the true layout: label ids, instance ids and predictions,
with void in all of them.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.data.images import UInt8, image_size, write_image, write_indices
from pipeline.data.labels import CITYSCAPES_IDS, IGNORE, load_label_space
from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.scoring import cityscapes
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.scoring.metrics import class_accuracy, class_iou, frequency_weighted_iou
from segmentation import scores
from segmentation.score_files import score_files

SPACE = load_label_space("cityscapes19")
SCORED = [int(i) for i in cityscapes.LABEL_ID]
Frame = tuple[UInt8, np.ndarray[Any, Any], UInt8]
"""Label ids, instance ids and predicted label ids of a frame, each (H, W)."""


@pytest.fixture(scope="module")
def script() -> Any:
    """Cityscapes' own script."""
    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.importorskip(
            "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
            reason="needs cityscapesScripts of the dev extra",
        )


def run_script(script: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The script's result on a folder of ours."""
    if not hasattr(np, "in1d"):  # gone since NumPy 2.4
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    truths = sorted(str(path) for path in (root / "gtFine").rglob("*_labelIds.png"))
    monkeypatch.setattr(script.args, "predictionPath", str(root / "results"))
    monkeypatch.setattr(script.args, "predictionWalk", None)
    monkeypatch.setattr(script.args, "quiet", True)
    monkeypatch.setattr(script.args, "JSONOutput", False)
    predictions = [script.getPrediction(script.args, truth) for truth in truths]
    with np.errstate(invalid="ignore"):
        result = script.evaluateImgLists(predictions, truths, script.args)
    plain = json.loads(json.dumps(result, default=int), parse_constant=lambda _: None)
    assert isinstance(plain, dict)
    return plain


def areas(rng: np.random.Generator, values: Sequence[int], size: tuple[int, int]) -> UInt8:
    """(H, W) uint8 of random values in areas of a few pixels."""
    small = rng.choice(np.array(values, np.uint8), (size[0] // 3 + 1, size[1] // 3 + 1))
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST))


def random_frame(rng: np.random.Generator, size: tuple[int, int]) -> Frame:
    """A small frame of few or many ids, scored or not; some of the prediction is right."""
    ids = rng.permutation(34)[: rng.integers(1, 34)].tolist()
    truth = areas(rng, ids, size)
    other = areas(rng, rng.permutation(34)[: rng.integers(1, 34)].tolist(), size)
    prediction = np.where(rng.random(size) < rng.random(), truth, other).astype(np.uint8)
    prediction[0, 0] = 23  # nobody takes these for trainIds
    instances = truth.astype(np.uint16)
    things = truth >= 24
    numbers = areas(rng, range(5), size)
    instances[things] = truth[things].astype(np.uint16) * 1000 + numbers[things]
    crowd = areas(rng, [0, 0, 0, 1], size).astype(bool)
    instances[crowd] = truth[crowd]  # groups whose members are not told apart
    return truth, instances, prediction


def write_frames(root: Path, frames: Sequence[Frame]) -> DatasetSpec:
    """The frames in the layout of Cityscapes, predictions below `results`."""
    for number, (truth, instances, prediction) in enumerate(frames):
        name = f"town_{number:06}_000019"
        stem = root / f"gtFine/val/town/{name}_gtFine"
        write_image(
            root / f"leftImg8bit/val/town/{name}_leftImg8bit.png",
            np.zeros((*truth.shape, 3), np.uint8),
        )
        write_indices(Path(f"{stem}_labelIds.png"), truth, None)
        assert cv2.imwrite(f"{stem}_instanceIds.png", instances.astype(np.uint16))
        write_indices(root / f"results/{name}_pred.png", prediction, None)
    fields = {**spec_fields("cityscapes", Path()), "root": root, "split": "val"}
    return DatasetSpec.model_validate(fields)


def our_result(
    spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch, encoding: str = "label_ids"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our official.json and evaluation.json of the same files."""
    file = next((spec.root / "gtFine").rglob("*_instanceIds.png"))
    monkeypatch.setattr(cityscapes, "SIZE", image_size(file))  # so small only here
    monkeypatch.setattr(scores, "intervals", lambda *_: {})  # has tests of its own
    out = spec.root / "scores"
    result, _ = score_files(spec, SPACE, spec.root / "results", out, encoding)  # type: ignore[arg-type]
    return json.loads((out / "official.json").read_text()), result.model_dump(mode="json")


def assert_equal(official: dict[str, Any], ours: dict[str, Any], result: dict[str, Any]) -> None:
    """All numbers are equal, to the last bit."""
    assert set(ours) == {*official, "perImageScores"}
    for key in set(official) - {"perImageScores"}:
        assert ours[key] == official[key], key
    names = SPACE.class_names
    counts = np.array(official["confMatrix"])[np.ix_(SCORED, SCORED)]
    assert result["confusion"] == counts.tolist()
    assert result["class_iou"] == {name: official["classScores"][name] for name in names}
    assert result["class_iiou"] == {name: official["classInstScores"][name] for name in names}
    categories = [c for c in official["categoryScores"] if c != "void"]
    assert result["category_iou"] == {c: official["categoryScores"][c] for c in categories}
    assert result["category_iiou"] == {c: official["categoryInstScores"][c] for c in categories}
    assert result["mean_iou"] == official["averageScoreClasses"]
    assert result["mean_category_iou"] == official["averageScoreCategories"]
    assert result["mean_class_iiou"] == official["averageScoreInstClasses"]
    assert result["mean_category_iiou"] == official["averageScoreInstCategories"]


def assert_pixels(frames: Sequence[Frame], ours: dict[str, Any], result: dict[str, Any]) -> None:
    """Per-pixel accuracy is that of a loop over pixels; the script's own is broken."""
    scored = correct = 0
    for (truth, _, prediction), of_frame in zip(
        frames, ours["perImageScores"].values(), strict=True
    ):
        pairs = list(zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True))
        here = [t == p for t, p in pairs if t in SCORED]
        assert of_frame == {"nbNotIgnoredPixels": len(here), "nbCorrectPixels": sum(here)}
        scored, correct = scored + len(here), correct + sum(here)
    assert result["pixel_accuracy"] == (correct / scored if scored else None)


@pytest.mark.parametrize("seed", range(10))
def test_equal_to_cityscapes_script(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    seen_instances = 0
    for case in range(22):
        size = (int(rng.integers(6, 24)), int(rng.integers(6, 30)))
        frames = [random_frame(rng, size) for _ in range(rng.integers(1, 4))]
        spec = write_frames(tmp_path / str(case), frames)
        official = run_script(script, spec.root, monkeypatch)
        ours, result = our_result(spec, monkeypatch)
        assert_equal(official, ours, result)
        assert_pixels(frames, ours, result)
        seen_instances += ours["averageScoreInstClasses"] is not None
    assert seen_instances > 11


def uniform(truth: int, instance: int, prediction: int) -> Frame:
    """A frame of one id."""
    shape = (8, 12)
    return (
        np.full(shape, truth, np.uint8),
        np.full(shape, instance, np.uint16),
        np.full(shape, prediction, np.uint8),
    )


@pytest.mark.parametrize(
    "frames",
    [
        [uniform(0, 0, 7)],  # nothing but void
        [uniform(4, 4, 4)],  # void, predicted as the same void
        [uniform(7, 7, 7)],  # one class
        [uniform(26, 26003, 26)],  # one instance
        [uniform(26, 26003, 0)],  # the prediction is void
        [uniform(26, 26003, 29)],  # an id of the same category that is not scored
        [uniform(29, 29001, 26)],  # an instance that is not scored
        [uniform(25, 25000, 24)],  # the other class of the category
        [uniform(26, 26, 26)],  # a group of cars, not told apart
        [uniform(7, 7, 26)],  # a class that is only predicted
        [uniform(7, 7, 7), uniform(23, 23, 8), uniform(0, 0, 21)],
        [uniform(24, 24000, 24), uniform(24, 24000, 33), uniform(33, 33001, 24)],
    ],
)
def test_equal_to_cityscapes_script_in_corner_cases(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: list[Frame]
) -> None:
    spec = write_frames(tmp_path, frames)
    official = run_script(script, spec.root, monkeypatch)
    ours, result = our_result(spec, monkeypatch)
    assert_equal(official, ours, result)
    assert_pixels(frames, ours, result)


def test_255_is_the_script_s_unlabeled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    frames = [random_frame(rng, (20, 30)) for _ in range(3)]
    plain, result = our_result(write_frames(tmp_path / "a", frames), monkeypatch)
    void = [(t, i, np.where(p == 0, IGNORE, p).astype(np.uint8)) for t, i, p in frames]
    assert any((p == IGNORE).any() for *_, p in void)
    with_void, other = our_result(write_frames(tmp_path / "b", void), monkeypatch)
    assert with_void == plain
    assert other == result


def test_train_ids_score_as_their_label_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    table = np.full(256, IGNORE, np.uint8)
    table[SCORED] = np.arange(19)
    frames = [random_frame(rng, (20, 30)) for _ in range(3)]
    train = [(t, i, table[p]) for t, i, p in frames]
    ids = [(t, i, np.where(np.isin(p, SCORED), p, 0).astype(np.uint8)) for t, i, p in frames]
    ours, result = our_result(write_frames(tmp_path / "ids", ids), monkeypatch)
    other, same = our_result(write_frames(tmp_path / "train", train), monkeypatch, "train_ids")
    assert other == ours
    assert {**same, "protocol": 0} == {**result, "protocol": 0}
    assert "trainIds" in same["protocol"]["predictions"]


def test_the_script_s_pixel_accuracy_is_broken(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should this fail, the script has been mended: docs/evaluation.md says that it is not."""
    spec = write_frames(tmp_path, [uniform(7, 7, 7)])  # all right
    monkeypatch.setattr(script.args, "evalPixelAccuracy", True)
    (scores_of_frame,) = run_script(script, spec.root, monkeypatch)["perImageScores"].values()
    assert scores_of_frame["nbCorrectPixels"] == 0
    assert scores_of_frame["nbNotIgnoredPixels"] == 0


def test_tables_are_the_script_s(script: Any) -> None:
    labels = [label for label in script.labels if label.id >= 0]
    assert {label.id: label.name for label in labels} == {i: CITYSCAPES_IDS[i] for i in range(34)}
    for label in labels:
        assert label.id in cityscapes.CATEGORIES[label.category]
        train_id = IGNORE if label.ignoreInEval else label.trainId
        assert cityscapes.CLASS_OF_ID[label.id] == train_id
    sizes = {
        label.id: script.args.avgClassSize[label.name]
        for label in labels
        if label.hasInstances and not label.ignoreInEval
    }
    assert sizes == cityscapes.INSTANCE_SIZE
    assert cityscapes.has_official_scores(SPACE)
    assert not cityscapes.has_official_scores(load_label_space("synthia16"))
    assert not cityscapes.has_official_scores(load_label_space("cityscapes7"))


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn of the dev extra")
    rng = np.random.default_rng(seed)
    truth = areas(rng, [*range(7), IGNORE], (40, 50))
    prediction = areas(rng, [*range(7), IGNORE], (40, 50))
    prediction = np.where(rng.random(truth.shape) < 0.5, truth, prediction).astype(np.uint8)
    matrix = ConfusionMatrix(7)
    matrix.add(truth, prediction)
    t, p = truth[truth != IGNORE], prediction[truth != IGNORE]
    both = metrics.confusion_matrix(t, p, labels=[*range(7), IGNORE])
    assert matrix.table.tolist() == both[:7].tolist()
    assert matrix.pixel_accuracy == pytest.approx(metrics.accuracy_score(t, p), abs=1e-12)
    iou = metrics.jaccard_score(t, p, labels=range(7), average=None)
    np.testing.assert_allclose(class_iou(matrix.table), iou, rtol=1e-12)
    recall = metrics.recall_score(t, p, labels=range(7), average=None)
    np.testing.assert_allclose(class_accuracy(matrix.table), recall, rtol=1e-12)
    weighted = metrics.jaccard_score(t, p, labels=range(7), average="weighted")
    found = frequency_weighted_iou(matrix.table, load_label_space("cityscapes7"))
    assert found == pytest.approx(weighted, abs=1e-12)
