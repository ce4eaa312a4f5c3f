"""What a report says beside its scores: by hand, from counts, with names that mean harm."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.show import PARTIAL, show_result, show_status, write_partial_report
from pipeline.config.settings import Config
from pipeline.data.labels import LabelClass, LabelSpace, load_label_space
from pipeline.errors import UserError
from pipeline.files import write_json, write_text
from pipeline.run.folder import finish_stage
from pipeline.scoring.metrics import METRICS, mean_iou
from pipeline.text import number
from reports import classes, evidence
from reports.comparison import chance, holm
from reports.latex import class_table, escaped
from reports.published import BENCHMARKS, published
from reports.report import write_comparison, write_report
from reports.summary import Comparison, Data, Difference, Recipe, Spread, Summary
from segmentation.scores import FrameCounts, write_scores
from tests.scored_run import COUNTS, NASTY, make_config, make_run, read_report, spread_out

HOSTILE = [
    "<script>alert(1)</script>",
    "../../x",
    "=cmd()",
    "x" * 300,
    "\u202eשלום",
    "a|b\n# c",
    r"50% \input{x} $y_1$",
]


@pytest.fixture(scope="module")
def finished(
    without_page: None, small_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Path]:
    folder = tmp_path_factory.mktemp("finished")
    config = make_config(small_world, folder)
    run = make_run(config, folder / "run")
    write_report(config, run, run / "report")
    return config, run


@pytest.fixture(autouse=True, scope="module")
def without_page() -> Iterator[None]:
    """The page, which has tests of its own, is not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reports.report.report_page", lambda *_, **__: "")
        yield


def three() -> LabelSpace:
    made = [LabelClass(name=n, names=(f"test/{n}",), color=(0, 0, 0)) for n in ("a", "b", "c")]
    return LabelSpace(name="three", classes=tuple(made))


# Numbers.


def test_texts_report_and_counts_have_equal_numbers(finished: tuple[Config, Path]) -> None:
    config, run = finished
    report, text = read_report(run / "report"), (run / "report/report.md").read_text()
    with (run / "report/per_class.csv").open(newline="") as file:
        table = {row["class"]: row for row in csv.DictReader(file)}
    space = load_label_space(config.label_space)
    for arm in config.arms:
        counts = [
            np.load(run / f"evaluation/{arm}/seed-{seed}/per_image.npz")["counts"].sum(0)
            for seed in (0, 1)
        ]
        for metric in METRICS.values():
            if not metric.table:
                continue
            mean = float(np.mean([metric.formula(each, space) for each in counts]))  # type: ignore[misc]
            assert report["arms"][arm][metric.key]["mean"] == pytest.approx(mean, abs=1e-12)
            row = re.search(rf"^\| {arm} \|.*$", text, re.M)
            assert row is not None
            assert number(mean)[:-1] in row[0]
        for index, name in enumerate(space.class_names[:2]):
            each = [
                c[index, index] / (c[index].sum() + c[:, index].sum() - c[index, index])
                for c in counts
            ]
            score = report["class_scores"]["class_iou"][arm][name]
            assert score["mean"] == pytest.approx(np.mean(each))
            assert score["mean"] == report["class_iou"][arm][name]
            assert score["interval"][0] <= score["mean"] <= score["interval"][1]
            assert float(table[name][f"iou_{arm}"]) == pytest.approx(score["mean"])
            assert float(table[name][f"iou_{arm}_low"]) == score["interval"][0]
            shown = f"{number(score['mean'])[:-1]} ± {100 * score['std']:.1f}%"
            line = next(
                line
                for line in text.splitlines()
                if line.startswith("| ") and line.count("IoU") == 0 and shown in line
            )
            assert line
        assert sum(v for v in report["lost_iou"][arm].values() if v) == pytest.approx(1)
    assert report["headline"] in text.replace("&lt;", "<").replace("&gt;", ">")
    closed = report["gap_closed_by_arm"]["adapted"]["pixel_accuracy"]
    assert f"closes {100 * closed:.0f}%" in report["headline"]
    assert report["data"]["test_frames"] == {"road": 4, NASTY: 4, "bicyclist": 0}


