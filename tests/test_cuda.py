"""What is done on a GPU is what is done on the CPU, but for rounding.

Without a GPU, both are the CPU. `make gpu` runs these where there is a GPU.
"""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cyclegan.networks import ResnetGenerator, initialise
from cyclegan.translate import FrameTranslator
from pipeline.config.segmentation import SegmentationConfig
from pipeline.data.labels import IGNORE
from segmentation.evaluate import count_on_device
from segmentation.models import build_model
from segmentation.predict import scores, upsampled_argmax
from segmentation.predictor import DEFAULT
from tests.golden import FILE, LOOPS, STEPS, curves

pytestmark = [pytest.mark.cuda, pytest.mark.slow]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """32 bits are 32 bits: no TF32."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("loop", LOOPS)
def test_trainings_begin_as_on_a_cpu_and_stay_finite(
    loop: str, precision: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD", str(world))
    recorded: dict[str, Any] = json.loads(FILE.read_text())[loop][0]
    log = curves(loop, world, tmp_path, DEVICE, precision)
    assert len(log) == STEPS
    assert all(math.isfinite(value) for entry in log for value in entry.values())
    # A device draws its own noise for masks; what is learned from labels has none.
    compared = {"cross_entropy", "dice_loss"} if loop == "segmentation" else recorded.keys()
    relative = 1e-3 if precision == "32-true" else 0.05
    for key in compared:
        assert log[0][key] == pytest.approx(recorded[key], rel=relative), key


def test_translations_differ_by_a_grey_level_at_most() -> None:
    torch.manual_seed(0)
    generator = ResnetGenerator(2, 16)
    initialise(generator)
    frame = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    expected = FrameTranslator(generator.eval())(frame)
    found = FrameTranslator(copy.deepcopy(generator).to(DEVICE))(frame)
    assert found.shape == frame.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_predictions_and_counts() -> None:
    torch.manual_seed(0)
    recipe = {"architecture": "unet", "encoder": "resnet18", "encoder_weights": "none"}
    network = build_model(SegmentationConfig.model_validate(recipe), 7).eval()
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (50, 70, 3), np.uint8)
    truth = rng.integers(0, 8, (100, 140), np.uint8)
    truth[truth == 7] = IGNORE
    tables, classes = [], []
    for device in ("cpu", DEVICE):
        moved = copy.deepcopy(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode():
            found = upsampled_argmax(scores(moved, frame, DEFAULT), truth.shape)
        classes.append(found.cpu())
        tables.append(count_on_device(truth, classes[0].to(device), 7).cpu())
    assert (classes[0] == classes[1]).float().mean() > 0.999
    assert torch.equal(*tables)
