"""The report: its numbers by hand, its page in a browser."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape

from flows.scoring import show_scores
from flows.show import show_result
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.data.images import write_indices
from pipeline.data.labels import LabelSpace, load_label_space
from pipeline.errors import UserError
from pipeline.files import write_json, write_text
from pipeline.run.folder import write_run
from pipeline.scoring.bootstrap import interval, resample, share_better
from pipeline.scoring.evaluation import Evaluation
from pipeline.scoring.metrics import METRICS, Counts, Float, Metric, tabled
from pipeline.scoring.selection import CRITERIA, Unlabelled, picture
from pipeline.text import number
from reports.honesty import findings
from reports.logs import POINTS, entries, table_of
from reports.report import write_comparison, write_report
from reports.sentences import ours, result_headline, result_sentences
from reports.settings import settings_that_differ
from reports.summary import Comparison, Difference, Recipe, Spread, Summary
from reports.tables import gap_closed
from segmentation.evaluate import evaluate
from segmentation.train import CHECKPOINT, train
from tests.scored_run import (
    COUNTS,
    DEFAULT_ARMS,
    NASTY,
    Page,
    assert_self_contained,
    make_config,
    make_run,
    page_data,
    read_report,
    spread_out,
    write_evaluation,
)


@pytest.fixture(scope="module")
def finished(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A run with its report in `report/`."""
    folder = tmp_path_factory.mktemp("finished")
    config = make_config(small_world, folder)
    run = make_run(config, folder / "run")
    write_report(config, run, run / "report")
    return config, run


def test_numbers_are_those_of_the_evaluations(finished: tuple[Config, Path]) -> None:
    report = read_report(finished[1] / "report")

    source_only = report["arms"]["source_only"]["pixel_accuracy"]
    assert source_only["seeds"] == {"0": 0.55, "1": 0.65}
    assert source_only["mean"] == pytest.approx(0.6)
    assert source_only["std"] == pytest.approx(0.1 / 2**0.5)
    assert report["arms"]["oracle"]["pixel_accuracy"]["std"] == 0
    # (0.75 - 0.6) / (0.9 - 0.6)
    assert report["gap_closed"]["pixel_accuracy"] == pytest.approx(0.5)
    # IoU of a class is tp / (tp + fp + fn): seed 0 7 / 13 twice, seed 1 8 / 12 twice.
    adapted = (7 / 13 + 8 / 12) / 2
    assert report["arms"]["adapted"]["mean_iou"]["mean"] == pytest.approx(adapted)
    assert report["class_iou"]["adapted"]["road"] == pytest.approx(adapted)
    assert report["class_accuracy"]["source_only"] == {
        "road": pytest.approx(0.65),
        NASTY: pytest.approx(0.55),
        "bicyclist": None,
    }
    assert report["gap_closed_by_arm"] == {"adapted": report["gap_closed"]}
    keys = ("name", "label_space", "dataset", "split", "images")
    assert [report[key] for key in keys] == ["tiny", "three", "cityscapes", "val", 4]
    assert list(report["arms"]) == ["source_only", "adapted", "oracle"]


def test_intervals_are_those_of_the_drawings(finished: tuple[Config, Path]) -> None:
    config, run = finished
    report, space = read_report(run / "report"), load_label_space(config.label_space)
    drawn = {arm: resample([spread_out(counts) for counts in COUNTS[arm]], space) for arm in COUNTS}

    low, high = report["arms"]["adapted"]["mean_iou"]["interval"]
    assert (low, high) == interval(drawn["adapted"]["mean_iou"])
    assert low < report["arms"]["adapted"]["mean_iou"]["mean"] < high
    before, after, ideal = (drawn[arm]["pixel_accuracy"] for arm in COUNTS)
    found = report["comparisons"]["adapted"]["source_only"]["pixel_accuracy"]
    assert found["difference"] == pytest.approx(0.75 - 0.6)
    assert tuple(found["interval"]) == interval(after - before)
    assert found["better"] == share_better(after - before)
    closed = report["gap_closed_intervals"]["adapted"]["pixel_accuracy"]
    assert tuple(closed) == interval((after - before) / (ideal - before))
    by_class = report["comparisons"]["adapted"]["source_only"]["class_iou"]
    assert by_class[NASTY]["better"] == share_better(
        drawn["adapted"]["class_iou"][:, 1] - drawn["source_only"]["class_iou"][:, 1]
    )
    assert by_class["bicyclist"] is None
    assert {arm: list(others) for arm, others in report["comparisons"].items()} == {
        "adapted": ["source_only"],
        "oracle": ["source_only", "adapted"],
    }


