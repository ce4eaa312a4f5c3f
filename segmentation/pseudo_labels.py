"""Pseudo-labels of frames: what a trained network takes them for, and how confident it is."""

from pathlib import Path

import torch

from pipeline.config.settings import ComputeConfig
from pipeline.data.frames import convert, data_set_frames
from pipeline.data.images import UInt8, write_indices
from pipeline.data.listing import pseudo_label_paths
from pipeline.data.spec import DatasetSpec
from segmentation.self_training import confidence_level
from segmentation.train import load_segmenter

Seen = tuple[UInt8, UInt8]
"""The pseudo-label of a frame and its levels of confidence (`confidence_level`), both (H, W)."""


def label_frames(spec: DatasetSpec, checkpoint: Path, folder: Path, compute: ComputeConfig) -> None:
    """Write the class and the confidence of every pixel of all frames of a data set.

    Writes the files of `pseudo_label_paths` and a `manifest.csv` into `folder`; goes on where an
    earlier call was interrupted. No label of the data set is read.

    Raises:
        UserError: no checkpoint, a frame cannot be read, or the disk is too small.
    """
    frames = data_set_frames(spec)
    paths = [pseudo_label_paths(folder, name) for name in frames.names]
    network = load_segmenter(checkpoint, compute)
    device = next(network.parameters()).device

    @torch.inference_mode()
    def look(rgb: UInt8) -> Seen:
        logits = network(torch.tensor(rgb)[None].to(device))
        probability, label = logits.softmax(dim=1).max(dim=1)
        both = torch.cat([label, confidence_level(probability)]).byte().cpu().numpy()
        return both[0], both[1]

    def write(number: int, _: UInt8, seen: Seen) -> None:
        for path, values in zip(paths[number], seen, strict=True):
            write_indices(path, values, None)

    convert(
        frames,
        lambda group: [look(rgb) for rgb in group],
        write,
        {"label": [label for label, _ in paths], "confidence": [sure for _, sure in paths]},
        folder,
        title="pseudo-labels",
        threads=max(2, compute.workers),
        bytes_per_pixel=1.5,
    )
