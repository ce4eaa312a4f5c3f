"""The ladder of `run --ablate`: its rows, the stages they share, its table, continuing."""

import dataclasses
import os
import shutil
import signal
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pytest
import yaml

from flows import cli as cli_module
from flows.ablate import ablate, ladder, take_over
from flows.plan import plan
from flows.prepare import prepare
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.data.labels import load_label_space
from pipeline.errors import UserError
from pipeline.files import read_json, write_json, write_text
from pipeline.run.folder import locked, read_run
from pipeline.run.stage import Stage, check, is_done, run_stage
from pipeline.scoring.confusion import ConfusionMatrix
from reports.ladder import write_ladder
from tests.conftest import TINY, cli_command
from tests.test_flow import wait_for

SHORT = [
    *["segmentation.steps=2", "cyclegan.steps_per_epoch=1", "evaluation.pictures=0"],
    "seeds=[0, 1]",
    "arms={source_only: source, adapted: translated, oracle: target, "
    "mine: {train: translated, self_training: {mask_block: 16, masked_weight: 0.5}}}",
]
ROWS = [
    *["no_augmentation", "source_only", "histogram_matching", "fda", "cyclegan"],
    *["semantic_consistency", "self_training", "rare_class_sampling", "masked_consistency"],
    "oracle",
]
ARM = {"no_augmentation": "source_only", "source_only": "source_only", "oracle": "oracle"}
ARM |= dict.fromkeys(ROWS[2:6], "adapted") | dict.fromkeys(ROWS[6:9], "mine")


class Workshop:
    """Does runs stage by stage and counts; stops where it is told to.

    Args:
        pretend: files are made up, so that it takes no time; scores come from a generator.
    """

    def __init__(self, *, pretend: bool = True) -> None:
        self.pretend = pretend
        self.made: list[tuple[str, str]] = []
        self.stop: str | None = None

    def __call__(self, run: Path) -> None:
        config = read_run(run)
        stages = plan(config, run)
        inputs = check(run, stages)
        for stage in stages:
            if stage.name == self.stop:
                raise KeyboardInterrupt
            if self.pretend:
                work = partial(make_up, config, stage, len(self.made))
                stage = dataclasses.replace(stage, work=work)
            if run_stage(run, stage, inputs[stage.name]):
                self.made.append((run.name, stage.name))


def make_up(config: Config, stage: Stage, number: int, folder: Path) -> None:
    """Files in the places of a stage's, which took `number` + 1 seconds."""
    write_text(folder / "checkpoints/last.pt", stage.name)
    write_json(
        folder / "progress.json", {"done": 1, "total": 1, "unit": "x", "seconds": number + 1}
    )
    if stage.command == "evaluate":
        _, arm, seed = stage.name.split("/")
        space = load_label_space(config.label_space)
        counts = np.random.default_rng(number).integers(0, 50, (4, 19, 20))
        counts[:, :, -1] = 0  # no void predictions
        matrix = ConfusionMatrix.from_counts(counts.sum(axis=0)[:, :19].tolist())
        about = {"protocol": {"label_space": space.name}, "dataset": "toy", "split": "val"}
        about |= {"images": 4, "arm": arm, "seed": int(seed[5:]), "classes": space.class_names}
        about |= {"pictures": {}, "confusion": matrix.counts.tolist(), **matrix.metrics(space)}
        write_json(folder / "evaluation.json", about)
        np.savez(folder / "per_image.npz", names=["a", "b", "c", "d"], counts=counts)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """A configuration of short stages, as a file."""
    path = tmp_path_factory.mktemp("ladder") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY).replace("${WORLD}", str(world)))
    return path


@pytest.fixture(scope="module")
def climbed(settings: Path) -> tuple[Path, Workshop]:
    """A ladder that was stopped once and continued, and what was made for it."""
    workshop, folder = Workshop(), settings.parent / "climbed"
    workshop.stop = "translated"
    with pytest.raises(KeyboardInterrupt):
        ablate(load_config(settings, SHORT), folder, workshop)
    first = read_json(folder / "ladder.json")
    done = [row["row"] for row in first["rows"] if row["scores"]]
    assert done == ["no_augmentation", "source_only", "oracle"]
    assert "3 of 10 rows are done" in (folder / "index.html").read_text()
    workshop.stop = None
    ablate(load_config(settings, SHORT), folder, workshop)
    return folder, workshop