def wrong_pixels(counts: Counts | Float, space: LabelSpace) -> Float:
    """A metric that is no fraction and the lower the better."""
    hits = np.trace(counts, axis1=-2, axis2=-1)
    return np.asarray(counts.sum(axis=(-2, -1)) - hits, np.float64)


def test_a_new_line_in_the_table_of_metrics_is_all_that_a_metric_takes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {"headline": True, "table": True, "steps": True}
    metric = Metric("wrong", "wrong pixels", wrong_pixels, unit="px", higher_is_better=False)
    monkeypatch.setitem(METRICS, "wrong", replace(metric, **shown))
    arms = {
        "source_only": "source",
        "oracle": "target",
        "mine": {"train": "target", "base": "oracle"},
    }
    config = load_config(tiny, ["compute.accelerator=cpu", f"arms={json.dumps(arms)}"])
    run, space = tmp_path / "run", load_label_space(config.label_space)
    write_run(run, config)
    for arm, steps in (("source_only", 1), ("oracle", 2), ("mine", 3)):
        recipe = config.segmentation.model_copy(update={"steps": steps})
        trained, scored = (run / kind / arm / "seed-0" for kind in ("segmentation", "evaluation"))
        data = [(config.target, 1.0)]
        train(recipe, space, data, 0, trained, config.compute)
        checkpoint = trained / CHECKPOINT
        evaluate(
            *(config.evaluation, space, config.test, checkpoint, scored, config.compute),
            arm=arm,
            seed=0,
        )
    write_report(config, run, run / "report")
    config_of_run = (config, run)
    write_comparison({"one": config_of_run, "other": config_of_run}, tmp_path / "out")

    evaluation = json.loads((scored / "evaluation.json").read_text())
    counts = np.array(evaluation["confusion"])
    wrong = counts.sum() - np.trace(counts)
    assert evaluation["wrong"] == wrong
    low, high = evaluation["intervals"]["wrong"]
    assert low < wrong < high
    assert pd.read_csv(scored / "per_image.csv")["wrong"].sum() == wrong
    score = read_report(run / "report")["arms"]["mine"]["wrong"]
    assert score["mean"] == wrong
    compared = read_report(run / "report")["comparisons"]["mine"]["source_only"]["wrong"]
    assert (compared["difference"] < 0) == (compared["better"] > 0.5)
    for folder in (run / "report", tmp_path / "out"):
        assert read_report(folder)
        for name in ("report.md", "index.html"):
            text = (folder / name).read_text()
            assert "wrong pixels" in text
            assert number(wrong, "px") in text
    assert "<h3>Wrong pixels</h3>" in (tmp_path / "out/index.html").read_text()
    steps = pd.read_csv(run / "report/steps.csv", index_col="arm")
    assert steps.loc["mine", "wrong"] == wrong
    assert steps.loc["mine", "wrong_change"] == wrong - steps.loc["oracle", "wrong"]
    write_json(run / "report/stage.json", {"fingerprint": "", "seconds": 1, "inputs": {}})
    show_result(run)
    monkeypatch.setenv("COLUMNS", "200")
    show_scores(Evaluation.read(scored, space))
    said = capsys.readouterr().out
    assert said.count(number(wrong, "px")) == 2
    # A run that was scored before there was such a metric tells it, too.
    del evaluation["wrong"]
    write_json(scored / "evaluation.json", evaluation)
    assert Evaluation.read(scored, space).scores["wrong"] == wrong


