"""Arms with few labelled frames of the target, `run --budget`, and what a report says of them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows import commands
from flows.ablate import ablation
from flows.budget import with_budget
from flows.options import frame_counts
from flows.plan import plan
from flows.prepare import preflight
from pipeline.config.load import load_config
from pipeline.data.listing import digest, list_samples
from pipeline.data.spec import limited
from pipeline.errors import UserError
from pipeline.run.folder import read_run, write_run
from pipeline.run.stage import all_inputs, run_stage
from pipeline.scoring.metrics import METRICS
from reports.budget import (
    budget_sentences,
    compared_arms,
    crossings,
    curves,
    how_sure,
    points,
    worth,
)
from reports.sentences import main_of, ours, trained_on
from reports.settings import recipes, settings_that_differ
from reports.summary import Difference, Recipe, Spread, Summary
from segmentation.train import CHECKPOINT
from tests.conftest import Cli, Sim2Real

FEW = "arms={few: {train: {target: {frames: 2}}}, both: {train: {source: 3, target: {frames: 4}}}}"


def test_a_number_of_frames_stands_where_a_weight_may(tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny, [FEW])
    few, both = config.arms["few"], config.arms["both"]
    assert (few.weights, few.frames, few.only) == ({"target": 1}, {"target": 2}, "target")
    assert (both.weights, both.frames) == ({"source": 3, "target": 1}, {"target": 4})
    write_run(tmp_path / "run", config)
    assert read_run(tmp_path / "run") == config
    plain = load_config(tiny).model_dump(mode="json")["arms"]
    assert [arm["train"] for arm in plain.values()] == [
        {"source": 1.0},
        {"translated": 1.0},
        {"target": 1.0},
    ]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("{frames: 0}", r"^  arms\.few\.train\.target\.frames: .*greater than or equal to 1 "),
        ("{frames: 2, weight: 0}", r"^  arms\.few\.train\.target\.weight: .*greater than 0 "),
        (
            "{frames: 2, wieght: 1}",
            r"unknown key. Did you mean 'weight'\? Keys here: frames, weight\.",
        ),
        ("{weight: 1}", r"^  arms\.few\.train\.target\.frames: required, but not given"),
        ("-1", r"^  arms\.few\.train\.target: Input should be greater than 0 \(got -1\)"),
    ],
)
def test_bad_numbers_are_one_message(tiny: Path, part: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(tiny, [f"arms={{few: {{train: {{target: {part}}}}}}}"])
    first, *lines = str(error.value).splitlines()
    assert first.endswith(": 1 error")
    assert re.search(message, "\n".join(lines)), lines


def test_frames_are_those_of_a_limit(tiny: Path, tmp_path: Path) -> None:
    some = "arms={few: {train: {target: {frames: 3}}}, some: {train: {translated: {frames: 4}}}}"
    inputs = all_inputs(plan(config := load_config(tiny, [some]), tmp_path))
    for arm, kind, spec in (
        ("few", "target", config.target),
        ("some", "translated", config.source),
    ):
        chosen: Any = inputs[f"segmentation/{arm}/seed-0"]["train"]
        data = chosen[kind]["dataset"]
        assert data["limit"] == config.arms[arm].frames[kind]
        assert data["samples"] == digest(list_samples(limited(spec, data["limit"]), labelled=True))


def test_few_labelled_frames_are_labels_of_the_target(tiny: Path) -> None:
    learning = "{train: {translated: 1, target: {frames: 2}}, self_training: {}}"
    arms = f"arms={{source_only: source, adapted: translated, few: {learning}}}"
    config = load_config(tiny, [arms])
    assert "target" in config.labels_read
    assert config.without_target_labels.endswith(
        "learn: few. If the target has none, remove few from `arms`."
    )
    assert ours(recipes(config)) == ["adapted"]
    steps = ablation(config)  # it is no recipe of self-training
    assert steps.arms["self_training"].train == {"semantic_consistency": 1}
    aligned = "translation={method: class_alignment, pseudo_labels: few}"
    with pytest.raises(UserError, match=r"learns from no label of the target \(source_only, adapt"):
        load_config(tiny, [arms, aligned, "arms.few={train: {target: {frames: 2}}}"])


def test_more_frames_than_there_are(tiny: Path) -> None:
    many = "arms={few: {train: {target: {frames: 11}}}, some: {train: {source: {frames: 12}}}}"
    with pytest.raises(UserError) as error:
        preflight(load_config(tiny, [many]))
    assert str(error.value).splitlines() == [
        f"{number} frames of {kind} are to be learned from ({arm}), and data set {name} has 10. "
        f"Take at most so many, or all: `{kind}` without `frames`."
        for number, kind, arm, name in (
            (11, "target", "few", "cityscapes"),
            (12, "source", "some", "gta5"),
        )
    ]


def test_labels_of_the_other_frames_are_not_read(
    tiny: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world, tmp_path / "own")
    monkeypatch.setenv("WORLD", str(tmp_path / "own"))
    settings = [
        "arms={few: {train: {source: 1, target: {frames: 3}}, segmentation: {steps: 1}}}",
        "compute.accelerator=cpu",
        "segmentation.rare_class_sampling={}",
    ]
    config = load_config(tiny, settings)
    kept = {s.label for s in list_samples(limited(config.target, 3), labelled=True)}
    for sample in list_samples(config.target, labelled=True):
        if sample.label is not None and sample.label not in kept:
            sample.label.unlink()
    preflight(config)
    run = tmp_path / "run"
    (stage,) = (s for s in plan(config, run) if s.command == "train-segmentation")
    run_stage(run, stage, all_inputs([stage])[stage.name])
    assert (run / stage.name / CHECKPOINT).is_file()
    with pytest.raises(UserError, match=r"7 of 10 images have no label.*learn: oracle"):
        preflight(load_config(tiny, [*settings, "arms={oracle: target}"]))
    next(iter(kept)).unlink()  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"1 of 3 images have no label.*learn: few"):
        preflight(config)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "4,",
        "-1",
        "1.5",
        "one",
        "1,4,4",
        "1 4",
        "04,4",
        "9" * 5000,
        "0" * 5000 + "1",
        "²",
        "1e3",
    ],
)
def test_bad_lists(text: str, tiny: Path, sim2real: Sim2Real) -> None:
    told = sim2real("run", tiny, f"--budget={text}")
    assert told.status == 2
    assert re.search(r"'--budget': '.*: give whole numbers of labelled target frames", told.err)


def test_nothing_is_done_for_a_list_that_cannot_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"11 frames of target .*\(target_11, adapted_target_11\), and data"
    ):
        commands.run(tiny, budget=[1, 11])
    assert not list((tmp_path / "runs/tiny-budget").rglob("*.json"))
    with pytest.raises(UserError, match="give one of them"):
        commands.run(tiny, budget=[1], ablate=True)


def test_each_number_has_two_arms(tiny: Path, tmp_path: Path) -> None:
    plain = load_config(tiny, ["seeds=[0, 1]"])
    config = with_budget(plain, frame_counts("4, 1"))
    assert (config.name, config.seeds) == ("tiny-budget", (0, 1))
    assert {name: arm.train for name, arm in config.arms.items() if name in plain.arms} == {
        name: arm.train for name, arm in plain.arms.items()
    }
    added = [name for name in config.arms if name not in plain.arms]
    assert added == ["target_1", "adapted_target_1", "target_4", "adapted_target_4"]
    assert config.arms["target_4"].frames == config.arms["adapted_target_4"].frames == {"target": 4}
    assert config.arms["adapted_target_4"].weights == {"translated": 1, "target": 1}
    # What the plain run has made is what this one would make.
    before, now = (all_inputs(plan(one, tmp_path)) for one in (plain, config))
    shared = before.keys() - {"report"}
    assert {name: now[name] for name in shared} == {name: before[name] for name in shared}


def test_the_adapted_arm_keeps_its_way_to_learn(tiny: Path) -> None:
    best = (
        "best: {train: {translated: 2, source: 1}, start: plain, self_training: {weight: 0.5}, "
        "segmentation: {steps: 9}, title: our best, base: plain}"
    )
    config = with_budget(
        load_config(tiny, [f"arms={{plain: source, {best}, oracle: target}}"]), [3]
    )
    arm = config.arms["best_target_3"]
    assert arm.weights == {"translated": 2, "source": 1, "target": 3}
    assert (arm.start, arm.title, arm.base) == ("plain", None, None)
    assert arm.self_training == config.arms["best"].self_training
    assert config.recipe("best_target_3").steps == 9
    assert config.recipe("target_3").steps == config.recipe("oracle").steps
    names = {arm: recipe.frames for arm, recipe in recipes(config).items() if recipe.frames}
    assert names == {"target_3": {"target": 3}, "best_target_3": {"target": 3}}
    assert main_of(ours(recipes(config))) == "best"


def test_configurations_without_a_question(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"there is none\. Add one to `arms`"):
        with_budget(load_config(tiny, ["arms={source_only: source, oracle: target}"]), [1])
    with pytest.raises(UserError, match="makes an arm target_1, and `arms` has one"):
        with_budget(load_config(tiny, ["arms={adapted: translated, target_1: target}"]), [1])


def test_what_arms_are_trained_on_in_words(tiny: Path) -> None:
    config = load_config(tiny, [FEW, "arms.some.train.source.frames=1000"])
    told = {arm: trained_on(recipe) for arm, recipe in recipes(config).items()}
    assert told == {
        "few": "2 labelled frames of the target",
        "both": "75% synthetic frames as they are, 25% from 4 labelled frames of the target",
        "some": "1,000 synthetic frames as they are",
    }
    changed = settings_that_differ({"a": config, "b": load_config(tiny)})
    assert changed["arms.both"] == {"a": "source + 4 of target", "b": "–"}


# What is said, with made values.


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ({1: -0.2, 4: -0.1, 16: 0.1, 64: 0.2}, "about 8 labelled frames: trained on such"),
        (
            {1: -0.1, 4: -0.05},
            "more than 4 labelled frames: trained on 4 alone, a network does not",
        ),
        ({1: 0.1, 4: 0.2}, "fewer than 1 labelled frame: trained on 1 alone"),
        ({16: 0.1}, "fewer than 16 labelled frames"),
        ({16: -0.1}, "more than 16 labelled frames"),
        ({1: -0.1, 2: 0.0, 4: 0.1}, "about 2 labelled frames"),
        ({1: -0.1, 4: 0.1, 16: -0.1, 64: 0.1}, "no one number of labelled frames: .* 2, 8, 32"),
        ({1: 0.1, 4: -0.1}, "no one number of labelled frames: .* passes it at about 2"),
    ],
)
def test_worth(gains: dict[int, float], said: str) -> None:
    assert re.match(said, worth(gains)), worth(gains)


def test_numbers_are_interpolated_over_their_logarithm() -> None:
    assert crossings({1: -1.0, 16: 3.0}) == pytest.approx([2])
    assert crossings({2: 1.0, 32: -1.0, 64: -0.5}) == pytest.approx([8])
    assert crossings({3: -1.0, 5: 0.0, 9: 1.0}) == pytest.approx([5])


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ({1: -1, 4: 1}, ""),
        ({1: 0, 4: 0}, "at no number is the difference larger than chance."),
        ({1: -1, 4: 0, 16: 0, 64: 1}, "known only to be more than 1 and fewer than 64."),
        ({1: -1, 4: -1, 16: 0}, "known only to be more than 4."),
        ({1: 0, 4: 1}, "known only to be fewer than 4."),
        ({1: 1, 4: 0, 16: -1}, "Some of these differences are no larger than chance."),
    ],
)
def test_how_sure(signs: dict[int, int], said: str) -> None:
    assert how_sure(signs).endswith(said)
    assert bool(how_sure(signs)) == bool(said)


def made_report(
    values: dict[str, float | None], std: float | None = None, margin: float | None = None
) -> Summary:
    """A report of these scores, with intervals of differences of `margin` to both sides."""

    def train(arm: str) -> Recipe:
        kinds = {"source_only": ["source"], "oracle": ["target"], "adapted": ["translated"]}
        name, _, number = arm.rpartition("target_")
        if not number.isdecimal():
            return Recipe(train=dict.fromkeys(kinds[arm], 1), start=None)
        shares = {"target": 1.0} if not name else {"translated": 0.5, "target": 0.5}
        return Recipe(train=shares, frames={"target": int(number)}, start=None)

    told = {arm: train(arm) for arm in values}
    arms = {arm: {key: Spread(mean=v, std=std) for key in METRICS} for arm, v in values.items()}

    def compared(arm: str, than: str) -> Any:
        one, other = values[arm], values[than]
        if one is None or other is None:
            return Summary.model_construct(scores=dict.fromkeys(METRICS))
        d = one - other
        interval = None if margin is None else (d - margin, d + margin)
        difference = Difference(difference=d, interval=interval, better=None)
        return Summary.model_construct(scores=dict.fromkeys(METRICS, difference))

    comparisons = {
        arm: {than: compared(arm, than) for than in others}
        for arm, others in compared_arms(told).items()
    }
    return Summary.model_construct(arms=arms, recipes=told, comparisons=comparisons)


SCORES: dict[str, float | None] = {
    "source_only": 0.5,
    "adapted": 0.7,
    "target_1": 0.6,
    "adapted_target_1": 0.72,
    "target_16": 0.75,
    "adapted_target_16": 0.76,
    "oracle": 0.8,
}


def said_of(report: Summary) -> str:
    lines = budget_sentences(report)
    assert len(lines) == 2 * len({line.replace("mean IoU", "per-pixel accuracy") for line in lines})
    return " ".join(line for line in lines if "mean IoU" in line)


def test_sentences() -> None:
    text = said_of(made_report(SCORES))
    assert "adapted (70.0%), which reads no label of the target, is worth about 6 labelled" in text
    assert "With 1 / 16 labelled frames one reaches, of the oracle's mean IoU (80.0%): " in text
    assert "alone 75% / 94%; with translated synthetic frames 90% / 95%." in text
    assert "are, against as many alone, better with 1, 16." in text
    assert "chance" not in text


@pytest.mark.parametrize("noise", [{"std": 0.06}, {"margin": 0.06}])
def test_noise_is_told(noise: dict[str, float]) -> None:
    text = said_of(made_report(SCORES, **noise))
    assert "about 6 labelled frames" in text
    assert "Beyond chance it is known only to be more than 1." in text
    assert "better with 1; no different beyond chance with 16." in text
    text = said_of(made_report(SCORES, **dict.fromkeys(noise, 0.2)))
    assert "But at no number is the difference larger than chance." in text


def test_harm_is_told() -> None:
    text = said_of(made_report(SCORES | {"adapted_target_16": 0.7}))
    assert "better with 1; worse with 16." in text


def test_what_is_not_there_is_not_told() -> None:
    def without(*arms: str) -> str:
        return said_of(made_report({k: v for k, v in SCORES.items() if k not in arms}))

    assert "oracle" not in without("oracle")
    assert "worth" not in without("adapted")
    assert "worth" not in without("target_1", "target_16")
    assert without("target_1", "target_16", "adapted_target_1", "adapted_target_16") == ""
    # Not every number need be on every curve.
    text = without("adapted_target_1")
    assert "alone 75% / 94%; with translated synthetic frames – / 95%." in text
    assert budget_sentences(made_report(dict.fromkeys(SCORES))) == []


def test_curves_are_of_arms_that_are_otherwise_alike(tiny: Path) -> None:
    target = "{train: {target: {frames: %d}}%s}"
    arms = {
        "b": target % (4, ""),
        "a": target % (1, ""),
        "longer": target % (4, ", segmentation: {steps: 9}"),
        "tuned": target % (4, ", start: adapted"),
        "taught": target % (4, ", self_training: {}"),
        "mixed": "{train: {target: {frames: 2, weight: 1}, source: 1}}",
        "adapted": "translated",
    }
    text = ", ".join(f"{name}: {arms[name]}" for name in ("adapted", *list(arms)[:-1]))
    found = {
        c.title: dict(c.arms) for c in curves(recipes(load_config(tiny, [f"arms={{{text}}}"])))
    }
    assert found == {
        "alone": {1: "a", 4: "b"},
        "alone (longer)": {4: "longer"},
        "alone, starting from adapted": {4: "tuned"},
        "with real frames without labels (self-training)": {4: "taught"},
        "with synthetic frames as they are": {2: "mixed"},
    }


def test_the_table_has_a_row_for_each_arm() -> None:
    rows = points(made_report(SCORES))
    assert [(row.frames, row.arm) for row in rows] == [
        (1, "target_1"),
        (1, "adapted_target_1"),
        (16, "target_16"),
        (16, "adapted_target_16"),
    ]
    first, second = rows[0].change["mean_iou"], rows[1].change["mean_iou"]
    assert first is None
    assert second is not None
    assert second.difference == pytest.approx(0.12)
    assert rows[3].of_oracle["mean_iou"] == pytest.approx(0.95)


@pytest.mark.slow
def test_the_whole_budget_and_its_curves(tiny: Path, cli: Cli) -> None:
    short = [
        "segmentation.steps=2",
        "evaluation.pictures=0",
        "translation.method=fda",
        "arms={adapted: translated, oracle: target}",
    ]
    chosen = [item for setting in short for item in ("--set", setting)]
    assert (plain := cli("run", tiny, *chosen)).returncode == 0, plain.stderr
    result = cli("run", tiny, "--budget", "1,10", *chosen)
    assert result.returncode == 0, result.stderr
    assert "Taken over from runs/tiny: translated, segmentation/" in result.stderr
    folder = tiny.parent / "runs" / "tiny-budget" / "report"
    table = pd.read_csv(folder / "budget.csv")
    assert list(table["arm"]) == ["target_1", "adapted_target_1", "target_10", "adapted_target_10"]
    arms = json.loads((folder / "report.json").read_text())["arms"]
    for row in table.to_dict("records"):
        assert row["mean_iou"] == pytest.approx(arms[row["arm"]]["mean_iou"]["mean"])
    # All ten frames are the oracle's: the same draws, so the same network.
    assert arms["target_10"] == arms["oracle"]
    page = (folder / "index.html").read_text()
    assert "What synthetic frames are worth in labelled ones" in page
    assert 'aria-label="Per-pixel accuracy, over labelled frames of the target.' in page
    assert 'aria-label="Mean IoU, over labelled frames of the target.' in page
    assert "10 labelled frames of the target" in page
