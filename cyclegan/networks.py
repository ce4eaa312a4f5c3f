"""The networks of CycleGAN and pix2pix, key for key as the reference implementation stores them.

Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks",
ICCV 2017, section 4 and appendix 7.2; Isola et al., "Image-to-Image Translation with Conditional
Adversarial Networks", CVPR 2017, appendix 6.1.
"""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.compiler import is_exporting
from torch.nn import functional as F

from pipeline.config.translation import CycleGANConfig

EPSILON = 1e-5
"""Added to the variance by the norms."""
Upsampling = Literal["transposed", "resize"]
Logits: TypeAlias = "Tensor | list[Logits]"
"""A discriminator's logits (N, 1, h, w); a list of them where it is several."""


class InstanceNorm(nn.Module):
    """Instance normalisation without affine weights or running statistics, (N, C, H, W).

    The result has the type and the memory layout of `x`; statistics are accumulated in 32 bits or
    more, also under autocast.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            out: Tensor = _ExactInstanceNorm.apply(x)
            return out
        # Of a 16-bit input, group_norm would keep its statistics in 16 bits for the backward pass.
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x.float(), x.shape[1], eps=EPSILON).to(x.dtype)


class _ExactInstanceNorm(torch.autograd.Function):
    """Written out, because none of torch's own norms is right and fast on the CPU.

    The gradient of instance_norm is wrong at batch 1 for channels_last gradients. group_norm, one
    channel a group, takes a variance as the difference of two large sums in that layout: errors of
    1% where a mean is 20 deviations. nn.InstanceNorm2d gives up the layout.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] == 1:
            raise ValueError(f"instance norm of a single pixel, input {tuple(x.shape)}")
        exact = x if x.dtype == torch.float64 else x.float()
        centred = exact - exact.mean((2, 3), keepdim=True)
        scale = (centred.square().mean((2, 3), keepdim=True) + EPSILON).rsqrt()
        out = centred.mul_(scale).to(x.dtype)
        ctx.save_for_backward(out, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """scale * (g - mean(g) - out * mean(g * out)): Ioffe and Szegedy, 2015, section 3."""
        out, scale = ctx.saved_tensors
        exact = gradient.to(scale.dtype)
        slope = (exact * out).mean((2, 3), keepdim=True)
        centred = exact - exact.mean((2, 3), keepdim=True)
        centred.addcmul_(out.to(scale.dtype), slope, value=-1).mul_(scale)
        return centred.to(out.dtype)


class PictureConv(nn.Conv2d):
    """A convolution to the few channels of a picture, stride 1, of even height and width.

    The CPU's kernels work on 16 channels at a time, of which a picture fills 3. Computed for blocks
    of 2x2 pixels as a convolution of stride 2 it fills 12: three times less arithmetic with the
    kernel of 7x7, and the same result.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or is_exporting():
            return super().forward(x)
        shifted = [F.pad(self.weight, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)]
        weight = torch.stack(shifted, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias.repeat_interleave(4)
        return F.pixel_shuffle(F.conv2d(x, weight, bias, stride=2), 2)


class ResnetBlock(nn.Module):
    """x + two 3x3 convolutions, reflection padded; no activation after the sum."""

    def __init__(self, channels: int, *, dropout: bool = False) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), InstanceNorm()]
        layers += [nn.ReLU(), *[nn.Dropout(0.5)] * dropout]
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), InstanceNorm()]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv_block(x)
        return out


class ResnetGenerator(nn.Module):
    """Johnson et al.'s translator: two strided convolutions, residual blocks, two upsamplings.

    Args:
        blocks: residual blocks; 9 for the reference's 256x256 networks, 6 for 128x128.
        width: channels after the first convolution.
        dropout: drop half of the activations inside each block.
        upsampling: see `upsample`.
    """

    multiple = 4
    """Sides of the input are multiples of this."""

    def __init__(
        self,
        blocks: int = 9,
        width: int = 64,
        *,
        dropout: bool = False,
        upsampling: Upsampling = "transposed",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7)]
        layers += [InstanceNorm(), nn.ReLU()]
        for channels in (width, 2 * width):
            layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1), InstanceNorm(), nn.ReLU()]
        layers += [ResnetBlock(4 * width, dropout=dropout) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            layers += [upsample(channels, channels // 2, 3, upsampling), InstanceNorm(), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), PictureConv(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same; H and W multiples of 4."""
        out: Tensor = self.model(x)
        return out


class UnetGenerator(nn.Module):
    """Isola et al.'s U-Net: `downs` halvings by 4x4 convolutions and as many doublings.

    Args:
        downs: 8 for the reference's unet_256, 7 for its unet_128; at least 4.
        width: channels after the first convolution; at most 8 times as many further in.
        dropout: drop half of the activations of the innermost doublings with 8 times `width`.
        skips: hand each halving's input to the doubling of its size. Without them it is an
            encoder and decoder (Isola et al., section 4.2), the generator of DiscoGAN (Kim et al.,
            ICML 2017) with its width and norm.
        upsampling: see `upsample`.
    """

    def __init__(
        self,
        downs: int = 8,
        width: int = 64,
        *,
        dropout: bool = False,
        skips: bool = True,
        upsampling: Upsampling = "transposed",
    ) -> None:
        super().__init__()
        self.multiple = 2**downs
        channels = [3, *(width * min(2**level, 8) for level in range(downs))]
        inside: UnetLevel | None = None
        for level in reversed(range(downs)):
            middle = 4 <= level < downs - 1
            inside = UnetLevel(
                channels[level],
                channels[level + 1],
                inside,
                outermost=level == 0,
                dropout=dropout and middle,
                skips=skips,
                upsampling=upsampling,
            )
        assert inside is not None
        self.model = inside

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same; H and W multiples of 2 ** downs."""
        out: Tensor = self.model(x)
        return out


class UnetLevel(nn.Module):
    """Halve, go through the level inside, double; with skips, join the input to the result.

    The innermost level has no norm on its way down: there a frame may be a single pixel.
    """

    def __init__(
        self,
        outer: int,
        inner: int,
        inside: "UnetLevel | None",
        *,
        outermost: bool,
        dropout: bool,
        skips: bool,
        upsampling: Upsampling,
    ) -> None:
        super().__init__()
        self.joins = skips and not outermost
        joined = 2 * inner if inside is not None and skips else inner
        layers: list[nn.Module] = [] if outermost else [nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(outer, inner, 4, 2, 1)]
        if inside is not None:
            layers += [inside] if outermost else [InstanceNorm(), inside]
        layers += [nn.ReLU(), upsample(joined, outer, 4, upsampling)]
        layers += [nn.Tanh()] if outermost else [InstanceNorm(), *[nn.Dropout(0.5)] * dropout]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return torch.cat([x, out], 1) if self.joins else out


class ResidualGenerator(nn.Module):
    """A generator of what is added to its input.

    Kupyn et al., "DeblurGAN", CVPR 2018 (ResOut). Detail need not pass through the network.
    `initialise` makes it begin at frames as they are.
    """

    def __init__(self, correction: ResnetGenerator | UnetGenerator) -> None:
        super().__init__()
        self.correction = correction
        self.multiple = correction.multiple

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same; H and W multiples of `multiple`."""
        out: Tensor = x + self.correction(x)
        return out.clamp(-1, 1)


Generator = ResnetGenerator | UnetGenerator | ResidualGenerator


def upsample(channels: int, out: int, kernel: int, upsampling: Upsampling) -> nn.Module:
    """Double height and width, (N, channels, H, W) -> (N, out, 2H, 2W).

    Args:
        kernel: side of the transposed convolution, 3 or 4.
        upsampling: `transposed` as in the reference; `resize` repeats pixels and convolves (3x3,
            reflection padded), which leaves no chequerboard (Odena et al., Distill 2016).
    """
    if upsampling == "transposed":
        return nn.ConvTranspose2d(channels, out, kernel, 2, 1, output_padding=kernel % 2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(channels, out, 3)
    )


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., CVPR 2017): one logit for each overlapping patch, no sigmoid.

    Args:
        layers: strided convolutions; 3 give patches of 70x70 pixels.
        width: channels after the first convolution.
        channels: of the input; 6 for a frame and its translation.
        outputs: logits of each patch.
    """

    def __init__(
        self, layers: int = 3, width: int = 64, channels: int = 3, outputs: int = 1
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        narrower = width
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            modules += [nn.Conv2d(narrower, wider, 4, stride, 1), InstanceNorm()]
            modules += [nn.LeakyReLU(0.2)]
            narrower = wider
        modules += [nn.Conv2d(narrower, outputs, 4, 1, 1)]
        self.model = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] -> (N, outputs, h, w) logits."""
        out: Tensor = self.model(x)
        return out


