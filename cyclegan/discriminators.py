"""The discriminator of a domain: on patches, on frozen features or both, told classes or not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.networks import Logits, build_discriminator
from pipeline.config.translation import CycleGANConfig
from pipeline.data.labels import LabelSpace
from pipeline.runtime.loader import Item

EPSILON = 1e-5
"""Added to the mean square of a place's features."""


@dataclass(frozen=True)
class FrozenEncoder:
    """A frozen network that takes frames as the generators do: (N, 3, H, W) in [-1, 1]."""

    features: Callable[[Tensor], list[Tensor]]
    """-> the features of each level, (N, C, h, w); gradients pass through to its input."""
    channels: Sequence[int]
    """C of each level."""


class FeatureDiscriminator(nn.Module):
    """A small discriminator on each level of a frozen encoder's features.

    Sauer et al., "Projected GANs Converge Faster", NeurIPS 2021, section 3.1, without the random
    projections of their section 3.2. Encoders differ in scale, so the features of a place are
    divided by their root mean square. The encoder is no part of this module: it is neither trained
    nor saved.

    Args:
        width: channels of the discriminators.
        outputs: logits of each place.
    """

    def __init__(self, encoder: FrozenEncoder, width: int = 64, outputs: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(
            nn.Sequential(
                *[nn.Conv2d(channels, width, 1), nn.LeakyReLU(0.2)],
                *[nn.Conv2d(width, width, 3, 1, 1), nn.LeakyReLU(0.2)],
                nn.Conv2d(width, outputs, 1),
            )
            for channels in encoder.channels
        )

    def forward(self, x: Tensor) -> Logits:
        """(N, 3, H, W) in [-1, 1] -> (N, outputs, h, w) logits of each level."""
        return [
            head(level * (level.float().square().mean(1, keepdim=True) + EPSILON).rsqrt())
            for head, level in zip(self.heads, self.encoder.features(x), strict=True)
        ]


class JointDiscriminator(nn.Module):
    """Several discriminators of the same frames, whose losses count alike."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Logits:
        """(N, C, H, W) in [-1, 1] -> the logits of each part."""
        return [part(x) for part in self.parts]


class LabelDiscriminator(nn.Module):
    """A discriminator that is told what a frame shows where, and so needs not ask for it.

    The logit of a place is that of any frame plus that of the classes there, by their shares: a
    projection discriminator (Miyato and Koyama, ICLR 2018), as Richter et al., TPAMI 2022, have it.

    Args:
        discriminator: takes frames; has 1 + `classes` logits a place.
    """

    def __init__(self, discriminator: nn.Module, classes: int) -> None:
        super().__init__()
        self.discriminator, self.classes = discriminator, classes

    def forward(self, x: Tensor) -> Logits:
        """Frames (N, 3, H, W) in [-1, 1] `with_classes` -> (N, 1, h, w) logits."""
        index = x[:, 3].long().clamp(max=self.classes)  # what has no class comes last
        shown = F.one_hot(index, self.classes + 1)[..., :-1].permute(0, 3, 1, 2)
        return _told(self.discriminator(x[:, :3]), shown.to(x.dtype))


def _told(logits: Logits, shown: Tensor) -> Logits:
    """Logits (N, 1 + K, h, w) where classes (N, K, H, W) are shown, as (N, 1, h, w)."""
    if isinstance(logits, list):
        return [_told(part, shown) for part in logits]
    height, width = logits.shape[2:]
    shares = F.adaptive_avg_pool2d(shown, (height, width))
    return logits[:, :1] + (logits[:, 1:] * shares).sum(dim=1, keepdim=True)


def with_classes(config: CycleGANConfig, frames: Tensor, batch: Item) -> Tensor:
    """What `config`'s discriminators see of frames (N, 3, H, W) that show what a batch's do.

    With `config.label_discriminators` the batch's classes are a fourth channel: so labels go with
    their frames through pools and ranks.
    """
    if not config.label_discriminators:
        return frames
    classes = batch["classes"].to(frames.device, non_blocking=True)
    return torch.cat([frames, classes[:, None].to(frames.dtype)], dim=1)


def domain_discriminator(
    config: CycleGANConfig,
    encoder: FrozenEncoder | None = None,
    space: LabelSpace | None = None,
) -> nn.Module:
    """The discriminator of one domain that `config` describes.

    Args:
        encoder: what `config.feature_encoder` names, where it does.
        space: the classes that frames come with, where `config.label_discriminators` asks for them.
    """
    classes = len(space.classes) if space and config.label_discriminators else 0
    parts = [] if config.discriminator == "none" else [build_discriminator(config, 1 + classes)]
    if config.feature_encoder is not None:
        assert encoder is not None, "config.feature_encoder asks for a frozen encoder"
        parts.append(FeatureDiscriminator(encoder, config.discriminator_width, 1 + classes))
    whole = parts[0] if len(parts) == 1 else JointDiscriminator(parts)
    return LabelDiscriminator(whole, classes) if classes else whole
