"""The label-preservation gate: what it counts, what it leaves out, its place in a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn

from cyclegan.translate import translate_frames
from flows.ablate import ablation
from flows.plan import gate_plan, plan
from flows.units import units
from pipeline.config.load import load_config
from pipeline.config.settings import ComputeConfig, Config
from pipeline.config.translation import GateConfig, TranslationConfig
from pipeline.config.translators import TRANSLATORS, TranslationInputs, Translator
from pipeline.data.images import UInt8, read_rgb
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader, read_frame
from pipeline.data.spec import DatasetSpec, translated_spec
from pipeline.errors import UserError
from pipeline.run.stage import Stage, all_inputs, check
from pipeline.scoring.drift import Drift, agreements, gated_spec, losses
from segmentation import gate as gate_module
from segmentation.data import class_counts
from segmentation.gate import count, look_at_translation
from tests.conftest import TINY
from tests.helpers import Killed, do, dying_at

SPACE = load_label_space("cityscapes19")
BUILDING, TREE = SPACE.class_names.index("building"), SPACE.class_names.index("vegetation")
NAMES = [f"{number:05}" for number in range(1, 11)]
WRONG = ["00002", "00003", "00006", "00009"]
"""The frames of the toy world in which building and tree are swapped."""


def swapped(rgb: UInt8, label: UInt8) -> UInt8:
    """The frame with the look of trees on buildings, and of buildings on trees."""
    result = rgb.copy()
    for one, other in ((BUILDING, TREE), (TREE, BUILDING)):
        place, look = label == one, rgb[label == other]
        result[place] = look[np.arange(place.sum()) % len(look)]
    return result


def translate_badly(
    config: TranslationConfig, given: TranslationInputs, folder: Path, compute: ComputeConfig
) -> None:
    """Every frame a little darker, which is no flip; some of them swapped."""
    samples, labels = list_samples(given.source, labelled=True), LabelReader(given.source, SPACE)

    def each(number: int, frame: UInt8) -> UInt8:
        if samples[number].name in WRONG:
            frame = swapped(frame, labels.read(samples[number]))
        return (frame * 0.97).astype(np.uint8)

    translate_frames(given.source, folder, compute, each=each)


@pytest.fixture(autouse=True)
def bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """A translator that is wrong where it is known."""
    entry = Translator("bad", frozenset(), f"{__name__}:translate_badly", reads_target=False)
    monkeypatch.setitem(TRANSLATORS, "bad", entry)


def configured(tiny: Path, **fields: object) -> Config:
    """A configuration with the bad translation and a gate."""
    settings = {
        "arms": {"source_only": "source", "adapted": "translated"},
        "translation": {"method": "bad", "gate": {}},
        "compute": {"accelerator": "cpu"},
    }
    path = tiny.with_name("gated.yaml")
    path.write_text(yaml.safe_dump(TINY | settings | fields))
    return load_config(path)


class Nearest(nn.Module):
    """Stands in for a trained network: the class whose mean colour is nearest."""

    def __init__(self, source: DatasetSpec) -> None:
        super().__init__()
        samples, labels = list_samples(source, labelled=True), LabelReader(source, SPACE)
        label = np.stack([labels.read(sample) for sample in samples])
        rgb = np.stack([read_frame(source, sample) for sample in samples])
        known = [rgb[label == k] for k in range(len(SPACE.classes))]
        means = [pixels.mean(axis=0) if len(pixels) else np.full(3, 1e4) for pixels in known]
        self.means = nn.Parameter(torch.tensor(np.array(means), dtype=torch.float32))

    def forward(self, rgb: Tensor) -> Tensor:
        differences = rgb.permute(0, 3, 1, 2)[:, None] - self.means[None, :, :, None, None]
        return -differences.square().sum(dim=2)


Look = Callable[..., Path]


@pytest.fixture
def look(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Looks at the bad translation with `Nearest`; the folder of what it writes."""
    config, made, checkpoint = configured(tiny), tmp_path / "translated", tmp_path / "made.pt"
    given = TranslationInputs(config.source, config.target)
    translate_badly(config.translation, given, made, config.compute)
    checkpoint.touch()
    network = Nearest(config.source)
    monkeypatch.setattr(gate_module, "load_segmenter", lambda *_: network)

    def look(stage: str = "gates/translated", **settings: Any) -> Path:
        look_at_translation(
            *(GateConfig(**settings), SPACE, config.source),
            *(translated_spec(config.source, made), checkpoint, tmp_path / stage, config.compute),
            stage=stage,
            translation="translated",
            arm="source_only",
        )
        return tmp_path / stage

    return look


