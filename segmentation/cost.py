"""What a training takes of the machine, from a pass or two of its network over random pixels."""

import copy
from dataclasses import dataclass

from pipeline.config import ComputeConfig, SegmentationConfig, SelfTrainingConfig
from pipeline.progress import duration
from pipeline.training import measure_pass
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
    part = config.batch_size // compute.devices
    frames = max(2, part)  # batch norms refuse a single value
    shape = frames, config.crop[1], config.crop[0], 3
    once = measure_pass(copy.deepcopy(model), shape, compute, training=True)
    # Mixed and masked frames are learned from like labelled ones, one after the other; the teacher
    # looks once, which is about a third of that.
    passes, copies = 1.0, 4  # weights, gradients and AdamW's two means
    if self_training:
        passes += 4 / 3 + (self_training.masked_weight > 0)
        copies += 1
    weights = sum(p.numel() for p in model.parameters())
    return Cost(
        weights=weights,
        seconds=passes * once.seconds * part / frames,
        memory=copies * weights * _FLOAT + once.memory * part // frames,
        stored=(copies - 1) * weights * _FLOAT,
    )
