"""Self-training: a mean teacher labels target frames, and mixed frames are trained on.

DACS (Tranheden et al., WACV 2021) as DAFormer (Hoyer et al., CVPR 2022) trains with it, and masked
consistency (MIC: Hoyer et al., CVPR 2023). All choices are drawn from torch's global generators.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from pipeline.config.segmentation import SelfTrainingConfig
from pipeline.data.labels import IGNORE
from pipeline.runtime.distributed import ONE_RANK, Ranks


class MixedBatch(NamedTuple):
    """What a student is trained on besides labelled frames, (N, H, W) each."""

    rgb: Tensor
    """(N, H, W, 3) uint8: target frames with pasted classes of labelled ones."""
    label: Tensor
    """int64 class indices or `IGNORE`."""
    weight: Tensor
    """float32: 1 where a class is pasted, else the confidence weight."""
    pseudo_label: Tensor
    """int64: the teacher's classes of the target frames."""
    confidence_weight: Tensor
    """float32, of the pseudo-labels."""
    confident_fraction: Tensor
    """Scalar: the fraction of pixels of the batch of which the teacher is confident."""


def confidence_level(probability: Tensor) -> Tensor:
    """The probability of a label as a level in 0..255, rounded: 255 (1 - (1 - p) ** (1/4)).

    Most of a trained network's probabilities are near 1, and are still told apart.
    """
    return (255 * (1 - (1 - probability).clamp(min=0) ** 0.25)).round()


class ClassThresholds(nn.Module):
    """Finds the most confident part `keep` of the pixels of each pseudo-labelled class.

    Class-balanced thresholds (CBST: Zou et al., ECCV 2018, section 3.3), of the pixels of past
    steps instead of a whole pass over the frames: a step counts 0.99 as much as the one after it.
    """

    counts: Tensor
    """(classes, 256) float64: pixels of each class and level of confidence."""

    def __init__(self, classes: int, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.register_buffer("counts", torch.zeros(classes, 256, dtype=torch.float64))

    def forward(
        self, probability: Tensor, classes: Tensor, valid: Tensor, ranks: Ranks = ONE_RANK
    ) -> Tensor:
        """Count the pixels of a batch, and tell which are confident.

        Args:
            probability: (N, H, W) of `classes`, (N, H, W) int64.
            valid: (N, H, W) bool, False where a pixel does not count.
            ranks: those that have the other shards of the batch.

        Returns:
            (N, H, W) bool.
        """
        level = confidence_level(probability).long()
        found = torch.bincount((classes * 256 + level)[valid], minlength=self.counts.numel())
        self.counts.mul_(0.99).add_(ranks.all_reduce_sum(found).view_as(self.counts))
        above = self.counts.flip(1).cumsum(1).flip(1)
        limits = (above >= self.keep * above[:, :1]).sum(1) - 1
        return valid & (level >= limits[classes])


@torch.no_grad()
def pseudo_labels(
    logits: Tensor,
    valid: Tensor,
    confident: float | ClassThresholds,
    ranks: Ranks = ONE_RANK,
) -> tuple[Tensor, Tensor, Tensor]:
    """A teacher's labels and their weights.

    Args:
        logits: (N, classes, H, W) float32.
        valid: (N, H, W) bool, False where a pseudo-label is not used.
        confident: by class, or: a pixel is confident when its class has a greater probability.
        ranks: those that have the other shards of the batch.

    Returns:
        The classes (N, H, W) int64; their weights (N, H, W) float32, 0 where not valid: by class
        1 for confident pixels and 0 for others, else everywhere the same, the fraction of confident
        pixels in the batch (DACS, section 3.2); that fraction.
    """
    probability, classes = logits.softmax(dim=1).max(dim=1)
    if isinstance(confident, ClassThresholds):
        chosen = confident(probability, classes, valid, ranks).float()
    else:
        chosen = (probability > confident).float()
    fraction = ranks.all_reduce_sum(chosen.mean()) / ranks.world_size
    weight = chosen if isinstance(confident, ClassThresholds) else valid * fraction
    return classes, weight, fraction


def class_masks(label: Tensor) -> Tensor:
    """(N, H, W) classes -> (N, H, W) bool: the pixels of a random half of each picture's classes.

    Of an odd number it is the larger half (DACS, algorithm 1).
    """
    masks = []
    for picture in label:
        classes = picture[picture != IGNORE].unique()
        order = torch.randperm(len(classes))[: (len(classes) + 1) // 2]
        masks.append(torch.isin(picture, classes[order.to(classes.device)]))
    return torch.stack(masks)


def recolor(rgb: Tensor, config: SelfTrainingConfig) -> Tensor:
    """Colour jitter and blur of (N, H, W, 3) uint8, drawn anew for each picture."""
    c = config.color
    jitter = v2.RandomApply([v2.ColorJitter(c, c, c, c / 4)], p=0.8 if c else 0)
    blur = v2.RandomApply([v2.GaussianBlur(9, (0.15, 1.15))], p=config.blur)
    pictures = [blur(jitter(picture)) for picture in rgb.permute(0, 3, 1, 2)]
    return torch.stack(pictures).permute(0, 2, 3, 1).contiguous()


def mask_out(rgb: Tensor, block: int, fraction: float) -> Tensor:
    """(N, H, W, 3) uint8, a random `fraction` of its squares of side `block` black (MIC, eq. 5)."""
    count, height, width = rgb.shape[:3]
    kept = torch.rand(count, 1, -(-height // block), -(-width // block)) >= fraction
    kept = F.interpolate(kept.float(), scale_factor=block)[:, 0, :height, :width, None]
    return rgb * kept.to(rgb.device, rgb.dtype)


@contextmanager
def freeze_bn_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms keep their running statistics in the block.

    For frames that are mostly masked out: the network is not used on such.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def weighted_cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor, ranks: Ranks = ONE_RANK
) -> Tensor:
    """Cross-entropy of each pixel times its weight, averaged over the pixels with a class.

    Args:
        logits: (N, classes, H, W) float32.
        label: (N, H, W) int64 class indices or `IGNORE`.
        weight: (N, H, W) float32.
        ranks: those that have the other shards of the batch; the mean of what they return is the
            loss.
    """
    each = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    count = ranks.all_reduce_sum((label != IGNORE).sum())
    return (each * weight).sum() * ranks.world_size / count.clamp(min=1)


@torch.no_grad()
def mix_batch(
    logits: Tensor,
    labelled: dict[str, Tensor],
    target: dict[str, Tensor],
    config: SelfTrainingConfig,
    ranks: Ranks = ONE_RANK,
    thresholds: ClassThresholds | None = None,
) -> MixedBatch:
    """Pseudo-label target frames and paste classes of labelled frames over them.

    Args:
        logits: (N, classes, H, W) float32, the teacher's of the target frames.
        labelled: `rgb` (N, H, W, 3) uint8 and `label` (N, H, W) int64.
        target: as many frames: `rgb` and `valid` (N, H, W) bool.
        thresholds: those of each class, where `config.keep` asks for them.
    """
    pseudo, confidence, fraction = pseudo_labels(
        logits, target["valid"], thresholds or config.confidence, ranks
    )
    rgb, label, weight = target["rgb"], pseudo, confidence
    if config.class_mix:
        pasted = class_masks(labelled["label"])
        rgb = torch.where(pasted[..., None], labelled["rgb"], rgb)
        label = torch.where(pasted, labelled["label"], label)
        weight = torch.where(pasted, 1.0, weight)
    return MixedBatch(recolor(rgb, config), label, weight, pseudo, confidence, fraction)
