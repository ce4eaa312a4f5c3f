"""Training frames of one arm: read, scaled, cropped, recoloured."""

import random
from collections.abc import Callable
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import torch

from pipeline.cache import class_reader, frame_reader
from pipeline.config import AugmentationConfig
from pipeline.datasets import DatasetSpec, Sample
from pipeline.images import UInt8
from pipeline.labels import IGNORE, LabelSpace
from pipeline.training import Item


def augmentation(config: AugmentationConfig, crop: tuple[int, int]) -> A.Compose:
    """The pipeline that every arm's frames go through: (H, W, 3) and (H, W) to the crop's size.

    Args:
        crop: width and height in pixels; smaller frames are padded, and the padding ignored.
    """
    width, height = crop
    color = config.color
    return A.Compose(
        [
            A.RandomScale(
                (config.scale[0] - 1, config.scale[1] - 1),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                p=1,
            ),
            A.PadIfNeeded(height, width, fill=0, fill_mask=IGNORE),
            A.RandomCrop(height, width),
            A.HorizontalFlip(p=0.5 if config.flip else 0),
            A.ColorJitter(
                brightness=color,
                contrast=color,
                saturation=color,
                hue=config.hue,
                p=0.8 if color or config.hue else 0,
            ),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.2), p=config.blur),
            A.GaussNoise(std_range=(0.01, 0.05), p=config.noise),
        ]
    )


def training_reader(
    spec: DatasetSpec,
    samples: list[Sample],
    space: LabelSpace,
    config: AugmentationConfig,
    crop: tuple[int, int],
    cache: Path | None,
) -> Callable[[int, np.random.Generator], Item]:
    """(frame index, generator) -> `rgb` (h, w, 3) uint8, `label` (h, w) int64 and `name`."""
    frames = frame_reader(spec, samples, cache)
    labels = class_reader(spec, samples, space, cache)
    augment = augmentation(config, crop)

    def read(index: int, rng: np.random.Generator) -> Item:
        # One stream for all transforms: `set_random_seed` would give each the same numbers.
        augment.set_random_state(rng, random.Random(int(rng.integers(2**31))))
        result = augment(image=frames(index), mask=labels(index))
        rgb: UInt8 = result["image"]
        label: UInt8 = result["mask"]
        return {
            "rgb": torch.from_numpy(np.array(rgb)),  # a copy: a cache is not to be written to
            "label": torch.from_numpy(label.astype(np.int64)),
            "name": str(samples[index].image),
        }

    return read
