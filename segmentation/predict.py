"""Class indices for whole frames: one pass of the network, or the mean of several."""

import itertools
import math

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.segmentation import EvaluationConfig
from pipeline.data.images import UInt8, resize_rgb
from pipeline.scoring.evaluation import Setting

DEFAULT = EvaluationConfig()


@torch.inference_mode()
def predict(
    network: nn.Module, rgb: UInt8, size: tuple[int, ...], config: EvaluationConfig = DEFAULT
) -> UInt8:
    """Class indices at `size` (height, width) for one frame.

    Args:
        network: (1, h, w, 3) uint8 -> (1, K, h, w) logits.
        rgb: (h, w, 3) uint8; scores are upsampled from its size to `size`.

    Returns:
        (height, width) uint8.
    """
    return np.asarray(upsampled_argmax(scores(network, rgb, config), size).cpu().numpy())


def overlay(rgb: UInt8, classes: UInt8, palette: UInt8) -> UInt8:
    """A frame (H, W, 3) uint8 under the colours of its classes (H, W), both at half strength."""
    return np.asarray(cv2.addWeighted(rgb, 0.5, palette[classes], 0.5, 0), np.uint8)


def views(config: EvaluationConfig) -> dict[str, Setting]:
    """How frames are looked at, for the protocol of a result."""
    if config.window is None:
        window = "the whole frame"
    else:
        window = f"{config.window[0]}x{config.window[1]}, overlapping by {config.overlap:g} or more"
    return {"window": window, "scales": list(config.scales), "flip": config.flip}


def scores(network: nn.Module, rgb: UInt8, config: EvaluationConfig) -> Tensor:
    """(1, K, h, w) scores of one frame (h, w, 3) uint8, at its size.

    These are the logits; with `scales` or `flip`, the mean of the views' class probabilities.
    """
    height, width = rgb.shape[:2]
    views = list(itertools.product(config.scales, _flips(config)))
    total: Tensor | None = None
    for scale, flip in views:
        view = resize_rgb(rgb, _scaled(height, width, scale)[::-1])
        logits = _logits(network, np.ascontiguousarray(view[:, ::-1]) if flip else view, config)
        logits = logits.flip(3) if flip else logits
        if views == [(1.0, False)]:
            return logits
        if logits.shape[2:] != (height, width):
            logits = _upsampled(logits, (height, width))
        probabilities = logits.softmax(dim=1)
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total.div_(len(views))


def _logits(network: nn.Module, rgb: UInt8, config: EvaluationConfig) -> Tensor:
    """(1, K, h, w) logits of one view, the mean over the windows that see a pixel."""
    image = torch.tensor(rgb[None], device=next(network.parameters()).device)
    height, width = rgb.shape[:2]
    windows = _windows(height, width, config)
    if len(windows) == 1:
        whole: Tensor = network(image)
        return whole
    total: Tensor | None = None
    times = torch.zeros(height, width, device=image.device)
    for rows, columns in windows:
        area = (..., rows, columns)
        part: Tensor = network(image[:, rows, columns])
        if total is None:
            total = part.new_zeros(1, part.shape[1], height, width)
        total[area] += part
        times[area] += 1
    assert total is not None
    return total.div_(times)


def passes(height: int, width: int, config: EvaluationConfig) -> list[tuple[int, int]]:
    """Heights and widths of all that the network is shown of one frame, one after the other."""
    return [
        (rows.stop - rows.start, columns.stop - columns.start)
        for scale, _ in itertools.product(config.scales, _flips(config))
        for rows, columns in _windows(*_scaled(height, width, scale), config)
    ]


def _flips(config: EvaluationConfig) -> tuple[bool, ...]:
    return (False, True) if config.flip else (False,)


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, round(height * scale)), max(1, round(width * scale))


def _windows(height: int, width: int, config: EvaluationConfig) -> list[tuple[slice, slice]]:
    """Rows and columns of each window on a view; without `window`, the whole view is one."""
    across, down = config.window or (width, height)
    return [
        (slice(top, min(top + down, height)), slice(left, min(left + across, width)))
        for top in window_starts(height, down, config.overlap)
        for left in window_starts(width, across, config.overlap)
    ]


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side: evenly spaced, the last one ends with the side.

    Args:
        length: pixels of the side.
        window: pixels of a window; a window that is longer covers the side.
        overlap: the least share of a window that its neighbour covers too.
    """
    if window >= length:
        return [0]
    steps = math.ceil((length - window) / max(1, int(window * (1 - overlap))))
    return [round(i * (length - window) / steps) for i in range(steps + 1)]


def upsampled_argmax(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """The class of the highest score at each pixel of a larger picture, the lowest of equal ones.

    Equal to `interpolate(scores.contiguous(), size, mode="bilinear").argmax(1)`, one class at a
    time: a running maximum in place of K planes of the full size.

    Args:
        scores: (1, K, h, w) float.

    Returns:
        (height, width) uint8.
    """
    if scores.shape[2:] == tuple(size):
        # `max` finds the same index as `argmax` in half the time on a CPU.
        return scores.max(dim=1).indices[0].to(torch.uint8)
    planes = torch.split(scores.contiguous(), 1, dim=1)
    best = _upsampled(planes[0], size)
    classes = torch.zeros_like(best, dtype=torch.uint8)
    better = torch.empty_like(best, dtype=torch.bool)
    for index, plane in enumerate(planes[1:], start=1):
        upsampled = _upsampled(plane, size)
        torch.gt(upsampled, best, out=better)
        # Indices rise, so a maximum writes them; masked_fill_ takes 20 times as long on a CPU.
        torch.maximum(classes, better.view(torch.uint8).mul_(index), out=classes)
        torch.maximum(best, upsampled, out=best)
    return classes[0, 0]


def _upsampled(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)
