"""No class is lost silently: from the guess of a first spec to the refusal of a run."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.data.labels import IGNORE, load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader, below_top
from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.intake.lost import Lost, lost_classes
from pipeline.toyworld.drawing import render_scene
from tests import conftest
from tests.conftest import TINY
from tests.layouts import load_spec
from tests.unseen_layouts import CAR, SKY, carla_08

SPACE = load_label_space("cityscapes19")
Sim2Real = Callable[..., tuple[int, str]]


@pytest.fixture
def sim2real(sim2real: conftest.Sim2Real, monkeypatch: pytest.MonkeyPatch) -> Sim2Real:
    """The same without what takes long and looks at no label: status and all that was said."""
    for slow in ("flows.show.show_estimate", "flows.prepare._networks"):
        monkeypatch.setattr(slow, lambda *_: None)

    def call(*arguments: str) -> tuple[int, str]:
        told = sim2real(*arguments)
        return told.status, told.out + told.err

    return call


def test_old_carla_loses_neither_sky_nor_cars(sim2real: Sim2Real, tmp_path: Path) -> None:
    """Its sky is 0, "unlabeled", and its cars are "any vehicle", of which no class is made."""
    scenes = [render_scene(np.random.default_rng(i), (128, 64), "sim") for i in range(12)]
    carla_08(tmp_path / "old", scenes)
    assert sim2real("new-dataset", "old")[0] == 0
    spec = tmp_path / "old.yaml"
    lines = spec.read_text().splitlines()
    asked = {i + 1: line for i, line in enumerate(lines) if re.match(r"  \d+: .*\?  ", line)}
    assert [line.split("?")[0].strip() for line in asked.values()] == [
        "0: sky at the top",
        "10: car",
    ]
    assert all("% of the pixels" in line and "colour " in line for line in asked.values())
    assert {path.name for path in (tmp_path / "old.preview").iterdir()} == {
        *("frames.png", "value-0.png", "value-10.png")
    }

    # The unedited guess is refused by name and line, alone and in a run.
    config = tmp_path / "run.yaml"
    arms = {"source_only": "source"}
    config.write_text(yaml.safe_dump({**TINY, "source": {"dataset": "old.yaml"}, "arms": arms}))
    for command in (("check", "old.yaml"), ("check", "run.yaml")):
        status, told = sim2real(*command)
        assert status == 1
        for (number, _), name in zip(asked.items(), ("sky at the top", "car"), strict=True):
            assert f"is asked about: {name}?" in told
            assert f"old.yaml, line {number}: write `{name_line(lines, number)}`" in told
    status, told = sim2real("train-segmentation", "r", "--config", "run.yaml")
    assert status == 2
    assert "is asked about: sky at the top?" in told
    assert not (tmp_path / "r" / "config.yaml").exists()

    # After the prompted edits the run knows both.
    spec.write_text(re.sub(r"^(  \d+: .*)\?(  )", r"\1\2", spec.read_text(), flags=re.MULTILINE))
    # What CARLA had no tag for is confirmed by one line, which is told.
    status, told = sim2real("check", "run.yaml")
    assert status == 1
    confirmed = [json.loads(words)[0] for words in re.findall(r"`confirmed: (.*?)`", told)]
    assert set(confirmed) <= {"traffic light", "terrain"}
    spec.write_text(f"{spec.read_text()}confirmed: {json.dumps(confirmed)}\n")
    status, told = sim2real("check", "run.yaml")
    assert status == 0, told
    read = LabelReader(load_spec(spec), SPACE)
    for (_, ids), sample in zip(scenes, list_samples(load_spec(spec), labelled=True), strict=True):
        classes = read.read(sample)
        sky = (ids == SKY) & ~below_top(np.isin(ids, [SKY]))
        assert (classes[sky] == SPACE.class_names.index("sky")).all()
        assert (classes[ids == CAR] == SPACE.class_names.index("car")).all()


def name_line(lines: list[str], number: int) -> str:
    """The entry in a line of a first spec, without question mark and comment."""
    return lines[number - 1].split("?")[0].strip()


def test_run_and_report_say_what_check_says(sim2real: Sim2Real, tmp_path: Path) -> None:
    values = {str(raw): name for raw, name in load_values().items() if name != "sidewalk"}
    values["23"] = "unlabeled"  # what old CARLA does
    source = {"dataset": "gta5", "root": "${WORLD}/toy-sim", "values": values}
    arms = {"source_only": "source"}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**TINY, "source": source, "arms": arms}))
    status, told = sim2real("check", "run.yaml")
    assert status == 1
    said = re.search(r"(sky is lost: value 23 .*? skies are)", told)
    assert said is not None
    line = 1 + config.read_text().split("'23'")[0].count("\n")
    assert f"run.yaml, line {line}: write `23: sky at the top`" in told

    status, told = sim2real("train-segmentation", "r", "--config", "run.yaml")
    assert status == 2
    assert said[1] in told

    source["confirmed"] = ["23"]
    config.write_text(yaml.safe_dump({**TINY, "source": source, "arms": arms}))
    status, told = sim2real("train-segmentation", "r", "--config", "run.yaml")
    assert status == 0, told
    assert f"Note: {said[1]}." in told
    assert "Note: no value of data set gta5 is named sidewalk (" in told
    assert sim2real("evaluate", "r")[0] == 0
    assert sim2real("report", "r")[0] == 0
    report = tmp_path / "r" / "report"
    assert said[1] in (report / "index.html").read_text()
    assert said[1] in (report / "report.md").read_text()
    kept = json.loads((tmp_path / "r" / "lost_classes.json").read_text())
    assert said[1] in [one["text"] for one in kept]


def load_values() -> dict[str, str]:
    """GTA5's table."""
    return DatasetSpec(**spec_fields("gta5", Path()) | {"root": Path()}).values


