"""Self-training: a mean teacher labels target frames, and mixed frames are learned from.

DACS (Tranheden et al., WACV 2021) as DAFormer (Hoyer et al., CVPR 2022) trains with it, and masked
consistency (MIC: Hoyer et al., CVPR 2023). All choices are drawn from torch's global generators.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from pipeline.config.settings import SelfTrainingConfig
from pipeline.data.labels import IGNORE
from pipeline.runtime.distributed import ONE_RANK, Ranks


@torch.no_grad()
def pseudo_labels(
    logits: Tensor, believed: Tensor, confidence: float, ranks: Ranks = ONE_RANK
) -> tuple[Tensor, Tensor, Tensor]:
    """What a teacher sees, and how far it is to be believed.

    Args:
        logits: (N, classes, H, W) float32.
        believed: (N, H, W) bool, False where a label counts for nothing.
        ranks: those that have the other shards of the batch.

    Returns:
        The classes (N, H, W) int64; their weights (N, H, W) float32, 0 where not believed and
        else everywhere the same: the share of pixels above `confidence` in the batch; that share.
    """
    certainty, classes = logits.softmax(dim=1).max(dim=1)
    sure = ranks.all_reduce_sum((certainty > confidence).float().mean()) / ranks.world_size
    return classes, believed * sure, sure


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


def mask_out(rgb: Tensor, block: int, share: float) -> Tensor:
    """(N, H, W, 3) uint8, a random `share` of its squares of side `block` black (MIC, eq. 5)."""
    count, height, width = rgb.shape[:3]
    kept = torch.rand(count, 1, -(-height // block), -(-width // block)) >= share
    kept = F.interpolate(kept.float(), scale_factor=block)[:, 0, :height, :width, None]
    return rgb * kept.to(rgb.device, rgb.dtype)


@contextmanager
def unnoticed(network: nn.Module) -> Iterator[None]:
    """Batch normalisation keeps its running statistics while `network` trains on odd pictures.

    Frames that are mostly black are nothing that the network will be used on.
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
def lesson(
    seen: Tensor,
    batch: dict[str, Tensor],
    frames: dict[str, Tensor],
    config: SelfTrainingConfig,
    ranks: Ranks = ONE_RANK,
) -> dict[str, Tensor]:
    """What there is to learn from target frames in one step.

    Args:
        seen: (N, classes, H, W) float32, the teacher's logits of the target frames.
        batch: labelled `rgb` (N, H, W, 3) uint8 and `label` (N, H, W) int64.
        frames: of the target, as many: `rgb` and `believed` (N, H, W) bool.

    Returns:
        `rgb`, `label` and `weight` of the mixed frames; `taught` and `belief`: the teacher's labels
        of the target frames and their weights; `sure`, a scalar.
    """
    taught, belief, sure = pseudo_labels(seen, frames["believed"], config.confidence, ranks)
    rgb, label, weight = frames["rgb"], taught, belief
    if config.class_mix:
        pasted = class_masks(batch["label"])
        rgb = torch.where(pasted[..., None], batch["rgb"], rgb)
        label = torch.where(pasted, batch["label"], label)
        weight = torch.where(pasted, 1.0, weight)
    return {
        "rgb": recolor(rgb, config),
        "label": label,
        "weight": weight,
        "taught": taught,
        "belief": belief,
        "sure": sure,
    }
