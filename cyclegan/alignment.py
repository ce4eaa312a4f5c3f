"""Class-wise alignment: each class of a source frame takes on that class's colours in the target.

A network's pseudo-labels tell where the target shows a class. Every pixel keeps its place and its
class, so no label can become wrong. After the photometric alignment of Ma et al. (CVPR 2021), with
class-balanced pseudo-labels (Zou et al., ECCV 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cyclegan.translate import translate_frames
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import TranslationConfig
from pipeline.config.translators import TranslationInputs
from pipeline.data.images import UInt8, read_raw
from pipeline.data.labels import IGNORE
from pipeline.data.listing import list_samples, pseudo_label_paths
from pipeline.data.reading import LabelReader, read_frame
from pipeline.errors import UserError
from pipeline.progress import each

Float = npt.NDArray[np.float64]
LEAST_SHOWN = 200
"""Pixels of a class in a target frame from which its statistics are taken."""
LEAST_MATCHED = 20
"""Pixels of a class in a source frame that are aligned as a class; fewer go with the frame."""


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of colours in 8-bit Lab, of each class of a frame and of the whole frame.

    The whole frame is the last row.
    """

    means: Float
    """(K + 1, 3)."""
    covariances: Float
    """(K + 1, 3, 3), with 1 added to the variances: flat regions have an inverse, too."""
    pixels: npt.NDArray[np.int64]
    """(K + 1,)."""


def statistics(rgb: UInt8, classes: UInt8, count: int) -> Statistics:
    """The colours of each of `count` classes.

    Args:
        rgb: (H, W, 3) uint8.
        classes: (H, W) uint8 class indices, `IGNORE` where there is none.
    """
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float64)
    index = classes.ravel()
    pixels = np.append(np.bincount(index, minlength=256)[:count], len(lab))
    means, covariances = np.zeros((count + 1, 3)), np.tile(np.eye(3), (count + 1, 1, 1))
    for row in np.flatnonzero(pixels):
        colours = lab if row == count else lab[index == row]
        means[row] = colours.mean(axis=0)
        centred = colours - means[row]
        covariances[row] += centred.T @ centred / len(colours)
    return Statistics(means, covariances, pixels)


def transforms(source: Statistics, target: Statistics) -> tuple[Float, Float]:
    """The affine maps that give colours of `source` the mean and covariance of `target`.

    The optimal transport between two Gaussians (Pitié and Kokaram, CVMP 2007, eq. 8): of all linear
    maps that do it, the one that moves colours least.

    Returns:
        Matrices (K + 1, 3, 3) and offsets (K + 1, 3).
    """
    root = _power(source.covariances, 0.5)
    inverse = _power(source.covariances, -0.5)
    matrices = inverse @ _power(root @ target.covariances @ root, 0.5) @ inverse
    offsets = target.means - np.einsum("kij,kj->ki", matrices, source.means)
    return matrices, offsets


def _power(matrices: Float, exponent: float) -> Float:
    """Powers of symmetric matrices (..., 3, 3); eigenvalues below 1e-3 count as that."""
    values, vectors = np.linalg.eigh((matrices + np.swapaxes(matrices, -1, -2)) / 2)
    powers = np.maximum(values, 1e-3) ** exponent
    return np.asarray((vectors * powers[..., None, :]) @ np.swapaxes(vectors, -1, -2))


def align(rgb: UInt8, classes: UInt8, target: Statistics, softness: float) -> UInt8:
    """Give each class of a frame the colours that it has in `target`.

    Pixels without a class, and classes of few pixels, are changed as the whole frame is. Between
    regions the maps blend, so that light fits across borders.

    Args:
        rgb: (H, W, 3) uint8.
        classes: (H, W) uint8 class indices, `IGNORE` where there is none.
        target: with a row for each class of the frame.
        softness: standard deviation of the blend in pixels; 0 for hard borders.
    """
    count = len(target.means) - 1
    own = statistics(rgb, classes, count)
    matrices, offsets = transforms(own, target)
    parameters = np.concatenate([matrices.reshape(-1, 9), offsets], axis=1).astype(np.float32)
    rows = np.minimum(classes, count)
    few = own.pixels < LEAST_MATCHED
    few[count] = False
    rows[few[rows]] = count
    maps = parameters[rows]
    if softness > 0:
        maps = cv2.GaussianBlur(maps, (0, 0), softness)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    moved = maps[..., 9:].copy()
    for j in range(3):
        moved += maps[..., j:9:3] * lab[..., j : j + 1]
    moved = np.rint(moved).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(moved, cv2.COLOR_LAB2RGB))


