"""Scoring a trained network on labelled frames, at the ground truth's resolution."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.config.settings import ComputeConfig, EvaluationConfig
from pipeline.data.images import UInt8, resize_indices, size_within, write_image, write_indices
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import Sample, list_samples
from pipeline.data.reading import LabelReader, read_frame
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.progress import progress
from pipeline.runtime.device import make_fabric
from pipeline.scoring.confusion import ConfusionMatrix
from segmentation.predict import predict_on_device, views
from segmentation.scores import (
    FrameCounts,
    counted_in,
    instance_files,
    label_ids,
    read_instances,
    write_scores,
)
from segmentation.train import load_segmenter

PICTURE_WIDTH = 400
"""Pixels in a row of the pictures of predictions; some kilobytes each."""


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

    Writes the files of `segmentation.scores.write_scores` and, unless `config.pictures` is 0,
    `predictions/NAME.png` of all frames (class indices as palette pictures, at most `PICTURE_WIDTH`
    wide) below `folder`; where the configuration asks for them, whole predictions in
    `predictions_ids/` and `overlays/`.

    Raises:
        UserError: no checkpoint, or a frame or label cannot be read.
    """
    if not checkpoint.is_file():
        raise UserError(f"No checkpoint {checkpoint}. Run `sim2real train-segmentation` first.")
    space = space.averaging(config.classes)
    samples = list_samples(dataset, labelled=True)
    instances, instance_scores = instance_files(dataset, samples, space)
    fabric = make_fabric(compute, training=False)
    model = load_segmenter(checkpoint)
    network = fabric.setup_module(model.to(fabric.device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    counted = counted_in(space)
    labels = LabelReader(dataset, counted)
    # From class to what is counted, and to what is saved.
    index = torch.arange(len(space.classes), dtype=torch.uint8)
    if counted is not space:
        index = torch.from_numpy(label_ids(space))
    index = index.to(fabric.device)
    saved = label_ids(space) if config.save == "label_ids" else None
    pictures: dict[str, str] = {}
    tables, hits = [], []
    with progress(folder, f"evaluation {arm}", len(samples), unit="images") as advance:
        for number, sample in enumerate(samples):
            truth, rgb = labels.read(sample, native=True), read_frame(dataset, sample)
            classes = predict_on_device(network, rgb, truth.shape, config)
            tables.append(count_on_device(truth, index[classes.int()], len(counted.classes)))
            if instances is not None:
                ids = index[classes.int()].cpu().numpy()
                hits.append(read_instances(instances[number], ids))
            if config.pictures:
                pictures[sample.name] = f"predictions/{sample.name}.png"
                small = resize_indices(
                    classes.cpu().numpy(), size_within(truth.shape, PICTURE_WIDTH)
                )
                write_indices(folder / pictures[sample.name], small, space.palette)
            if config.save != "none" or config.overlays:
                _keep(config, folder, sample, rgb, classes.cpu().numpy(), space, saved)
            advance(1)
    # The one moment at which a GPU's counts are waited for.
    counts = torch.stack(tables).cpu().numpy()
    frames = [FrameCounts(table, hits[i] if hits else None) for i, table in enumerate(counts)]
    write_scores(
        folder,
        space,
        dataset,
        [sample.name for sample in samples],
        frames,
        {
            "input_width": dataset.width,
            "resampling": "bilinear logits, align_corners=False",
            **views(config),
            "checkpoint": "last",
            "instance_scores": instance_scores,
        },
        {"arm": arm, "seed": seed, "pictures": pictures},
    )


@torch.inference_mode()
def count_on_device(truth: UInt8, prediction: Tensor, classes: int) -> Tensor:
    """The confusion matrix of one frame, on the device that holds the prediction.

    Args:
        truth: (H, W) uint8 class indices, `IGNORE` where not scored.
        prediction: (H, W) uint8 class indices, `IGNORE` where void.

    Returns:
        (K, K + 1) int64: rows truth, columns prediction, the last one void.
    """
    if prediction.device.type == "cpu":
        matrix = ConfusionMatrix(classes)
        matrix.add(truth, prediction.numpy())
        return torch.from_numpy(matrix.table)
    return count_tensors(torch.from_numpy(truth).to(prediction.device), prediction, classes)


def count_tensors(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """As `count_on_device`, in tensor operations alone, which wait for nothing."""
    side = classes + 1  # one more for what is ignored, and for void
    keys = truth.clamp(max=classes).long() * side + prediction.clamp(max=classes)
    # torch.bincount would wait for the largest key, to know the size of its result.
    counts = torch.zeros(side * side, dtype=torch.int64, device=keys.device)
    counts.scatter_add_(0, keys.flatten(), torch.ones_like(keys).flatten())
    return counts.view(side, side)[:classes]


def _keep(
    config: EvaluationConfig,
    folder: Path,
    sample: Sample,
    rgb: UInt8,
    classes: UInt8,
    space: LabelSpace,
    saved: UInt8 | None,
) -> None:
    """Write one frame's prediction, (H, W) class indices, in the forms that are asked for."""
    if config.save != "none":
        values = classes if saved is None else saved[classes]
        write_indices(folder / "predictions_ids" / f"{sample.name}.png", values, None)
    if config.overlays:
        height, width = rgb.shape[:2]
        colors = space.palette[resize_indices(classes, (width, height))]
        overlay = cv2.addWeighted(rgb, 0.5, colors, 0.5, 0)
        write_image(folder / "overlays" / f"{sample.name}.jpg", np.asarray(overlay, np.uint8))