def test_a_confusion_costs_what_setting_it_right_gains() -> None:
    counts = np.array([[60, 30, 0, 10], [5, 95, 0, 0], [0, 0, 50, 0]])
    found = classes.confusions(counts, three())
    assert [(one.truth, one.seen) for one in found] == [("a", "b"), ("a", "void"), ("b", "a")]
    right = counts.copy()
    right[0, :2] = 90, 0
    gain = float(mean_iou(right, three()) - mean_iou(counts, three()))
    assert found[0].cost == pytest.approx(gain)
    assert found[0].share == 0.3
    assert found[0].text.startswith("30.0% of a is taken for b, which costs ")
    assert "is given no class" in found[1].text
    assert classes.confusions(np.diag([5, 5, 5, 0])[:3], three()) == []


def test_floors_are_those_of_the_largest_class_everywhere() -> None:
    counts = np.array([[0, 60, 0, 0], [30, 0, 0, 0], [0, 0, 10, 0]])
    found = classes.floors(counts, three())
    assert found["pixel_accuracy"] == 0.6
    assert found["mean_iou"] == pytest.approx(0.6 / 3)


def test_frames_that_resemble_their_neighbours() -> None:
    class Scored:
        def __init__(self, correct: Any) -> None:
            counts = np.zeros((len(correct), 2, 3), np.int64)
            counts[:, 0, 0], counts[:, 0, 1] = correct, 100 - np.asarray(correct)
            names = [f"{i:04}" for i in range(len(correct))]
            self.frames = type("F", (), {"names": names, "counts": counts})()

    alike: Any = {"one": [Scored([10] * 10 + [90] * 10)]}
    apart: Any = {"one": [Scored([10, 90] * 10)]}
    assert (classes.resemblance(alike, None) or 0) > 0.8
    assert (classes.resemblance(apart, None) or 0) < -0.8
    assert classes.resemblance({"one": [Scored([1, 2, 3])]}, None) is None  # type: ignore[list-item]


def test_losses_that_fall() -> None:
    assert evidence.falling([1.0] * 10) == 0
    assert evidence.falling([*[1.0] * 8, 0.5, 0.5]) == pytest.approx(0.5)
    assert evidence.falling([1.0] * 9) is None


def test_what_a_gate_has_counted_is_what_is_said(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path, seeds=[0])
    run = make_run(config, tmp_path / "run")
    overall = {"pixels": 9, "before": 0.9, "after": 0.3, "flipped": 0.7}
    gate: dict[str, Any] = dict.fromkeys(("translation", "arm"), "a") | {"overall": overall}
    gate |= {key: [] for key in ("classes", "before", "after", "flips", "quarantined", "worst")}
    gate |= {"frames": 3, "threshold": 0.5, "by_class": {}, "sheet": None, "ignored": None}
    write_json(run / "gates/translated/drift.json", gate)
    for path in (run / "translated").rglob("*.png"):
        Image.new("RGB", (64, 32), (128, 128, 128)).save(path)
    write_report(config, run, run / "report")
    report = read_report(run / "report")
    content = report["translations"]["translated"]
    assert (content["contrast"]["translated"], content["entropy"]["translated"]) == (0, 0)
    assert content["agreement"] == {"before": 0.9, "after": 0.3, "flipped": 0.7}
    assert "the translations translated have lost their content" in report["headline"]
    said = {one["rule"]: one["text"] for one in report["warnings"]}
    assert "in 30% of the pixels after translation, in 90% before" in said["lost_content"]


# More synthetic data?


def learning(frames: dict[str, int | None], score: dict[str, float], margin: float) -> Summary:
    recipes = {
        arm: Recipe(train={"source": 1}, frames={"source": n} if n else {}, start=None)
        for arm, n in frames.items()
    }
    arms = {arm: dict.fromkeys(METRICS, Spread(mean=mean)) for arm, mean in score.items()}

    def compared(arm: str, than: str) -> Comparison:
        gap = score[arm] - score[than]
        found = Difference(difference=gap, interval=(gap - margin, gap + margin), better=1)
        return Comparison(scores=dict.fromkeys(METRICS, found), breakdowns={})

    return Summary.model_construct(
        recipes=recipes,
        arms=arms,
        comparisons={
            arm: {than: compared(arm, than) for than in arms if than != arm} for arm in arms
        },
    )


