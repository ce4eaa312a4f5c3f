"""Training frames of one arm: chosen, read, scaled, cropped, recoloured."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.segmentation import (
    AugmentationConfig,
    RareClassConfig,
    SegmentationConfig,
    SelfTrainingConfig,
)
from pipeline.data.cache import Reader, class_reader, frame_reader
from pipeline.data.labels import IGNORE, LabelSpace
from pipeline.data.listing import Sample, list_samples
from pipeline.data.spec import DatasetSpec
from pipeline.files import replacing
from pipeline.progress import each
from pipeline.runtime.loader import IndexedDataset, Item
from pipeline.scoring.metrics import Counts

Mixture = Sequence[tuple[DatasetSpec, float]]
"""Data sets and their fractions of the frames drawn, in any unit."""
RECROPS = 10
"""Crops to try for one that shows enough of a rare class."""


def geometry(config: AugmentationConfig, crop: tuple[int, int]) -> A.Compose:
    """What moves the pixels of frames and labels: (H, W, 3) and (H, W) to the crop's size.

    Args:
        crop: width and height in pixels; smaller frames are padded, and the padding ignored.
    """
    width, height = crop
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
        ]
    )


def appearance(config: AugmentationConfig) -> A.Compose:
    """What changes the look of a crop (H, W, 3)."""
    color = config.color
    return A.Compose(
        [
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


def class_counts(
    mixture: Mixture, space: LabelSpace, cache: Path | None, folder: Path
) -> list[Counts]:
    """(frames, classes) pixels of each data set, from all its labels, or as counted before.

    Args:
        folder: that of the training; `class_counts.npz` there holds `names` (N,) of all frames and
            `counts` (N, classes).

    Raises:
        UserError: a label is missing or cannot be read.
    """
    path = folder / "class_counts.npz"
    sets = [(spec, list_samples(spec, labelled=True)) for spec, _ in mixture]
    names = [f"{spec.name}/{sample.name}" for spec, samples in sets for sample in samples]
    ends = np.cumsum([len(samples) for _, samples in sets])[:-1]
    # What cannot be read is counted anew.
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(path) as kept:
        if kept["names"].tolist() == names and len(kept["counts"]) == len(names):
            return np.split(kept["counts"], ends)
    found = [
        _count_classes(class_reader(spec, samples, space, cache), len(samples), len(space.classes))
        for spec, samples in sets
    ]
    with replacing(path) as part:
        np.savez_compressed(part, names=np.array(names), counts=np.concatenate(found))
    return found


def _count_classes(labels: Reader, frames: int, classes: int) -> Counts:
    def count(index: int) -> Counts:
        return np.bincount(labels(index).ravel(), minlength=256)[:classes]

    with ThreadPoolExecutor() as threads:
        return np.stack(list(each(threads.map(count, range(frames)), "classes counted", frames)))


def labelled_frames(
    mixture: Mixture,
    space: LabelSpace,
    config: SegmentationConfig,
    seed: int,
    cache: Path | None,
    counts: Sequence[Counts] = (),
) -> IndexedDataset:
    """A dataset of `rgb` (h, w, 3) uint8, `label` (h, w) int64 and `name`, in the crop's size.

    One data set is gone through epoch by epoch. With several, or with rare class sampling, each
    index chooses a data set by its fraction and then a frame of it.

    Args:
        counts: `class_counts`, for rare class sampling.

    Raises:
        UserError: a data set is not there.
    """
    frames: list[Reader] = []
    labels: list[Reader] = []
    names: list[list[str]] = []
    for spec, _ in mixture:
        samples = list_samples(spec, labelled=True)
        frames.append(frame_reader(spec, samples, cache))
        labels.append(class_reader(spec, samples, space, cache))
        names.append([str(sample.image) for sample in samples])
    place, look = geometry(config.augmentation, config.crop), appearance(config.augmentation)
    rare = config.rare_class_sampling
    width, height = config.crop
    enough = rare.crop_share * width * height if rare else 0

    read = partial(_read_labelled, frames, labels, names, place, look, enough)
    if len(mixture) == 1 and rare is None:
        return IndexedDataset(partial(_read_in_turn, read), len(names[0]), seed=seed)
    fractions = np.array([part for _, part in mixture]) / sum(part for _, part in mixture)
    choosers: list[Chooser] = [partial(_choose_evenly, len(part)) for part in names]
    if rare:
        choosers = [rare_class_chooser(pixels, rare, enough) for pixels in counts]
    return IndexedDataset(
        read, sum(map(len, names)), seed=seed, pick=partial(_pick, fractions, choosers)
    )


Choice = tuple[int, int, int | None]
"""A data set, a frame of it, and the class for whose sake it was chosen."""
Chooser = Callable[[np.random.Generator], tuple[int, int | None]]
"""Generator -> a frame of a data set and the class for whose sake it was chosen."""


def _read_labelled(
    frames: list[Reader],
    labels: list[Reader],
    names: list[list[str]],
    place: A.Compose,
    look: A.Compose,
    enough: float,
    choice: Choice,
    rng: np.random.Generator,
) -> Item:
    part, index, wanted = choice
    _seed_transforms(rng, place, look)
    most, best = -1, {}
    for _ in range(RECROPS if wanted is not None else 1):
        crop = place(image=frames[part](index), mask=labels[part](index))
        found = int((crop["mask"] == wanted).sum()) if wanted is not None else 0
        if found > most:
            most, best = found, crop
        if found >= enough:
            break
    return {
        # Copies: a cache is not to be written to. Forced: no draw decides whether to look.
        "rgb": torch.from_numpy(np.array(look(force_apply=True, image=best["image"])["image"])),
        "label": torch.from_numpy(best["mask"].astype(np.int64)),
        "name": names[part][index],
    }


def _read_in_turn(
    read: Callable[[Choice, np.random.Generator], Item], index: int, rng: np.random.Generator
) -> Item:
    return read((0, index, None), rng)


def _pick(
    fractions: npt.NDArray[np.float64], choosers: list[Chooser], rng: np.random.Generator
) -> Choice:
    part = int(rng.choice(len(fractions), p=fractions))
    return part, *choosers[part](rng)


def _choose_evenly(frames: int, rng: np.random.Generator) -> tuple[int, int | None]:
    return int(rng.integers(frames)), None


def rare_class_chooser(pixels: Counts, config: RareClassConfig, enough: float) -> Chooser:
    """Chooses classes, rare ones more often, and then frames that show them (`RareClassConfig`).

    Args:
        pixels: (frames, classes) of each class in each frame.
        enough: pixels that a class is to have in a frame; one that no frame has so many of is not
            drawn, for it would take all draws.
    """
    shown = pixels >= max(1, enough)
    drawn = np.flatnonzero(shown.any(axis=0))
    if not len(drawn):
        return partial(_choose_evenly, len(pixels))
    frequency = pixels.sum(axis=0)[drawn] / pixels.sum()
    exponent = (1 - frequency) / config.temperature
    weight = np.exp(exponent - exponent.max())
    weight /= weight.sum()
    members = [np.flatnonzero(shown[:, index]) for index in drawn]
    return partial(_choose_rare, weight, members, drawn)


def _choose_rare(
    weight: npt.NDArray[np.float64],
    members: list[npt.NDArray[np.intp]],
    drawn: npt.NDArray[np.intp],
    rng: np.random.Generator,
) -> tuple[int, int | None]:
    position = int(rng.choice(len(drawn), p=weight))
    return int(rng.choice(members[position])), int(drawn[position])


def unlabelled_frames(
    spec: DatasetSpec,
    config: SegmentationConfig,
    self_training: SelfTrainingConfig,
    seed: int,
    cache: Path | None,
) -> IndexedDataset:
    """A dataset of `rgb` (h, w, 3) uint8, `valid` (h, w) bool and `name`; reads no label.

    Scaled, cropped and mirrored like labelled frames, but not recoloured. `valid` is False in
    padding and in the rows that `self_training` ignores.
    """
    samples = list_samples(spec, labelled=False)
    frames = frame_reader(spec, samples, cache)
    place = geometry(config.augmentation, config.crop)
    read = partial(_read_unlabelled, samples, frames, place, self_training)
    return IndexedDataset(read, len(samples), seed=seed, stream=1)


def _read_unlabelled(
    samples: list[Sample],
    frames: Reader,
    place: A.Compose,
    self_training: SelfTrainingConfig,
    index: int,
    rng: np.random.Generator,
) -> Item:
    rgb = frames(index)
    height = len(rgb)
    rim = np.zeros(rgb.shape[:2], np.uint8)
    rim[: round(self_training.ignore_top * height)] = IGNORE
    rim[height - round(self_training.ignore_bottom * height) :] = IGNORE
    _seed_transforms(rng, place)
    crop = place(image=rgb, mask=rim)
    return {
        "rgb": torch.from_numpy(np.array(crop["image"])),
        "valid": torch.from_numpy(crop["mask"] != IGNORE),
        "name": str(samples[index].image),
    }


def _seed_transforms(rng: np.random.Generator, *pipelines: A.Compose) -> None:
    """Let all transforms draw from one stream; `set_random_seed` would give each equal numbers."""
    other = random.Random(int(rng.integers(2**31)))
    for pipeline in pipelines:
        pipeline.set_random_state(rng, other)