def test_equal_stages_are_made_once(climbed: tuple[Path, Workshop]) -> None:
    folder, workshop = climbed
    made = Counter(name for _, name in workshop.made)
    assert made["cyclegan"] == 2  # without and with semantic consistency
    assert made["translated"] == 4
    assert made["segmentation/source_only/seed-0"] == 2
    assert made["segmentation/adapted/seed-0"] == 4
    assert made["segmentation/mine/seed-0"] == made["segmentation/mine/seed-1"] == 3
    assert made["segmentation/oracle/seed-0"] == 1
    assert made["report"] == 10
    for name in ("cyclegan/checkpoints/last.pt", "translated/checkpoints/last.pt"):
        shared = [folder / row / name for row in ROWS[5:9]]
        assert len({path.stat().st_ino for path in shared}) == 1
        assert shared[0].stat().st_ino != (folder / "cyclegan" / name).stat().st_ino
    assert not list(folder.rglob(".taken-*"))


def test_rows_are_ordinary_runs(climbed: tuple[Path, Workshop]) -> None:
    folder, _ = climbed
    for row in ROWS:
        config = read_run(folder / row)
        assert config.name == f"tiny-{row}"
        stages = plan(config, folder / row)
        check(folder / row, stages)
        assert all(is_done(folder / row, stage.name) for stage in stages)


def test_the_table(climbed: tuple[Path, Workshop]) -> None:
    folder, _ = climbed
    found = read_json(folder / "ladder.json")
    assert [row["row"] for row in found["rows"]] == ROWS
    table = pd.read_csv(folder / "ladder.csv", index_col="row")
    scores: dict[str, dict[str, float]] = {}
    for row in found["rows"]:
        files = [folder / row["row"] / f"evaluation/{ARM[row['row']]}/seed-{k}" for k in (0, 1)]
        seeds = [read_json(path / "evaluation.json") for path in files]
        for metric in ("pixel_accuracy", "mean_iou"):
            score, mean = row["scores"][metric], fmean(seed[metric] for seed in seeds)
            scores.setdefault(row["row"], {})[metric] = mean
            assert score["mean"] == pytest.approx(mean)
            assert score["std"] == pytest.approx(stdev(seed[metric] for seed in seeds))
            assert score["interval"][0] < mean < score["interval"][1]
            assert table.loc[row["row"], metric] == pytest.approx(mean)
    for row in found["rows"]:
        for metric in ("pixel_accuracy", "mean_iou"):
            low, high = scores["source_only"][metric], scores["oracle"][metric]
            value, base, change = scores[row["row"]][metric], row["base"], row["change"][metric]
            if base:
                assert change["difference"] == pytest.approx(value - scores[base][metric])
                assert change["interval"][0] < change["difference"] < change["interval"][1]
            else:
                assert change is None
            closed = row["gap_closed"][metric]
            if high > low and row["row"] not in ("source_only", "oracle"):
                assert closed == pytest.approx((value - low) / (high - low))
            else:
                assert closed is None
    page = (folder / "index.html").read_text()
    for row in ROWS:
        assert f'href="{row}/report/index.html"' in page
    text = (folder / "report.md").read_text()
    assert "Fourier domain adaptation" in text
    assert "to do" not in page
    for shown in (page, text):  # who is named best, and by what
        assert "Highest mean IoU without target labels" in shown
        assert "The labels of the test set chose these rows" in shown


def test_hours_are_those_of_the_stages_that_a_row_needs(climbed: tuple[Path, Workshop]) -> None:
    folder, _ = climbed
    rows = {row["row"]: row for row in read_json(folder / "ladder.json")["rows"]}

    def seconds(row: str, *names: str) -> float:
        files = [folder / row / name / "stage.json" for name in names]
        return sum(float(read_json(path)["seconds"]) for path in files)

    judge, start = "segmentation/source_only/seed-0", ("cyclegan", "translated")
    ends = [f"{kind}/mine/seed-{k}" for kind in ("segmentation", "evaluation") for k in (0, 1)]
    assert rows["self_training"]["seconds"] == pytest.approx(
        seconds("self_training", judge, *start, *ends)
    )
    ends = [f"{kind}/adapted/seed-{k}" for kind in ("segmentation", "evaluation") for k in (0, 1)]
    assert rows["fda"]["seconds"] == pytest.approx(seconds("fda", "translated", *ends))


def test_a_second_call_makes_nothing(climbed: tuple[Path, Workshop], settings: Path) -> None:
    folder, _ = climbed
    again = Workshop()
    ablate(load_config(settings, SHORT), folder, again)
    assert again.made == []


def test_a_plain_run_lends_its_stages(climbed: tuple[Path, Workshop], settings: Path) -> None:
    folder, _ = climbed
    config = load_config(settings, SHORT)
    other = settings.parent / "other"
    row = ladder(config)[4]
    taken = take_over(row.config, other, [settings.parent / "absent", folder / "cyclegan"])
    assert taken == [
        *["cyclegan", "translated", "segmentation/adapted/seed-0", "evaluation/adapted/seed-0"],
        *["segmentation/adapted/seed-1", "evaluation/adapted/seed-1", "report"],
    ]
    assert take_over(row.config, other, [folder / "cyclegan"]) == []


