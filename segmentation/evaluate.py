"""Scoring a trained network on labelled frames, at the ground truth's resolution."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.bootstrap import intervals
from pipeline.config import ComputeConfig, EvaluationConfig
from pipeline.confusion import ConfusionMatrix
from pipeline.datasets import DatasetSpec, LabelReader, list_samples, read_frame
from pipeline.errors import UserError
from pipeline.files import replacing, write_json
from pipeline.images import resize_indices, size_within, write_indices
from pipeline.labels import IGNORE, LabelSpace
from pipeline.progress import progress
from pipeline.training import make_fabric
from segmentation.predict import predict, views
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

    Writes `evaluation.json` (counts and metrics of the whole set), `per_image.csv`,
    `per_image.npz` (`names` (N,) and `counts` (N, K, K + 1) int64 pixels of each frame, the last
    column void predictions), and, unless `config.pictures` is 0, `predictions/*.png` of all frames
    (class indices as palette pictures, at most `PICTURE_WIDTH` wide) below `folder`.

    Raises:
        UserError: no checkpoint, or a frame or label cannot be read.
    """
    if not checkpoint.is_file():
        raise UserError(f"No checkpoint {checkpoint}. Run `sim2real train-segmentation` first.")
    space = space.averaging(config.classes)
    samples = list_samples(dataset, labelled=True)
    fabric = make_fabric(compute, training=False)
    model = load_segmenter(checkpoint)
    network = fabric.setup_module(model.to(fabric.device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    labels = LabelReader(dataset, space)
    pictures: dict[str, str] = {}
    matrix = ConfusionMatrix(len(space.classes))
    rows, tables = [], []
    with progress(folder, f"evaluation {arm}", len(samples), unit="images") as advance:
        for sample in samples:
            truth = labels.read(sample, native=True)
            prediction = predict(network, read_frame(dataset, sample), truth.shape, config)
            image_matrix = ConfusionMatrix(len(space.classes))
            image_matrix.add(truth, prediction)
            matrix.counts += image_matrix.counts
            matrix.void += image_matrix.void
            tables.append(image_matrix.table)
            scores = image_matrix.metrics(space)
            rows.append(
                {
                    "name": sample.name,
                    "pixels": int(image_matrix.table.sum()),
                    **{k: v for k, v in scores.items() if not isinstance(v, dict | list)},
                }
            )
            if config.pictures:
                pictures[sample.name] = f"predictions/{sample.name.replace('/', '-')}.png"
                small = resize_indices(prediction, size_within(prediction.shape, PICTURE_WIDTH))
                write_indices(folder / pictures[sample.name], small, space.palette)
            advance(1)
    with replacing(folder / "per_image.csv") as part:
        pd.DataFrame(rows).to_csv(part, index=False)
    counts = np.stack(tables)
    with replacing(folder / "per_image.npz") as part:
        np.savez_compressed(part, names=np.array([s.name for s in samples]), counts=counts)
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
                **views(config),
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
            "void_predictions": matrix.void.tolist(),
            **matrix.metrics(space),
            "intervals": intervals(counts, space),
        },
    )
