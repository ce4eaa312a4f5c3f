"""What a training takes of the machine, from a pass or two of its network over random pixels."""

import copy
from dataclasses import dataclass
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config.settings import ComputeConfig, SegmentationConfig, SelfTrainingConfig
from pipeline.runtime.device import measure_pass
from pipeline.text import duration
from segmentation.models import Segmenter

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Cost:
    """What a training step takes of one device, good to a factor of about two."""

    weights: int
    """Numbers that are learned."""
    seconds: float
    """Time, reading and torch.compile left out."""
    memory: int
    """Bytes of weights, gradients, optimiser and, by far the most, what the way back needs."""
    stored: int
    """Bytes of a checkpoint."""

    def about(self, steps: int) -> str:
        """For the user, before `steps` steps."""
        return (
            f"{self.weights / 1e6:.3g} million weights, about {self.memory / 1e9:.2g} GB of memory "
            f"and {duration(self.seconds)} a step, {duration(steps * self.seconds)} for {steps}"
        )


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
            norm.register_forward_pre_hook(_bear_one_value)
    once = measure_pass(measured, shape, compute, training=True)
    # Mixed and masked frames are learned from like labelled ones, one after the other; the teacher
    # looks once, which is about a third of that.
    passes, copies = 1.0, 4  # weights, gradients and AdamW's two means
    if self_training:
        passes += 4 / 3 + (self_training.masked_weight > 0)
        copies += 1
    weights = sum(p.numel() for p in model.parameters())
    return Cost(
        weights=weights,
        seconds=passes * once.seconds,
        memory=copies * weights * _FLOAT + once.memory,
        stored=(copies - 1) * weights * _FLOAT,
    )


def _bear_one_value(norm: _BatchNorm, inputs: tuple[Any, ...]) -> None:
    """Use the running statistics for one value a channel, which has none of its own.

    A training on several devices meets it where each has one frame, and takes those of all.
    """
    norm.train(inputs[0].numel() > inputs[0].shape[1])
