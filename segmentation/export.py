"""Trained networks for others: ONNX, programs of `torch.export`, a folder with a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from pipeline.data.images import UInt8, resize_rgb
from pipeline.data.labels import LabelSpace
from pipeline.errors import UserError
from pipeline.files import replacing, sweep, write_text
from pipeline.runtime.checkpoint import save_checkpoint
from pipeline.runtime.onnx_files import check_difference, need_onnx, save_onnx
from pipeline.scoring.evaluation import Evaluation
from segmentation.model_card import model_card
from segmentation.models import Segmenter
from segmentation.predictor import recorded_space
from segmentation.train import built, trained_state

TOLERANCE = 1e-3
"""Largest difference to the network's logits that an exported file may have, of the largest."""
DESCRIPTION = "model.json"
"""The file within a `.pt2` that says what the network reads and puts out."""
KEPT = ("step", "config", "classes", "model")
"""What of a checkpoint is of use without its training."""


def export(
    checkpoint: Path,
    out: Path,
    size: tuple[int, int] | None = None,
    *,
    frame: UInt8 | None = None,
    width: int | None = None,
    space: LabelSpace | None = None,
    title: str = "",
    evaluation: Evaluation | None = None,
) -> str:
    """Write a network as `out` says: `.onnx`, `.pt2`, or a folder.

    Both files read frames (batch, height, width, 3) uint8 RGB of one size, normalise them, and put
    out logits (batch, classes, height, width) float32; they hold names and colours of the classes.
    A folder gets `model.pt`, which sim2real reads, `model.pt2`, and a `README.md` with the scores.

    Args:
        size: width and height of the input; None: that of the training crops.
        frame: (H, W, 3) uint8, on which files are compared with the network; None: noise.
        width: at which `predict` is to show frames to `model.pt`; None: as the checkpoint says.
        space: the classes, for a checkpoint of an earlier version.
        title: what the card calls the network; empty: the checkpoint's path.
        evaluation: the scores that the card shows.

    Returns:
        What was written, for the user.

    Raises:
        UserError: the checkpoint is damaged or of something else, `out` has another suffix, the
            network cannot be exported, or what was exported does something else.
    """
    if out.suffix not in ("", ".onnx", ".pt2"):
        raise UserError(f"{out}: give a file *.onnx or *.pt2, or a folder without suffix.")
    if out.suffix == ".onnx":
        need_onnx()
    state = trained_state(checkpoint)
    network = built(state, checkpoint)
    space = recorded_space(state, checkpoint, space)
    width_in, height_in = size or tuple(state["config"]["crop"])
    if frame is None:
        frame = np.random.default_rng(0).integers(0, 256, (height_in, width_in, 3), np.uint8)
    batch = torch.tensor(resize_rgb(frame, (width_in, height_in)))[None]
    batch = torch.cat([batch, batch.flip(2)])
    about = description(network, space, (width_in, height_in))
    sweep(out.parent if out.suffix else out)
    if out.suffix == ".onnx":
        return f"{out}: {_save_onnx(network, batch, about, out)}"
    program = out if out.suffix else out / "model.pt2"
    said = _save_program(network, batch, about, program)
    if out.suffix:
        return f"{out}: {said}"
    kept = {key: state[key] for key in KEPT if key in state}
    kept |= {"label_space": space.model_dump(mode="json"), "width": width or state.get("width")}
    save_checkpoint(out / "model.pt", kept)
    card = model_card(title or str(checkpoint), about, state["config"], space, evaluation)
    write_text(out / "README.md", f"{card}\n`model.pt2` {said}.\n")
    return f"{out}: model.pt, model.pt2, README.md; model.pt2 {said}"


def description(network: Segmenter, space: LabelSpace, size: tuple[int, int]) -> dict[str, Any]:
    """What an exported network reads and puts out, as plain data."""
    width, height = size
    return {
        "task": "semantic segmentation",
        "input": f"image: (batch, {height}, {width}, 3) uint8 RGB",
        "width": width,
        "height": height,
        "normalisation": "inside the network: (x / 255 - mean) / std",
        "mean": [round(value, 6) for value in network.mean.flatten().tolist()],
        "std": [round(value, 6) for value in network.std.flatten().tolist()],
        "output": f"logits: (batch, {len(space.classes)}, {height}, {width}) float32",
        "label_space": space.name,
        "classes": space.class_names,
        "colors": [list(c.color) for c in space.classes],
    }


@torch.no_grad()
def _program(network: Segmenter, batch: Tensor) -> ExportedProgram:
    """The network as a graph for any number of frames of the size of `batch`."""
    sizes = ({0: torch.export.Dim("batch")},)
    try:
        return torch.export.export(network, (batch,), dynamic_shapes=sizes)
    except Exception as error:  # the exporter raises all sorts of things
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"torch cannot export this network ({reason[0]:.200}). Export it to a folder with "
            "another torch, or use it by `segmentation.predictor.load_predictor`."
        ) from error


def _save_program(
    network: Segmenter, batch: Tensor, about: Mapping[str, object], path: Path
) -> str:
    program = _program(network, batch)
    with replacing(path) as part:
        with part.open("wb") as file:  # given a path, torch would write its name into the file
            torch.export.save(program, file, extra_files={DESCRIPTION: json.dumps(about)})
        found = torch.export.load(part).module()
        with torch.inference_mode():
            pairs = [(network(x), found(x)) for x in (batch, batch[:1])]
        difference = torch.stack([(a - b).abs().max() for a, b in pairs]).max().item()
        largest = _largest(pairs[0][0])
        check_difference(path, difference, TOLERANCE * largest, "torch")
    return _said(difference, largest)


def _save_onnx(network: Segmenter, batch: Tensor, about: Mapping[str, object], path: Path) -> str:
    program = torch.onnx.export(
        _program(network, batch),
        (batch,),
        input_names=["image"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    with torch.inference_mode():
        pairs = [(x, network(x)) for x in (batch, batch[:1])]
    largest = _largest(pairs[0][1])
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    return _said(save_onnx(program, path, texts, pairs, TOLERANCE * largest), largest)


def _largest(logits: Tensor) -> float:
    return logits.abs().max().item()


def _said(difference: float, largest: float) -> str:
    return f"differs from the network by {difference:.1g} at most, of logits up to {largest:.3g}"