def test_runs_without_counts_by_frame_are_refused(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path)
    run = make_run(config, tmp_path / "run")
    gone = run / "evaluation/adapted/seed-1/per_image.npz"
    gone.unlink()

    with pytest.raises(UserError, match=f"No file {gone}. Score the network anew"):
        write_report(config, run, run / "report")


def test_arms_scored_on_unlike_frames_are_refused(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path)
    run = make_run(config, tmp_path / "run")
    counts = spread_out(COUNTS["adapted"][0])[1:]
    np.savez(run / "evaluation/adapted/seed-0/per_image.npz", names=["a", "b", "c"], counts=counts)

    with pytest.raises(UserError, match="unlike frames"):
        write_report(config, run, run / "report")


def test_absent_classes_are_said_and_counted(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path, seeds=[0])
    dreams = COUNTS | {"adapted": [[[7, 2, 1], [3, 7, 0], [0, 0, 0]]]}
    run = make_run(config, tmp_path / "run", dreams)

    write_report(config, run, run / "report")

    assert read_report(run / "report")["absent_classes"] == ["bicyclist"]
    said = "1 of 3 classes is absent from the ground truth of the test set, and left out of the "
    said += "means: bicyclist. Where one is predicted all the same (bicyclist), its IoU counts as 0"
    for name in ("report.md", "index.html"):
        assert said in (run / "report" / name).read_text()


def test_categories_and_void_predictions(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path, seeds=[0])
    run = make_run(config, tmp_path / "run")
    for i, arm in enumerate(config.arms):
        path = run / "evaluation" / arm / "seed-0/evaluation.json"
        category = {"category_iou": {"flat": 0.5 + i / 10, "sky": None}, "mean_category_iou": 0.25}
        category |= {"class_iiou": {"road": None}, "mean_class_iiou": None}
        void = {"void_predictions": [3 * i, 1000 * i, 0]}
        write_json(path, json.loads(path.read_text()) | category | void)

    write_report(config, run, run / "report")

    report = read_report(run / "report")
    assert report["category_iou"]["adapted"] == {"flat": 0.6, "sky": None}
    assert report["mean_category_iou"]["oracle"]["mean"] == 0.25
    assert report["class_iiou"] is None
    page = (run / "report/index.html").read_text()
    assert '<tr><th>flat</th><td class="">50.0%</td><td class="">60.0%</td>' in page
    said = "Pixels predicted void, which count as misses: adapted 1,003, oracle 2,006."
    assert said in page
    # Three pixels of the first class: in a column of this arm's matrix, and a part of its truth.
    matrices = page_data(run / "report")["confusion"]
    assert [row[-1] for row in matrices["adapted"]] == [3, 1000, 0]
    assert [row[-1] for row in matrices["source_only"]] == [0, 0, 0]
    text = (run / "report/report.md").read_text()
    assert said in text
    assert "| flat | 50.0% | 60.0% | 70.0% |" in text
    assert "iIoU" not in text + page


def test_class_table(finished: tuple[Config, Path]) -> None:
    table = pd.read_csv(finished[1] / "report" / "per_class.csv", index_col="class")

    assert list(table.index) == ["road", NASTY, "bicyclist"]
    assert list(table["share_of_truth"]) == [0.5, 0.5, 0]
    assert table.loc["road", "accuracy_oracle"] == pytest.approx(0.9)
    assert table.loc["road", "iou_oracle"] == pytest.approx(9 / 11)
    scores = table.loc["bicyclist"].filter(regex="^(accuracy|iou|precision)_")
    assert len(scores) == 3 * (3 + 2)
    assert scores.isna().all()


def test_markdown_holds_the_headline(finished: tuple[Config, Path]) -> None:
    text = (finished[1] / "report" / "report.md").read_text()

    assert "| source_only | 60.0 ± 7.1% (" in text
    assert "| gap closed by adapted | 50% (" in text
    assert "| adapted | translated synthetic frames |" in text
    assert "All arms share the recipe." in text
    assert "| adapted | source_only | +15.0 (" in text
    assert re.search(r"closes 50% \(\d+ to \d+%\) of the per-pixel gap", text)
    assert "| bicyclist | – | 0 | absent |" in text
    assert "<script>" not in text


