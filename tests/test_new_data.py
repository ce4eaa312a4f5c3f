"""From an unknown folder to a report: new-dataset, check, run, with hardly a line edited."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pipeline.data.listing import read_quarantine
from pipeline.runtime.checkpoint import load_checkpoint
from tests.conftest import TINY, Sim2Real
from tests.foreign_layout import table_of, write_foreign
from tests.helpers import needs_real_data
from tests.layouts import load_spec


def write_run(folder: Path, source: dict[str, Any], **changes: Any) -> Path:
    """A configuration of a run in seconds with another source and one arm."""
    path = folder / "run.yaml"
    one_arm = {"source": source, "arms": {"adapted": "translated"}}
    path.write_text(yaml.safe_dump({**TINY, **one_arm, **changes}))
    return path


def test_a_foreign_simulator_runs_without_an_edited_line(
    sim2real: Sim2Real, tmp_path: Path, world: Path
) -> None:
    write_foreign(world / "toy-sim", tmp_path / "mysim")
    told = sim2real("new-dataset", "mysim")
    assert told.status == 0, told.err
    assert "names: carla_new" in told.out
    assert (tmp_path / "mysim.preview" / "frames.png").is_file()
    text = (tmp_path / "mysim.yaml").read_text()
    spec = load_spec(tmp_path / "mysim.yaml")
    assert (spec.images, spec.encoding, spec.channel) == ("{town}/rgb/{frame}.png", "channel", 0)
    used = {spec.values[str(tag)] for tag in (1, 2, 3, 11)}
    assert used == {"road", "sidewalk", "building", "sky"}

    told = sim2real("check", "mysim.yaml")
    assert told.status == 0, told.out + told.err
    sets = json.loads((tmp_path / "check" / "check.json").read_text())["sets"]
    assert sets["mysim"]["frames"] == 10
    assert "<title>Data check" in (tmp_path / "check" / "check.html").read_text()

    config = write_run(tmp_path, {"dataset": "mysim.yaml", "width": 128})
    stages = ("train-cyclegan", "translate", "train-segmentation", "evaluate", "report")
    for stage in stages:
        told = sim2real(stage, "done", *(["--config", config] if stage == stages[0] else []))
        assert told.status == 0, told.err
    report = json.loads((tmp_path / "done/report/report.json").read_text())
    assert report["arms"]["adapted"]["mean_iou"]["mean"] > 0
    assert (tmp_path / "mysim.yaml").read_text() == text


@needs_real_data
def test_real_renderings_in_a_foreign_layout(sim2real: Sim2Real, tmp_path: Path) -> None:
    streets = Path(os.environ["SIM2REAL_DATA"]) / "streetsim"
    write_foreign(streets, tmp_path / "foreign", frames=24)
    assert sim2real("new-dataset", "foreign").status == 0
    values = load_spec(tmp_path / "foreign.yaml").values
    for name, (tag, *_) in table_of("carla_new").items():
        if str(tag) in values:
            assert values[str(tag)] == name
    told = sim2real("check", "foreign.yaml", "--label-space", "camvid11")
    assert told.status == 0, told.out + told.err
    assert "must fix" not in told.out


def test_bad_frames_are_listed_left_out_and_the_run_goes_on(
    sim2real: Sim2Real, tmp_path: Path, world: Path
) -> None:
    write_foreign(world / "toy-sim", tmp_path / "mysim")
    assert sim2real("new-dataset", "mysim").status == 0
    town = tmp_path / "mysim/Town01"
    label = town / "semantic/000001.png"
    label.write_bytes(label.read_bytes()[:200])
    Image.new("RGB", (128, 64)).save(town / "rgb/000002.png")

    told = sim2real("check", "mysim.yaml", "--quarantine")
    assert told.status == 1
    assert "must fix" in told.out
    assert "Give the data set `quarantine: mysim.quarantine.csv`" in told.out
    listed = read_quarantine(tmp_path / "mysim.quarantine.csv")
    assert set(listed) == {"Town01/000001", "Town01/000002"}

    with (tmp_path / "mysim.yaml").open("a") as file:
        file.write("quarantine: mysim.quarantine.csv\n")
    told = sim2real("check", "mysim.yaml", "--quarantine")
    assert told.status == 0, told.out
    assert "Nothing to quarantine" in told.out

    config = write_run(tmp_path, {"dataset": "mysim.yaml", "width": 128})
    told = sim2real("train-cyclegan", "part", "--config", config)
    assert told.status == 0, told.err


def test_check_of_a_configuration_lists_each_part(
    sim2real: Sim2Real, tiny: Path, world: Path
) -> None:
    told = sim2real("check", tiny, "--quarantine")
    assert told.status == 0, told.out + told.err
    sets = json.loads((tiny.parent / "check/check.json").read_text())["sets"]
    assert list(sets) == ["source", "target", "test"]
    assert sets["source"]["labelled"] == 10
    # No arm learns from the target's labels: the doctor does not open them either.
    told = sim2real("check", tiny, "--set", "arms={adapted: translated}")
    assert told.status == 0, told.out + told.err
    sets = json.loads((tiny.parent / "check/check.json").read_text())["sets"]
    assert (sets["target"]["labelled"], sets["test"]["labelled"]) == (0, 4)


def test_frames_shared_between_target_and_test_are_found(
    sim2real: Sim2Real, tmp_path: Path, tiny: Path, world: Path
) -> None:
    # The oracle would be scored on what it learnt.
    copy = tmp_path / "toy-real"
    shutil.copytree(world / "toy-real", copy)
    for folder in ("leftImg8bit", "gtFine"):
        taken = sorted((copy / folder / "val").rglob("*.png"))[0]
        train = next((copy / folder / "train").iterdir())
        shutil.copy(taken, train / taken.name)
    told = sim2real("check", tiny, "--quarantine", "--set", f"target.root={copy}")
    assert told.status == 1
    (name,) = read_quarantine(tmp_path / "tiny.target.quarantine.csv")
    assert name.startswith("train/")
    assert "Give `target` `quarantine: tiny.target.quarantine.csv`" in told.out


def test_what_stops_a_run_is_in_check(
    sim2real: Sim2Real, tmp_path: Path, tiny: Path, world: Path
) -> None:
    copy = shutil.copytree(world / "toy-real", tmp_path / "toy-real")
    frame = sorted((copy / "leftImg8bit/train").rglob("*.png"))[3]
    with Image.open(frame) as picture:
        picture.resize((56, 28)).save(frame)
    moved = ["--set", f"target.root={copy}", "--set", "arms={adapted: translated}"]
    seen = "read at 56x28, and cyclegan.crop is 64x48"

    told = sim2real("check", tiny, *moved, "--quarantine")

    assert told.status == 1
    assert f"{frame.name.removesuffix('_leftImg8bit.png')}: {seen}" in told.out
    told = sim2real("train-cyclegan", "r", "--config", tiny, *moved)
    assert told.status == 2
    assert f"{frame}: {seen}" in told.err
    assert not (tmp_path / "r/config.yaml").exists()
    listed = ["--set", f"target.quarantine={tmp_path / 'tiny.target.quarantine.csv'}"]
    told = sim2real("train-cyclegan", "r", "--config", tiny, *moved, *listed)
    assert told.status == 0, told.err


def test_a_target_without_labels_is_none_to_quarantine(
    sim2real: Sim2Real, tmp_path: Path, tiny: Path, world: Path
) -> None:
    copy = shutil.copytree(world / "toy-real", tmp_path / "toy-real")
    shutil.rmtree(copy / "gtFine/train")
    told = sim2real("check", tiny, "--quarantine", "--set", f"target.root={copy}")
    assert told.status == 1
    assert "write `arms: {source_only: source, adapted: translated}`" in told.out
    assert "Nothing to quarantine" in told.out


@pytest.mark.parametrize("same", [True, False])
def test_pairs_have_one_size(sim2real: Sim2Real, tmp_path: Path, world: Path, same: bool) -> None:
    copy = shutil.copytree(world / "toy-sim", tmp_path / "other")
    if not same:
        with Image.open(copy / "images/00003.png") as picture:
            picture.crop((0, 0, 120, 64)).save(copy / "images/00003.png")
    paired = {"target": {"dataset": "gta5", "root": str(copy)}}
    config = write_run(tmp_path, {"dataset": "gta5", "root": str(world / "toy-sim")}, **paired)
    told = sim2real("train-cyclegan", "r", "--config", config, "--set", "cyclegan.paired=true")
    assert told.status == (0 if same else 2), told.err
    assert ("1 of 10 pairs: " in told.err) is not same


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
    sim2real: Sim2Real, tmp_path: Path, world: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "world").symlink_to(world)
    (tmp_path / "empty").mkdir()
    told = sim2real(*arguments)
    assert told.status == 2, told.out + told.err
    assert message in told.err
    assert "Traceback" not in told.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "world"]


def test_a_spec_is_not_overwritten(sim2real: Sim2Real, tmp_path: Path, world: Path) -> None:
    (tmp_path / "toy-sim.yaml").write_text("my work")
    told = sim2real("new-dataset", world / "toy-sim")
    assert told.status == 2
    assert "is there already" in told.err
    assert (tmp_path / "toy-sim.yaml").read_text() == "my work"


def test_names_of_ones_own_reach_the_network(
    sim2real: Sim2Real, tmp_path: Path, world: Path
) -> None:
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
    arms = {"source_only": "source"}
    config = write_run(tmp_path, source, label_space="yard.yaml", arms=arms)
    told = sim2real("check", config)
    assert told.status == 1
    assert "mysim/cloud is lost: no class of label space yard holds it." in told.out
    source["confirmed"] = ["mysim/cloud", "ignored"]
    test = {**TINY["test"], "confirmed": ["ignored"]}
    config = write_run(tmp_path, source, label_space="yard.yaml", arms=arms, test=test)
    told = sim2real("check", config)
    assert told.status == 0, told.out + told.err
    shares = json.loads((tmp_path / "check/check.json").read_text())["sets"]["source"]
    assert shares["class_pixels"]["crane"] > 0
    told = sim2real("train-segmentation", "r", "--config", config)
    assert told.status == 0, told.err
    state = load_checkpoint(tmp_path / "r/segmentation/source_only/seed-0/checkpoints/last.pt")
    assert state["classes"] == ["ground", "crane"]
