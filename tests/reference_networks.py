"""The reference implementation's networks, written anew from its description, and its files."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


Network = TypeVar("Network", bound=nn.Module)


def norm_layer(norm: str, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.InstanceNorm2d(
        channels, affine=norm == "affine", track_running_stats=norm == "tracked"
    )


class Block(nn.Module):
    def __init__(self, channels: int, norm: str, dropout: bool) -> None:
        super().__init__()
        bias = norm != "batch"
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            norm_layer(norm, channels),
            nn.ReLU(),
            *[nn.Dropout(0.5)] * dropout,
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            norm_layer(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv_block(x)
        return out


class Resnet(nn.Module):
    def __init__(
        self,
        blocks: int = 2,
        width: int = 4,
        norm: str = "instance",
        dropout: bool = False,
        inputs: int = 3,
    ) -> None:
        super().__init__()
        w, bias = width, norm != "batch"
        self.model = nn.Sequential(
            *[nn.ReflectionPad2d(3), nn.Conv2d(inputs, w, 7, bias=bias)],
            *[norm_layer(norm, w), nn.ReLU(), nn.Conv2d(w, 2 * w, 3, 2, 1, bias=bias)],
            *[norm_layer(norm, 2 * w), nn.ReLU(), nn.Conv2d(2 * w, 4 * w, 3, 2, 1, bias=bias)],
            *[norm_layer(norm, 4 * w), nn.ReLU()],
            *[Block(4 * w, norm, dropout) for _ in range(blocks)],
            nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, 1, output_padding=1, bias=bias),
            *[norm_layer(norm, 2 * w), nn.ReLU()],
            nn.ConvTranspose2d(2 * w, w, 3, 2, 1, output_padding=1, bias=bias),
            *[norm_layer(norm, w), nn.ReLU()],
            *[nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7), nn.Tanh()],
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class Level(nn.Module):
    def __init__(self, level: int, downs: int, width: int, norm: str, dropout: bool) -> None:
        super().__init__()
        outer = width * min(2 ** (level - 1), 8) if level else 3
        inner = width * min(2**level, 8)
        bias, self.outermost = norm != "batch", level == 0
        down = nn.Conv2d(outer, inner, 4, 2, 1, bias=bias)
        innermost = level == downs - 1
        layers: list[nn.Module] = [down] if self.outermost else [nn.LeakyReLU(0.2, True), down]
        if not innermost:
            layers += [] if self.outermost else [norm_layer(norm, inner)]
            layers += [Level(level + 1, downs, width, norm, dropout)]
        up = nn.ConvTranspose2d(
            inner if innermost else 2 * inner, outer, 4, 2, 1, bias=bias or self.outermost
        )
        layers += [nn.ReLU(True), up, nn.Tanh() if self.outermost else norm_layer(norm, outer)]
        if dropout and 4 <= level < downs - 1:
            layers += [nn.Dropout(0.5)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        # The first layer works in place: what is joined has gone through it.
        return out if self.outermost else torch.cat([x, out], 1)


class Unet(nn.Module):
    def __init__(
        self, downs: int = 6, width: int = 4, norm: str = "instance", dropout: bool = False
    ) -> None:
        super().__init__()
        self.model = Level(0, downs, width, norm, dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


def randomised(network: Network) -> Network:
    """Weights, and statistics of norms, that leave something to see at the output."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                value.normal_(0, 0.1, generator=draw)
                if "running_var" in key or (value.ndim == 1 and "weight" in key):
                    value.add_(1)
    return network


def weights_equal(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class Code:
    """Unpickled, it would leave a mark."""

    def __reduce__(self) -> Any:
        return (exec, ("import sys; sys.mark_of_the_checkpoint = True",))