def choose(
    pool: list[Statistics], shown: npt.NDArray[np.bool_], rng: np.random.Generator
) -> Statistics:
    """The colours that one source frame is to take on.

    One target frame gives those of the classes that it shows, and of the frame as a whole: its
    light is one. Other classes are taken from a frame that shows them, or from the whole frame
    where none does.

    Args:
        pool: of every target frame.
        shown: (frames, K) which classes have pixels enough.
    """
    index, count = int(rng.integers(len(pool))), shown.shape[1]
    frame = pool[index]
    means, covariances = frame.means.copy(), frame.covariances.copy()
    for number in range(count):
        # Drawn for every class, so that one class's pool moves no other's choice.
        draw = rng.random()
        if shown[index, number]:
            continue
        able = np.flatnonzero(shown[:, number])
        other, row = (pool[able[int(draw * len(able))]], number) if len(able) else (frame, count)
        means[number], covariances[number] = other.means[row], other.covariances[row]
    return Statistics(means, covariances, frame.pixels)


def translate_by_classes(
    config: TranslationConfig, given: TranslationInputs, folder: Path, compute: ComputeConfig
) -> None:
    """Translate every source frame into `folder/images` by class-wise alignment.

    Of the target's pseudo-labels, the most confident part `config.keep` of each class's pixels
    counts. What a frame takes on is a function of (`config.seed`, number of the frame). Otherwise
    as `cyclegan.translate.translate`.

    Raises:
        UserError: a frame or label cannot be read, or no class is seen in the target.
    """
    pseudo = given.pseudo_labels
    assert pseudo is not None, "class-wise alignment reads pseudo-labels"
    assert given.space is not None, "class-wise alignment reads labels"
    classes = len(given.space.classes)
    targets = list_samples(given.target, labelled=False)
    limits = thresholds([sample.name for sample in targets], pseudo, classes, config.keep)
    pool = [
        statistics(
            read_frame(given.target, sample), pseudo_label(pseudo, sample.name, limits), classes
        )
        for sample in each(targets, "colours of the target", len(targets))
    ]
    shown = np.stack([found.pixels[:classes] >= LEAST_SHOWN for found in pool])
    if not shown.any():
        raise UserError(
            f"Data set {given.target.name}: no frame shows {LEAST_SHOWN} pixels of a class that "
            f"arm {config.pseudo_labels} is confident of. Raise keep, or train that arm for longer."
        )
    samples = list_samples(given.source, labelled=True)
    labels = LabelReader(given.source, given.space)

    def aligned(number: int, frame: UInt8) -> UInt8:
        rng = np.random.default_rng([config.seed, number])
        return align(frame, labels.read(samples[number]), choose(pool, shown, rng), config.softness)

    translate_frames(
        given.source,
        folder,
        compute,
        each=aligned,
        part=given.part,
        unreadable=config.unreadable,
    )


def thresholds(names: Sequence[str], folder: Path, classes: int, keep: float) -> Float:
    """(K,) levels of confidence above which the part `keep` of each class's pixels lies."""
    counts = np.zeros((classes, 256), np.int64)
    for name in names:
        label, confidence = map(read_raw, pseudo_label_paths(folder, name))
        np.add.at(counts, (label.ravel(), confidence.ravel()), 1)
    above = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    wanted = keep * counts.sum(axis=1, keepdims=True)
    return np.asarray((above >= np.maximum(wanted, 1)).sum(axis=1) - 1, np.float64)


def pseudo_label(folder: Path, name: str, limits: Float) -> UInt8:
    """The pseudo-label of a target frame: (H, W) classes, `IGNORE` where it is not confident."""
    label, confidence = map(read_raw, pseudo_label_paths(folder, name))
    return np.where(confidence >= limits[label], label, IGNORE).astype(np.uint8)