@pytest.mark.parametrize(
    ("margin", "said"), [(0.01, "still help"), (0.2, "that may be chance"), (-0.01, "still help")]
)
def test_score_against_the_number_of_source_frames(margin: float, said: str) -> None:
    frames = {"source_only": None, "few": 100, "some": 400}
    report = learning(frames, {"few": 0.3, "some": 0.35, "source_only": 0.4}, margin)
    found = Data(
        shares={}, test_frames={}, source_points=classes.source_points(report.recipes, 2000)
    )
    assert [(p.arm, p.frames) for p in found.source_points] == [
        ("few", 100),
        ("some", 400),
        ("source_only", 2000),
    ]
    (line,) = classes.buying_sentences(report, found)
    assert "From 400 to 2,000 source frames, mean IoU goes from 35.0% to 40.0%" in line
    assert said in line
    assert classes.source_points({"source_only": report.recipes["source_only"]}, 2000) == []


def test_an_arm_of_fewer_source_frames_is_on_the_curve(small_world: Path, tmp_path: Path) -> None:
    arms = {"source_only": "source", "few": {"train": {"source": {"frames": 2}}}}
    config = make_config(small_world, tmp_path, arms=arms)
    counts = {"source_only": COUNTS["adapted"], "few": COUNTS["source_only"]}
    run = make_run(config, tmp_path / "run", counts)
    write_report(config, run, run / "report")
    report = read_report(run / "report")
    assert [(p["arm"], p["frames"]) for p in report["data"]["source_points"]] == [
        ("few", 2),
        ("source_only", 8),
    ]
    assert "From 2 to 8 source frames" in " ".join(report["data"]["sentences"])
    assert "few" in report["comparisons"]["source_only"]
    source, target = (report["data"]["shares"][name] for name in ("source", "target"))
    assert sum(source.values()) == pytest.approx(1)
    assert target is None  # no arm reads its labels


# Runs that are not whole.