def spreads(values: dict[str, float | None], *keys: str) -> dict[str, dict[str, Spread]]:
    """Arm -> metric -> one seed's value."""
    return {
        arm: {key: Spread(mean=value, std=None, seeds={"0": value}) for key in keys}
        for arm, value in values.items()
    }


def compared(value: float | None, base: float | None) -> Comparison:
    """How far a score is above another one, in every metric."""
    known = value is not None and base is not None
    found = Difference(difference=value - base, interval=None, better=None) if known else None
    return Comparison(scores=dict.fromkeys(METRICS, found), breakdowns={})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"source_only": 0.5, "adapted": 0.6, "oracle": 0.7}, 0.5),
        ({"source_only": 0.5, "adapted": 0.4, "oracle": 0.7}, -0.5),
        ({"source_only": 0.5, "adapted": 0.6}, None),
        ({"adapted": 0.6, "oracle": 0.7}, None),
        ({"source_only": 0.7, "adapted": 0.6, "oracle": 0.7}, None),
        ({"source_only": 0.7, "adapted": 0.6, "oracle": 0.5}, None),
        ({"source_only": None, "adapted": 0.6, "oracle": 0.7}, None),
    ],
)
def test_gap_closed(values: dict[str, float | None], expected: float | None) -> None:
    due = None if expected is None else pytest.approx(expected)
    metric = Metric("m", "m", None)
    assert gap_closed(spreads(values, "m"), "adapted", metric) == due
    # What is wrong where this is right: as much of the gap is closed.
    metric = Metric("m", "m", None, higher_is_better=False)
    wrong = {arm: None if value is None else 1 - value for arm, value in values.items()}
    assert gap_closed(spreads(wrong, "m"), "adapted", metric) == due


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"source_only": 0.5, "adapted": 0.4, "oracle": 0.7}, "made it worse"),
        ({"source_only": 0.5, "adapted": 0.6}, "no oracle arm"),
        ({"source_only": 0.7, "adapted": 0.8, "oracle": 0.6}, "no gap to close"),
        ({"adapted": 0.6, "oracle": 0.7}, "no source_only arm"),
        ({"source_only": 0.5, "adapted": 0.6, "oracle": 0.7}, "One seed: no spread known."),
    ],
)
def test_result_is_told_honestly(values: dict[str, float | None], expected: str) -> None:
    arms = spreads(values, *METRICS)
    report = Summary.model_construct(
        breakdowns={},
        gap_closed_intervals={},
        arms=arms,
        recipes={arm: Recipe(train={}, start=None) for arm in arms},
        gap_closed_by_arm={"adapted": {m.key: gap_closed(arms, "adapted", m) for m in tabled()}},
        comparisons={
            arm: {"source_only": compared(value, values.get("source_only"))}
            for arm, value in values.items()
        },
    )

    report = report.model_copy(update={"warnings": findings(report)})
    said = [result_headline(report), *result_sentences(report)]
    assert expected in " ".join(said + [one.text for one in report.warnings])


def test_who_starts_from_the_target_s_labels_has_them() -> None:
    recipes = {
        "source_only": Recipe(train={"source": 1}, start=None),
        "adapted": Recipe(train={"translated": 1}, start="elsewhere.pt"),
        "oracle": Recipe(train={"target": 1}, start=None),
        "tuned": Recipe(train={"translated": 1}, start="oracle"),
        "longer": Recipe(train={"translated": 1}, start="tuned"),
    }
    assert ours(recipes) == ["adapted"]


def test_difference_within_the_spread_is_called_none(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path)
    near = COUNTS | {"adapted": [COUNTS["source_only"][1], COUNTS["source_only"][0]]}
    run = make_run(config, tmp_path / "run", near)

    write_report(config, run, run / "report")

    assert "take it as no difference" in (run / "report" / "report.md").read_text()


