"""The whole chain as a Prefect flow: finished, repeated, killed in each stage and continued."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from flows import commands
from flows.plan import plan
from flows.show import status_rows
from pipeline.run.folder import read_run
from pipeline.run.stage import named, remove
from tests.conftest import TINY, Cli, Sim2Real, cli_command
from tests.helpers import wait_for


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, world: Path) -> tuple[Path, dict[str, str]]:
    """A configuration that lasts long enough to be killed in, and the environment it needs."""
    path = tmp_path_factory.mktemp("flow") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path, {**os.environ, "WORLD": str(world)}


@pytest.fixture(scope="module")
def finished(settings: tuple[Path, dict[str, str]]) -> Path:
    """An undisturbed run, in Prefect's ephemeral mode."""
    config, env = settings
    run = config.parent / "finished"
    result = subprocess.run(
        cli_command("run", config, "--run", run), env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "Report:" in result.stdout
    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server, so that each run need not start its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    env = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(600):
            try:
                with urlopen(f"{address}/health"):
                    break
            except URLError:
                time.sleep(0.2)
        else:
            pytest.fail("Prefect's server did not start within two minutes")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_finished_run_holds_what_the_design_says(finished: Path) -> None:
    for name in (
        *["config.yaml", "run.json", "cyclegan/checkpoints/last.pt", "cyclegan/log.jsonl"],
        *["cyclegan/samples/step-0000012.png", "cyclegan/stage.json", "translated/stage.json"],
        *["translated/images/00001.png", "translated/dataset.yaml", "translated/manifest.csv"],
        *["segmentation/adapted/seed-0/checkpoints/last.pt", "report/index.html"],
        *["segmentation/oracle/seed-0/log.jsonl", "evaluation/adapted/seed-0/per_image.csv"],
        *["evaluation/source_only/seed-0/evaluation.json", "report/report.json"],
        *["report/per_class.csv", "report/losses.csv", "report/report.md", "report/stage.json"],
    ):
        assert (finished / name).is_file(), name
    report = json.loads((finished / "report/report.json").read_text())
    assert set(report["arms"]) == {"source_only", "adapted", "oracle"}
    for arm, metrics in report["arms"].items():
        path = finished / f"evaluation/{arm}/seed-0/evaluation.json"
        evaluation = json.loads(path.read_text())
        for metric in ("pixel_accuracy", "mean_class_accuracy", "mean_iou"):
            assert metrics[metric]["mean"] == evaluation[metric]
    assert not list(finished.rglob(".part-*"))


def test_repeating_a_finished_run_does_nothing(
    finished: Path, settings: tuple[Path, dict[str, str]], sim2real: Sim2Real
) -> None:
    def times() -> dict[Path, int]:
        parts = [p for p in finished.rglob("*") if ".prefect" not in p.parts and p.is_file()]
        kept = {p: p.stat().st_mtime_ns for p in parts}
        return {p: t for p, t in kept.items() if p.parent != finished}

    before = times()
    result = sim2real("run", settings[0], "--run", finished)
    assert result.status == 0, result.err
    assert times() == before


def test_status(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.status(finished)
    shown = capsys.readouterr().out
    assert "segmentation/adapted/seed-0" in shown
    assert re.search(r"^│ all +│", shown, re.MULTILINE)
    assert f"Report: {finished / 'report/index.html'}" in shown
    rows = status_rows(finished, plan(read_run(finished), finished))
    assert {row[1] for row in rows} == {"done"}
    assert rows[0][:3] == ("cyclegan", "done", "12/12 steps")


def test_other_settings_are_refused_before_any_work(
    finished: Path, settings: tuple[Path, dict[str, str]], sim2real: Sim2Real
) -> None:
    result = sim2real("run", settings[0], "--run", finished, "--set", "cyclegan.epochs=9")
    assert result.status == 2
    assert "config.epochs: 1 -> 9" in result.err
    assert "--force cyclegan" in result.err
    assert read_run(finished).cyclegan.epochs == 1


# A stage, and the file whose appearance says that it is at work.
AT_WORK = {
    "cyclegan": "checkpoints/last.pt",
    "translated": "images/*.png",
    "segmentation/source_only/seed-0": "checkpoints/last.pt",
    "evaluation/adapted/seed-0": "progress.json",
    "report": "inputs.json",
}


# Each costs a run; every stage is also killed, without a flow, by the tests of kills.
@pytest.mark.slow
@pytest.mark.parametrize("name", AT_WORK)
def test_killed_and_continued_gives_the_same_report(
    name: str,
    finished: Path,
    settings: tuple[Path, dict[str, str]],
    server: str,
    tmp_path: Path,
) -> None:
    config, env = settings
    env = {**env, "PREFECT_API_URL": server}
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns(".prefect"))
    removed = named(plan(read_run(run), run), [name])
    assert "report" in removed
    remove(run, removed)
    command = cli_command("run", config, "--run", run)
    process = subprocess.Popen(
        command,
        env=env,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: any((run / name).glob(AT_WORK[name])), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / name / "stage.json").exists(), "killed too late to show anything"
    if name == "translated":  # what a kill in the middle of a write leaves
        (run / name / "images" / ".part-abc.png").write_bytes(b"half a picture")
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = "report/report.json"
    assert (run / report).read_bytes() == (finished / report).read_bytes()


@pytest.mark.slow
def test_a_mistake_found_in_a_task_is_one_message(
    settings: tuple[Path, dict[str, str]], own_world: Path, cli: Cli, tmp_path: Path
) -> None:
    damaged = own_world / "toy-sim/images/00007.png"
    damaged.write_bytes(damaged.read_bytes()[:500])
    result = cli("run", settings[0], "--run", tmp_path / "run")
    assert result.returncode == 2, result.stderr
    assert f"Error: {damaged} cannot be read as an image" in result.stderr
    assert result.stderr.count("cannot be read") == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run/cyclegan/stage.json").exists()
