"""The networks of CycleGAN, key for key as the reference implementation stores them.

Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks",
ICCV 2017, section 4 and appendix 7.2.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InstanceNorm(nn.Module):
    """Instance normalisation without affine weights or running statistics, (N, C, H, W).

    Written as group normalisation with one channel a group: the same function. On the CPU the
    backward pass of torch's own instance_norm is wrong for channels_last gradients at batch 1,
    and nn.InstanceNorm2d gives up the channels_last layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, x.shape[1], eps=1e-5)


class ResnetBlock(nn.Module):
    """x + two 3x3 convolutions, reflection padded; no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            *[nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), InstanceNorm(), nn.ReLU()],
            *[nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), InstanceNorm()],
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv_block(x)
        return out


class ResnetGenerator(nn.Module):
    """Johnson et al.'s translator: two strided convolutions, residual blocks, two upsamplings.

    Args:
        blocks: residual blocks; 9 for the reference's 256x256 networks, 6 for 128x128.
        width: channels after the first convolution.
    """

    def __init__(self, blocks: int = 9, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7)]
        layers += [InstanceNorm(), nn.ReLU()]
        for channels in (width, 2 * width):
            layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1), InstanceNorm(), nn.ReLU()]
        layers += [ResnetBlock(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            up = nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, output_padding=1)
            layers += [up, InstanceNorm(), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same; H and W multiples of 4."""
        out: Tensor = self.model(x)
        return out


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., CVPR 2017): one logit for each overlapping patch, no sigmoid.

    Args:
        layers: strided convolutions; 3 give patches of 70x70 pixels.
        width: channels after the first convolution.
    """

    def __init__(self, layers: int = 3, width: int = 64) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = width
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            modules += [nn.Conv2d(channels, wider, 4, stride, 1), InstanceNorm()]
            modules += [nn.LeakyReLU(0.2)]
            channels = wider
        modules += [nn.Conv2d(channels, 1, 4, 1, 1)]
        self.model = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, 1, h, w) logits."""
        out: Tensor = self.model(x)
        return out


def initialise(network: nn.Module) -> None:
    """Convolution weights from N(0, 0.02), biases 0 (appendix 7.2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def minimum_side(layers: int) -> int:
    """The smallest image side that a discriminator of `layers` gives a logit for."""
    side = 1
    for stride in [1, 1, *[2] * layers]:
        side = (side - 1) * stride + 4 - 2
    return side


def to_network(rgb: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1], channels_last in memory."""
    return rgb.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_rgb(x: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8, rounded."""
    return x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
