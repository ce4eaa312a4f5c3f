"""`new-dataset FOLDER --target FOLDER`: from folders to a configuration with marked questions."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from flows.first_run import write_first_run
from flows.prepare import lost_in
from pipeline.config.load import load_config
from pipeline.errors import UserError
from pipeline.toyworld.drawing import render_scene
from tests.unseen_layouts import carla_08, viper


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of old CARLA's frames, in the working folder."""
    monkeypatch.chdir(tmp_path)
    carla_08(
        tmp_path / "old",
        [render_scene(np.random.default_rng(i), (128, 64), "sim") for i in range(12)],
    )
    return tmp_path / "old"


def test_every_edit_is_a_question_mark(old: Path, world: Path, tmp_path: Path) -> None:
    lines = write_first_run(Path("old"), world / "toy-real", None, None)
    config = tmp_path / "old_to_toy-real.yaml"
    assert "check old_to_toy-real.yaml" in lines[-1]
    loaded = load_config(config)
    assert (loaded.target.split, loaded.test.split) == ("train", "val")
    assert set(loaded.arms) == {"source_only", "aligned", "adapted", "oracle"}
    assert loaded.source.width == 128
    assert loaded.segmentation.crop == (128, 64)  # what fits the frames
    assert any(one.refused for one in lost_in(loaded, config))

    edited = 0
    for path in (tmp_path / "old.yaml", config):
        text = path.read_text()
        answered = re.sub(r'\?(?= +# |")', "", text)
        edited += sum(a != b for a, b in zip(text.split("\n"), answered.split("\n"), strict=True))
        path.write_text(answered)
    assert 2 <= edited <= 5
    assert not [one for one in lost_in(load_config(config), config) if one.refused]


def test_frames_without_labels_are_a_target(old: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "toy-real" / "leftImg8bit" / "train", tmp_path / "real")
    with pytest.raises(UserError, match=r"real has no labels: it is a target.*--test FOLDER"):
        write_first_run(old, tmp_path / "real", None, None)
    assert not list(tmp_path.glob("*.yaml"))
    viper(
        tmp_path / "scored",
        [render_scene(np.random.default_rng(i), (128, 64), "sim") for i in range(3)],
    )
    write_first_run(old, tmp_path / "real", tmp_path / "scored", None)
    config = load_config(tmp_path / "old_to_real.yaml")
    assert set(config.arms) == {"source_only", "aligned", "adapted"}
    with pytest.raises(UserError, match="is there already"):
        write_first_run(old, tmp_path / "real", tmp_path / "scored", None)