def test_a_run_that_is_not_whole_is_reported_as_far_as_it_is(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(small_world, tmp_path)
    run = make_run(config, tmp_path / "run")
    shutil.rmtree(run / "evaluation/oracle")
    shutil.rmtree(run / "evaluation/adapted/seed-1")

    assert write_partial_report(run)
    show_result(run, PARTIAL)

    report = read_report(run / PARTIAL)
    assert list(report["arms"]) == ["source_only", "adapted"]
    assert list(report["arms"]["source_only"]["mean_iou"]["seeds"]) == ["0"]
    said = " ".join(report["missing"])
    assert "Not scored, and in no table: oracle." in said
    assert "seed 1" in said
    assert "no oracle arm" in said
    assert set(report["gap_closed_by_arm"]["adapted"].values()) == {None}
    text = (run / PARTIAL / "report.md").read_text()
    assert "closes" not in text
    assert "| oracle |" not in text
    shown = capsys.readouterr().out
    assert str(run / PARTIAL / "index.html") in shown
    assert report["headline"][:30] in shown
    shutil.rmtree(run / "evaluation")
    with pytest.raises(UserError, match=r"Nothing in .* has been scored"):
        write_partial_report(run)


def test_a_run_without_translation_says_so(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path, arms={"source_only": "source"}, seeds=[0])
    run = make_run(config, tmp_path / "run")
    write_report(config, run, run / "report")
    said = " ".join(read_report(run / "report")["missing"])
    assert "No arm is trained on translated frames." in said
    assert (
        "The shares of the classes in the target were not counted: no arm reads its labels" in said
    )


def test_status_and_the_end_of_a_run_say_the_same(
    finished: tuple[Config, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished[1]
    finish_stage(run, "report", {}, seconds=1)
    show_result(run)
    ended = capsys.readouterr().out
    show_status(run)
    state = capsys.readouterr().out
    report = read_report(run / "report")
    for said in (ended, state):
        assert report["headline"] in said
        assert f"Report: {run / 'report/index.html'}" in said
        assert f"Next: {report['advice'].replace('RUN', str(run))}" in said
    (run / "report/stage.json").unlink()
    show_status(run)
    assert f"Next: sim2real run {run}/config.yaml --run {run}" in capsys.readouterr().out


def test_prefect_shows_the_first_screen_and_the_classes(
    finished: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import adapt

    left: dict[str, Any] = {}
    for kind in ("table", "markdown", "link"):
        monkeypatch.setattr(
            adapt,
            f"create_{kind}_artifact",
            lambda *what, key, **_: left.setdefault(key, what[0] if what else None),
        )
    adapt._show(finished[1])
    report = read_report(finished[1] / "report")
    assert set(left) == {
        f"run-{name}" for name in ("scores", "headline", "classes", "report", "samples")
    }
    assert left["run-headline"].startswith("**Not to be relied on yet (")
    assert all(one["text"][:20] in left["run-headline"] for one in report["warnings"])
    assert [row["class"] for row in left["run-classes"]] == ["road", NASTY, "bicyclist"]
    assert left["run-classes"][0]["oracle"] == number(report["class_iou"]["oracle"]["road"])


def test_a_step_that_did_nothing_is_no_gain_in_the_ladder(
    small_world: Path, tmp_path: Path
) -> None:
    arms = {
        "source_only": "source",
        "adapted": {"train": "translated", "base": "source_only"},
        "taught": {"train": "translated", "base": "adapted", "self_training": {}},
    }
    config = make_config(small_world, tmp_path, arms=arms)
    run = make_run(config, tmp_path / "run", COUNTS | {"taught": COUNTS["adapted"]})
    write_report(config, run, run / "report")
    with (run / "report/steps.csv").open(newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows["taught"]["title"] == "taught (did nothing)"
    assert rows["taught"]["note"] == "taught equals adapted to the last digit"
    assert rows["adapted"]["note"] == ""
    assert "Highest mean IoU without target labels: adapted," in (
        (run / "report/report.md").read_text()
    )


# Others' results.


def test_results_of_others_stand_beside_runs_of_their_data_alone(
    small_world: Path, tmp_path: Path
) -> None:
    config = make_config(small_world, tmp_path)
    protocol: dict[str, Any] = {
        "resolution": "ground truth",
        "classes_averaged": "those in the ground truth or predicted",
    }
    fields: dict[str, Any] = {"label_space": "cityscapes19", "images": 500, "protocol": protocol}
    report = Summary.model_construct(**fields)
    found = published(config, report, 24966)
    assert found == list(BENCHMARKS[0].results)
    assert all(one.source and 0 < one.source_only < one.adapted < one.oracle < 1 for one in found)
    assert published(config, report, 24965) == []
    assert published(config, report, None) == []
    for change in ({"images": 499}, {"label_space": "camvid11"}, {"protocol": {}}):
        assert published(config, Summary.model_construct(**fields | change), 24966) == []
    other = config.model_copy(update={"test": config.test.model_copy(update={"split": "train"})})
    assert published(other, report, 24966) == []


# Several runs.


def test_chances_by_hand() -> None:
    assert chance(np.full(999, 1.0)) == pytest.approx(2 / 1000)
    assert chance(np.array([1.0, -1.0, 1.0, -1.0])) == 1
    assert chance(np.zeros(10)) == 1
    assert holm({("a", "x"): 0.01, ("b", "x"): 0.04, ("c", "x"): 0.03}) == pytest.approx(
        {("a", "x"): 0.03, ("b", "x"): 0.06, ("c", "x"): 0.06}
    )


def test_comparison_ranks_and_says_who_is_tied(
    small_world: Path, tmp_path: Path, finished: tuple[Config, Path]
) -> None:
    config = make_config(small_world, tmp_path, arms={"adapted": "translated"})
    better = [[[8, 2, 0], [2, 8, 0], [0, 0, 0]], [[9, 1, 0], [1, 9, 0], [0, 0, 0]]]
    run = make_run(config, tmp_path / "run", {"adapted": better})
    runs = {"first": finished, "=few $_1$": (config, run)}
    write_comparison(runs, tmp_path / "out")
    write_comparison(runs, tmp_path / "again")
    board = read_report(tmp_path / "out")["leaderboard"]
    assert [(p["run"], p["arm"]) for p in board] == [
        ("first", "oracle"),
        ("=few $_1$", "adapted"),
        ("first", "adapted"),
        ("first", "source_only"),
    ]
    assert [p["target_labels"] for p in board] == [True, False, False, False]
    assert board[1]["behind"] is None
    gap = board[2]["score"]["mean"] - board[1]["score"]["mean"]
    assert board[2]["behind"]["difference"] == pytest.approx(gap)
    assert board[2]["behind"]["interval"][1] < 0
    assert board[3]["tied"] is False
    table = (tmp_path / "out/table.tex").read_text()
    assert r"=few \$\_1\$: adapted" in table
    assert table.count(r"\\") == 1 + 4
    assert table.count(r"\textbf") == 3
    with (tmp_path / "out/leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["run"] == "'=few $_1$"
    names = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("leaderboard", "classes") for kind in ("png", "svg")
    }
    for name in names:
        made = (tmp_path / "out/figures" / name).read_bytes()
        assert made == (tmp_path / "again/figures" / name).read_bytes()


# Names that mean harm.


def test_hostile_names_are_harmless(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path, seeds=[0])
    space = json.loads(json.dumps({"name": "three", "classes": []}))
    first, second, third = HOSTILE[:3]
    for name, label, color in (
        (first, "road", 1),
        (second, "building", 2),
        (third, "bicyclist", 3),
    ):
        space["classes"].append({"name": name, "names": [label], "color": [color] * 3})
    write_text(tmp_path / "space.yaml", json.dumps(space))
    tests = config.test.model_copy(update={"name": HOSTILE[3]})
    source = config.source.model_copy(update={"name": HOSTILE[4]})
    config = config.model_copy(update={"test": tests, "source": source})
    run = make_run(config, tmp_path / "run")
    write_report(config, run, tmp_path / "one")
    write_comparison({HOSTILE[1]: (config, run), HOSTILE[5]: (config, run)}, tmp_path / "more")
    expected = {"one", "more", "run", "space.yaml", "config.yaml"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    for path in (*(tmp_path / "one").rglob("*"), *(tmp_path / "more").rglob("*")):
        assert re.fullmatch(r"[a-z_-]+(\.[a-z]+)?", path.name)
        if path.suffix in (".md", ".svg"):
            assert "<script" not in path.read_text()
        if path.suffix == ".md":
            for block in path.read_text().split("\n\n"):
                table = [line for line in block.splitlines() if line.startswith("|")]
                assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) <= 1, table
        if path.suffix == ".csv":
            with path.open(newline="") as file:
                cells = [cell for row in csv.reader(file) for cell in row]
            numbers = re.compile(r"-?[0-9.]+(e-?[0-9]+)?")
            assert not [c for c in cells if c[:1] in "=+-@\t\r" and c and not numbers.fullmatch(c)]
    assert escaped(HOSTILE[6]) == r"50\% \textbackslash{}input\{x\} \$y\_1\$"


def test_each_frame_has_a_column_for_each_class(small_world: Path, tmp_path: Path) -> None:
    config = make_config(small_world, tmp_path)
    space = three().model_copy(
        update={
            "classes": tuple(
                one.model_copy(update={"name": name})
                for one, name in zip(three().classes, HOSTILE, strict=False)
            )
        }
    )
    counts = spread_out([[6, 4, 0], [5, 5, 0], [0, 0, 0]])
    frames = [FrameCounts(each) for each in counts]
    write_scores(tmp_path, space, config.test, ["=1+1", "../x", "<b>", "y"], frames, {})
    with (tmp_path / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["name"] == "'=1+1"
    # Of the first frame: two pixels right, one taken for the other class, two the other way.
    assert float(rows[0][f"iou {HOSTILE[0]}"]) == pytest.approx(2 / 5)
    assert rows[0][f"iou {HOSTILE[2]}"] == ""


def test_a_latex_table_has_others_results_as_such() -> None:
    row: Any = type(
        "Row",
        (),
        {
            "run": "r",
            "arm": "a",
            "target_labels": False,
            "classes": {"road": Spread(mean=0.5), "car": Spread(mean=None)},
            "mean": Spread(mean=0.5),
        },
    )()
    table = class_table([row], "x_y", BENCHMARKS[0].results[:1])
    assert r"a & \textbf{50.0} & -- & \textbf{50.0} \\" in table
    assert "published by others" in table
    assert r"on x\_y." in table
    assert re.search(r"CycleGAN \(DeepLabV2.*\) & & & 47\.0", table)
