"""Ranks as users get them: by `compute.devices`, and by a torchrun of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.prepare import preflight
from pipeline.config.load import load_config
from pipeline.errors import UserError
from pipeline.runtime.checkpoint import load_checkpoint
from pipeline.runtime.device import check_devices
from pipeline.runtime.launch import _Failure, _raise, run_ranks
from tests.conftest import ROOT, Cli, cli_command
from tests.helpers import assert_gone, equal, fit, wait_for
from tests.ranks import free_port

RANK = """
import atexit, os, signal, sys, time
from pathlib import Path
from pipeline.errors import UserError
from pipeline.runtime.distributed import connected
from pipeline.runtime.launch import as_rank

def work():
    what, folder = sys.argv[1:]
    with connected() as ranks:
        (Path(folder) / str(ranks.rank)).write_text(str(os.getpid()))
        ranks.all_gather_objects([])
        if what == "nothing":
            import torch
            torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        elif what != "launcher killed":
            atexit.register(os.abort)  # what a process group does that Python's end frees, at times
        if what == "mistake of all" or what == "mistake" and ranks.rank == 1:
            raise UserError("frame 7 cannot be read. Replace it.")
        if what == "bug of all" or what == "bug" and ranks.rank == 1:
            raise KeyError("no such thing")
        if what == "killed" and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "launcher killed" and ranks.rank == 1:
            os.kill(os.getppid(), signal.SIGKILL)
        ranks.all_gather_objects([])
    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    assert not [name for name in threads if "gloo" in name], threads

