"""Segmentation training killed in the middle, for real, and continued: bit for bit the same."""

import json
import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.load import load_config
from pipeline.config.segmentation import SelfTrainingConfig
from pipeline.data.labels import load_label_space
from pipeline.data.listing import Sample
from pipeline.errors import UserError
from pipeline.files import sweep
from pipeline.runtime.checkpoint import load_checkpoint
from segmentation import evaluate as evaluation
from segmentation.tally import Tally
from segmentation.train import CHECKPOINT, train
from tests.helpers import equal, killed_at_any_moment, read_log, with_instances

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

    fit("whole")
    checkpoint = tmp_path / "parts" / CHECKPOINT
    moments = np.random.default_rng(0).uniform(0.2, 2.5, 4)
    halves = {1: None, 4: 3}  # the first checkpoint, and one that replaces another
    killed_at_any_moment(lambda: fit("parts"), checkpoint, halves, moments, monkeypatch)
    fit("parts")
    whole = load_checkpoint(tmp_path / "whole" / CHECKPOINT)
    assert whole["step"] == 8
    assert ("teacher" in whole) == (teaching is not None)
    assert equal(load_checkpoint(checkpoint), whole)
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")


class KilledAt:
    """`os.replace`, by which each file gets its name, that kills its process before one call.

    `progress.json` is not counted: how often it is written depends on the time.
    """

    def __init__(self, number: int) -> None:
        self.left, self.replace = number, os.replace

    def __call__(self, *paths: Any) -> None:
        if Path(paths[1]).name != "progress.json":
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        self.replace(*paths)


def content(folder: Path) -> dict[str, bytes]:
    """File -> what is in it, but for the time that it took."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "progress.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("instances", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_evaluation_killed_at_every_file_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instances: bool
) -> None:
    config = load_config(tiny, ["compute.accelerator=cpu", "segmentation.steps=1"])
    test = with_instances(config.test, tmp_path / "world") if instances else config.test
    train(config.segmentation, SPACE, [(config.target, 1)], 0, tmp_path, config.compute)
    asked = config.evaluation.model_copy(update={"save": "label_ids", "overlays": True})
    monkeypatch.setattr("pipeline.scoring.cityscapes.SIZE", (128, 64))
    monkeypatch.setattr("segmentation.tally.FRAMES", 2)
    monkeypatch.setattr("segmentation.scores.intervals", lambda *_: {})  # has tests of its own
    seen, scores = tmp_path / "seen", evaluation._Scorer.score

    def noted(scorer: Any, sample: Sample, instances: Path | None) -> Any:
        with seen.open("a") as file:
            file.write(f"{sample.name}\n")
        return scores(scorer, sample, instances)

    monkeypatch.setattr(evaluation._Scorer, "score", noted)

    def score(name: str, kill: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", KilledAt(kill))
            arguments = asked, SPACE, test, tmp_path / CHECKPOINT, tmp_path / name, config.compute
            evaluation.evaluate(*arguments, arm="a", seed=0)

    def killed(name: str, kill: int) -> bool:
        process = get_context("fork").Process(target=score, args=(name, kill))
        process.start()
        process.join(120)
        sweep(tmp_path / name, below=True)
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0

    score("whole", 0)
    whole, names = content(tmp_path / "whole"), seen.read_text().splitlines()
    assert len(whole) == 4 + 3 * len(names)  # scores, and three pictures of each frame
    assert (json.loads(whole["evaluation.json"])["mean_class_iiou"] is not None) == instances
    # At the first file, then the second, ..., each time from where the last kill left it.
    kills = next(number for number in range(1, 100) if not killed("parts", number))
    assert kills > 8
    assert content(tmp_path / "parts") == whole
    # Two frames have six pictures and are then kept; what was kept is not predicted again.
    for lost in (False, True):
        assert killed("kept", 8)
        seen.unlink()
        if lost:
            (tmp_path / "kept/overlays" / f"{names[1]}.jpg").unlink()
        score("kept", 0)
        assert seen.read_text().splitlines() == names[1 if lost else 2 :]
        assert content(tmp_path / "kept") == whole
        shutil.rmtree(tmp_path / "kept")


def test_counts_of_other_frames_are_refused(tmp_path: Path) -> None:
    tally = Tally(tmp_path, ["a"])
    tally.add(torch.zeros(2, 3, dtype=torch.int64), None)
    assert len(Tally(tmp_path, ["a", "b"]).frames) == 1
    with pytest.raises(UserError, match=r"0\.npz is damaged.*other frames.*Remove .*counts"):
        Tally(tmp_path, ["b", "a"])
