"""Random crops of one domain's frames."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline.cache import frame_reader
from pipeline.datasets import DatasetSpec, Sample
from pipeline.training import Item, random_crop

LEAST_DEVIATION = 2.0
"""Crops of a smaller standard deviation (grey levels) are drawn again: instance normalisation
turns the gradients of a near-constant picture into very large ones."""
ATTEMPTS = 10


def crop_reader(
    spec: DatasetSpec, samples: list[Sample], crop: tuple[int, int], cache: Path | None
) -> Callable[[int, np.random.Generator], Item]:
    """A function (frame index, generator) -> `rgb` (h, w, 3) uint8 crop and frame `name`.

    Args:
        crop: width and height in pixels; half of the crops are mirrored.
        cache: the folder to keep decoded frames in, if any.
    """
    frames = frame_reader(spec, samples, cache)

    def read(index: int, rng: np.random.Generator) -> Item:
        sample = samples[index]
        rgb = frames(index)
        for _ in range(ATTEMPTS):
            rows, columns = random_crop(rng, (rgb.shape[1], rgb.shape[0]), crop, str(sample.image))
            if rgb[rows, columns].std() >= LEAST_DEVIATION:
                break
        rgb = rgb[rows, columns]
        if rng.random() < 0.5:
            rgb = rgb[:, ::-1]
        return {"rgb": torch.from_numpy(rgb.copy()), "name": str(sample.image)}

    return read
