"""The frozen judge: its loss, its drift matrix, its distance, its score."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.semantics import Judge, Probe, kernel_distance, pseudo_classes, semantic_loss
from pipeline.labels import IGNORE, LabelClass, LabelSpace

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


JUDGE = Judge(by_brightness, mean_color, "mean colour", SPACE)


class Scale(nn.Module):
    """A translator that multiplies; -1 turns bright into dark."""

    multiple = 4

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def halves(top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame of two grey levels, and its true classes."""
    frame = np.full((8, 8, 3), top, np.uint8)
    frame[4:] = bottom
    return frame, (frame[..., 0] > 127).astype(np.uint8)


def test_loss_is_the_mean_over_labelled_pixels_of_the_batch() -> None:
    torch.manual_seed(0)
    frames = torch.randn(3, 3, 4, 5)
    classes = torch.randint(0, 2, (3, 4, 5))
    classes[0] = IGNORE  # a whole frame without labels must not weigh
    classes[1, 0] = IGNORE
    logits = by_brightness(frames)
    pixels = [
        F.cross_entropy(logits[n, :, y, x][None], classes[n, y, x][None])
        for n, y, x in (classes != IGNORE).nonzero().tolist()
    ]
    assert semantic_loss(by_brightness, frames, classes) == pytest.approx(
        float(torch.stack(pixels).mean()), rel=1e-5
    )


def test_loss_without_labels_is_zero_and_has_a_gradient() -> None:
    frames = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = semantic_loss(by_brightness, frames, torch.full((2, 4, 4), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert frames.grad is not None
    assert (frames.grad == 0).all()


def test_loss_punishes_swapped_classes() -> None:
    frame, truth = halves(250, 5)
    x = torch.tensor(frame).permute(2, 0, 1)[None] / 127.5 - 1
    classes = torch.tensor(truth)[None]
    kept = semantic_loss(by_brightness, x, classes)
    swapped = semantic_loss(by_brightness, -x, classes)
    assert float(kept) < 0.1 < 5 < float(swapped)
    assert (pseudo_classes(by_brightness, x) == classes).all()


def test_kernel_distance_against_sums() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 3, generator=rng), torch.randn(5, 3, generator=rng) + 1

    def k(x: Tensor, y: Tensor) -> float:
        return float((x.double() @ y.double() / 3 + 1) ** 3)

    within = sum(k(a[i], a[j]) for i in range(4) for j in range(4) if i != j) / 12
    within += sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(k(x, y) for x in a for y in b) / 20
    assert kernel_distance(a, b) == pytest.approx(within - 2 * across, rel=1e-9)


def test_kernel_distance_is_near_zero_for_one_distribution_only() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(200, 8, generator=rng) for _ in range(3))
    assert abs(kernel_distance(a, b)) < 0.2
    assert kernel_distance(a, c + 1) > 1


def test_verdict_sees_a_swap_and_ranks_translators() -> None:
    frames = [halves(250, 30), halves(240, 20), halves(30, 200)]
    target = [frame // 2 for frame, _ in frames]
    probe = Probe(JUDGE, frames, target, torch.device("cpu"))
    nothing = probe.verdict(Scale(1.0))
    assert nothing.before.pixel_accuracy == 1
    assert nothing.after.counts.tolist() == nothing.before.counts.tolist()
    assert nothing.score == pytest.approx(1, abs=1e-3)
    swapped = probe.verdict(Scale(-1.0))
    assert swapped.after.pixel_accuracy == 0
    assert swapped.after.counts[0, 1] == swapped.before.counts[0, 0]  # dark became bright
    assert swapped.score > nothing.score
    drift = swapped.drift(SPACE)
    assert drift["classes"] == ["dark", "bright"]
    assert np.sum(drift["after"]) == 3 * 64
    assert set(nothing.row()) == {
        *["agreement_before", "agreement_after", "distance_before", "distance", "score"]
    }


def test_probe_leaves_the_generator_as_it_is() -> None:
    generator = Scale(1.0).train()
    probe = Probe(JUDGE, [halves(250, 30)] * 2, [halves(9, 9)[0]] * 2, torch.device("cpu"))
    probe.verdict(generator)
    assert generator.training
    assert generator.factor.grad is None
    assert generator.factor == 1
