"""Vision transformers of timm as encoders: their options, their weights, a linear decoder.

Patches lie on a grid, and frames are padded to whole ones, as for any other network: pixels keep
their size, so that windows, whole frames and training crops are seen at one scale. Position
embeddings are interpolated to the grid of each input.
"""

import inspect
import re
from collections.abc import Mapping

import timm
from segmentation_models_pytorch.encoders import TimmViTEncoder
from torch import Tensor, nn
from torch.nn import functional as F

PREFIX = "tu-"
"""What segmentation-models-pytorch puts before the names of timm."""
OPTIONS = {"patch_size", "drop_path_rate"}
"""Arguments of timm's vision transformers that a recipe may set."""
PATCHES = {"dpt": (8, 16, 32), "linear": (8, 14, 16, 32)}
"""Architectures of tokens, and the sides of patches in pixels that they accept. DPT makes pictures
of 1/4, 1/8, 1/16 and 1/32 of the frame's sides of them."""


class Linear(nn.Module):
    """A class for each patch by a norm and a linear layer on its last token, upsampled.

    The decoder of Kerssies et al. (How to Benchmark Vision Foundation Models for Semantic
    Segmentation?, CVPR workshops 2024).
    """

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = "imagenet",
        classes: int = 1,
        **kwargs: object,
    ) -> None:
        super().__init__()
        self.encoder = TimmViTEncoder(
            encoder_name.removeprefix(PREFIX),
            pretrained=encoder_weights is not None,
            depth=1,
            **kwargs,
        )
        self.multiple: int = self.encoder.output_stride
        """Sides that it accepts are multiples of a patch."""
        channels = self.encoder.out_channels[-1]
        self.decoder = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W) logits."""
        (tokens,), _ = self.encoder(x)  # (N, channels, H / patch, W / patch)
        logits = self.decoder(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.interpolate(logits, x.shape[2:], mode="bilinear")


def published_patch(encoder: str) -> int | None:
    """The side in pixels of an encoder's patches, by its name; None: it has none."""
    found = re.search(r"_patch(\d+)", encoder)
    return int(found[1]) if found else None


def encoder_options(encoder: str, options: Mapping[str, object]) -> dict[str, object]:
    """Arguments of timm's constructor for frames of any size, with a recipe's own.

    With another `patch_size` the grid of the position embeddings stays the published one: they are
    interpolated once, to the input's, whatever that is.
    """
    known = timm.get_pretrained_cfg(encoder.removeprefix(PREFIX))
    published, patch = published_patch(encoder), options.get("patch_size")
    given = {"dynamic_img_size": True, "num_classes": 0, **options}
    if known and published and isinstance(patch, int):
        given["img_size"] = patch * (known.input_size[-1] // published)
    return given


def published_form(encoder: TimmViTEncoder, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state_dict as the encoder's own, patches resampled to its size.

    timm's conversion: it knows its own files and those of the networks' authors.
    """
    convert = vars(inspect.getmodule(type(encoder.model)))["checkpoint_filter_fn"]
    converted: dict[str, Tensor] = convert(state, encoder.model)
    return converted
