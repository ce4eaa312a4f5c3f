"""The adversarial and contrastive losses of the training loops, always in 32 bits."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.networks import Logits

AdversarialLoss = Literal["least_squares", "vanilla"]


def gan_loss(logits: Logits, *, real: bool, kind: AdversarialLoss = "least_squares") -> Tensor:
    """How far a discriminator is from calling its input real, or translated; a mean over patches.

    `least_squares` is mean((logits - 1)^2) or mean(logits^2) (Mao et al., ICCV 2017, eq. 9);
    `vanilla` the cross-entropy of sigmoid(logits) (Goodfellow et al., NeurIPS 2014, eq. 1). Losses
    of several scales, levels or discriminators are averaged, so that their number does not shift
    the balance with the cycle loss (Wang et al., pix2pixHD, eq. 3, adds them).
    """
    if isinstance(logits, list):
        return torch.stack([gan_loss(part, real=real, kind=kind) for part in logits]).mean()
    logits = logits.float()
    if kind == "vanilla":
        return F.softplus(-logits if real else logits).mean()
    return (logits - 1).square().mean() if real else logits.square().mean()


def discriminator_loss(
    discriminator: nn.Module, real: Tensor, fake: Tensor, kind: AdversarialLoss = "least_squares"
) -> Tensor:
    """Half the sum of the losses on real and on translated images (N, C, H, W), in one pass.

    Instance normalisation keeps the images of a batch apart, so one pass equals two.
    """
    logits = discriminator(torch.cat([real, fake]))
    on_real = gan_loss(_half(logits, 0), real=True, kind=kind)
    on_fake = gan_loss(_half(logits, 1), real=False, kind=kind)
    return 0.5 * (on_real + on_fake)


def _half(logits: Logits, which: int) -> Logits:
    """The first or the second half of a batch."""
    if isinstance(logits, list):
        return [_half(part, which) for part in logits]
    return logits.chunk(2)[which]


def contrastive_loss(
    queries: Sequence[Tensor], keys: Sequence[Tensor], temperature: float
) -> Tensor:
    """PatchNCE (Park et al., ECCV 2020, section 3), the mean over patches and layers.

    The cross-entropy of telling, by cosine similarity / `temperature`, which patch of its own image
    a patch was made from. Keys get no gradient.

    Args:
        queries: of each layer (N, P, D) vectors of length 1, of translations.
        keys: the same of what they were made from, at the same places.

    Returns:
        (N,) of each image.
    """
    of_layers = []
    for query, key in zip(queries, keys, strict=True):
        similarities = query.float() @ key.detach().float().transpose(1, 2) / temperature
        right = similarities.log_softmax(dim=2).diagonal(dim1=1, dim2=2)
        of_layers.append(-right.mean(dim=1))
    return torch.stack(of_layers).mean(dim=0)