def test_equal_runs_give_equal_reports(
    small_world: Path, tmp_path: Path, finished: tuple[Config, Path]
) -> None:
    config = make_config(small_world, tmp_path)
    run = make_run(config, tmp_path / "elsewhere", seconds=5000)

    write_report(config, run, tmp_path / "report")

    for name in ("report.json", "per_class.csv", "report.md"):
        first = (finished[1] / "report" / name).read_bytes()
        assert (tmp_path / "report" / name).read_bytes() == first
    assert str(small_world) not in (tmp_path / "report" / "report.json").read_text()


def test_more_arms_and_one_seed(small_world: Path, tmp_path: Path) -> None:
    arms = DEFAULT_ARMS | {
        "harder": {
            "train": {"translated": 3, "source": 1},
            "start": "adapted",
            "self_training": {},
            "segmentation": {"steps": 7, "augmentation": {"blur": 0}},
        },
        "cheater": {
            "train": {"translated": 1, "target": 1},
            "segmentation": {"encoder": "resnet34"},
        },
    }
    config = make_config(small_world, tmp_path, arms=arms, seeds=[0])
    counts = COUNTS | {"harder": COUNTS["oracle"], "cheater": COUNTS["oracle"]}
    run = make_run(config, tmp_path / "run", counts)

    write_report(config, run, run / "report")

    report = read_report(run / "report")
    assert list(report["arms"]) == ["source_only", "adapted", "harder", "cheater", "oracle"]
    assert report["gap_closed_by_arm"]["harder"]["pixel_accuracy"] == pytest.approx(1)
    assert report["arms"]["adapted"]["mean_iou"]["std"] is None
    assert list(report["comparisons"]["harder"]) == ["source_only", "adapted"]
    assert report["recipes"]["harder"] == {
        "train": {"translated": 0.75, "source": 0.25},
        "frames": {},
        "start": "adapted",
        "self_training": True,
        "settings": {"encoder": "resnet50", "steps": "7", "augmentation.blur": "0.0"},
    }
    assert report["recipes"]["oracle"]["settings"] == {
        "encoder": "resnet50",
        "steps": "40000",
        "augmentation.blur": "0.3",
    }
    page = (run / "report" / "index.html").read_text()
    assert "5 arms of deeplabv3plus (resnet50), deeplabv3plus (resnet34)" in page
    text = (run / "report" / "report.md").read_text()
    assert (
        "75% translated synthetic frames, 25% synthetic frames as they are, real frames without "
        "labels (self-training); starts from adapted" in text
    )
    assert "| augmentation.blur | 0.3 | 0.3 | 0.0 | 0.3 | 0.3 |" in text
    assert "All arms share the recipe." not in text
    # Every arm is told of, and the one that read the target's labels is none of ours.
    assert "adapted 43% / 43% / 36%; harder 100% / 100% / 100%." in text
    assert "harder is the best of these in mean IoU (81.8%)" in text
    assert "In mean IoU, adapted is better than source_only in 100.0%, harder" in text
    assert "harder is better than adapted in 99.6% of the resamplings." in text
    assert "cheater is better" not in text


