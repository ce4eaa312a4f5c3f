"""The discriminator of a domain: on patches of pixels, on frozen features, or on both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cyclegan.networks import Logits, build_discriminator
from pipeline.config.translation import CycleGANConfig

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
    """

    def __init__(self, encoder: FrozenEncoder, width: int = 64) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(
            nn.Sequential(
                *[nn.Conv2d(channels, width, 1), nn.LeakyReLU(0.2)],
                *[nn.Conv2d(width, width, 3, 1, 1), nn.LeakyReLU(0.2)],
                nn.Conv2d(width, 1, 1),
            )
            for channels in encoder.channels
        )

    def forward(self, x: Tensor) -> Logits:
        """(N, 3, H, W) in [-1, 1] -> (N, 1, h, w) logits of each level."""
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


def domain_discriminator(config: CycleGANConfig, encoder: FrozenEncoder | None = None) -> nn.Module:
    """The discriminator of one domain that `config` describes.

    Args:
        encoder: what `config.feature_encoder` names, where it does.
    """
    parts = [] if config.discriminator == "none" else [build_discriminator(config)]
    if config.feature_encoder is not None:
        assert encoder is not None, "config.feature_encoder asks for a frozen encoder"
        parts.append(FeatureDiscriminator(encoder, config.discriminator_width))
    return parts[0] if len(parts) == 1 else JointDiscriminator(parts)
