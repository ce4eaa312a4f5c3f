"""From an unknown folder to a report: new-dataset, check, run, with hardly a line edited."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeline.datasets import load_spec, read_quarantine
from pipeline.training import load_checkpoint
from tests.conftest import TINY, Cli
from tests.foreign_layout import table_of, write_foreign
from tests.test_real_data import pytestmark as needs_real_data


def write_run(folder: Path, spec: str, space: str = "cityscapes19") -> Path:
    """A configuration of a run in seconds with another source."""
    path = folder / "run.yaml"
    run = {**TINY, "source": {"dataset": spec, "width": 128}, "label_space": space}
    path.write_text(yaml.safe_dump(run))
    return path


def test_a_foreign_simulator_runs_without_an_edited_line(
    cli: Cli, tmp_path: Path, world: Path
) -> None:
    write_foreign(world / "toy-sim", tmp_path / "mysim")
    result = cli("new-dataset", "mysim")
    assert result.returncode == 0, result.stderr
    assert "names: carla_new" in result.stdout
    assert (tmp_path / "mysim.preview" / "frames.png").is_file()
    text = (tmp_path / "mysim.yaml").read_text()
    spec = load_spec(tmp_path / "mysim.yaml")
    assert (spec.images, spec.encoding, spec.channel) == ("{town}/rgb/{frame}.png", "channel", 0)
    used = {spec.values[str(tag)] for tag in (1, 2, 3, 11)}
    assert used == {"road", "sidewalk", "building", "sky"}

    result = cli("check", "mysim.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    sets = json.loads((tmp_path / "check" / "check.json").read_text())["sets"]
    assert sets["mysim"]["frames"] == 10
    assert "<title>Data check" in (tmp_path / "check" / "check.html").read_text()

    config = write_run(tmp_path, "mysim.yaml")
    result = cli("run", config, "--run", "done", env={"WORLD": str(world)})
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "done/report/report.json").read_text())["gap_closed"]
    assert (tmp_path / "mysim.yaml").read_text() == text


@needs_real_data
def test_real_renderings_in_a_foreign_layout(cli: Cli, tmp_path: Path) -> None:
    streets = Path(os.environ["SIM2REAL_DATA"]) / "streetsim"
    write_foreign(streets, tmp_path / "foreign", frames=24)
    assert cli("new-dataset", "foreign").returncode == 0
    values = load_spec(tmp_path / "foreign.yaml").values
    for name, (tag, *_) in table_of("carla_new").items():
        if str(tag) in values:
            assert values[str(tag)] == name
    result = cli("check", "foreign.yaml", "--label-space", "camvid11")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "must fix" not in result.stdout


def test_bad_frames_are_listed_left_out_and_the_run_goes_on(
    cli: Cli, tmp_path: Path, world: Path
) -> None:
    write_foreign(world / "toy-sim", tmp_path / "mysim")
    assert cli("new-dataset", "mysim").returncode == 0
    town = tmp_path / "mysim/Town01"
    label = town / "semantic/000001.png"
    label.write_bytes(label.read_bytes()[:200])
    Image.new("RGB", (128, 64)).save(town / "rgb/000002.png")

    result = cli("check", "mysim.yaml", "--quarantine")
    assert result.returncode == 1
    assert "must fix" in result.stdout
    assert "Give the data set `quarantine: mysim.quarantine.csv`" in result.stdout
    listed = read_quarantine(tmp_path / "mysim.quarantine.csv")
    assert set(listed) == {"Town01/000001", "Town01/000002"}

    with (tmp_path / "mysim.yaml").open("a") as file:
        file.write("quarantine: mysim.quarantine.csv\n")
    result = cli("check", "mysim.yaml", "--quarantine")
    assert result.returncode == 0, result.stdout
    assert "Nothing to quarantine" in result.stdout

    config = write_run(tmp_path, "mysim.yaml")
    result = cli("train-cyclegan", "part", "--config", config, env={"WORLD": str(world)})
    assert result.returncode == 0, result.stderr


def test_check_of_a_configuration_lists_each_part(cli: Cli, tiny: Path, world: Path) -> None:
    result = cli("check", tiny, "--quarantine")
    assert result.returncode == 0, result.stdout + result.stderr
    sets = json.loads((tiny.parent / "check/check.json").read_text())["sets"]
    assert list(sets) == ["source", "target", "test"]
    assert sets["source"]["labelled"] == 10
    # No arm learns from the target's labels: the doctor does not open them either.
    result = cli("check", tiny, "--set", "arms={adapted: translated}")
    assert result.returncode == 0, result.stdout + result.stderr
    sets = json.loads((tiny.parent / "check/check.json").read_text())["sets"]
    assert (sets["target"]["labelled"], sets["test"]["labelled"]) == (0, 4)


def test_frames_shared_between_target_and_test_are_found(
    cli: Cli, tmp_path: Path, tiny: Path, world: Path
) -> None:
    # The oracle would be scored on what it learnt.
    copy = tmp_path / "toy-real"
    shutil.copytree(world / "toy-real", copy)
    for folder in ("leftImg8bit", "gtFine"):
        taken = sorted((copy / folder / "val").rglob("*.png"))[0]
        train = next((copy / folder / "train").iterdir())
        shutil.copy(taken, train / taken.name)
    result = cli("check", tiny, "--quarantine", "--set", f"target.root={copy}")
    assert result.returncode == 1
    (name,) = read_quarantine(tmp_path / "tiny.target.quarantine.csv")
    assert name.startswith("train/")
    assert "Give `target` `quarantine: tiny.target.quarantine.csv`" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "gta"], "No data set 'gta'. Did you mean 'gta5'"),
        (["check", "gta5"], "Where is data set gta5? Give its folder: --root DIR"),
        (["check", "gta5", "--root", "nowhere"], "nowhere. Set its `root`"),
        (["check", "gta5", "--root", "world", "--label-space", "x"], "No label space 'x'"),
        (["check", "gta5", "--root", "world", "--set", "a=1"], "--set is for configurations"),
        (["check", "nothing.yaml"], "No file nothing.yaml"),
        (["new-dataset", "nowhere"], "nowhere"),
        (["new-dataset", "empty"], "empty"),
        (["new-dataset", "world/toy-sim", "--out", "spec.txt"], "does not end in .yaml"),
    ],
)
def test_bad_input(
    cli: Cli, tmp_path: Path, world: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "world").symlink_to(world)
    (tmp_path / "empty").mkdir()
    result = cli(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "world"]


def test_a_spec_is_not_overwritten(cli: Cli, tmp_path: Path, world: Path) -> None:
    (tmp_path / "toy-sim.yaml").write_text("my work")
    result = cli("new-dataset", world / "toy-sim")
    assert result.returncode == 2
    assert "is there already" in result.stderr
    assert (tmp_path / "toy-sim.yaml").read_text() == "my work"


def test_names_of_ones_own_reach_the_network(cli: Cli, tmp_path: Path, world: Path) -> None:
    space = {
        "name": "yard",
        "classes": [
            {"name": "ground", "names": ["road", "sidewalk"], "color": [128, 64, 128]},
            {"name": "crane", "names": ["mysim/crane"], "color": [255, 0, 0]},
        ],
    }
    (tmp_path / "yard.yaml").write_text(yaml.safe_dump(space))
    own = {7: "road", 8: "sidewalk", 11: "mysim/crane", 23: "mysim/cloud"}
    values = dict.fromkeys(range(35), "unlabeled") | own
    source = {"dataset": "gta5", "root": "${WORLD}/toy-sim", "values": values}
    config = tmp_path / "own.yaml"
    arms = {"source_only": "source"}
    config.write_text(
        yaml.safe_dump({**TINY, "source": source, "label_space": "yard.yaml", "arms": arms})
    )
    result = cli("check", config, env={"WORLD": str(world)})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no class of label space yard holds mysim/cloud of data set gta5" in result.stderr
    shares = json.loads((tmp_path / "check/check.json").read_text())["sets"]["source"]
    assert shares["class_pixels"]["crane"] > 0
    result = cli("train-segmentation", "r", "--config", config, env={"WORLD": str(world)})
    assert result.returncode == 0, result.stderr
    state = load_checkpoint(tmp_path / "r/segmentation/source_only/seed-0/checkpoints/last.pt")
    assert state["classes"] == ["ground", "crane"]
