"""What a trained network says of itself on frames of the target, whose labels are not read."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.segmentation import SelectionConfig
from pipeline.config.settings import ComputeConfig
from pipeline.data.images import UInt8, resize_indices, size_within, write_indices
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import evenly, list_samples
from pipeline.data.reading import LabelReader, read_frame
from pipeline.data.spec import DatasetSpec
from pipeline.files import explain_damage, open_regular, replacing
from pipeline.progress import progress
from pipeline.scoring.metrics import Float, Score
from pipeline.scoring.selection import Unlabelled, entropy, picture
from segmentation.evaluate import PICTURE_WIDTH
from segmentation.models import Segmenter, pad
from segmentation.train import load_segmenter

Sums = dict[str, Float]
"""What is summed over frames, by name; `frames` counts them."""
SUMS = "sums.npz"
"""The sums over the first frames, until all are seen."""


def measure(
    config: SelectionConfig,
    space: LabelSpace,
    target: DatasetSpec,
    source: DatasetSpec,
    checkpoint: Path,
    folder: Path,
    compute: ComputeConfig,
    *,
    title: str,
) -> None:
    """Compute the criteria of one network at the working size, or what an interrupted call left.

    Writes `criteria.json` and, for each frame of the target, `predictions/NAME.png` (class indices
    as palette pictures, at most `PICTURE_WIDTH` wide) below `folder`.

    Args:
        target: whose labels are not read.
        source: whose labels are.

    Raises:
        UserError: no checkpoint, or a frame or label cannot be read.
    """
    network = load_segmenter(checkpoint, compute)
    device = next(network.parameters()).device
    unlabelled = evenly(list_samples(target, labelled=False), config.frames)
    labelled = evenly(list_samples(source, labelled=True), config.frames)
    total = len(unlabelled) + len(labelled)
    labels = LabelReader(source, space)
    sums = _read_sums(folder / SUMS)
    done = int(sums.get("frames", np.zeros(())))
    with progress(folder, title, total, done=done, unit="images") as advance:
        for number, sample in list(enumerate([*unlabelled, *labelled]))[done:]:
            if number < len(unlabelled):
                classes, found = see_target(network, _image(read_frame(target, sample), device))
                small = resize_indices(classes, size_within(classes.shape, PICTURE_WIDTH))
                write_indices(picture(folder, sample.name), small, space.palette)
            else:
                image = _image(read_frame(source, sample), device)
                found = see_source(network, image, labels.read(sample), len(space.classes))
            sums = {**sums, **{key: sums.get(key, 0) + value for key, value in found.items()}}
            with replacing(folder / SUMS) as part:
                np.savez(part, allow_pickle=False, **sums)
            advance(1)
    names = [sample.name for sample in unlabelled]
    Unlabelled(frames=names, criteria=criteria(sums)).write(folder)
    (folder / SUMS).unlink()


def _read_sums(path: Path) -> Sums:
    if not path.is_file():
        return {}
    way_out = "Remove it: the frames are then looked at again."
    with explain_damage(path, way_out), open_regular(path) as file, np.load(file) as arrays:
        return dict(arrays)


def _image(rgb: UInt8, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    return torch.tensor(rgb[None], device=device).permute(0, 3, 1, 2).float().div(255)


@torch.inference_mode()
def see_target(network: Segmenter, image: Tensor) -> tuple[UInt8, Sums]:
    """The prediction of a frame, (H, W) class indices, and what it adds to the sums.

    Args:
        image: (1, 3, H, W) in [0, 1].
    """
    logits = network.logits(image)
    mirrored = network.logits(image.flip(3)).flip(3)
    logs = logits.log_softmax(dim=1)
    probabilities = logs.exp()
    classes = logits.max(dim=1).indices[0]
    agreeing = classes == mirrored.max(dim=1).indices[0]
    found = {
        "frames": torch.tensor(1),
        "pixels": torch.tensor(classes.numel()),
        "entropy": -(probabilities * logs).sum(dtype=torch.float64),
        "probabilities": probabilities.sum(dim=(0, 2, 3), dtype=torch.float64),
        "agreeing": agreeing.sum(),
        "target_features": class_features(
            network.feature_map(image), classes, logits.shape[1], network.multiple
        ),
    }
    return classes.to(torch.uint8).cpu().numpy(), _plain(found)


@torch.inference_mode()
def see_source(network: Segmenter, image: Tensor, label: UInt8, classes: int) -> Sums:
    """What a frame of the source adds to the sums.

    Args:
        image: (1, 3, H, W) in [0, 1].
        label: (H, W) class indices, `IGNORE` where there is none.
    """
    features = network.feature_map(image)
    indices = torch.from_numpy(label).to(image.device)
    of_classes = class_features(features, indices, classes, network.multiple)
    return _plain({"frames": torch.tensor(1), "source_features": of_classes})


def class_features(features: Tensor, label: Tensor, classes: int, multiple: int) -> Tensor:
    """Features summed over the pixels of each class, (K, D) float64, in any unit of area.

    Args:
        features: (1, D, h, w), each of an equal part of the frame as `pad` makes it.
        label: (H, W) class indices; others than 0..K - 1 count for nothing.
        multiple: that of the network.
    """
    masks = label == torch.arange(classes, device=label.device)[:, None, None]
    padded = pad(masks[None].float(), multiple=multiple)
    areas = F.adaptive_avg_pool2d(padded, (features.shape[2], features.shape[3]))
    return torch.einsum("nkhw,ndhw->kd", areas.double(), features.double())


def _plain(found: Mapping[str, Tensor]) -> Sums:
    return {key: value.double().cpu().numpy() for key, value in found.items()}


def criteria(sums: Sums) -> dict[str, Score]:
    """Key in `CRITERIA` -> value, from the sums over all frames."""
    classes = len(sums["probabilities"])
    pixels = float(sums["pixels"])
    mean_entropy = float(sums["entropy"]) / pixels / math.log(max(2, classes))
    return {
        "entropy": mean_entropy,
        "mutual_information": entropy(sums["probabilities"] / pixels) - mean_entropy,
        "mirror_agreement": float(sums["agreeing"]) / pixels,
        "feature_distance": feature_distance(sums["target_features"], sums["source_features"]),
    }


def feature_distance(one: Float, other: Float) -> Score:
    """Mean cosine distance of the features of each class, (K, D) both, of any length.

    Without the classes that one of them lacks; None where that is all of them.
    """
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    shown = lengths > 0
    if not shown.any():
        return None
    return float(1 - ((one * other).sum(axis=1)[shown] / lengths[shown]).mean())
