"""Losses of segmentation: cross-entropy of all or of the hardest pixels, and Dice.

Each is that of a whole batch, of which each rank may have a shard: a rank gets the value whose mean
over all ranks is the loss, and so it is with the gradients.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.labels import IGNORE, LabelSpace
from pipeline.errors import UserError
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.schema import near
from pipeline.scoring.metrics import Counts


def class_weights(given: Mapping[str, float], space: LabelSpace) -> Tensor | None:
    """(classes,) float32 weights of the classes by name; None when all weigh the same.

    Raises:
        UserError: a class that the label space does not have.
    """
    if not given:
        return None
    names = space.class_names
    for name in given:
        if name not in names:
            raise UserError(
                f"segmentation.class_weights: label space {space.name} has no class {name!r}."
                f"{near(name, names)} Known: {', '.join(names)}."
            )
    return torch.tensor([given.get(name, 1.0) for name in names])


def balanced_weights(counts: Sequence[Counts], fractions: Sequence[float]) -> Tensor:
    """(classes,) float32 weights under which all classes matter equally: 1 / (K f).

    f is a class's fraction of the labelled pixels and K the number of classes that have any: what
    scikit-learn calls "balanced" (after King and Zeng, Political Analysis, 2001). In a mixture f is
    the mean of the data sets' fractions of the class. A class without a pixel weighs 1.

    Args:
        counts: for each data set (frames, classes) pixels.
        fractions: of the data sets among the frames drawn, in any unit.
    """
    pixels = np.stack([frames.sum(axis=0) for frames in counts])
    frequency = np.average(pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1), 0, fractions)
    present = frequency > 0
    weights = np.ones(len(frequency))
    weights[present] = 1 / (present.sum() * frequency[present])
    return torch.tensor(weights.tolist())


def cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    weights: Tensor | None = None,
    hard_pixels: float = 1.0,
    ranks: Ranks = ONE_RANK,
) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored; 0 when all are.

    Args:
        logits: (N, classes, H, W) float32.
        label: (N, H, W) int64 class indices or `IGNORE`.
        weights: (classes,) float32; the mean is then a weighted one.
        hard_pixels: the fraction of each image's pixels that counts, those of the greatest loss
            (online hard example mining: Shrivastava et al., CVPR 2016; for pixels, as the
            bootstrapped cross-entropy of Pohlen et al., CVPR 2017, which keeps a number of them).
    """
    valid = label != IGNORE
    if weights is None and hard_pixels == 1:
        total = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="sum")
        return _mean(total, valid.sum(), ranks)
    weight = valid.float() if weights is None else valid * weights[label.where(valid, 0)]
    each = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none") * weight
    if hard_pixels == 1:
        return _mean(each.sum(), weight.sum(), ranks)
    valid, weight, each = valid.flatten(1), weight.flatten(1), each.flatten(1)
    order = each.detach().masked_fill(~valid, -1).argsort(dim=1, descending=True)
    kept = (hard_pixels * valid.sum(dim=1, keepdim=True)).ceil()
    among = torch.arange(order.shape[1], device=order.device) < kept
    chosen = torch.zeros_like(valid).scatter(1, order, among)
    return _mean((each * chosen).sum(), (weight * chosen).sum(), ranks)


def dice(logits: Tensor, label: Tensor, ranks: Ranks = ONE_RANK) -> Tensor:
    """1 - Dice of each class in the batch, averaged over all classes; one that is absent costs 0.

    Dice is 2 |A and B| / (|A| + |B|) with probabilities for A (Milletari et al., V-Net, 3DV 2016):
    what `segmentation_models_pytorch.losses.DiceLoss` computes, but over several ranks.

    Args:
        logits: (N, classes, H, W) float32.
        label: (N, H, W) int64 class indices or `IGNORE`.
    """
    probability = logits.softmax(dim=1) * (label != IGNORE)[:, None]
    classes = torch.arange(logits.shape[1], device=label.device)
    truth = label[:, None] == classes[:, None, None]  # one_hot takes eight times the memory
    sums = [part.sum(dim=(0, 2, 3)) for part in (probability * truth, probability, truth)]
    common, predicted, present = ranks.all_reduce_sum(
        torch.stack([part.type_as(probability) for part in sums])
    )
    score = 2 * common / (predicted + present).clamp(min=1e-7)
    loss: Tensor = ((1 - score) * (present > 0)).mean()
    return loss


def _mean(total: Tensor, count: Tensor, ranks: Ranks) -> Tensor:
    """`total` over the sum of all ranks' `count`; 0 when that is 0."""
    count = ranks.all_reduce_sum(count)
    return total * ranks.world_size / count.where(count > 0, 1)