class PixelDiscriminator(nn.Module):
    """PixelGAN (Isola et al., section 4.4): 1x1 convolutions, a logit for each pixel's colour."""

    def __init__(self, width: int = 64, channels: int = 3, outputs: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *[nn.Conv2d(channels, width, 1), nn.LeakyReLU(0.2)],
            *[nn.Conv2d(width, 2 * width, 1), InstanceNorm(), nn.LeakyReLU(0.2)],
            nn.Conv2d(2 * width, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] -> (N, outputs, H, W) logits."""
        out: Tensor = self.net(x)
        return out


class PyramidDiscriminator(nn.Module):
    """Equal discriminators, each on the frame at half the size of the one before.

    Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs"
    (pix2pixHD), CVPR 2018, section 3.2.
    """

    def __init__(self, discriminators: list[nn.Module]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(discriminators)

    def forward(self, x: Tensor) -> Logits:
        """(N, C, H, W) in [-1, 1] -> (N, 1, h, w) logits of each scale, finest first."""
        logits: list[Logits] = [self.scales[0](x)]
        for discriminator in self.scales[1:]:
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
            logits.append(discriminator(x))
        return logits


def build_generator(config: CycleGANConfig) -> Generator:
    """The generator that `config` describes, with torch's own initial weights."""
    generator: ResnetGenerator | UnetGenerator
    if config.generator == "resnet":
        generator = ResnetGenerator(
            config.blocks,
            config.generator_width,
            dropout=config.dropout,
            upsampling=config.upsampling,
        )
    else:
        generator = UnetGenerator(
            config.downs,
            config.generator_width,
            dropout=config.dropout,
            skips=config.generator == "unet",
            upsampling=config.upsampling,
        )
    return ResidualGenerator(generator) if config.residual else generator


def build_discriminator(config: CycleGANConfig, outputs: int = 1) -> nn.Module:
    """The discriminator that `config` describes; of a frame, or of a pair in paired training.

    Args:
        outputs: logits of each patch.
    """
    channels, width = 6 if config.paired else 3, config.discriminator_width
    discriminators: list[nn.Module] = [
        PixelDiscriminator(width, channels, outputs)
        if config.discriminator == "pixel"
        else PatchDiscriminator(config.discriminator_layers, width, channels, outputs)
        for _ in range(config.discriminator_scales)
    ]
    return discriminators[0] if len(discriminators) == 1 else PyramidDiscriminator(discriminators)


def initialise(network: nn.Module) -> None:
    """Weights of convolutions and linear layers from N(0, 0.02), biases 0 (appendix 7.2).

    The last convolution of a `ResidualGenerator` is 0: it adds nothing yet.
    """
    layers = [
        m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    for layer in layers:
        nn.init.normal_(layer.weight, 0.0, 0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if isinstance(network, ResidualGenerator):
        nn.init.zeros_(layers[-1].weight)


def minimum_side(layers: int, scales: int = 1) -> int:
    """The smallest image side that a PatchGAN of `layers` at `scales` gives a logit for."""
    side = 1
    for stride in [1, 1, *[2] * layers]:
        side = (side - 1) * stride + 4 - 2
    return ((side - 1) << (scales - 1)) + 1


def to_network(rgb: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1], channels_last in memory."""
    return rgb.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_rgb(x: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8, rounded."""
    return x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
