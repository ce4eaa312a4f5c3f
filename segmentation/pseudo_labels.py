"""Pseudo-labels of frames: what a trained network takes them for, and how confident it is."""

from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.config.settings import ComputeConfig
from pipeline.data.images import UInt8
from segmentation.self_training import confidence_level
from segmentation.train import load_segmenter


def pseudo_labeller(
    checkpoint: Path, compute: ComputeConfig
) -> Callable[[UInt8], tuple[UInt8, UInt8]]:
    """A function (H, W, 3) uint8 frame -> its pseudo-label and its levels of confidence, both
    (H, W) uint8."""
    network = load_segmenter(checkpoint, compute)
    device = next(network.parameters()).device

    @torch.inference_mode()
    def predict(rgb: UInt8) -> tuple[UInt8, UInt8]:
        logits = network(torch.tensor(rgb)[None].to(device))
        probability, label = logits.softmax(dim=1).max(dim=1)
        both = torch.cat([label, confidence_level(probability)]).byte().cpu().numpy()
        return both[0], both[1]

    return predict
