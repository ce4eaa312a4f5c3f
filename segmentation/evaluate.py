"""Scoring a trained network on labelled frames, at the ground truth's resolution."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config import ComputeConfig, EvaluationConfig
from pipeline.confusion import ConfusionMatrix
from pipeline.datasets import DatasetSpec, LabelReader, list_samples, read_frame
from pipeline.errors import UserError
from pipeline.files import replacing, write_json
from pipeline.images import UInt8, write_indices
from pipeline.labels import IGNORE, LabelSpace
from pipeline.progress import progress
from pipeline.training import make_fabric
from segmentation.train import load_segmenter


def evaluate(
    config: EvaluationConfig,
    space: LabelSpace,
    dataset: DatasetSpec,
    checkpoint: Path,
    folder: Path,
    compute: ComputeConfig,
    *,
    arm: str,
    seed: int,
) -> None:
    """Score a checkpoint on every frame of `dataset`.

    Writes `evaluation.json` (counts and metrics of the whole set), `per_image.csv`, and a few
    `predictions/*.png` (class indices as palette pictures, `config.pictures` evenly spaced frames)
    below `folder`.

    Raises:
        UserError: no checkpoint, or a frame or label cannot be read.
    """
    if not checkpoint.is_file():
        raise UserError(f"No checkpoint {checkpoint}. Run `sim2real train-segmentation` first.")
    samples = list_samples(dataset, labelled=True)
    fabric = make_fabric(compute, training=False)
    model = load_segmenter(checkpoint)
    network = fabric.setup_module(model.to(fabric.device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    labels = LabelReader(dataset, space)
    count = min(config.pictures, len(samples))
    shown = {samples[(2 * i + 1) * len(samples) // (2 * count)].name for i in range(count)}
    pictures: dict[str, str] = {}
    matrix = ConfusionMatrix(len(space.classes))
    rows = []
    with progress(folder, f"evaluation {arm}", len(samples), unit="images") as advance:
        for sample in samples:
            truth = labels.read(sample, native=True)
            prediction = predict(network, read_frame(dataset, sample), truth.shape)
            image_matrix = ConfusionMatrix(len(space.classes))
            image_matrix.add(truth, prediction)
            matrix.counts += image_matrix.counts
            scores = image_matrix.metrics(space)
            rows.append(
                {
                    "name": sample.name,
                    "pixels": int(image_matrix.counts.sum()),
                    **{k: v for k, v in scores.items() if not isinstance(v, dict)},
                }
            )
            if sample.name in shown:
                pictures[sample.name] = f"predictions/{sample.name.replace('/', '-')}.png"
                write_indices(folder / pictures[sample.name], prediction, space.palette)
            advance(1)
    with replacing(folder / "per_image.csv") as part:
        pd.DataFrame(rows).to_csv(part, index=False)
    left_out = [c.name for c in space.classes if not c.averaged]
    write_json(
        folder / "evaluation.json",
        {
            "protocol": {
                "label_space": space.name,
                "classes_averaged": "those in the ground truth or predicted"
                + (f", without {', '.join(left_out)}" if left_out else ""),
                "resolution": "ground truth",
                "input_width": dataset.width,
                "resampling": "bilinear logits, align_corners=False",
                "checkpoint": "last",
                "ignore": IGNORE,
            },
            "dataset": dataset.name,
            "split": dataset.split,
            "images": len(samples),
            "arm": arm,
            "seed": seed,
            "classes": space.class_names,
            "pictures": pictures,
            "confusion": matrix.counts.tolist(),
            **matrix.metrics(space),
        },
    )


@torch.inference_mode()
def predict(network: nn.Module, rgb: UInt8, size: tuple[int, ...]) -> UInt8:
    """Class indices at `size` (height, width) for one frame.

    Args:
        rgb: (H, W, 3) uint8; the logits are upsampled from its size to `size`.

    Returns:
        (height, width) uint8.
    """
    device = next(network.parameters()).device
    logits: Any = network(torch.tensor(rgb[None], device=device))
    if logits.shape[2:] != tuple(size):
        logits = F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
    # `max` finds the same index as `argmax` in half the time on a CPU.
    return np.asarray(logits.max(dim=1).indices[0].to(torch.uint8).cpu().numpy())
