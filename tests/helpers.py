"""What several tests share: comparing, killing, waiting, small stand-ins."""

import functools
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cyclegan.semantics import (
    SemanticEvaluator,
)
from cyclegan.train import train
from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig
from pipeline.data.frames import MANIFEST
from pipeline.data.images import UInt8, read_raw, write_indices
from pipeline.data.labels import (
    LabelClass,
    LabelSpace,
)
from pipeline.data.listing import list_samples, pseudo_label_paths
from pipeline.data.reading import read_frame
from pipeline.data.spec import DatasetSpec
from pipeline.run.stage import Stage, check, run_stage
from pipeline.runtime.checkpoint import load_checkpoint, save_checkpoint
from tests.ranks import in_ranks


class Given(nn.Module):
    """Puts out the same logits of every frame."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Any:
        return self.logits


def label_frames(
    spec: DatasetSpec, predict: Callable[[UInt8], tuple[UInt8, UInt8]], folder: Path
) -> list[str]:
    """Write pseudo-labels that need no network: class indices and confidences, each (H, W).

    Returns:
        The names of the frames.
    """
    samples = list_samples(spec, labelled=False)
    for sample in samples:
        paths = pseudo_label_paths(folder, sample.name)
        for path, values in zip(paths, predict(read_frame(spec, sample)), strict=True):
            write_indices(path, values, None)
    return [sample.name for sample in samples]


def equal(one: object, other: object) -> bool:
    """Bit-for-bit equality of nested checkpoints."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def without_seconds(manifest: bytes) -> bytes:
    """A `manifest.csv` without its last column: the seconds that frames took."""
    return re.sub(rb",[^,\n]*$", b"", manifest, flags=re.MULTILINE)


def made_files(out: Path) -> dict[str, bytes]:
    """File -> what is in it, without the seconds that things took."""
    return {
        path.relative_to(out).as_posix(): without_seconds(path.read_bytes())
        if path.name == MANIFEST
        else path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "progress.json"
    }


class Killed(BaseException):
    """Stands in for a signal."""