def test_what_synthetic_frames_are_worth(
    small_world: Path, tmp_path: Path, finished: tuple[Config, Path]
) -> None:
    assert not (finished[1] / "report/budget.csv").exists()
    assert "are worth in labelled" not in (finished[1] / "report/index.html").read_text()
    few = {"target_2": (2, COUNTS["source_only"]), "target_8": (8, COUNTS["oracle"])}
    arms = DEFAULT_ARMS | {
        name: {"train": {"target": {"frames": frames}}} for name, (frames, _) in few.items()
    }
    arms["adapted_target_2"] = {"train": {"translated": 1, "target": {"frames": 2}}}
    config = make_config(small_world, tmp_path, arms=arms)
    counts = COUNTS | {name: tables for name, (_, tables) in few.items()}
    run = make_run(config, tmp_path / "run", counts | {"adapted_target_2": COUNTS["adapted"]})

    write_report(config, run, run / "report")

    report, table = read_report(run / "report"), pd.read_csv(run / "report/budget.csv")
    assert report["recipes"]["target_8"]["frames"] == {"target": 8}
    assert (
        report["comparisons"]["adapted_target_2"]["target_2"]["pixel_accuracy"]
        == (report["comparisons"]["adapted"]["source_only"]["pixel_accuracy"])
    )
    assert list(table["frames"]) == [2, 2, 8]
    assert list(table["pixel_accuracy"]) == pytest.approx([0.6, 0.75, 0.9])
    assert table["pixel_accuracy_change"][1] == pytest.approx(0.15)
    assert list(table["pixel_accuracy_of_oracle"]) == pytest.approx([0.6 / 0.9, 0.75 / 0.9, 1])
    page, text = ((run / "report" / name).read_text() for name in ("index.html", "report.md"))
    section = page[page.index("What synthetic frames are worth in labelled ones") :]
    section = section[: section.index("</section>")]
    for said in (page, text):
        # Halfway from 60% to 90%, over the logarithm of 2 and of 8.
        assert "which reads no label of the target, is worth about 4 labelled frames" in said
        assert "8 labelled frames of the target" in said
    assert "| 2 | with translated synthetic frames | 75.0 ± 7.1%" in text
    for title in ("Per-pixel accuracy", "Mean IoU"):
        plot = section[section.index(f"<h3>{title}</h3>") :]
        names = ["alone", "with translated synthetic frames", "source_only", "adapted", "oracle"]
        assert all(f"{name}</li>" in plot[: plot.index("</ul>")] for name in names)


def test_choice_without_labels(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path, selection={"frames": 2})
    run = make_run(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"No file .*criteria\.json\. Run `sim2real select"):
        write_report(config, run, run / "report")
    # Two pixels of four differ between the seeds of source_only, none between those of adapted.
    looks = {("source_only", 0): 0.2, ("source_only", 1): 0.3}
    looks |= {("adapted", 0): 0.4, ("adapted", 1): 0.5}
    for (arm, seed), value in looks.items():
        folder = run / "selection" / arm / f"seed-{seed}"
        found = {key: value for key in CRITERIA if not key.endswith("_agreement")}
        Unlabelled(frames=["a/1"], criteria=found | {"mirror_agreement": value}).write(folder)
        classes = [[0, 1], [2, 2]] if arm == "adapted" or seed else [[0, 1], [0, 0]]
        write_indices(picture(folder, "a/1"), np.array(classes, np.uint8), None)

    write_report(config, run, run / "report")

    table = pd.read_csv(run / "report/selection.csv", index_col=["arm", "seed"])
    assert list(table.index) == list(looks)  # the oracle reads labels of the target
    assert table["entropy"].tolist() == [0.2, 0.3, 0.4, 0.5]
    assert table["seed_agreement"].tolist() == [0.5, 0.5, 1, 1]
    assert table["pixel_accuracy"].tolist() == [0.55, 0.65, 0.7, 0.8]
    # All that is higher where the scores are higher chooses right, all that should be lower wrong.
    said = {
        "By entropy one would choose source_only; the best in mean IoU is adapted, 17.3 points "
        "better.",
        "By mutual information one would choose adapted, the best in mean IoU.",
        "By agreement of seeds one would choose adapted, the best in mean IoU.",
    }
    markdown = (run / "report/report.md").read_text()
    page = (run / "report/index.html").read_text()
    assert_self_contained(page)
    for sentence in said:
        assert sentence in markdown
        assert sentence in page
    row = r"\| entropy \| lower \| source_only \| \+15\.0 \| \+17\.3 \| −1\.00 \| −1\.00 \| 4 \|"
    assert re.search(row, markdown)
    assert "| agreement with the arm built on | higher | – | – | – | – | – | 0 |" in markdown


def test_without_translation(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path, arms={"source_only": "source"})
    run = make_run(config, tmp_path / "run")
    for name in ("cyclegan", "translated"):
        shutil.rmtree(run / name)

    write_report(config, run, run / "report")

    assert set(read_report(run / "report")["gap_closed"].values()) == {None}
    page = (run / "report" / "index.html").read_text()
    assert "Source frames and their translations" not in page


