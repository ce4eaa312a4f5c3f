"""What contrastive training compares: patches of a translation with those that it was made from.

Park et al., "Contrastive Learning for Unpaired Image-to-Image Translation", ECCV 2020.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.networks import ResnetBlock, ResnetGenerator

HEAD_WIDTH = 256
"""Components of the vectors that are compared."""


class EncodingGenerator(nn.Module):
    """A generator whose layers' outputs are seen: the frame itself (padded), both strided
    convolutions, the first residual block and the fifth, or the last of fewer (appendix).

    `channels` are those of the layers.
    """

    def __init__(self, generator: ResnetGenerator) -> None:
        super().__init__()
        self.generator = generator
        blocks = [i for i, layer in enumerate(generator.model) if isinstance(layer, ResnetBlock)]
        widest = generator.state_dict()["model.7.weight"].shape[0]
        self.layers = sorted({0, 4, 7, blocks[0], blocks[:5][-1]})
        self.channels = [3, widest // 2, widest, widest, widest][: len(self.layers)]

    def forward(self, x: Tensor, *, translate: bool = True) -> list[Tensor]:
        """(N, 3, H, W) in [-1, 1] -> each layer's (N, C, h, w), and last the translation of `x`.

        Args:
            translate: without it there is no translation in the list, and less work.
        """
        outputs = []
        for index, layer in enumerate(self.generator.model):
            x = layer(x)
            if index in self.layers:
                outputs.append(x)
            if not translate and len(outputs) == len(self.layers):
                return outputs
        return [*outputs, x]


class PatchHeads(nn.Module):
    """Two linear layers for each layer of the generator: features of a patch -> a unit vector."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(c, HEAD_WIDTH), nn.ReLU(), nn.Linear(HEAD_WIDTH, HEAD_WIDTH))
            for c in channels
        )

    def forward(self, features: list[Tensor], places: list[Tensor]) -> list[Tensor]:
        """Each layer's (N, C, h, w) at places (P,) of its h * w -> (N, P, `HEAD_WIDTH`)."""
        return [
            F.normalize(head(layer.permute(0, 2, 3, 1).flatten(1, 2)[:, at]).float(), dim=2)
            for head, layer, at in zip(self.heads, features, places, strict=True)
        ]


def draw_places(features: list[Tensor], count: int, rng: np.random.Generator) -> list[Tensor]:
    """Of each layer (N, C, h, w) at most `count` of its h * w places, each once."""
    drawn: list[npt.NDArray[np.int64]] = [
        rng.permutation(layer.shape[2] * layer.shape[3])[:count] for layer in features
    ]
    return [torch.from_numpy(places).to(features[0].device) for places in drawn]
