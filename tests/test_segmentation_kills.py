"""Segmentation training killed in the middle, for real, and continued: bit for bit the same."""

import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.load import load_config
from pipeline.config.settings import SelfTrainingConfig
from pipeline.data.labels import load_label_space
from pipeline.runtime.checkpoint import load_checkpoint
from segmentation.train import CHECKPOINT, train
from tests.test_cyclegan import HalfWritten, equal
from tests.test_distributed import read_log

SPACE = load_label_space("cityscapes19")
RECIPE = ["segmentation.steps=8", "segmentation.checkpoint_every=1", "segmentation.log_every=1"]
# The tiny network with dropout.
RECIPE += ["segmentation.architecture=fpn", "segmentation.options={}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teaching", "workers"),
    [
        (None, 1),
        (SelfTrainingConfig(confidence=0.1, masked_weight=1, teacher_average=0.9), 0),
    ],
    ids=["labelled", "self-training"],
)
def test_kills_at_any_moment_change_nothing(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teaching: SelfTrainingConfig | None,
    workers: int,
) -> None:
    config = load_config(tiny, ["compute.accelerator=cpu", f"compute.workers={workers}", *RECIPE])

    def fit(name: str) -> None:
        train(
            config.segmentation,
            SPACE,
            [(config.source, 0.5), (config.target, 0.5)],
            3,
            tmp_path / name,
            config.compute,
            self_training=teaching,
            target=config.target if teaching else None,
        )

    def fit_elsewhere() -> Any:
        process = get_context("fork").Process(target=fit, args=("parts",))
        process.start()
        return process

    fit("whole")
    checkpoint = tmp_path / "parts" / CHECKPOINT
    rng = np.random.default_rng(0)
    # Twice in the middle of writing: the first checkpoint, and one that replaces another.
    for count, step in ((1, None), (4, 3)):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", HalfWritten(count))
            process = fit_elsewhere()
            process.join(120)
        assert process.exitcode == -signal.SIGKILL
        found = load_checkpoint(checkpoint)["step"] if checkpoint.is_file() else None
        assert found == step
    # And wherever it just is.
    for _ in range(4):
        process = fit_elsewhere()
        process.join(float(rng.uniform(0.2, 2.5)))
        process.kill()
        process.join()
        assert load_checkpoint(checkpoint)["step"] >= 3
    fit("parts")
    whole = load_checkpoint(tmp_path / "whole" / CHECKPOINT)
    assert whole["step"] == 8
    assert ("teacher" in whole) == (teaching is not None)
    assert equal(load_checkpoint(checkpoint), whole)
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