def test_page_says_where_the_translator_started(small_world: Path, tmp_path: Path) -> None:
    (tmp_path / "gta2cityscapes").mkdir()
    config = make_config(small_world, tmp_path, cyclegan={"seed": 7, "start": "gta2cityscapes"})
    write_report(config, make_run(config, tmp_path / "run"), tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    assert "trained once, with seed 7, from the networks of gta2cityscapes" in page


def test_unscored_arm_is_named(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path)
    run = make_run(config, tmp_path / "run")
    missing = run / "evaluation" / "adapted" / "seed-1" / "evaluation.json"
    missing.unlink()

    with pytest.raises(UserError, match="sim2real evaluate") as error:
        write_report(config, run, run / "report")

    assert str(missing) in str(error.value)
    assert not (run / "report").exists()


def test_data_that_has_moved_leaves_a_line(small_world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "world"
    shutil.copytree(small_world, copy)
    config = make_config(copy, tmp_path)
    run = make_run(config, tmp_path / "run")
    shutil.rmtree(copy)

    write_report(config, run, run / "report")

    page = (run / "report" / "index.html").read_text()
    assert page.count("The frames are not shown.") == 2


def test_page_is_self_contained(finished: tuple[Config, Path]) -> None:
    text = (finished[1] / "report" / "index.html").read_text()

    assert_self_contained(text)
    images = [attributes for tag, attributes in Page(text).tags if tag == "img"]
    # The best, the median and the worst with ground truth and three predictions; pairs; a grid.
    assert len(images) == 3 * 5 + 6 * 2 + 1


def test_names_are_escaped(finished: tuple[Config, Path]) -> None:
    text = (finished[1] / "report" / "index.html").read_text()

    assert NASTY not in text
    assert "&lt;script&gt;alert" in text


def test_page_names_classes_without_source_labels(finished: tuple[Config, Path]) -> None:
    text = (finished[1] / "report" / "index.html").read_text()

    assert "no value of data set " in text


def test_long_logs_are_averaged(tmp_path: Path) -> None:
    lines = [json.dumps({"step": s, "loss": float(s % 2)}) for s in range(1, 10 * POINTS + 1)]
    write_text(tmp_path / "log.jsonl", "\n".join(lines) + '\n{"step": 60')

    log = table_of(list(entries(tmp_path / "log.jsonl")))

    assert len(log) == POINTS
    assert set(log["loss"]) == {0.5}
    assert log["step"].iloc[-1] == 10 * POINTS
    assert not list(entries(tmp_path / "none.jsonl"))


def test_losses_of_all_trainings_are_one_table(finished: tuple[Config, Path]) -> None:
    table = pd.read_csv(finished[1] / "report" / "losses.csv")

    assert list(table)[:3] == ["training", "seed", "step"]
    names = ["translator translated", *DEFAULT_ARMS]
    assert list(table["training"].drop_duplicates()) == names
    last = table[table["step"] == 29].set_index(["training", "seed"])
    assert last.loc[("adapted", 1), "loss"] == pytest.approx(1 / 29)
    assert last.loc[(names[0], 0), "cycle_loss_source"] == pytest.approx(1 / 29)
    assert last["cycle_loss_source"].isna().sum() == 6


def test_comparison(small_world: Path, tmp_path: Path, finished: tuple[Config, Path]) -> None:
    config = make_config(
        small_world, tmp_path, arms={"adapted": "translated"}, cyclegan={"blocks": 3}
    )
    run = make_run(config, tmp_path / "run")

    write_comparison({"first": finished, "few <b>": (config, run)}, tmp_path / "out")

    report = read_report(tmp_path / "out")
    assert report["runs"]["first"] == read_report(finished[1] / "report")
    assert set(report["runs"]["few <b>"]["gap_closed"].values()) == {None}
    # The same counts in both runs.
    assert list(report["comparisons"]) == ["few <b>"]
    assert report["comparisons"]["few <b>"]["adapted"]["mean_iou"] == {
        "difference": 0,
        "interval": [0, 0],
        "better": 0,
    }
    text = (tmp_path / "out" / "index.html").read_text()
    assert_self_contained(text)
    assert "few &lt;b&gt;" in text
    assert "cyclegan.blocks" in text
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| cyclegan.blocks | 9 | 3 |" in markdown
    # Arms that one run lacks are named once.
    assert "| arms.oracle | target | – |" in markdown
    assert "arms.oracle." not in markdown
    assert "arms.adapted" not in markdown


def test_arms_that_some_runs_lack_are_named_once(small_world: Path, tmp_path: Path) -> None:
    def config(**arms: Any) -> Config:
        return make_config(small_world, tmp_path, arms={"source_only": "source", **arms})

    taught = {"train": {"translated": 1, "source": 1}, "self_training": {"masked_weight": 1}}
    bare = {**taught, "self_training": {"masked_weight": 0}}
    runs = {"a": config(), "b": config(taught=taught), "c": config(taught=bare)}
    assert settings_that_differ(runs) == {
        "arms.taught": {"a": "–", "b": "translated + source", "c": "translated + source"},
        "arms.taught.self_training.masked_weight": {"a": "–", "b": "1.0", "c": "0.0"},
    }


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"split": "train"}, ["cityscapes (val)", "cityscapes (train)"]),
        ({"dataset": "mine"}, ["cityscapes (val)", "mine (val)"]),
        ({"images": 3}, ["4 frames", "3 frames"]),
        ({"protocol": {"label_space": "other"}}, ["three", "other"]),
        (
            {"protocol": {"label_space": "three", "classes_averaged": "these, without road"}},
            ["None", "these, without road"],
        ),
        (
            {
                "classes": ["road", "car"],
                "confusion": [[1, 0], [0, 1]],
                "void_predictions": [0, 0],
                "class_accuracy": {"road": 1, "car": 1},
                "class_iou": {"road": 1, "car": 1},
                "class_precision": {"road": 1, "car": 1},
            },
            ["3 classes", "2 classes"],
        ),
    ],
)
def test_unlike_runs_are_not_compared(
    small_world: Path,
    tmp_path: Path,
    finished: tuple[Config, Path],
    change: dict[str, Any],
    names: list[str],
) -> None:
    config = make_config(small_world, tmp_path, arms={"source_only": "source"}, seeds=[0])
    path = tmp_path / "run" / "evaluation" / "source_only" / "seed-0"
    write_evaluation(path, config, "source_only", 0, COUNTS["source_only"][0])
    evaluation = json.loads((path / "evaluation.json").read_text()) | change
    write_json(path / "evaluation.json", evaluation)
    frames = list(evaluation["pictures"])
    by_frame = spread_out(evaluation["confusion"], len(frames))
    np.savez(path / "per_image.npz", names=frames, counts=by_frame)

    with pytest.raises(UserError, match="first and second cannot be compared") as error:
        write_comparison({"first": finished, "second": (config, tmp_path / "run")}, tmp_path)

    assert all(name in str(error.value) for name in names)


