"""`predict`: any folder, video or image, at the frames' own size."""

import csv
import multiprocessing
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flows import commands
from flows.predictions import LABELS, OVERLAYS, VIDEO, predict_any
from pipeline.config.load import load_config
from pipeline.config.segmentation import SegmentationConfig
from pipeline.data.frames import JOURNAL, MANIFEST, open_frames, write_video
from pipeline.data.images import UInt8, read_header, read_raw, read_rgb, write_image
from pipeline.data.labels import load_label_space
from pipeline.errors import UserError
from pipeline.files import PART, REMOVED
from pipeline.run.folder import write_run
from pipeline.runtime.checkpoint import save_checkpoint
from segmentation.models import build_model
from segmentation.predict import overlay
from segmentation.predictor import Predictor, load_predictor
from segmentation.scores import label_ids
from tests.conftest import TINY
from tests.helpers import made_files

SPACE = load_label_space("cityscapes19")
WIDTH = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights that tells several classes, shown frames of width 32."""
    torch.manual_seed(0)
    recipe = SegmentationConfig.model_validate(TINY["segmentation"])
    model = build_model(recipe, len(SPACE.classes))
    model.network.segmentation_head[0].weight.data *= 20  # type: ignore[index,union-attr,operator]
    path = tmp_path_factory.mktemp("weights") / "last.pt"
    state = {"step": 1, "config": recipe.model_dump(mode="json"), "classes": SPACE.class_names}
    state |= {"label_space": SPACE.model_dump(mode="json"), "width": WIDTH}
    save_checkpoint(path, state | {"model": model.state_dict()})
    return path


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return load_predictor(weights)


def noise(number: int, size: tuple[int, int] = (40, 28)) -> UInt8:
    small = np.random.default_rng(number).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.NEAREST))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames of odd and mixed sizes, one of them in a folder below."""
    for i, name in enumerate(["a.png", "b.jpg", "c.png", "deep/d.png", "e.bmp"]):
        write_image(tmp_path / "in" / name, noise(i, (71 + i % 2, 47)))
    return tmp_path / "in"


def test_predictions_and_overlays_have_the_size_of_their_frame(
    weights: Path, predictor: Predictor, folder: Path
) -> None:
    out = folder.parent / "out"
    made = predict_any(weights, folder, out, overlays=True)
    assert made == [out / LABELS, out / OVERLAYS, out / MANIFEST]
    with (out / MANIFEST).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "b", "c", "deep/d", "e"]
    for row in rows:
        frame = read_rgb(Path(row["source"]))
        classes = predictor(frame)
        assert classes.shape == frame.shape[:2]
        assert len(np.unique(classes)) > 1
        assert row["prediction"] == f"predictions/{row['name']}.png"
        assert (read_raw(out / row["prediction"]) == classes).all()
        assert (read_rgb(out / row["prediction"]) == SPACE.palette[classes]).all()
        drawn = read_rgb(out / row["overlay"])
        assert drawn.shape == frame.shape
        expected = overlay(frame, classes, SPACE.palette)
        assert np.abs(drawn.astype(int) - expected).mean() < 8  # what JPEG loses of it
        assert (row["status"], len(row["weights"])) == ("done", 16)
    before = made_files(out)
    predict_any(weights, folder, out, overlays=True)
    assert made_files(out) == before


def test_what_is_saved(weights: Path, predictor: Predictor, folder: Path) -> None:
    frame = folder / "a.png"
    classes = predictor(read_rgb(frame))
    for save, expected in (("train_ids", classes), ("label_ids", label_ids(SPACE)[classes])):
        out = folder.parent / save
        assert predict_any(weights, frame, out, save=save) == [out / LABELS, out / MANIFEST]  # type: ignore[arg-type]
        assert read_header(out / LABELS / "a.png").mode == "L"
        assert (read_raw(out / LABELS / "a.png") == expected).all()
        assert not (out / OVERLAYS).exists()


def test_the_run_says_how_frames_are_shown(
    weights: Path, folder: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "r", tmp_path / "out"
    write_run(run, load_config(tiny, ["test.width=48", "evaluation.flip=true"]))
    checkpoint = run / "segmentation/adapted/seed-0/checkpoints/last.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(weights.read_bytes())
    predict_any(run / "adapted", folder, out)
    assert "is not trained to its end" in capsys.readouterr().err
    config = load_config(run / "config.yaml").evaluation
    predictor = Predictor(load_predictor(weights).network, SPACE, 48, config)
    for name in ("a", "c"):
        found = read_raw(out / LABELS / f"{name}.png")
        assert (found == predictor(read_rgb(folder / f"{name}.png"))).all()
    # Drawn over as well, later: the predictions stay.
    before = made_files(out)
    predict_any(checkpoint, folder, out, overlays=True)
    assert (
        made_files(out).items() >= {k: v for k, v in before.items() if "manifest" not in k}.items()
    )
    assert "Note: the run's" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"in another form.*:\n  settings.width: 48 -> 64"):
        predict_any(run / "adapted", folder, out, width=64)


