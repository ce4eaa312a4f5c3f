"""Prediction: whole frames, windows, views; upsampling without a copy for each class."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.segmentation import EvaluationConfig
from pipeline.data.images import UInt8, resize_rgb
from segmentation.predict import predict, scores, upsampled_argmax, views, window_starts


class Colours(nn.Module):
    """A network that looks at each pixel alone: logits are its three channels and two more."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0, 0.1, -0.2, 0.3, 0.0]))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, rgb: Tensor) -> Tensor:
        self.seen.append(tuple(rgb.shape[1:3]))
        x = rgb.permute(0, 3, 1, 2).float() / 64
        more = torch.stack([x[:, 0] - x[:, 1], x[:, 2].square() / 4], dim=1)
        return torch.cat([x, more], dim=1) + self.bias.view(1, -1, 1, 1)


class Sided(nn.Module):
    """Logits depend on where in its input a pixel is: (1, 2, H, W), x and its opposite."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, rgb: Tensor) -> Tensor:
        height, width = rgb.shape[1:3]
        x = torch.arange(width, dtype=torch.float32).expand(1, 1, height, width) * self.weight
        return torch.cat([x, -x], dim=1)


def config(**fields: Any) -> EvaluationConfig:
    return EvaluationConfig.model_validate(fields)


@pytest.fixture
def rgb() -> UInt8:
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(12, 16), (61, 83), (40, 31), (20, 24), (1, 1)])
def test_upsampling_class_by_class_is_interpolate_and_argmax(
    layout: torch.memory_format, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(size[0])
    for ties in (False, True):
        logits = torch.randn(1, 19, 20, 24, generator=generator)
        # Whole numbers tie in flat areas; the lowest class wins.
        logits = logits.round().contiguous() if ties else logits
        logits[..., :6, :] = 1.0
        # PyTorch rounds differently where channels lie innermost; we never do.
        expected = F.interpolate(logits, size=size, mode="bilinear").argmax(1)[0]
        found = upsampled_argmax(logits.to(memory_format=layout), size)
        assert found.dtype == torch.uint8
        assert torch.equal(found.long(), expected)


def test_two_hundred_and_fifty_four_classes() -> None:
    logits = torch.randn(1, 254, 6, 5)
    expected = F.interpolate(logits, size=(11, 13), mode="bilinear").argmax(1)[0]
    assert torch.equal(upsampled_argmax(logits, (11, 13)).long(), expected)


def test_the_default_is_one_pass_over_the_whole_frame(rgb: UInt8) -> None:
    network = Colours()
    with torch.inference_mode():
        logits = network(torch.tensor(rgb[None]))
        expected = F.interpolate(logits, size=(74, 106), mode="bilinear").argmax(1)[0].numpy()
    network.seen.clear()
    assert (predict(network, rgb, (74, 106)) == expected).all()
    assert network.seen == [(37, 53)]
    assert views(EvaluationConfig()) == {
        "window": "the whole frame",
        "scales": [1.0],
        "flip": False,
    }


@pytest.mark.parametrize(
    ("length", "window", "overlap", "starts"),
    [
        (10, 10, 0.5, [0]),
        (10, 16, 0.5, [0]),
        (20, 10, 0, [0, 10]),
        (21, 10, 0, [0, 6, 11]),
        (20, 10, 0.5, [0, 5, 10]),
        (2048, 1024, 0.33, [0, 512, 1024]),
        (17, 16, 0.99, [0, 1]),
    ],
)
def test_windows_cover_the_side(
    length: int, window: int, overlap: float, starts: list[int]
) -> None:
    found = window_starts(length, window, overlap)
    assert found == starts
    assert max(found) + window >= length
    steps = np.diff(found)
    assert (steps <= max(1, int(window * (1 - overlap)))).all()


def test_windows_of_a_network_that_sees_single_pixels_change_nothing(rgb: UInt8) -> None:
    network = Colours()
    with torch.inference_mode():
        whole = network(torch.tensor(rgb[None]))
        network.seen.clear()
        parts = scores(network, rgb, config(window=[20, 16], overlap=0.5))
    torch.testing.assert_close(parts, whole)
    assert set(network.seen) == {(16, 20)}
    assert len(network.seen) == 4 * 5


def test_windows_are_averaged_where_they_overlap() -> None:
    with torch.inference_mode():
        found = scores(Sided(), np.zeros((16, 24, 3), np.uint8), config(window=[16, 16]))
    # Two windows, at 0 and 8: between 8 and 16 both see a pixel.
    x = np.arange(24)
    expected = np.where(x < 8, x, np.where(x < 16, (x + x - 8) / 2, x - 8))
    assert found[0, 0, 3].tolist() == expected.tolist()


def test_a_mirrored_view_is_turned_back_and_averaged() -> None:
    rgb = np.zeros((4, 10, 3), np.uint8)
    with torch.inference_mode():
        found = scores(Sided(), rgb, config(flip=True))[0, :, 0]
        x = torch.arange(10.0)
        one, other = (torch.stack([side, -side]).softmax(0) for side in (x, x.flip(0)))
    torch.testing.assert_close(found, (one + other) / 2)


def test_scales_are_averaged_at_the_frame_s_size(rgb: UInt8) -> None:
    network = Colours()
    with torch.inference_mode():
        found = scores(network, rgb, config(scales=[0.5, 1.0]))
        small = network(torch.tensor(resize_rgb(rgb, (26, 18))[None]))
        small = F.interpolate(small, size=(37, 53), mode="bilinear").softmax(1)
        large = network(torch.tensor(rgb[None])).softmax(1)
    torch.testing.assert_close(found, (small + large) / 2)
    assert predict(network, rgb, (74, 106), config(scales=[0.5, 1.0])).shape == (74, 106)