def test_counts_by_hand() -> None:
    label = np.array([[0, 0, 0, 1], [1, 1, IGNORE, IGNORE]], np.uint8)
    before = np.array([[0, 0, 1, 1], [1, 0, 0, 1]], np.uint8)
    after = np.array([[0, 1, 0, 2], [2, 1, 1, 1]], np.uint8)
    tables = count(label, before, after, 3)
    assert tables[0].tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert tables[1].tolist() == [[2, 1, 0], [0, 1, 2], [0, 0, 0]]
    assert tables[2].tolist() == [[0, 1, 0], [0, 0, 2], [0, 0, 0]]
    found = agreements(tables)
    assert found["pixels"].tolist() == [3, 3, 0, 6]
    np.testing.assert_allclose(found["before"], [2 / 3, 2 / 3, np.nan, 4 / 6])
    np.testing.assert_allclose(found["after"], [2 / 3, 1 / 3, np.nan, 3 / 6])
    # What is gained elsewhere hides no flip.
    np.testing.assert_allclose(found["flipped"], [1 / 2, 2 / 2, np.nan, 3 / 4])
    many, nothing = tables.copy(), np.zeros_like(tables)
    many[0, 0, 0] = many[1, 0, 0] = 39  # so that class 1 has 2 of 41 pixels that were right
    classes, lost = losses(np.stack([tables, many, nothing]))
    assert classes.tolist() == [1, 0, 0]
    np.testing.assert_allclose(lost, [1, 1 / 39, 0])


def test_swapped_frames_are_flagged_and_no_others(look: Look) -> None:
    folder = look(ignore_flipped=True)
    drift = Drift.read(folder)
    assert sorted(frame.name for frame in drift.quarantined) == WRONG
    assert [f.lost for f in drift.worst] == sorted((f.lost for f in drift.worst), reverse=True)
    assert {frame.lost_class for frame in drift.quarantined} <= {"building", "vegetation"}
    assert pd.read_csv(folder / "quarantine.csv", dtype=str)["name"].tolist() == WRONG

    table = pd.read_csv(folder / "drift.csv", dtype={"name": str}).set_index("name")
    assert table.index.tolist() == NAMES
    assert table.index[table["quarantined"] == 1].tolist() == WRONG
    for frame in drift.quarantined:
        for key in ("lost", "pixels", "before", "after", "flipped"):
            assert table.loc[frame.name, key] == pytest.approx(getattr(frame, key))
        assert table.loc[frame.name, f"{frame.lost_class} flipped"] == pytest.approx(frame.lost)
    with np.load(folder / "drift.npz") as arrays:
        assert arrays["names"].tolist() == NAMES
        summed = arrays["tables"].sum(axis=0)
    assert [drift.before, drift.after, drift.flips] == summed.tolist()
    assert drift.overall.pixels == table["pixels"].sum()
    flips = np.array(drift.flips)
    assert flips[BUILDING].argmax() == TREE
    building = drift.by_class["building"]
    assert building.before is not None
    assert building.before == drift.before[BUILDING][BUILDING] / building.pixels

    assert drift.sheet == "gates/translated/worst.png"
    pictures = [folder.parents[1] / str(frame.picture) for frame in drift.worst]
    widths = {read_rgb(picture).shape[1] for picture in pictures}
    assert read_rgb(folder / "worst.png").shape[1] == 2 * widths.pop()


