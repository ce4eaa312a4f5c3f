"""A generator on a frame that the memory does not hold whole: strip by strip of its rows.

Every layer but the norms looks at few rows. So what a convolution makes is computed for some rows
at a time and kept in the machine's memory; an instance norm then goes over it once for the
statistics of the whole frame, and normalises rows when they are asked for. The result is that of
the whole frame but for rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.networks import EPSILON, InstanceNorm, ResidualGenerator, ResnetBlock, UnetLevel
from cyclegan.weights import AffineInstanceNorm


@dataclass(frozen=True)
class Rows:
    """A picture of many channels whose rows are computed when they are asked for."""

    height: int
    get: Callable[[int, int], Tensor]
    """First row and the one after the last -> (N, C, rows, W) on the device."""


def in_strips(network: nn.Module, x: Tensor, rows: int) -> Tensor:
    """`network(x)` with a small part of its memory.

    Args:
        network: a generator, in evaluation mode.
        x: (N, 3, H, W) in [-1, 1], sides multiples of `network.multiple`; of any device.
        rows: of a strip, at least 1.

    Returns:
        (N, 3, H, W) on the CPU.

    Raises:
        TypeError: the network has a layer that is not known here.
    """
    device = next(network.parameters()).device
    strips = _Strips(device, rows)
    made = strips.through(network, Rows(x.shape[2], lambda a, b: x[:, :, a:b].to(device)))
    return strips.computed(made)


class _Strips:
    def __init__(self, device: torch.device, rows: int) -> None:
        self.device, self.rows = device, rows

    def computed(self, x: Rows) -> Tensor:
        """All rows, (N, C, H, W) on the CPU."""
        whole: Tensor | None = None
        for top in range(0, x.height, self.rows):
            strip = x.get(top, min(top + self.rows, x.height))
            if whole is None:
                shape = (*strip.shape[:2], x.height, strip.shape[3])
                whole = torch.empty(shape, dtype=strip.dtype)
            whole[:, :, top : top + self.rows] = strip.cpu()
        assert whole is not None
        return whole

    def kept(self, x: Rows) -> Rows:
        """The same, computed once."""
        whole = self.computed(x)
        return Rows(x.height, lambda a, b: whole[:, :, a:b].to(self.device))

    def through(self, layer: nn.Module, x: Rows) -> Rows:
        """What a layer makes of `x`."""
        match layer:
            case ResnetBlock():
                inner = self.through(layer.conv_block, x)
                return self.kept(Rows(x.height, lambda a, b: x.get(a, b) + inner.get(a, b)))
            case ResidualGenerator():
                added = self.through(layer.correction, x)
                return Rows(x.height, lambda a, b: (x.get(a, b) + added.get(a, b)).clamp(-1, 1))
            case UnetLevel():
                inner = self.through(layer.model, x)
                if not layer.joins:
                    return inner
                return Rows(x.height, lambda a, b: torch.cat([x.get(a, b), inner.get(a, b)], 1))
            case InstanceNorm():
                return self._normalised(x)
            case AffineInstanceNorm():
                normed = self._normalised(x)
                weight, bias = layer.weight[:, None, None], layer.bias[:, None, None]
                return Rows(x.height, lambda a, b: normed.get(a, b) * weight + bias)
            case nn.ReflectionPad2d():
                return _reflected(x, layer.padding[0])
            case nn.Conv2d():
                return self.kept(_convolved(x, layer))
            case nn.ConvTranspose2d():
                return self.kept(_doubled(x, layer))
            case nn.Upsample():
                # Of one row more on either side, an odd first row is cut off.
                return Rows(
                    2 * x.height,
                    lambda a, b: layer(x.get(a // 2, -(-b // 2)))[:, :, a % 2 :][:, :, : b - a],
                )
            case nn.ReLU() | nn.LeakyReLU() | nn.Tanh() | nn.Dropout() | nn.BatchNorm2d():
                return Rows(x.height, lambda a, b: layer(x.get(a, b)))
        children = list(layer.children())
        if not children:
            raise TypeError(f"{type(layer).__name__} is no layer that works in strips")
        for child in children:
            x = self.through(child, x)
        return x

    def _normalised(self, x: Rows) -> Rows:
        """Instance norm by the statistics of all rows (Chan et al., 1983, for those of parts)."""
        counts, means, squares = [], [], []
        for top in range(0, x.height, self.rows):
            strip = x.get(top, min(top + self.rows, x.height)).float()
            own = strip.mean((2, 3), keepdim=True)
            counts.append(strip.shape[2] * strip.shape[3])
            means.append(own)
            squares.append((strip - own).square().sum((2, 3), keepdim=True))
        parts = torch.stack(means).double()
        pixels = torch.tensor(counts, dtype=torch.float64, device=self.device)
        share = (pixels / pixels.sum()).view(-1, 1, 1, 1, 1)
        mean = (share * parts).sum(0)
        within = torch.stack(squares).double().sum(0) / sum(counts)
        variance = within + (share * (parts - mean).square()).sum(0)
        centre, scale = mean.float(), (variance + EPSILON).rsqrt().float()

        def get(first: int, end: int) -> Tensor:
            strip = x.get(first, end)
            return ((strip.float() - centre) * scale).to(strip.dtype)

        return Rows(x.height, get)


def _reflected(x: Rows, pad: int) -> Rows:
    def get(first: int, end: int) -> Tensor:
        wanted = torch.arange(first - pad, end - pad).abs()
        wanted = torch.where(wanted < x.height, wanted, 2 * (x.height - 1) - wanted)
        top = int(wanted.min())
        strip = x.get(top, int(wanted.max()) + 1)
        strip = strip[:, :, (wanted - top).to(strip.device)]
        return F.pad(strip, (pad, pad, 0, 0), mode="reflect")

    return Rows(x.height + 2 * pad, get)


def _with_zeros(x: Rows, first: int, end: int) -> Tensor:
    """Rows from `first`, which may be negative, to `end`; those outside of the picture are 0."""
    strip = x.get(max(0, first), min(end, x.height))
    return F.pad(strip, (0, 0, max(0, -first), max(0, end - x.height)))


def _convolved(x: Rows, layer: nn.Conv2d) -> Rows:
    (kernel, _), (stride, _), pad = layer.kernel_size, layer.stride, int(layer.padding[0])

    def get(first: int, end: int) -> Tensor:
        top = first * stride - pad
        strip = _with_zeros(x, top, (end - 1) * stride - pad + kernel)
        return F.conv2d(strip, layer.weight, layer.bias, stride, (0, pad))

    return Rows((x.height + 2 * pad - kernel) // stride + 1, get)


def _doubled(x: Rows, layer: nn.ConvTranspose2d) -> Rows:
    """Row `i` of the input adds to the rows `2 i - pad` to `2 i - pad + kernel - 1`."""
    kernel, pad, beyond = layer.kernel_size[0], int(layer.padding[0]), layer.output_padding[0]

    def get(first: int, end: int) -> Tensor:
        top = -(-(first + pad - kernel + 1) // 2)
        strip = _with_zeros(x, top, (end - 1 + pad) // 2 + 1)
        out = F.conv_transpose2d(strip, layer.weight, layer.bias, 2, (0, pad), (0, beyond))
        start = first - (2 * top - pad)
        return out[:, :, start : start + end - first]

    return Rows(2 * (x.height - 1) - 2 * pad + kernel + beyond, get)