def lost(world: Path, **changes: Any) -> list[Lost]:
    """What is lost of the toy world's source with other fields, beside its real frames."""
    source = spec_fields("gta5", Path()) | {"root": world / "toy-sim"} | changes
    test = spec_fields("cityscapes", Path()) | {"root": world / "toy-real", "split": "train"}
    return lost_classes({"source": DatasetSpec(**source), "test": DatasetSpec(**test)}, SPACE)


def test_nothing_is_lost_in_a_clean_pair(world: Path) -> None:
    assert not [one for one in lost(world) if one.refused]


def test_names_that_no_class_holds(world: Path) -> None:
    values = load_values() | {"26": "any vehicle", "7": "mysim/asphalt"}
    found = {one.key: one for one in lost(world, values=values)}
    assert found["any vehicle"].refused
    assert "`26: car`" in found["any vehicle"].advice
    assert found["mysim/asphalt"].refused
    assert "a label space of your own" in found["mysim/asphalt"].advice
    assert found["ignored"].refused
    confirmed = ("any vehicle", "mysim/asphalt", "ignored", "road", "car")
    assert not [one for one in lost(world, values=values, confirmed=confirmed) if one.refused]


def test_a_named_value_that_never_occurs(world: Path) -> None:
    values = {raw: name for raw, name in load_values().items() if name != "sky"}
    values |= {"40": "sky", "23": "building"}
    found = {one.key: one for one in lost(world, values=values)}
    assert re.match(
        r"sky is lost: 40 \(sky\) never occurs in 10 labels of data set gta5\. It is \d+\.\d% of ",
        found["sky"].text,
    )
    assert found["sky"].refused
    # So few labels may lack a rare class by chance: that is said, and nothing is refused for it.
    few = {one.key: one for one in lost(world, values=values, limit=2)}
    assert few["sky"].refused
    assert not [one for one in few.values() if one.key not in found and one.refused]


def test_sky_is_what_touches_the_top(tmp_path: Path) -> None:
    label = np.full((8, 8), 7, np.uint8)
    label[:3, 2:] = 0
    label[6:, :2] = 0
    Image.fromarray(label).save(tmp_path / "0_l.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    spec = DatasetSpec(
        name="x",
        root=tmp_path,
        images="{frame}",
        labels="{frame}_l",
        values={"0": "sky at the top", "7": "road"},
    )
    classes = LabelReader(spec, SPACE).read(list_samples(spec, labelled=True)[0])
    sky = SPACE.class_names.index("sky")
    expected = np.zeros((8, 8), np.uint8)
    expected[:3, 2:], expected[6:, :2] = sky, IGNORE
    assert (classes == expected).all()


def test_what_is_wrong_with_data_is_said_before_a_hub_is_asked(
    sim2real: Sim2Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("flows.prepare.hub_answers", lambda: bool(asked.append(True)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    weights = {**TINY["segmentation"], "encoder_weights": "imagenet"}
    source = {**TINY["source"], "images": "none/{frame}"}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**TINY, "source": source, "segmentation": weights}))
    status, told = sim2real("train-segmentation", "r", "--config", "run.yaml")
    assert status == 2
    assert "no frame matches 'none/{frame}'" in told
    assert not asked
    config.write_text(yaml.safe_dump({**TINY, "segmentation": weights}))
    assert sim2real("check", "run.yaml")[0] == 0  # its networks are not built here
    assert asked
    assert os.environ["HF_HUB_OFFLINE"] == "1"