as_rank(work)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What ranks run: each writes its process's number, and then some fail."""
    (tmp_path / "failing_rank.py").write_text(RANK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "failing_rank"


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("mistake", UserError, r"^frame 7 cannot be read. Replace it."),
        pytest.param(
            "mistake of all", UserError, r"^frame 7 cannot be read.", marks=pytest.mark.slow
        ),
        pytest.param(
            "bug",
            RuntimeError,
            "(?s)rank 1 of 2:.*Traceback.*no such thing",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bug of all", RuntimeError, "(?s)Traceback.*no such thing", marks=pytest.mark.slow
        ),
        ("killed", UserError, "process of rank 1 ended by SIGKILL .* Run again to continue"),
        ("launcher killed", UserError, "process of torchrun ended by SIGKILL"),
    ],
)
def test_one_that_fails_ends_all(
    module: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    what: str,
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=message) as raised:
        run_ranks(module, [what, tmp_path], 2)
    if "mistake" in what:  # for --debug
        assert "Traceback" in "".join(raised.value.__notes__)
    assert_gone(int((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    assert capfd.readouterr().err == ""


def test_a_bug_shows_the_traceback_of_its_rank() -> None:
    failure = _Failure(1, 1, "KeyError: 'no such thing'", "Traceback (most recent call last)")
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2:.*Traceback"):
        _raise(failure, 2)


def test_nothing_is_said_where_nothing_fails(
    module: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_ranks(module, ["nothing", tmp_path], 2)
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1"}
    assert capfd.readouterr().err == ""


def descendants(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    found = [int(child) for child in text.split()]
    return found + [below for child in found for below in descendants(child)]


def test_torchrun_counts_the_devices(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for name, value in zip(
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), "3421", strict=True
    ):
        monkeypatch.setenv(name, value)
    batches = ["cyclegan.batch_size=4", "segmentation.batch_size=8"]
    config = load_config(tiny, [*batches, "cyclegan.batch_size=3"])  # valid whoever reads it
    with pytest.raises(UserError, match=r"batch_size 3 .* number of torchrun's processes, 4; make"):
        preflight(config)
    compute = load_config(tiny, batches).compute
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"--nproc-per-node is 1, but torch sees 2 GPU"):
        check_devices(compute)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    check_devices(compute)


START = ["--set", "compute.devices=2", "--set", "cyclegan.batch_size=2"]


@pytest.mark.slow
def test_a_frame_that_cannot_be_read_is_one_message(cli: Cli, tiny: Path, own_world: Path) -> None:
    path = own_world / "toy-sim/images/00007.png"
    path.write_bytes(path.read_bytes()[:100])
    result = cli("train-cyclegan", "r", "--config", tiny, *START)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count(f"{path} cannot be read as an image") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_stopping_ends_all_and_the_same_command_continues(
    tiny: Path, tmp_path: Path, stop: signal.Signals, status: int
) -> None:
    settings = [*START[1::2], "cyclegan.steps_per_epoch=60"]

    def start() -> Any:
        command = cli_command("train-cyclegan", "parts", "--config", tiny)
        return subprocess.Popen(
            [*command, *(word for setting in settings for word in ("--set", setting))],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    process = start()
    checkpoint = tmp_path / "parts/cyclegan/checkpoints/last.pt"
    wait_for(checkpoint.is_file, process)
    started = descendants(process.pid)
    assert len(started) >= 3  # torchrun and its ranks
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)  # as a terminal does
    else:
        process.send_signal(stop)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert message.endswith("Stopped. The same command continues.\n") == (stop == signal.SIGINT)
    assert "Traceback" not in message
    assert_gone(started)
    assert 0 < load_checkpoint(checkpoint)["step"] < 120
    process = start()
    message = process.communicate(timeout=200)[1]
    assert process.returncode == 0, message
    assert message.endswith("cyclegan: done\n")
    config = load_config(tiny, [*settings, "compute.accelerator=cpu"])
    whole = fit(config, config.cyclegan, tmp_path / "whole", 2)
    assert whole["step"] == 120
    assert equal(load_checkpoint(checkpoint), whole)


@pytest.mark.slow
def test_a_judged_run_on_two_devices(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    judged = ["--set", "cyclegan.semantics={consistency: 1.0, probe_frames: 4}"]
    settings = [*START, *judged, "--set", "translation.checkpoint=best"]
    result = cli("run", tiny, "--run", "r", *settings)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "r/cyclegan/leaderboard.csv").is_file()
    assert (tmp_path / "r/report/report.json").is_file()


# A torchrun of the user's own.


def start(folder: Path, *arguments: str | Path) -> Any:
    launcher = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", str(free_port()), "-m", "--", "flows.cli"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ours(message: str) -> str:
    """Standard error, looked through for a traceback that is not torchrun's own."""
    assert str(ROOT / "flows") not in message, message
    assert str(ROOT / "pipeline") not in message, message
    return message


BATCHES = ["--set", "cyclegan.batch_size=2", "--set", "compute.accelerator=cpu"]


@pytest.mark.slow
def test_a_whole_run(tiny: Path, tmp_path: Path) -> None:
    judged = ["--set", "cyclegan.semantics={consistency: 1.0, probe_frames: 4}"]
    process = start(tmp_path, "run", tiny, "--run", "r", *BATCHES, *judged)
    message = process.communicate(timeout=600)[1]
    assert process.returncode == 0, message
    assert (tmp_path / "r/report/report.json").is_file()
    for name in ("cyclegan", "segmentation/adapted/seed-0"):
        assert len(list((tmp_path / "r" / name / "tensorboard").iterdir())) == 1
    # What one process does is done once.
    process = start(tmp_path, "report", "r")
    message = process.communicate(timeout=200)[1]
    assert process.returncode == 0, message
    assert message.count("report: done") == 1


@pytest.mark.slow
def test_mistakes_are_one_message(tiny: Path, world: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "train-cyclegan", "r", "--config", tiny)
    message = process.communicate(timeout=200)[1]
    assert process.returncode == 1
    assert ours(message).count("batch_size 1 is that") == 1
    assert "exitcode  : 2" in message  # of the first process
    assert not (tmp_path / "r/config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_ones_own_torchrun_ends_all_and_the_same_command_continues(
    tiny: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    settings = ["cyclegan.batch_size=2", "compute.accelerator=cpu", "cyclegan.steps_per_epoch=20"]
    command = ["train-cyclegan", "r", "--config", tiny]
    command += [word for setting in settings for word in ("--set", setting)]
    process = start(tmp_path, *command)
    checkpoint = tmp_path / "r/cyclegan/checkpoints/last.pt"
    wait_for(checkpoint.is_file, process)
    ranks = descendants(process.pid)
    assert len(ranks) == 2
    if stop == signal.SIGKILL:
        os.kill(ranks[-1], stop)  # as Linux does when memory ends
    else:
        process.send_signal(stop)
    message = process.communicate(timeout=200)[1]
    assert process.returncode != 0
    assert ("Signal 9 (SIGKILL)" in ours(message)) == (stop == signal.SIGKILL), message
    assert_gone(ranks)
    step = load_checkpoint(checkpoint)["step"]
    assert 0 < step < 40
    process = start(tmp_path, *command)
    message = process.communicate(timeout=600)[1]
    assert process.returncode == 0, message
    assert message.count("cyclegan: done") == 1
    config = load_config(tiny, settings)
    assert equal(load_checkpoint(checkpoint), fit(config, config.cyclegan, tmp_path / "whole", 2))
