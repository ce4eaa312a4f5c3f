"""The command line: every mistake is one clear message, status 2, no traceback."""

import json
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclegan.checkpoints import export_generator
from cyclegan.networks import ResnetGenerator
from flows import commands
from flows.prepare import preflight
from flows.show import show_result
from pipeline.config.load import load_config
from pipeline.data.images import read_raw
from pipeline.files import write_json
from pipeline.run.folder import finish_stage, write_run
from reports.sentences import NO_ORACLE
from tests.conftest import Cli, Sim2Real

Fails = Callable[..., str]


@pytest.fixture
def fails(sim2real: Sim2Real) -> Fails:
    """Call `sim2real` in this process; assert that it fails as a user's mistake."""

    def call(*arguments: str | Path) -> str:
        told = sim2real(*arguments)
        assert told.status == 2, told.err
        assert "Traceback" not in told.err
        return told.err

    return call


def test_status_two_and_no_traceback_from_outside(cli: Cli, tiny: Path) -> None:
    result = cli("run", tiny, "--set", "cyclegan.bloks=3", "--set", "seeds=few", "--set", "name= ")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "3 errors" in result.stderr
    assert "cyclegan.bloks: unknown key. Did you mean 'blocks'?" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tiny.parent / "runs").exists()


def test_debug_shows_the_traceback(cli: Cli, tiny: Path) -> None:
    result = cli("--debug", "run", tiny, "--set", "seeds=no")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_config_errors_all_at_once(fails: Fails, tiny: Path) -> None:
    message = fails(
        *["run", tiny, "--set", "segmentation.stepz=3", "--set", "cyclegan.epochs=many"],
        *["--set", "segmentation.batch_size=0"],
    )
    assert "Did you mean 'steps'" in message
    assert "'many'" in message
    assert "greater than or equal to 1 (got 0)" in message


def test_all_data_and_name_errors_at_once(fails: Fails, tiny: Path) -> None:
    message = fails(
        *["run", tiny, "--set", "source.root=nowhere", "--set", "target.split=tain"],
        *["--set", "segmentation.architecture=unett", "--set", "segmentation.encoder=resnet"],
    )
    assert "no folder" in message
    assert "Set its `root`" in message
    assert "no split 'tain'" in message
    assert "Found: train, val" in message
    assert "Did you mean 'unet'" in message
    assert "no encoder 'resnet'" in message


def test_empty_split(fails: Fails, own_world: Path, tiny: Path) -> None:
    shutil.rmtree(own_world / "toy-real/leftImg8bit/val")
    (own_world / "toy-real/leftImg8bit/val/city").mkdir(parents=True)
    assert "no split 'val'" in fails("run", tiny)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_first_frame_is_found_before_any_work(
    fails: Fails, own_world: Path, tiny: Path
) -> None:
    path = own_world / "toy-sim/images/00001.png"
    truncate(path)
    assert f"{path} cannot be read as an image" in fails("run", tiny, "--run", "r")
    assert not Path("r/config.yaml").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_later_frame_stops_the_stage(
    fails: Fails, own_world: Path, tiny: Path, workers: int
) -> None:
    path = own_world / "toy-sim/images/00007.png"
    truncate(path)
    message = fails("train-cyclegan", "r", "--config", tiny, "--set", f"compute.workers={workers}")
    assert f"{path} cannot be read as an image" in message
    assert not Path("r/cyclegan/stage.json").exists()


def test_label_of_another_size(fails: Fails, own_world: Path, tiny: Path) -> None:
    path = own_world / "toy-sim/labels/00001.png"
    with Image.open(path) as image:
        image.crop((0, 0, 100, 64)).save(path)
    message = fails("run", tiny)
    assert "image 128x64, label 100x64" in message