def test_flipped_pixels_are_ignored_and_no_others(look: Look, tiny: Path) -> None:
    folder, config = look(ignore_flipped=True), configured(tiny)
    translated = translated_spec(config.source, folder.parents[1] / "translated")
    gated = gated_spec(translated, folder, SPACE)
    kept = list_samples(gated, labelled=True)
    assert [sample.name for sample in kept] == [name for name in NAMES if name not in WRONG]
    network, ignored, pixels = Nearest(config.source), 0, 0
    labels, mended = LabelReader(config.source, SPACE), LabelReader(gated, SPACE)
    sources = {sample.name: sample for sample in list_samples(config.source, labelled=True)}
    for sample in kept:
        label, found = labels.read(sources[sample.name]), mended.read(sample)
        frames = read_rgb(sources[sample.name].image), read_rgb(sample.image)
        seen = [network(torch.tensor(rgb[None]))[0].argmax(dim=0).numpy() for rgb in frames]
        gone = (seen[0] == label) & (seen[1] != label)
        assert (found == np.where(gone, IGNORE, label)).all()
        ignored, pixels = ignored + gone.sum(), pixels + (label != IGNORE).sum()
    assert ignored > 0
    assert Drift.read(folder).ignored == pytest.approx(ignored / pixels)
    # Without that, labels are those of the source.
    plain = gated_spec(translated, look("gates/plain"), None)
    assert list_samples(plain, labelled=True)[0].label == sources[NAMES[0]].label
    assert Drift.read(folder.with_name("plain")).ignored is None
    assert not (folder.with_name("plain") / "labels").exists()


def test_no_frame_left_is_an_error_of_the_training(look: Look, tiny: Path) -> None:
    source, folder = configured(tiny).source, look("gates/x", threshold=1e-6)
    assert len(Drift.read(folder).quarantined) == len(NAMES)
    with pytest.raises(UserError, match=r"gates/x: all 10 frames .*--force gates/x"):
        gated_spec(translated_spec(source, folder.parents[1] / "translated"), folder, None)
    folder = look("gates/y", threshold=1)
    assert Drift.read(folder).quarantined == []
    assert (folder / "quarantine.csv").read_text() == "name,reason\n"


def test_what_does_not_change_loses_nothing(
    look: Look, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "count", lambda label, *_: count(label, label, label, 19))
    drift = Drift.read(look())
    assert (drift.worst, drift.sheet, drift.overall.flipped) == ([], None, 0)


