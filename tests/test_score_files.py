"""Predictions in files: found by name, read as what they are, refused with a reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.config.load import load_config
from pipeline.data.images import UInt8, read_raw, write_image, write_indices
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.data.listing import Sample, list_samples
from pipeline.data.reading import LabelReader
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.scoring import cityscapes
from segmentation.score_files import match_files
from segmentation.score_files import score_files as score
from tests.helpers import with_instances

SPACE = load_label_space("cityscapes19")


@pytest.fixture
def test_set(tiny: Path) -> DatasetSpec:
    """Four labelled frames, 128x64, of the toy world in the layout of Cityscapes."""
    return load_config(tiny).test


def wrong_in_a_corner(spec: DatasetSpec, sample: Sample) -> UInt8:
    """trainIds that are right but for a corner, and where nothing is known."""
    truth = LabelReader(spec, SPACE).read(sample, native=True)
    truth[truth == IGNORE] = 13
    truth[:8, :16] = 2
    return truth


def write_predictions(
    spec: DatasetSpec,
    folder: Path,
    values: Callable[[UInt8], Any] = lambda p: cityscapes.LABEL_ID[p],
    name: str = "{last}_pred.png",
) -> None:
    """A file for each frame; `values` makes it from trainIds."""
    for sample in list_samples(spec, labelled=True):
        path = folder / name.format(name=sample.name, last=sample.name.rsplit("/", 1)[-1])
        write_indices(path, values(wrong_in_a_corner(spec, sample)), None)


def score_files(*arguments: Any) -> tuple[dict[str, Any], list[str]]:
    """The content of `evaluation.json`, and the notes."""
    evaluation, notes = score(*arguments)
    return evaluation.model_dump(mode="json"), notes


def scores_of(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "protocol"}


def test_label_ids_and_train_ids_are_told_apart(test_set: DatasetSpec, tmp_path: Path) -> None:
    write_predictions(test_set, tmp_path / "ids")
    write_predictions(test_set, tmp_path / "train", lambda p: p)
    result, notes = score_files(test_set, SPACE, tmp_path / "ids", tmp_path / "a")
    other, other_notes = score_files(test_set, SPACE, tmp_path / "train", tmp_path / "b")
    assert notes == ["The values are read as label ids."]
    assert other_notes == ["The values are read as trainIds."]
    assert scores_of(result) == scores_of(other)
    assert 0.8 < result["pixel_accuracy"] < 1
    reader = LabelReader(test_set, SPACE)
    truth = [reader.read(s, native=True) for s in list_samples(test_set, labelled=True)]
    scored = sum(int((t != IGNORE).sum()) for t in truth)
    assert sum(map(sum, result["confusion"])) == scored
    assert result["protocol"]["predictions"] == "label ids in files, known by their values"
    assert result["protocol"]["instance_scores"].startswith("none: 4 of 4 frames have no instance")
    assert json.loads((tmp_path / "a" / "evaluation.json").read_text()) == json.loads(
        json.dumps(result)
    )
    with np.load(tmp_path / "a" / "per_image.npz") as each:
        assert each["counts"].sum() == scored
    official = json.loads((tmp_path / "a" / "official.json").read_text())
    assert official["averageScoreClasses"] == result["mean_iou"]
    assert np.sum(official["confMatrix"]) == 4 * 128 * 64


def test_another_label_space(test_set: DatasetSpec, tmp_path: Path) -> None:
    space = load_label_space("camvid11")
    table = np.array([space.index_of(name) for name in SPACE.class_names])
    table[table == IGNORE] = 0
    write_predictions(test_set, tmp_path / "ids")
    write_predictions(test_set, tmp_path / "train", lambda p: table[p].astype(np.uint8))
    result, _ = score_files(test_set, space, tmp_path / "ids", tmp_path / "a")
    other, notes = score_files(test_set, space, tmp_path / "train", tmp_path / "b")
    assert notes[0] == "The values are read as trainIds."
    assert result["classes"] == space.class_names
    assert other["class_iou"]["building"] == result["class_iou"]["building"]
    assert not (tmp_path / "a" / "official.json").exists()


def test_void_predictions_are_misses_and_said(test_set: DatasetSpec, tmp_path: Path) -> None:
    def with_void(prediction: UInt8) -> UInt8:
        ids = cityscapes.LABEL_ID[prediction]
        ids[32:], ids[32:, :64] = 255, 4  # nothing, and an id that is not scored
        return ids

    write_predictions(test_set, tmp_path / "ids", with_void)
    result, notes = score_files(test_set, SPACE, tmp_path / "ids", tmp_path / "out")
    void = sum(result["void_predictions"])
    assert void > 0.4 * 4 * 128 * 64
    share = void / (void + sum(map(sum, result["confusion"])))
    assert notes[1].startswith(f"{share:.2%} of the scored pixels are predicted as void")
    assert result["pixel_accuracy"] <= 1 - share


@pytest.mark.parametrize(
    "name", ["{name}.png", "{last}.png", "some/where/{last}_leftImg8bit_pred.PNG", "{last}-1.png"]
)
def test_files_are_found_by_name(test_set: DatasetSpec, tmp_path: Path, name: str) -> None:
    samples = list_samples(test_set, labelled=True)
    for sample in samples:
        path = tmp_path / name.format(name=sample.name, last=sample.name.rsplit("/", 1)[-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "else.png").touch()
    (tmp_path / ".hidden.png").touch()
    files, others = match_files(samples, tmp_path)
    assert len(set(files)) == 4
    assert all(s.name.rsplit("/", 1)[-1] in f.name for s, f in zip(samples, files, strict=True))
    assert others == 1


def test_a_whole_name_beats_the_last_part(tmp_path: Path) -> None:
    label = tmp_path / "label.png"
    samples = [Sample(f"{town}/0001", tmp_path / "x.png", label) for town in ("a", "b")]
    for town in ("a", "b"):
        (tmp_path / "p" / town).mkdir(parents=True)
        (tmp_path / "p" / town / "0001.png").touch()
    files, _ = match_files(samples, tmp_path / "p")
    assert [file.parent.name for file in files] == ["a", "b"]
    (tmp_path / "p" / "b" / "0001.png").unlink()
    with pytest.raises(UserError, match="1 of 2 frames do not have one prediction of their own"):
        match_files(samples, tmp_path / "p")


def small(path: Path) -> None:
    raw = read_raw(path)
    write_indices(path, np.ascontiguousarray(raw[::2, ::2]).astype(np.uint8), None)


def wide(path: Path) -> None:
    assert cv2.imwrite(str(path), read_raw(path).astype(np.uint16))


def colour(path: Path) -> None:
    write_image(path, np.repeat(np.asarray(read_raw(path), np.uint8)[..., None], 3, axis=2))


def black_and_white(path: Path) -> None:
    Image.fromarray(read_raw(path) > 7).save(path)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def foreign(path: Path) -> None:
    raw = np.asarray(read_raw(path), np.uint8).copy()
    raw[0, :3] = 77, 77, 99
    write_indices(path, raw, None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (small, r"1 of 4 predictions: .*_pred.png is 64x32, and its ground truth is 128x64"),
        (wide, "_pred.png has 16 bits a pixel; predictions are PNGs of 8 bits"),
        (colour, r"_pred.png is a colour picture \(3 channels\)"),
        (black_and_white, "_pred.png has 1 bit a pixel"),
        (damaged, "_pred.png cannot be read as an image"),
        (foreign, r"_pred.png holds the value\(s\) 77, 99; label ids of .* are 0..33"),
        (Path.unlink, r"1 of 4 frames have no prediction below .*Files are found by"),
        (lambda p: shutil.copy(p, p.with_name(p.stem + "_2.png")), "do not have one prediction"),
    ],
)
def test_bad_files(
    test_set: DatasetSpec, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    write_predictions(test_set, tmp_path / "ids")
    damage(sorted((tmp_path / "ids").iterdir())[2])
    with pytest.raises(UserError, match=message):
        score_files(test_set, SPACE, tmp_path / "ids", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_files(test_set: DatasetSpec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No folder"):
        score_files(test_set, SPACE, tmp_path / "none", tmp_path / "out")
    (tmp_path / "jpg").mkdir()
    (tmp_path / "jpg" / "a.jpg").touch()
    with pytest.raises(UserError, match=r"No PNG below .*jpg; it holds \.jpg"):
        score_files(test_set, SPACE, tmp_path / "jpg", tmp_path / "out")


def test_many_missing_frames_are_listed_shortly(tmp_path: Path) -> None:
    samples = [Sample(f"{i:04}", tmp_path / f"{i:04}.png", tmp_path / "l.png") for i in range(900)]
    (tmp_path / "0003.png").touch()
    with pytest.raises(UserError) as error:
        match_files(samples, tmp_path)
    assert "899 of 900 frames" in str(error.value)
    assert "0000, 0001, 0002 and 896 more. Files without a frame: none." in str(error.value)


def test_a_runs_own_predictions(test_set: DatasetSpec, tmp_path: Path) -> None:
    """`predictions_ids` before the smaller `predictions`, from the folder of the scores."""
    own = tmp_path / "evaluation"
    write_predictions(test_set, own / "predictions", lambda p: p[::2, ::2], "{name}.png")
    (own / "evaluation.json").touch()
    small, notes = score_files(test_set, SPACE, own, tmp_path / "small")
    assert "were enlarged" in notes[-1]
    write_predictions(test_set, own / "predictions_ids", name="{name}.png")
    full, notes = score_files(test_set, SPACE, own, tmp_path / "full")
    assert notes == ["The values are read as label ids."]
    assert full["pixel_accuracy"] > small["pixel_accuracy"] > 0.9


def test_predictions_that_are_right_by_chance_are_warned_about(
    test_set: DatasetSpec, tmp_path: Path
) -> None:
    write_predictions(test_set, tmp_path / "p", lambda p: ((p + 5) % 19).astype(np.uint8))
    _, notes = score_files(test_set, SPACE, tmp_path / "p", tmp_path / "out", "train_ids")
    assert any("of the scored pixels are right, as by chance" in note for note in notes)


def test_the_wrong_encoding_is_detected(test_set: DatasetSpec, tmp_path: Path) -> None:
    write_predictions(test_set, tmp_path / "ids")
    write_predictions(test_set, tmp_path / "train", lambda p: p)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"look like label ids: give --encoding label_ids"):
        score_files(test_set, SPACE, tmp_path / "ids", out, "train_ids")
    with pytest.raises(UserError, match=r"read as trainIds, [\d,]+\. Give --encoding train_ids"):
        score_files(test_set, SPACE, tmp_path / "train", out, "label_ids")
    assert not out.exists()


@pytest.mark.parametrize(("value", "kind"), [(0, "trainIds"), (7, "label ids")])
def test_what_agrees_with_void_says_nothing(
    test_set: DatasetSpec, tmp_path: Path, value: int, kind: str
) -> None:
    # Road everywhere; as a label id, 0 is what much of the void is labelled with.
    write_predictions(test_set, tmp_path / "p", lambda p: np.full_like(p, value))
    result, notes = score_files(test_set, SPACE, tmp_path / "p", tmp_path / "out")
    assert notes[0] == f"The values are read as {kind}."
    assert result["class_accuracy"]["road"] == 1


def test_an_encoding_that_cannot_be_told(test_set: DatasetSpec, tmp_path: Path) -> None:
    shown = {
        int(value)
        for sample in list_samples(test_set, labelled=True)
        if sample.label is not None
        for value in np.unique(read_raw(sample.label))
    }
    nowhere = next(v for v in range(19) if not {v, int(cityscapes.LABEL_ID[v])} & shown)
    write_predictions(test_set, tmp_path / "p", lambda p: np.full_like(p, nowhere))
    with pytest.raises(UserError, match=f"values {nowhere}, which could be label ids or trainIds"):
        score_files(test_set, SPACE, tmp_path / "p", tmp_path / "out")
    result, _ = score_files(test_set, SPACE, tmp_path / "p", tmp_path / "out", "train_ids")
    assert result["pixel_accuracy"] == 0
    write_predictions(test_set, tmp_path / "void", lambda p: np.full_like(p, IGNORE))
    result, _ = score_files(test_set, SPACE, tmp_path / "void", tmp_path / "out")
    assert result["mean_iou"] == 0


def test_instance_scores_only_at_the_size_they_are_defined_for(
    test_set: DatasetSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_instances(test_set, tmp_path / "world")
    write_predictions(spec, tmp_path / "ids")
    result, _ = score_files(spec, SPACE, tmp_path / "ids", tmp_path / "a")
    assert result["mean_class_iiou"] is None
    assert result["protocol"]["instance_scores"] == "none: they are defined for frames of 2048x1024"
    monkeypatch.setattr(cityscapes, "SIZE", (128, 64))
    result, _ = score_files(spec, SPACE, tmp_path / "ids", tmp_path / "b")
    assert result["mean_class_iiou"] > 0.5
    assert result["class_iiou"]["road"] is None
