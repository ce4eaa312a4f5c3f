"""Shared fixtures: a small toy world, a tiny configuration, the command line as a user calls it."""

import os

# One thread a process, before torch is imported: tests run in several processes, and threads of
# several processes that wait for each other on two cores are many times slower than one each.
os.environ["OMP_NUM_THREADS"] = "1"

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

import pipeline
from flows.cli import main
from pipeline.toyworld.writing import write_toy_world

ROOT = Path(__file__).parent.parent
assert Path(pipeline.__file__).parent.parent == ROOT, f"foreign package {pipeline.__file__}"


def _forget_fork_server() -> None:
    """Let a forked test process start a fork server of its own: it cannot wait for its parent's."""
    vars(forkserver._forkserver).update(  # type: ignore[attr-defined]
        _forkserver_pid=None, _forkserver_address=None, _forkserver_alive_fd=None
    )


os.register_at_fork(after_in_child=_forget_fork_server)

TINY: dict[str, Any] = {
    "name": "tiny",
    "source": {"dataset": "gta5", "root": "${WORLD}/toy-sim"},
    "target": {"dataset": "cityscapes", "root": "${WORLD}/toy-real", "split": "train"},
    "test": {"dataset": "cityscapes", "root": "${WORLD}/toy-real", "split": "val"},
    "cyclegan": {
        "blocks": 1,
        "generator_width": 4,
        "discriminator_width": 4,
        "crop": [64, 48],
        "pool_size": 3,
        "steps_per_epoch": 6,
        "epochs": 1,
        "decay_epochs": 1,
        "log_every": 2,
        "sample_every": 6,
        "checkpoint_every": 3,
    },
    "segmentation": {
        "architecture": "unet",
        "encoder": "tu-test_resnet",  # a checkpoint of 1 MB, where resnet18 leaves 50 MB
        "encoder_weights": "none",
        "options": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
        "crop": [64, 48],
        "batch_size": 2,
        "steps": 8,
        "checkpoint_every": 3,
        "log_every": 2,
    },
    "evaluation": {"pictures": 2},
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with toy-sim (10 frames) and toy-real (10 train, 4 val), 128x64."""
    root = tmp_path_factory.mktemp("world")
    write_toy_world(root, sim_frames=10, real_train_frames=10, real_val_frames=4)
    return root


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of that, 64x32: what reports are tested on."""
    root = tmp_path_factory.mktemp("small_world")
    write_toy_world(root, sim_frames=8, real_train_frames=2, real_val_frames=4, size=(64, 32))
    return root


@pytest.fixture
def named_world(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy world that `WORLD` names, as configurations do."""
    monkeypatch.setenv("WORLD", str(world))
    return world


@pytest.fixture
def own_world(named_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the toy world to damage, which `WORLD` names."""
    copy = shutil.copytree(named_world, tmp_path / "world")
    monkeypatch.setenv("WORLD", str(copy))
    return copy


@pytest.fixture
def tiny(tmp_path: Path, named_world: Path) -> Path:
    """A configuration file of a run that takes seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Call `sim2real` in a process of its own, in `tmp_path`."""

    def call(*arguments: str | Path, env: dict[str, str] | None = None) -> Any:
        return subprocess.run(
            cli_command(*arguments),
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


@dataclass(frozen=True)
class Told:
    """What a command said."""

    status: int
    out: str
    err: str


Sim2Real = Callable[..., Told]


@pytest.fixture
def sim2real(
    tmp_path: Path,
    named_world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Sim2Real]:
    """Call `sim2real` in this process, in `tmp_path`; `WORLD` is set.

    What commands set in the environment is gone after the test.
    """
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Told:
        monkeypatch.setattr(sys, "argv", ["sim2real", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Told(status, *capsys.readouterr())

    with patch.dict(os.environ):
        yield call


def cli_command(*arguments: str | Path) -> list[str]:
    """The command line of `sim2real` with this Python."""
    return [sys.executable, "-m", "flows.cli", *map(str, arguments)]