def test_an_interrupted_look_goes_on_with_the_next_frames(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        del found["progress.json"]
        return {name: path.read_bytes() for name, path in found.items()}

    dying = Mock(side_effect=dying_at(6, count))
    whole = files(look(ignore_flipped=True))
    monkeypatch.setattr("segmentation.tally.FRAMES", 2)
    monkeypatch.setattr(gate_module, "count", dying)
    with pytest.raises(Killed):
        look("again/translated", ignore_flipped=True)
    folder = look("again/translated", ignore_flipped=True)
    assert dying.call_count == 6 + 10 - 4
    text = (folder / "drift.json").read_text().replace("again/translated", "gates/translated")
    assert files(folder) | {"drift.json": text.encode()} == whole


def done(run: Path, stages: list[Stage]) -> None:
    """Do the stages of a plan, without the report."""
    do(run, [stage for stage in stages if stage.command != "report"])


def test_arms_train_on_what_is_left(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tiny, translation={"method": "bad", "gate": {"ignore_flipped": True}})
    run, network, trained = tmp_path / "run", Nearest(config.source), list[Any]()
    monkeypatch.setattr(gate_module, "load_segmenter", lambda *_: network)
    done(run, gate_plan(config, run))
    monkeypatch.setattr("segmentation.train.train", lambda *given, **_: trained.append(given))
    arm = next(stage for stage in plan(config, run) if stage.name == "segmentation/adapted/seed-0")
    arm.work(run / arm.name)
    ((_, space, mixture, *_),) = trained
    (counts,) = class_counts(mixture, space, None, tmp_path)
    with np.load(run / "gates/translated/drift.npz") as arrays:
        tables = arrays["tables"][[name not in WRONG for name in NAMES]].sum(axis=-1)
    assert (counts == tables[:, 0] - tables[:, 2]).all()


@pytest.mark.slow
def test_a_trained_network_tells_swapped_frames_from_others(tiny: Path, tmp_path: Path) -> None:
    recipe = {"steps": 400, "learning_rate": 2e-3, "checkpoint_every": 400, "log_every": 50}
    config = configured(tiny, segmentation=TINY["segmentation"] | recipe)
    done(tmp_path, gate_plan(config, tmp_path))
    drift = Drift.read(tmp_path / "gates/translated")
    assert sorted(frame.name for frame in drift.quarantined) == WRONG


def test_the_plan_with_and_without(tiny: Path, tmp_path: Path) -> None:
    without = plan(configured(tiny, translation={"method": "bad"}), tmp_path)
    gated = plan(configured(tiny), tmp_path)
    assert {s.name for s in gated} - {s.name for s in without} == {"gates/translated"}
    stage = next(stage for stage in gated if stage.command == "gate")
    assert stage.reads == ("segmentation/source_only/seed-0", "translated")
    before, now = all_inputs(without), all_inputs(gated)
    differing = {"segmentation/adapted/seed-0", "evaluation/adapted/seed-0", "report"}
    assert {name for name in before if before[name] != now[name]} == differing
    graph = {unit.name: unit for unit in units(gated, parts=2)}
    assert graph["gates/translated"].reads == ("segmentation/source_only/seed-0", "translated")
    assert graph["gates/translated"].urgent
    assert "gates/translated" in graph["segmentation/adapted/seed-0"].reads
    assert "gates/translated" in graph["report"].reads
    assert not [s for s in plan(ablation(configured(tiny)), tmp_path) if s.command == "gate"]


def test_gates_of_stacks_and_of_other_networks(tiny: Path, tmp_path: Path) -> None:
    config = configured(
        tiny,
        arms={"plain": "source", "first": "one", "second": "two"},
        translations={
            "two": {"method": "fda", "source": "one", "gate": {"arm": "first"}},
            "one": {"method": "bad", "gate": {"threshold": 0.7}},
        },
    )
    reads = {stage.name: stage.reads for stage in plan(config, tmp_path)}
    assert reads["gates/two"] == ("segmentation/first/seed-0", "translations/two")
    assert reads["segmentation/first/seed-0"] == ("translations/one", "gates/one")
    order = list(reads)
    assert all(order.index(below) < order.index(name) for name in reads for below in reads[name])
    # The name of the arm is no part of it: the network is.
    named = configured(tiny, translation={"method": "bad", "gate": {"arm": "source_only"}})
    plans = [plan(own, tmp_path) for own in (named, configured(tiny))]
    assert all_inputs(plans[0]) == all_inputs(plans[1])


def test_a_finished_run_is_looked_at_and_stays_as_it_is(tiny: Path, tmp_path: Path) -> None:
    config, run = configured(tiny, translation={"method": "bad"}), tmp_path / "run"
    done(run, plan(config, run))
    stages = gate_plan(config, run)
    assert [stage.name for stage in stages if not (run / stage.name / "stage.json").exists()] == [
        "gates/translated"
    ]
    done(run, stages)
    assert Drift.read(run / "gates/translated").frames == 10
    check(run, plan(config, run))
    record = json.loads((run / "gates/translated/stage.json").read_text())
    assert {"drift.json", "drift.csv", "quarantine.csv"} <= record["results"].keys()
    untranslated = configured(tiny, arms={"source_only": "source"})
    assert not [stage for stage in gate_plan(untranslated, run) if stage.command == "gate"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"translation": {"gate": {"arm": "adapted"}}},
            r"in a circle: arms.adapted <- gates.translated <- arms.adapted\. Translations: "
            r"translated from source gated by adapted",
        ),
        (
            {
                "arms": {"s": "source", "a": "one", "b": "two"},
                "translations": {
                    "one": {
                        "method": "class_alignment",
                        "pseudo_labels": "s",
                        "gate": {"arm": "b"},
                    },
                    "two": {"source": "one", "gate": {"arm": "a"}},
                },
            },
            r"in a circle: .*gates\.one <- arms\.a .*two from one gated by a",
        ),
        (
            {"arms": {"a": "translated", "o": "target"}, "translation": {"gate": {"arm": "o"}}},
            r"translation\.gate\.arm is 'o'; .* no label of the target \(a\)",
        ),
        ({"translation": {"gate": {"arm": "nobody"}}}, r"gate\.arm is 'nobody'; .*source_only"),
        (
            {"arms": {"a": "translated"}},
            r"translation\.gate needs a network .* source_only: source",
        ),
        ({"translation": {"gate": {"threshold": 0}}}, r"gate\.threshold: .*greater than 0"),
        ({"translation": {"gate": {"treshold": 0.3}}}, r"unknown key\. Did you mean 'threshold'"),
    ],
)
def test_gates_that_cannot_work(tiny: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured(tiny, **settings)