def test_a_target_without_labels(
    fails: Fails, own_world: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = own_world / "toy-real/gtFine/train"
    advice = "learn: oracle. If the target has none, write `arms: {source_only: so"
    next(labels.rglob("*_labelIds.png")).unlink()
    message = fails("run", tiny, "--run", "r")
    assert "1 of 10 images have no label" in message
    assert advice in message
    shutil.rmtree(labels)
    message = fails("run", tiny, "--run", "r")
    assert "Data set cityscapes: no frame has a label. Of the target's labels " in message
    assert advice in message
    capsys.readouterr()
    message = fails("run", tiny, "--run", "r", "--set", "target.labels=null")
    assert "Data set cityscapes: no frame has a label. Of the target's labels " in message
    assert advice in message
    without = ["target.labels=null", "arms={source_only: source, adapted: translated}"]
    config = load_config(tiny, without)
    preflight(config)
    write_run(Path("r"), config)
    commands.status(Path("r"))
    assert NO_ORACLE in capsys.readouterr().out


def test_a_source_without_labels(fails: Fails, tiny: Path) -> None:
    message = fails("run", tiny, "--run", "r", "--set", "source.labels=null")
    assert "are translated outside of a run: `sim2real translate WEIGHTS --input" in message


def test_a_generator_that_is_given_is_not_trained(
    fails: Fails, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_generator(ResnetGenerator(1, 4), Path("G.pth"))
    given = [f"translation.weights={Path('G.pth').absolute()}", "source.limit=2"]
    commands.train_cyclegan(Path("r"), config=tiny, settings=given)
    assert "Configured. r has no stage for train-cyclegan. Its comm" in capsys.readouterr().err
    assert "r has no stage for train-cyclegan" in fails("train-cyclegan", "r")
    commands.translate(Path("r"), config=tiny, settings=given)
    assert len(list(Path("r/translated/images").rglob("*.png"))) == 2


def test_the_headline_without_an_oracle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ("pixel_accuracy", "mean_class_accuracy", "mean_iou")
    scores = {metric: {"mean": 0.5} for metric in metrics}
    gap = {"adapted": dict.fromkeys(metrics)}
    arms = dict.fromkeys(("source_only", "adapted"), scores)
    write_json(tmp_path / "report/report.json", {"arms": arms, "gap_closed_by_arm": gap})
    finish_stage(tmp_path, "report", {}, seconds=1)
    show_result(tmp_path)
    out = capsys.readouterr().out
    assert NO_ORACLE in out
    assert "gap closed by" not in out


def test_value_without_a_name_in_strict_mode(fails: Fails, own_world: Path, tiny: Path) -> None:
    path = own_world / "toy-sim/labels/00001.png"
    ids = np.array(read_raw(path), np.uint8)
    ids[:8] = 200
    Image.fromarray(ids).save(path)
    message = fails("run", tiny, "--set", "source.strict=true")
    assert "values without a name: 200 (12.5% of its pixels)" in message


def test_no_place_to_write(fails: Fails, tiny: Path) -> None:
    assert "Cannot write to /proc/sim2real" in fails("run", tiny, "--run", "/proc/sim2real")
    Path("file").write_text("")
    assert "Cannot write to file/run" in fails("run", tiny, "--run", "file/run")
    told = fails("demo", "--out", "/proc/sim2real")
    assert "/proc/sim2real: No such file or directory. Look whether the path is right" in told


def test_full_disk_leaves_nothing_half_written(fails: Fails, tiny: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        message = fails("train-cyclegan", "r", "--config", tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "last.pt" in message
    assert list(Path("r/cyclegan/checkpoints").iterdir()) == []
    assert not Path("r/cyclegan/stage.json").exists()


def test_stage_out_of_order(fails: Fails, tiny: Path) -> None:
    assert "is no run folder" in fails("translate", "nowhere")
    message = fails("train-segmentation", "r", "--config", tiny, "--set", "arms={a: translated}")
    assert "reads translated, which is not complete" in message


def test_files_and_runs_that_do_not_exist(fails: Fails, tiny: Path) -> None:
    assert "No file" in fails("run", "none.yaml")
    assert "needs --config" in fails("train-cyclegan", "r", "--set", "seeds=[1]")
    assert "no run folder" in fails("status", "r")
    assert "no run folder" in fails("compare", "r", "--out", "x")
    assert "foo: unknown key" in fails("demo", "--out", "x", "--set", "foo=1")
    assert not Path("x").exists()


def test_folders_in_place_of_files(fails: Fails) -> None:
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/config.yaml").touch()
    message = fails("run", "runs/a")
    assert "Continue it: sim2real run runs/a/config.yaml --run runs/a" in message
    assert "`sim2real new-dataset runs` writes one" in fails("check", "runs")


def test_status_says_what_the_cache_takes(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(tiny, [f"compute.cache={tmp_path / 'cache'}"])
    write_run(tmp_path / "run", config)
    commands.status(tmp_path / "run")
    assert "Cache" not in capsys.readouterr().out
    (tmp_path / "cache").mkdir()
    with (tmp_path / "cache" / "0.bin").open("wb") as file:
        file.truncate(1_230_000_000)
    commands.status(tmp_path / "run")
    assert f"Cache: {tmp_path / 'cache'}, 1.23 GB." in capsys.readouterr().out


def test_a_mistyped_run_makes_no_folder(fails: Fails) -> None:
    fails("translate", "typo")
    assert not Path("typo").exists()


def test_yaml_that_is_no_text(fails: Fails) -> None:
    Path("odd.yaml").write_text("root: {{ROOT}}")
    assert "is no text or number" in fails("run", "odd.yaml")


def test_encoder_that_does_not_exist_is_found_before_any_work(fails: Fails, tiny: Path) -> None:
    message = fails("check", tiny, "--set", "segmentation.encoder=tu-no_such_network")
    assert "cannot be built" in message


@pytest.mark.slow
def test_prefect_s_server_does_not_answer(tiny: Path, cli: Cli) -> None:
    result = cli("run", tiny, env={"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert result.returncode == 2, result.stderr
    assert "No Prefect server answers at PREFECT_API_URL=http://127.0.0.1:9" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_and_lists(sim2real: Sim2Real) -> None:
    result = sim2real("--help")
    assert result.status == 0
    for command in (
        *["run", "demo", "train-cyclegan", "translate", "train-segmentation", "evaluate"],
        *["report", "status", "compare", "datasets", "check", "new-dataset"],
    ):
        assert f"  {command} " in result.out
    listing = sim2real("datasets").out
    for name in ("gta5", "cityscapes", "camvid"):
        assert name in listing


def test_check_of_a_good_configuration(sim2real: Sim2Real, tiny: Path) -> None:
    result = sim2real("check", tiny)
    assert result.status == 0, result.err
    assert "nothing in the way" in result.out


def test_missing_classes_are_said(sim2real: Sim2Real, tiny: Path) -> None:
    told = sim2real("check", tiny, "--set", "source.values={7: road, 23: sky, 26: car}")
    assert told.status
    assert "no value of data set gta5 is named sidewalk (" in told.out


def test_ctrl_c_says_how_to_go_on(
    sim2real: Sim2Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(run: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.show.show_status", stopped)
    told = sim2real("status", tmp_path)
    assert told.status == 130
    assert told.err.strip() == "Stopped. The same command continues."


def test_damaged_record(fails: Fails, tiny: Path) -> None:
    Path("r/cyclegan").mkdir(parents=True)
    Path("r/cyclegan/inputs.json").write_text('{"half')
    assert "inputs.json is damaged" in fails("run", tiny, "--run", "r")


def test_predictions_of_others_are_scored_and_shown(
    sim2real: Sim2Real, tiny: Path, world: Path, tmp_path: Path
) -> None:
    root = world / "toy-real"
    labels = sorted(root.glob("gtFine/val/*/*_labelIds.png"))
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for label in labels:
        name = label.name.replace("_gtFine_labelIds", "_pred")
        shutil.copy(label, predictions / name)
    options = ["--predictions", predictions, "--out", tmp_path / "scores"]
    result = sim2real("evaluate", "cityscapes", "--root", root, "--split", "val", *options)
    assert result.status == 0, result.err
    for text in ("mean IoU", "100.00%", "category vehicle", "The values are read as label ids."):
        assert text in result.out
    scores = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert scores["pixel_accuracy"] == 1
    # A configuration says all that the options say for a data set.
    again = sim2real("evaluate", tiny, *options[:3], tmp_path / "again")
    assert again.status == 0, again.err
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text()) == scores


def test_evaluate_options_that_do_not_go_together(fails: Fails, tiny: Path, world: Path) -> None:
    options = ["--predictions", world, "--out", "scores"]
    assert "go with --predictions" in fails("evaluate", tiny.parent, "--split", "val")
    assert "needs --out DIR" in fails("evaluate", tiny, "--predictions", world)
    message = fails("evaluate", tiny, *options, "--split", "val")
    assert "Use --set, e.g. --set test.split=val" in message
    message = fails("evaluate", tiny, *options, "--label-space", "camvid11")
    assert "--set label_space=camvid11" in message
    assert "--root DIR" in fails("evaluate", "cityscapes", *options)
    assert "--set is for runs" in fails("evaluate", "cityscapes", *options, "--set", "a=b")
    assert "is no run folder" in fails("evaluate", world, *options)
    assert "Did you mean 'cityscapes'" in fails("evaluate", "cityscape", *options)
    assert "evaluation.classes: label space cityscapes19 has no class 'roat'" in fails(
        "evaluate", tiny, *options, "--set", "evaluation.classes=[roat]"
    )
    assert not Path("scores").exists()


def test_status_of_a_folder_of_runs(sim2real: Sim2Real, tiny: Path) -> None:
    for name in ("one", "two"):
        write_run(Path("runs") / name, load_config(tiny))
    Path("runs/two/config.yaml").write_text("nonsense: 1\n")
    told = sim2real("status", "runs").out
    assert re.search(r"one .*0 of \d+", told)
    assert re.search(r"two .*\?", told)


def test_version(sim2real: Sim2Real) -> None:
    assert re.fullmatch(r"sim2real \d+\.\d+\S*\n", sim2real("--version").out)