def test_what_translations_keep(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path)
    run = make_run(config, tmp_path / "run")
    names = load_label_space(config.label_space).class_names
    before = [[90, 10, 0], [0, 50, 0], [0, 0, 0]]
    after = [[60, 40, 0], [1, 49, 0], [0, 0, 0]]
    drift = {"step": 20, "classes": names, "before": before, "after": after}
    write_json(run / "cyclegan/drift.json", {"features": "resnet18, x", "last": drift})
    rows = {"step": [10, 20], "agreement_after": [0.9, 0.7], "distance": [0.1, 0.2]}
    scores = {"distance_before": [0.5, 0.5], "score": [0.25, 0.61]}
    pd.DataFrame(rows | scores).to_csv(run / "cyclegan/leaderboard.csv", index=False)
    write_report(config, run, tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    section = page[page.index("What translations keep") :]
    section = section[: section.index("</section>")]
    # The largest flip is said; names are escaped.
    assert f"{escape(names[0])} for {escape(names[1])} (+30.0" in section
    assert "resnet18, x" in section
    assert section.index("<td>10</td>") < section.index("<td>20</td>")
    matrices = json.loads(re.search(r'id="drift-1">\s*<script[^>]*>(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert matrices["confusion"] == {"source frames": before, "their translations": after}
