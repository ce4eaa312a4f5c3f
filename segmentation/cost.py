"""What a training step takes of a device, from one measured pass of its network."""

import copy
from dataclasses import dataclass

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config.segmentation import SegmentationConfig, SelfTrainingConfig
from pipeline.config.settings import ComputeConfig
from pipeline.runtime.device import measure_pass
from segmentation.models import Segmenter

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Cost:
    """What a training step takes of one device, good to a factor of about two."""

    seconds: float
    """Time, reading and torch.compile left out."""
    memory: int
    """Bytes of parameters, gradients, optimiser and, by far the most, the activations that are kept
    for the backward pass."""
    stored: int
    """Bytes of a checkpoint."""


def step_cost(
    model: Segmenter,
    config: SegmentationConfig,
    self_training: SelfTrainingConfig | None,
    compute: ComputeConfig,
) -> Cost:
    """Measure a copy of `model` on the first device's part of a batch."""
    shape = config.batch_size // compute.devices, config.crop[1], config.crop[0], 3
    measured = copy.deepcopy(model)
    for norm in measured.modules():
        if isinstance(norm, _BatchNorm):
            norm.register_forward_pre_hook(_take_single_values)
    once = measure_pass(measured, shape, compute, training=True)
    # Mixed and masked frames take a pass each, as labelled ones do; the teacher takes a forward
    # pass, about a third of that.
    passes, copies = 1.0, 1
    if self_training:
        passes += 4 / 3 + (self_training.masked_weight > 0)
        copies += 1
    weights = copies * sum(p.numel() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Cost(
        seconds=passes * once.seconds,
        # What learns has gradients and AdamW's two means.
        memory=(weights + 3 * learning) * _FLOAT + once.memory,
        stored=(weights + 2 * learning) * _FLOAT,
    )


def _take_single_values(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
    """Use the running statistics for one value a channel, which has none of its own.

    A training on several devices meets it where each has one frame, and takes those of all.
    """
    norm.train(inputs[0].numel() > inputs[0].shape[1])
