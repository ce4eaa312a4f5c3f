"""Generators as ONNX files, checked against torch before they are kept."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from cyclegan.networks import EPSILON, Generator, InstanceNorm
from pipeline.runtime.onnx_files import need_onnx, save_onnx

ONNX_TOLERANCE = 1e-3
"""Largest difference to torch that an ONNX file may have, in [-1, 1]: 1/8 of a grey level."""


class _ExportedNorm(nn.Module):
    """`InstanceNorm` in operations that torch's exporter knows.

    Means are taken along rows, then columns: onnxruntime adds up one after another, which over a
    whole frame loses digits, as do its own instance norm and a mean over both.
    """

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(3, keepdim=True).mean(2, keepdim=True)
        variance = centred.square().mean(3, keepdim=True).mean(2, keepdim=True)
        return centred * (variance + EPSILON).rsqrt()


def export_onnx(generator: Generator, path: Path, tolerance: float = ONNX_TOLERANCE) -> float:
    """Write a generator as one ONNX file, checked against torch at two sizes before it is kept.

    Input `image` and output `translated` are (batch, 3, height, width) float32 RGB in [-1, 1], of
    any batch size, height and width multiples of `generator.multiple`.

    Args:
        tolerance: largest difference allowed, in units of the output's [-1, 1].

    Returns:
        The largest difference seen between onnxruntime and torch on random pictures.

    Raises:
        UserError: the packages are missing, or the difference is above `tolerance`.
    """
    need_onnx()
    reference = copy.deepcopy(generator).cpu().eval()
    reference.to(memory_format=torch.contiguous_format)
    network = copy.deepcopy(reference)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                module.register_module(name, _ExportedNorm())
    multiple = generator.multiple
    dim = torch.export.Dim
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 3, 2 * multiple, 3 * multiple),),
        input_names=["image"],
        output_names=["translated"],
        dynamic_shapes=({0: dim("batch"), 2: multiple * dim("h"), 3: multiple * dim("w")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    metadata = {"range": "RGB in [-1, 1], in and out", "multiple_of": str(multiple)}
    return save_onnx(program, path, metadata, _random_pictures(reference), tolerance)


def _random_pictures(generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Noise of two sizes, and what a generator makes of it."""
    multiple = generator.multiple
    least = -(-48 // multiple)
    noise = torch.Generator().manual_seed(0)
    for batch, height, width in ((1, least, least + 1), (2, least + 2, least)):
        shape = (batch, 3, height * multiple, width * multiple)
        image = torch.rand(shape, generator=noise) * 2 - 1
        with torch.inference_mode():
            yield image, generator(image)