class HalfWritten:
    """`torch.save` that dies when half of its `count`-th file is written."""

    def __init__(self, count: int) -> None:
        self.left, self.save = count, torch.save

    def __call__(self, state: Any, file: BinaryIO) -> None:
        self.save(state, file)
        self.left -= 1
        if self.left == 0:
            file.flush()
            os.truncate(file.fileno(), os.fstat(file.fileno()).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def stopping_after(count: int, stop: Callable[[], None]) -> Callable[..., None]:
    """`save_checkpoint` for so many calls, then `stop`."""
    calls = 0

    def save(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > count:
            stop()
        save_checkpoint(*arguments)

    return save


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """Wait until `condition` holds, for as long as `process` lives."""
    for _ in range(60_000):
        if condition():
            return
        if process.poll() is not None:
            pytest.fail(f"the run ended by itself with status {process.returncode}")
        time.sleep(0.002)
    pytest.fail("nothing happened within two minutes")


def dying_at(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose call `number` raises `Killed`."""
    calls = itertools.count(1)

    def call(*arguments: Any) -> Any:
        if next(calls) == number:
            raise Killed
        return function(*arguments)

    return call


@contextmanager
def killed_in_step(
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> Iterator[None]:
    """The training in the block does not survive step `number` of its optimisers."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(optimizer, "step", dying_at(number, optimizer.step))
        yield


def with_instances(test: DatasetSpec, root: Path) -> DatasetSpec:
    """A copy of a data set, with a file of instances for each frame."""
    copy = test.model_copy(update={"root": shutil.copytree(test.root, root)})
    for sample in list_samples(copy, labelled=True):
        assert sample.label is not None
        ids = read_raw(sample.label).astype(np.uint16)
        instances = np.where(ids >= 24, ids * 1000 + 1, ids).astype(np.uint16)
        assert cv2.imwrite(str(sample.label).replace("labelIds", "instanceIds"), instances)
    return copy


def killed_at_any_moment(
    fit: Callable[[], None],
    checkpoint: Path,
    half_written: dict[int, int | None],
    moments: Iterable[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kill a training in a process of its own, again and again, each time where the last one was.

    Args:
        half_written: in the middle of writing which of its checkpoints -> the step that is left.
        moments: after how many seconds, after that.
    """

    def fit_elsewhere() -> Any:
        process = multiprocessing.get_context("fork").Process(target=fit)
        process.start()
        return process

    found = None
    for count, step in half_written.items():
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", HalfWritten(count))
            process = fit_elsewhere()
            process.join(120)
        assert process.exitcode == -signal.SIGKILL
        found = load_checkpoint(checkpoint)["step"] if checkpoint.is_file() else None
        assert found == step
    for moment in moments:
        process = fit_elsewhere()
        process.join(moment)
        process.kill()
        process.join()
        assert load_checkpoint(checkpoint)["step"] >= found


# id, trainId, colour of the official table.
CITYSCAPES = {
    "road": (7, 0, (128, 64, 128)),
    "sidewalk": (8, 1, (244, 35, 232)),
    "building": (11, 2, (70, 70, 70)),
    "wall": (12, 3, (102, 102, 156)),
    "fence": (13, 4, (190, 153, 153)),
    "pole": (17, 5, (153, 153, 153)),
    "traffic light": (19, 6, (250, 170, 30)),
    "traffic sign": (20, 7, (220, 220, 0)),
    "vegetation": (21, 8, (107, 142, 35)),
    "terrain": (22, 9, (152, 251, 152)),
    "sky": (23, 10, (70, 130, 180)),
    "person": (24, 11, (220, 20, 60)),
    "rider": (25, 12, (255, 0, 0)),
    "car": (26, 13, (0, 0, 142)),
    "truck": (27, 14, (0, 0, 70)),
    "bus": (28, 15, (0, 60, 100)),
    "train": (31, 16, (0, 80, 100)),
    "motorcycle": (32, 17, (0, 0, 230)),
    "bicycle": (33, 18, (119, 11, 32)),
}


SPACE = LabelSpace(
    name="dark or bright",
    classes=(
        LabelClass(name="dark", names=("road",), color=(0, 0, 0)),
        LabelClass(name="bright", names=("sky",), color=(255, 255, 255)),
    ),
)


def by_brightness(x: Tensor) -> Tensor:
    """A segmenter that needs no training: bright where the mean is above 0."""
    bright = 20 * x.mean(dim=1, keepdim=True)
    return torch.cat([-bright, bright], dim=1)


def mean_color(x: Tensor) -> Tensor:
    """Features: the mean of each channel."""
    return x.mean(dim=(2, 3))


def evaluator_on(device: torch.device) -> SemanticEvaluator:
    return SemanticEvaluator(by_brightness, mean_color, "mean colour", SPACE)


def fit(
    config: Config, settings: CycleGANConfig, folder: Path, devices: int, **compute: Any
) -> dict[str, Any]:
    """The last checkpoint of a training."""
    how = config.compute.model_copy(update=compute)
    evaluator = evaluator_on if settings.semantics else None
    in_ranks(devices, train, settings, config.source, config.target, folder, how, evaluator)
    return load_checkpoint(folder / "checkpoints/last.pt")


def in_a_child(test: Callable[..., None]) -> Callable[..., None]:
    """A test that is done in a child process: torch.compile and long trainings leave threads and
    processes behind, with which later tests could not fork, and Prefect keeps the settings that it
    was imported with."""

    @functools.wraps(test)
    def run(*arguments: object, **fixtures: object) -> None:
        context = multiprocessing.get_context("fork")
        child = context.Process(target=test, args=arguments, kwargs=fixtures)
        child.start()
        child.join()
        assert child.exitcode == 0, "see what the child wrote to standard error"

    return run


def do(run: Path, stages: list[Stage]) -> list[bool]:
    """Do stages in order; whether each had anything to do."""
    inputs = check(run, stages)
    return [run_stage(run, stage, inputs[stage.name]) for stage in stages]


def read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_close(one: Any, other: Any, relative: float) -> None:
    """Equality of nested checkpoints but for rounding, each tensor against its largest value.

    Biases before a norm have gradients of 0 but for rounding, and stay as near to 0.
    """
    if isinstance(one, torch.Tensor):
        assert (one - other).abs().max() <= relative * other.abs().max() + 1e-9
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key], relative)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_close(a, b, relative)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=relative)
    else:
        assert one == other


def assert_gone(pids: Iterable[int]) -> None:
    """Fail unless processes end within 15 seconds."""
    for pid in pids:
        for _ in range(300):
            if not Path(f"/proc/{pid}").exists():
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"process {pid} is still there")


needs_real_data = pytest.mark.skipif(
    not os.environ.get("SIM2REAL_DATA"),
    reason="SIM2REAL_DATA does not name a folder with toonsim, streetsim and camvid",
)
