"""What a training is said to take by `check`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flows.estimate import estimate
from pipeline.config.load import load_config
from pipeline.config.segmentation import SegmentationConfig, SelfTrainingConfig
from pipeline.config.settings import ComputeConfig
from pipeline.data.labels import load_label_space
from pipeline.runtime.device import Pass, measure_pass
from segmentation.cost import Cost, step_cost
from segmentation.models import build_model
from tests.helpers import equal

CPU = ComputeConfig(accelerator="cpu")
SPACE = load_label_space("cityscapes19")


def test_memory_is_what_the_backward_pass_needs() -> None:
    # A convolution keeps its input, the loss a number for each that comes out.
    network = torch.nn.Conv2d(2, 5, 3, padding=1)
    measured = measure_pass(network, (4, 2, 8, 16), CPU, training=True)
    assert measured.memory == 4 * (2 + 5) * 8 * 16 * 4
    assert measured.seconds > 0
    assert measure_pass(network, (4, 2, 8, 16), CPU, training=False).memory == 0


def test_parts_of_a_step_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def measured(network: Any, shape: tuple[int, ...], *a: Any, **k: Any) -> Pass:
        shapes.append(shape)
        return Pass(seconds=3.0, memory=100 * shape[0])

    def cost(teaching: SelfTrainingConfig | None, batch: int = 4, devices: int = 1) -> Cost:
        recipe = SegmentationConfig(encoder="resnet18", crop=(64, 48), batch_size=batch)
        compute = ComputeConfig(accelerator="cpu", devices=devices)
        return step_cost(model, recipe, teaching, compute)

    monkeypatch.setattr("segmentation.cost.measure_pass", measured)
    model = build_model(SegmentationConfig(encoder="resnet18"), 19, pretrained=False)
    weights = sum(p.numel() for p in model.parameters())
    assert cost(None) == Cost(3, 16 * weights + 400, 12 * weights)
    taught = cost(SelfTrainingConfig())
    assert (taught.memory, taught.stored) == (20 * weights + 400, 16 * weights)
    assert taught.seconds == pytest.approx(7)
    assert cost(SelfTrainingConfig(masked_weight=1)).seconds == pytest.approx(10)
    assert cost(None, devices=2).memory == 16 * weights + 200
    assert cost(None, devices=4).memory == 16 * weights + 100
    assert shapes == [(n, 48, 64, 3) for n in (4, 4, 4, 2, 1)]


def test_a_single_frame_is_measured_as_one() -> None:
    # A pyramid ends in one value a channel, of which a batch norm makes no statistics.
    recipe = SegmentationConfig(architecture="deeplabv3plus", encoder="resnet18", crop=(64, 64))
    model = build_model(recipe, 19, pretrained=False)
    weights = sum(p.numel() for p in model.parameters())

    def memory(batch: int, devices: int = 1) -> int:
        compute = ComputeConfig(accelerator="cpu", devices=devices)
        own = recipe.model_copy(update={"batch_size": batch})
        return step_cost(model, own, None, compute).memory - 16 * weights

    assert memory(1) == memory(2, devices=2) < 0.6 * memory(2)


def test_measuring_leaves_no_trace() -> None:
    recipe = SegmentationConfig(encoder="resnet18", crop=(32, 32), batch_size=2)
    model = build_model(recipe, 19, pretrained=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step_cost(model, recipe, None, CPU)
    assert equal(model.state_dict(), before)
    assert all(p.grad is None for p in model.parameters())


def test_each_arm_is_estimated_with_its_own_recipe(tiny: Path) -> None:
    def training(arms: str) -> Any:
        config = load_config(tiny, [f"arms={arms}", "segmentation.encoder=resnet18"])
        return {part.command: part for part in estimate(config)}["train-segmentation"]

    one = training("{a: source}")
    both = training("{a: source, b: {train: source, segmentation: {steps: 8000}}}")
    taught = training("{a: source, b: {train: source, self_training: {}}}")
    assert both.seconds > 50 * one.seconds
    assert both.bytes == 2 * one.bytes
    assert both.memory == pytest.approx(one.memory, rel=0.01)
    assert taught.memory > 1.1 * one.memory
    assert taught.bytes > both.bytes


def test_every_view_of_a_test_frame_is_estimated(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runtime.device.measure_pass", lambda *_, **__: Pass(1.0, 1))

    def evaluation(*settings: str) -> float:
        config = load_config(tiny, ["arms={a: source}", *settings])
        return next(part.seconds for part in estimate(config) if part.command == "evaluate")

    assert evaluation() == 4  # frames
    assert evaluation("evaluation={flip: true, scales: [1, 0.5]}") == 4 * 2 * 1.25
    # Frames of 128x64: five windows of 64 pixels, of which neighbours share 48.
    assert evaluation("evaluation={window: [64, 64], overlap: 0.75}") == 4 * 5
    assert evaluation("evaluation={window: [64, 64], overlap: 0.75, scales: [0.5]}") == 4


def test_no_more_than_a_window_is_predicted_to_know_its_time(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []

    def measured(network: Any, shape: tuple[int, ...], *a: Any, training: bool, **k: Any) -> Pass:
        shapes.extend([] if training else [shape])
        return Pass(1.0, 1)

    monkeypatch.setattr("pipeline.runtime.device.measure_pass", measured)
    settings = ["arms={a: source}", "evaluation={window: [64, 48], scales: [0.5, 1]}"]
    estimate(load_config(tiny, settings))
    assert shapes == [(1, 48, 64, 3)]