def test_only_equal_and_complete_stages_are_taken(
    climbed: tuple[Path, Workshop], settings: Path, tmp_path: Path
) -> None:
    folder, _ = climbed
    config = load_config(settings, SHORT)
    judged = ladder(config)[5].config
    assert take_over(judged, tmp_path / "a", [folder / "cyclegan"]) == []
    half = tmp_path / "half"
    shutil.copytree(folder / "semantic_consistency", half)
    (half / "cyclegan/stage.json").unlink()
    taken = take_over(judged, tmp_path / "b", [half])
    assert "cyclegan" not in taken
    assert "segmentation/source_only/seed-0" in taken
    # A stage that was begun goes on as it is.
    begun = tmp_path / "c/cyclegan"
    begun.mkdir(parents=True)
    shutil.copy(half / "cyclegan/inputs.json", begun)
    assert "cyclegan" not in take_over(judged, tmp_path / "c", [folder / "semantic_consistency"])
    assert [path.name for path in begun.iterdir()] == ["inputs.json"]


def test_a_kill_while_files_are_linked(
    climbed: tuple[Path, Workshop],
    settings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = climbed
    config = ladder(load_config(settings, SHORT))[4].config
    links = []

    def killed(source: str, place: str) -> None:
        links.append(place)
        if len(links) > 3:
            raise KeyboardInterrupt
        raise OSError("this file system has no links")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("flows.ablate.os.link", killed)
        take_over(config, tmp_path, [folder / "cyclegan"])
    assert not (tmp_path / "cyclegan").exists()
    assert list(tmp_path.glob(".taken-*"))
    (tmp_path / "config.yaml").touch()
    with locked(tmp_path):
        assert "cyclegan" in take_over(config, tmp_path, [folder / "cyclegan"])
    assert not list(tmp_path.rglob(".taken-*"))


def test_files_are_copied_where_links_fail(
    climbed: tuple[Path, Workshop],
    settings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = climbed
    config = ladder(load_config(settings, SHORT))[3].config

    def refused(source: str, place: str) -> None:
        raise OSError("this file system has no links")

    monkeypatch.setattr("flows.ablate.os.link", refused)
    take_over(config, tmp_path, [folder / "fda"])
    paths = [base / "translated/checkpoints/last.pt" for base in (tmp_path, folder / "fda")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_ino != paths[1].stat().st_ino


def rows_of(tiny: Path, *settings: str) -> dict[str, Config]:
    return {row.name: row.config for row in ladder(load_config(tiny, list(settings)))}


def test_rows_differ_in_what_they_say(tiny: Path) -> None:
    rows = rows_of(tiny)
    assert list(rows) == ROWS
    assert rows["no_augmentation"].segmentation.augmentation.color == 0
    assert rows["source_only"].segmentation == load_config(tiny).segmentation
    methods = {name: config.translation.method for name, config in rows.items()}
    assert methods["fda"] == "fda"
    assert methods["histogram_matching"] == "histogram_matching"
    assert rows["cyclegan"].cyclegan.semantics is None
    for name in ROWS[5:9]:
        semantics = rows[name].cyclegan.semantics
        assert semantics is not None
        assert semantics.consistency == 1
    for name, rare, masked in zip(ROWS[6:9], (False, True, True), (0, 0, 1), strict=True):
        config = rows[name]
        taught = config.arms["self_trained"].self_training
        assert taught is not None
        assert taught.masked_weight == masked
        assert (config.recipe("self_trained").rare_class_sampling is not None) == rare
    assert list(rows["oracle"].arms) == ["oracle"]


def test_own_settings_are_those_of_the_rows_that_add_them(tiny: Path) -> None:
    mine = (
        "arms={plain: source, adapted: translated, best: {train: {translated: 1, source: 1}, "
        "start: adapted, self_training: {confidence: 0.5, masked_weight: 0.7}}}"
    )
    rows = rows_of(
        tiny,
        *[mine, "cyclegan.semantics={consistency: 3, probe_frames: 4}"],
        *["translation.checkpoint=best", "segmentation.rare_class_sampling={temperature: 0.1}"],
    )
    assert "oracle" not in rows
    assert rows["cyclegan"].translation.checkpoint == "last"
    assert rows["cyclegan"].segmentation.rare_class_sampling is None
    judged = rows["semantic_consistency"]
    assert judged.cyclegan.semantics is not None
    assert judged.cyclegan.semantics.consistency == 3
    assert judged.translation.checkpoint == "best"
    last = rows["masked_consistency"]
    assert list(last.arms) == ["source_only", "adapted", "best"]
    assert last.arms["best"].start == "adapted"
    assert last.arms["best"].train == {"translated": 1, "source": 1}
    taught, rare = last.arms["best"].self_training, last.recipe("best").rare_class_sampling
    assert taught is not None
    assert rare is not None
    assert (taught.confidence, taught.masked_weight, rare.temperature) == (0.5, 0.7, 0.1)
    assert last.recipe("adapted").rare_class_sampling is None
    before = rows["self_training"].arms["best"].self_training
    assert before is not None
    assert before.masked_weight == 0


def test_only_an_arm_that_sees_no_target_labels_is_a_recipe(tiny: Path) -> None:
    rows = rows_of(
        tiny,
        "arms={oracle: target, self_trained: translated, a: {train: source, self_training: {}}, "
        "b: {train: translated, start: oracle, self_training: {}}, "
        "c: {train: {translated: 1, target: 1}, self_training: {}}}",
    )
    arms = rows["masked_consistency"].arms
    assert list(arms) == ["source_only", "self_trained"]
    assert arms["self_trained"].self_training is not None
    assert arms["self_trained"].train == {"translated": 1}


def test_given_weights_are_the_translator(tiny: Path, tmp_path: Path) -> None:
    weights = tmp_path / "G.pth"
    found = ladder(load_config(tiny, [f"translation.weights={weights}"]))
    titles = {row.name: row.title for row in found}
    assert titles["cyclegan"] == "generator G.pth"
    assert "semantic_consistency" not in titles
    by_name = {row.name: row for row in found}
    assert by_name["self_training"].base == "cyclegan"
    assert by_name["self_training"].config.translation.weights == weights
    assert by_name["fda"].config.translation.weights is None


def test_a_folder_that_holds_a_run(climbed: tuple[Path, Workshop], settings: Path) -> None:
    folder, _ = climbed
    with pytest.raises(UserError, match="holds a run, and a ladder is a folder of runs"):
        ablate(load_config(settings, SHORT), folder / "fda", Workshop())


def test_rows_made_with_other_settings(climbed: tuple[Path, Workshop], settings: Path) -> None:
    folder, _ = climbed
    with pytest.raises(UserError, match=r"config.steps: 2 -> 3"):
        ablate(load_config(settings, [*SHORT, "segmentation.steps=3"]), folder, Workshop())
    assert read_run(folder / "oracle").segmentation.steps == 2


def test_all_rows_are_looked_at_before_any_work(settings: Path, tmp_path: Path) -> None:
    workshop = Workshop()
    wrong = load_config(settings, [*SHORT, "cyclegan.crop=[16,16]"])
    with pytest.raises(UserError, match=r"cyclegan.crop \[16, 16\] is smaller than the"):
        ablate(wrong, tmp_path / "ladder", workshop)
    assert workshop.made == []


def test_force_is_for_one_run(tiny: Path) -> None:
    with pytest.raises(UserError, match="--force is for one run"):
        cli_module.run(tiny, settings=SHORT, force=["cyclegan"], ladder=True)


def test_status_of_a_ladder(
    climbed: tuple[Path, Workshop], capsys: pytest.CaptureFixture[str]
) -> None:
    cli_module.status(climbed[0])
    shown = capsys.readouterr().out
    assert "histogram matching" in shown
    assert "One row: sim2real status" in " ".join(shown.split())


def test_titles_are_text(settings: Path, tmp_path: Path) -> None:
    rows = ladder(load_config(settings, [*SHORT, "translation.weights=<b>&.pth"]))
    write_ladder("x", rows, tmp_path, {row.name: None for row in rows})
    page = (tmp_path / "index.html").read_text()
    assert "generator &lt;b&gt;&amp;.pth" in page
    assert page.count("to do") == len(rows)


@pytest.mark.slow
def test_killed_and_continued_gives_what_runs_alone_give(settings: Path, tmp_path: Path) -> None:
    """No stage that was taken over, and no kill, changes a score."""
    chosen = [item for setting in SHORT for item in ("--set", setting)]
    folder = tmp_path / "ladder"
    command = cli_command("run", settings, "--ablate", "--run", folder, *chosen)
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    at_work = folder / "semantic_consistency/cyclegan/checkpoints/last.pt"
    wait_for(at_work.is_file, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "rare_class_sampling/report").exists()
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Row 9 of 10: + masked consistency" in result.stderr
    assert "taken over: segmentation/source_only/seed-0, " in result.stderr
    assert f"Table: {folder / 'index.html'}" in result.stdout
    workshop = Workshop(pretend=False)
    for row in ladder(load_config(settings, SHORT)):
        alone = tmp_path / "alone" / row.name
        prepare(row.config, alone, [])
        workshop(alone)
        for name in (f"evaluation/{ARM[row.name]}/seed-1/evaluation.json", "report/report.json"):
            assert (folder / row.name / name).read_bytes() == (alone / name).read_bytes()
