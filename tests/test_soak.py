"""Processes killed at random moments, or stopped for a minute: equal results, nothing left.

`make soak` kills each command ten times.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.data.frames import MANIFEST, write_video
from pipeline.data.images import read_rgb
from pipeline.runtime.checkpoint import load_checkpoint
from tests.conftest import TINY, cli_command
from tests.helpers import equal, without_seconds

KILLS = int(os.environ.get("SIM2REAL_SOAK_KILLS", "10"))
RESULTS = (
    "*.pt",
    "evaluation.json",
    "per_image.csv",
    "report.json",
    "manifest.csv",
    "images/*.png",
    "out.mp4",
    "p/*/*.png",
    "p/overlays.mp4",
)
SETTINGS = {
    "cyclegan": TINY["cyclegan"] | {"steps_per_epoch": 60, "sample_every": 20},
    "segmentation": TINY["segmentation"] | {"steps": 60},
    "compute": {"accelerator": "cpu", "workers": 1},
}
STAGES = ("cyclegan", "translated", "segmentation", "evaluation", "report")
COMMANDS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "run": (["run", "tiny.yaml", "--run", "r"], STAGES),
    "train-cyclegan": (["train-cyclegan", "r"], STAGES[:1]),
    "translate": (["translate", "r"], STAGES[1:2]),
    "train-segmentation": (["train-segmentation", "r"], STAGES[2:3]),
    "evaluate": (["evaluate", "r"], STAGES[3:4]),
    "translate frames": (["translate", "r", "--input", "frames", "--out", "t"], []),
    "translate video": (["translate", "r", "--input", "in.mp4", "--out", "out.mp4"], []),
    "predict": (["predict", "r/adapted", "--input", "in.mp4", "--out", "p", "--overlay"], []),
    "ablate": (["run", "tiny.yaml", "--run", "ladder", "--ablate"], []),
}
"""Command -> its words, and the stages of a finished run that it makes."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """A folder with a configuration and the finished run `r`."""
    folder = tmp_path_factory.mktemp("soak")
    text = yaml.safe_dump(TINY | SETTINGS).replace("${WORLD}", str(world))
    (folder / "tiny.yaml").write_text(text)
    shutil.copytree(world / "toy-sim/images", folder / "frames")
    pictures = [read_rgb(path) for path in sorted((folder / "frames").iterdir())]
    write_video(folder / "in.mp4", 10 * pictures, 25)
    finish(folder, "run")
    return folder


def start(folder: Path, command: str) -> subprocess.Popen[bytes]:
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            cli_command(*COMMANDS[command][0]),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def finish(folder: Path, command: str) -> float:
    """Let a command come to its end; the seconds that it took."""
    begun = time.monotonic()
    assert start(folder, command).wait() == 0, (folder / "said").read_text()
    return time.monotonic() - begun


def prepared(folder: Path, finished: Path, command: str) -> Path:
    """A new folder in which there is what `command` reads, and nothing that it makes."""
    shutil.copytree(finished, folder)
    if COMMANDS[command][1] == STAGES:
        shutil.rmtree(folder / "r")
    for stage in COMMANDS[command][1]:
        shutil.rmtree(folder / "r" / stage, ignore_errors=True)
    return folder


def results(folder: Path) -> dict[str, Any]:
    """File -> its content; of checkpoints what they hold: equal values may be pickled otherwise."""
    files = {path for pattern in RESULTS for path in folder.rglob(pattern)}
    return {
        path.relative_to(folder).as_posix(): (
            load_checkpoint(path)
            if path.suffix == ".pt"
            else without_seconds(path.read_bytes())
            if path.name == MANIFEST
            else path.read_bytes()
        )
        for path in sorted(files)
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not equal(found[name], expected[name])] == []


def processes(folder: Path) -> list[str]:
    """The command lines of processes that work in or below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            where = Path(os.readlink(process / "cwd"))
            if where == folder or folder in where.parents:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def assert_nothing_is_left(folder: Path) -> None:
    for _ in range(100):
        if not (left := processes(folder)):
            break
        time.sleep(0.1)
    assert left == []
    hidden = [path for path in folder.rglob(".*") if path.name.startswith((".part", ".removed"))]
    assert hidden == []


@pytest.mark.soak
@pytest.mark.parametrize("command", list(COMMANDS))
def test_killed_at_random_moments(command: str, finished: Path, tmp_path: Path) -> None:
    whole = prepared(tmp_path / "whole", finished, command)
    seconds = finish(whole, command)
    expected = results(whole)
    chance, kills, tries = random.Random(command), 0, 0
    while kills < KILLS:
        tries += 1
        folder = prepared(tmp_path / f"try-{tries}", finished, command)
        while kills < KILLS:
            process = start(folder, command)
            time.sleep(chance.uniform(0, seconds))
            if process.poll() is not None:
                break
            if chance.random() < 0.5:  # as Linux does when memory ends
                process.kill()
            else:  # with all that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        finish(folder, command)
        assert_equal(results(folder), expected)
        assert_nothing_is_left(folder)
        shutil.rmtree(folder)


@pytest.mark.soak
def test_stopped_for_a_minute(finished: Path, tmp_path: Path) -> None:
    """As a laptop that sleeps, or a batch system that suspends a job."""
    folder = prepared(tmp_path / "stopped", finished, "run")
    process = start(folder, "run")
    checkpoint = folder / "r/segmentation/source_only/seed-0/checkpoints/last.pt"
    while not checkpoint.is_file():
        assert process.poll() is None, (folder / "said").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(60)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.wait() == 0, (folder / "said").read_text()
    assert_equal(results(folder), results(finished))
    assert_nothing_is_left(folder)
