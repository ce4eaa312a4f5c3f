"""Exported networks as ONNX files, checked against torch before they are kept."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import replacing

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram


def need_onnx() -> None:
    """Raise `UserError` unless the packages of the extra `onnx` are installed."""
    try:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_module(name)
    except ImportError as error:
        raise UserError(
            f"ONNX files need the package {error.name!r}, which is not installed. "
            "Install the extra: pip install -e '.[onnx]'."
        ) from error


def save_onnx(
    program: "ONNXProgram",
    path: Path,
    metadata: Mapping[str, str],
    batches: Iterable[tuple[Tensor, Tensor]],
    tolerance: float,
) -> float:
    """Write a program of one input and one output as one file, if it does what the network does.

    Args:
        metadata: texts that the file is to hold, by name.
        batches: inputs, and what the network makes of each.
        tolerance: largest difference allowed, in units of the output.

    Returns:
        The largest difference seen between onnxruntime and torch.

    Raises:
        UserError: it is above `tolerance`.
    """
    import onnx
    import onnxruntime

    program.model.metadata_props.update(metadata)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with replacing(path) as part:
        program.save(part, external_data=False)
        onnx.checker.check_model(part)
        session = onnxruntime.InferenceSession(part, options, ["CPUExecutionProvider"])
        (name,) = (given.name for given in session.get_inputs())
        found = [
            (expected - torch.from_numpy(session.run(None, {name: x.numpy()})[0])).abs().max()
            for x, expected in batches
        ]
        difference = torch.stack(found).max().item()  # Python's own `max` would lose a NaN
        check_difference(path, difference, tolerance, "onnx, onnxruntime and onnxscript")
    return difference


def check_difference(path: Path, difference: float, tolerance: float, packages: str) -> None:
    """Raise `UserError` when an exported network differs too much from the original."""
    # Not `>`: a difference that is not a number must not pass.
    if not difference <= tolerance:
        raise UserError(
            f"The exported file differs from the network by {difference:.2g}, more than "
            f"{tolerance:.2g}, and is not kept: {path}. Install the versions of {packages} that "
            "constraints.txt names."
        )