def test_frames_of_another_scale_are_noted(
    weights: Path, folder: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "r"
    write_run(run, load_config(tiny))
    checkpoint = run / "segmentation/adapted/seed-0/checkpoints/last.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(weights.read_bytes())
    predict_any(run / "adapted", folder / "a.png", tmp_path / "out")
    assert "test frames are 128 pixels wide, and these 71. --width 128" in capsys.readouterr().err


def test_shards_make_the_same_set(weights: Path, folder: Path) -> None:
    whole, out = folder.parent / "whole", folder.parent / "out"
    predict_any(weights, folder, whole, overlays=True)
    for part in (1, 0):
        assert predict_any(weights, folder, out, overlays=True, part=(part, 2)) == []
        assert not (out / MANIFEST).exists()
    predict_any(weights, folder, out, overlays=True)
    assert made_files(out) == made_files(whole)


def test_a_video_of_ten_seconds(weights: Path, predictor: Predictor, tmp_path: Path) -> None:
    video, out = tmp_path / "drive.mp4", tmp_path / "out"
    write_video(video, (noise(i // 25, (32, 16)) for i in range(250)), 25)
    assert predict_any(weights, video, out, overlays=True)[-1] == out / VIDEO
    made = open_frames(out / VIDEO)
    assert (len(made.names), made.rate, made.size(0)) == (250, 25, (32, 16))
    assert len(list((out / LABELS).iterdir())) == 250
    frame = open_frames(video).read(100)
    assert (read_raw(out / LABELS / "000100.png") == predictor(frame)).all()
    expected = overlay(frame, predictor(frame), SPACE.palette)
    assert np.abs(made.read(100).astype(int) - expected).mean() < 12


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_at_random_moments(weights: Path, folder: Path, kills: int) -> None:
    place = folder.parent
    begun = time.monotonic()
    predict_any(weights, folder, place / "whole", overlays=True)
    seconds = time.monotonic() - begun
    chance, context = random.Random(0), multiprocessing.get_context("fork")
    for _ in range(kills):
        if kills > 4 and chance.random() < 0.1:  # from the start now and then
            shutil.rmtree(place / "out", ignore_errors=True)
        arguments = weights, folder, place / "out"
        child = context.Process(target=predict_any, args=arguments, kwargs={"overlays": True})
        child.start()
        time.sleep(chance.uniform(0, seconds))
        child.kill()
        child.join()
    predict_any(weights, folder, place / "out", overlays=True)
    assert made_files(place / "out") == made_files(place / "whole")
    assert not [p for p in place.rglob("*") if p.name.startswith((PART, REMOVED, JOURNAL))]


def test_what_cannot_be_predicted(weights: Path, folder: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    (tmp_path / "empty").mkdir()
    save_checkpoint(tmp_path / "G.pth", {"model.1.weight": torch.zeros(1)})
    write_video(tmp_path / "in.mp4", [noise(0, (32, 16))] * 3, 25)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "in.mp4").read_bytes()[:300])
    for source, frames, out, message in [
        (tmp_path / "G.pth", folder, new, "is no checkpoint of a segmentation training"),
        (folder / "a.png", folder, new, r"a\.png is damaged, or something else"),
        (tmp_path / "nothing.pt", folder, new, r"No checkpoint .*nothing\.pt"),
        (weights, tmp_path / "empty", new, "No image in .*empty"),
        (weights, tmp_path / "absent", new, "absent does not exist"),
        (weights, tmp_path / "cut.mp4", new, "cannot be read as a video"),
        (weights, folder, folder / "out", "is in the input"),
        (weights, folder, weights, "is no folder"),
        (weights, folder, tmp_path / "new.mp4", r"new\.mp4 is a video. Give a folder"),
    ]:
        with pytest.raises(UserError, match=message):
            predict_any(source, frames, out)
    assert not new.exists()
    assert not (folder / "out").exists()


def test_the_command(weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "c.png").write_bytes(b"damaged")
    out = folder.parent / "out"
    words = ["predict", str(weights), "--input", str(folder), "--out", str(out), "--overlay"]
    with pytest.raises(UserError, match="1 of 5 frames cannot be read, more than the share of 0"):
        commands.app(args=words, standalone_mode=False)
    commands.app(args=[*words, "--unreadable", "0.2", "--shard", "2/2"], standalone_mode=False)
    assert "Shard 2/2 is done" in capsys.readouterr().out
    commands.app(args=[*words, "--unreadable", "0.2"], standalone_mode=False)
    said = capsys.readouterr()
    assert "Skipped: " in said.err
    assert f"Predicted: {out / LABELS}, {out / OVERLAYS}, {out / MANIFEST}" in said.out
    assert len(list(out.rglob("predictions/**/*.png"))) == 4
    assert "c.png cannot be read as an image" in (out / MANIFEST).read_text()
