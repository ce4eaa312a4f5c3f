"""Pseudo-labels of frames: what a trained network takes them for, and how confident it is."""

from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.config.settings import ComputeConfig
from pipeline.data.images import UInt8
from pipeline.runtime.device import make_fabric
from segmentation.train import load_segmenter


def pseudo_labeller(
    checkpoint: Path, compute: ComputeConfig
) -> Callable[[UInt8], tuple[UInt8, UInt8]]:
    """A function (H, W, 3) uint8 frame -> its pseudo-label and confidences, both (H, W) uint8.

    Confidences are 255 (1 - (1 - p) ** (1/4)), where p is the probability of the label: most of a
    trained network's are near 1, and are still told apart.
    """
    fabric = make_fabric(compute, training=False)
    model = load_segmenter(checkpoint)
    network = fabric.setup_module(model.to(fabric.device, memory_format=torch.channels_last))  # type: ignore[call-overload]

    @torch.inference_mode()
    def predict(rgb: UInt8) -> tuple[UInt8, UInt8]:
        logits = network(torch.tensor(rgb)[None].to(fabric.device))
        probability, label = logits.softmax(dim=1).max(dim=1)
        confidence = 255 * (1 - (1 - probability).clamp(min=0) ** 0.25)
        both = torch.cat([label, confidence.round()]).byte().cpu().numpy()
        return both[0], both[1]

    return predict
