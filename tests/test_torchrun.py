"""A training that torchrun starts, beside one that starts its processes itself."""

import itertools
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from cyclegan.train import train
from pipeline.config.load import load_config
from pipeline.config.settings import ComputeConfig, Config
from pipeline.errors import UserError
from pipeline.runtime.checkpoint import load_checkpoint
from pipeline.runtime.device import check_devices
from pipeline.runtime.team import Team, follow, leading, run_team
from tests.conftest import ROOT
from tests.test_cyclegan import equal
from tests.test_team import assert_gone, children, fit, read_log, recipe, work

CPU = ComputeConfig(accelerator="cpu")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def perform(task: list[str]) -> None:
    """The call of `run_team` that the first process makes, as another one finds it."""
    what, *rest = task
    if what == "train":
        config = load_config(Path(rest[0]), SETTINGS)
        run_training(config, Path(rest[1]), task)
    elif what == "stubborn":
        run_team(CPU, stubborn, Path(rest[0]), task=task)
    elif what == "mistaken":
        raise UserError("no such run here")
    else:
        run_team(CPU, work, what, Path(rest[0]), task=task)


SETTINGS = ["compute.accelerator=cpu", "cyclegan.batch_size=2"]


def run_training(config: Config, folder: Path, task: list[str]) -> None:
    how = config.compute
    arguments = (recipe(config), config.source, config.target, folder, how, None)
    run_team(how, train, *arguments, task=task)


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """This process as the first of two of torchrun's, and the second."""
    monkeypatch.setattr("pipeline.runtime.team.START", "fork")
    monkeypatch.setattr("pipeline.runtime.team._works", itertools.count())
    port = free_port()
    variables = {
        "TORCHELASTIC_RUN_ID": "1",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    second: Any = multiprocessing.get_context("fork").Process(target=follow, args=(perform,))
    second.start()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    yield second
    second.kill()
    second.join()
    del store


def test_learns_what_devices_learn(
    tiny: Path, tmp_path: Path, first: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = load_config(tiny, SETTINGS), tmp_path / "run"
    with leading():
        run_training(config, folder, ["train", str(tiny), str(folder)])
        run_team(CPU, work, "", tmp_path, task=["", str(tmp_path)])  # and more
    first.join(20)
    assert first.exitcode == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1"}
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    two = fit(config, recipe(config), tmp_path / "two", 2)
    assert equal(load_checkpoint(folder / "checkpoints/last.pt"), two)
    assert read_log(folder) == read_log(tmp_path / "two")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("mistake", r"^frame 7 cannot be read. Mend it."),
        ("killed", "process of device 1 ended by SIGKILL .* Run again to continue"),
    ],
)
def test_one_that_fails_ends_all(tmp_path: Path, first: Any, what: str, message: str) -> None:
    with pytest.raises(UserError, match=message), leading():
        run_team(CPU, work, what, tmp_path, task=[what, str(tmp_path)])
    assert_gone(int((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    first.join(20)
    assert first.exitcode == 1


def test_one_that_cannot_find_its_work_ends_all(tmp_path: Path, first: Any) -> None:
    with pytest.raises(UserError, match="no such run here"), leading():
        run_team(CPU, work, "", tmp_path, task=["mistaken"])
    first.join(20)
    assert first.exitcode == 1


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_what_is_told_is_no_code(tmp_path: Path, first: Any) -> None:
    """Whoever reaches the store's port can write there."""
    store = TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), wait_for_workers=False)
    PrefixStore("0", store).set("work-0/job", pickle.dumps(Trap(tmp_path / "sprung")))
    first.join(20)
    assert first.exitcode == 1
    assert not list(tmp_path.iterdir())


def test_nobody_waits_for_a_torchrun_that_is_gone(
    first: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runtime.team._ANSWER", timedelta(seconds=1))
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    begun = time.monotonic()
    with pytest.raises(UserError, match="torchrun's store does not answer"), leading():
        run_team(CPU, work, "", Path(), task=["", "."])
    assert time.monotonic() < begun + 60  # torch's own patience is five minutes, and there are two


def stubborn(folder: Path, team: Team) -> None:
    """Ends only when killed, and asks who started it to end, twice."""
    (folder / str(team.rank)).write_text(str(os.getpid()))
    if team.rank == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(2):
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(0.5)
        time.sleep(600)
    team.gather(torch.zeros(1))


def test_a_second_request_does_not_break_off_the_end(tmp_path: Path, first: Any) -> None:
    with pytest.raises(RuntimeError, match="in a process of 2"), leading():
        run_team(CPU, stubborn, tmp_path, task=["stubborn", str(tmp_path)])
    first.join(20)
    assert first.exitcode == 128 + signal.SIGINT
    assert_gone(int((tmp_path / str(rank)).read_text()) for rank in (0, 1))


def test_torchrun_counts_the_devices(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for name, value in zip(
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), "3421", strict=True
    ):
        monkeypatch.setenv(name, value)
    batches = ["cyclegan.batch_size=4", "segmentation.batch_size=8"]
    compute = load_config(tiny, [*batches, "compute.devices=3"]).compute
    assert (compute.processes, compute.devices) == (4, 3)  # a run keeps what was written
    with pytest.raises(UserError, match=r"batch_size 3 .* number of torchrun's processes, 4; make"):
        load_config(tiny, [*batches, "cyclegan.batch_size=3"])
    with pytest.raises(UserError, match=r"torchrun's processes is 4, and paired"):
        load_config(tiny, [*batches, "cyclegan.paired=true"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"--nproc-per-node is 1, but torch sees 2 GPU"):
        check_devices(compute)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    check_devices(compute)


# As a user starts it: three times as many processes that begin anew, and take seconds for that.


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
    assert "SpawnProcess" not in message, message
    return message


BATCHES = ["--set", "cyclegan.batch_size=2", "--set", "compute.accelerator=cpu"]


@pytest.mark.slow
def test_a_whole_run(tiny: Path, tmp_path: Path) -> None:
    judged = ["--set", "cyclegan.semantics={consistency: 1.0, probe_frames: 4}"]
    process = start(tmp_path, "run", tiny, "--run", "r", *BATCHES, *judged)
    message = process.communicate(timeout=600)[1]
    assert process.returncode == 0, message
    assert (tmp_path / "r/report/report.json").is_file()
    assert message.count("segmentation adapted seed 0: ") == 1, message  # one says what it takes
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
def test_stopping_ends_all_and_the_same_command_continues(
    tiny: Path, tmp_path: Path, stop: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["cyclegan.batch_size=2", "compute.accelerator=cpu", "cyclegan.steps_per_epoch=20"]
    command = ["train-cyclegan", "r", "--config", tiny]
    command += [word for setting in settings for word in ("--set", setting)]
    process = start(tmp_path, *command)
    checkpoint = tmp_path / "r/cyclegan/checkpoints/last.pt"
    for _ in range(6000):
        if checkpoint.is_file():
            break
        time.sleep(0.05)
    watching = children(process.pid)
    working = [child for parent in watching for child in children(parent)]
    assert len(watching) == 2
    assert len(working) >= 2
    if stop == signal.SIGKILL:
        os.kill(working[-1], stop)  # as Linux does when memory ends
    else:
        process.send_signal(stop)
    message = process.communicate(timeout=200)[1]
    assert process.returncode != 0
    assert ("ended by SIGKILL" in ours(message)) == (stop == signal.SIGKILL), message
    assert_gone([*watching, *working])
    step = load_checkpoint(checkpoint)["step"]
    assert 0 < step < 40
    process = start(tmp_path, *command)
    message = process.communicate(timeout=600)[1]
    assert process.returncode == 0, message
    assert message.count("cyclegan: done") == 1
    config = load_config(tiny, settings)
    monkeypatch.setattr("pipeline.runtime.team.START", "fork")
    assert equal(load_checkpoint(checkpoint), fit(config, config.cyclegan, tmp_path / "whole", 2))
