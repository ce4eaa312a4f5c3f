"""Where a frame shows what: coarse layouts of label maps, and how alike two of them are.

A discriminator that sees skies where translated frames have none learns to ask for skies. Richter
et al., "Enhancing Photorealism Enhancement", TPAMI 2022, therefore draw crops of both domains that
resemble each other, by features of a network; here they do by their labels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.images import UInt8
from pipeline.data.labels import IGNORE

GRID = 4
"""Cells of a layout in each direction."""
STRIDE = 8
"""Every so many rows and columns of a label map tell its layout."""

Layout = npt.NDArray[np.float64]
"""(GRID * GRID, IGNORE) the share of all pixels that are in a cell and of a class."""


@dataclass(frozen=True)
class LabelMap:
    """The classes of a frame, every `STRIDE` pixels."""

    size: tuple[int, int]
    """Width and height of the frame."""
    classes: UInt8

    def cut(self, rows: slice, columns: slice) -> UInt8:
        """The part that a crop of the frame shows."""
        top, left = rows.start // STRIDE, columns.start // STRIDE
        return self.classes[top : -(-rows.stop // STRIDE), left : -(-columns.stop // STRIDE)]


def label_map(classes: UInt8) -> LabelMap:
    """A label map (H, W) uint8 as it is kept for all frames of a domain."""
    return LabelMap((classes.shape[1], classes.shape[0]), classes[::STRIDE, ::STRIDE].copy())


def layout(classes: UInt8) -> Layout:
    """The layout of a label map (h, w) uint8; pixels without a class are in no cell."""
    height, width = classes.shape
    rows = np.arange(height)[:, None] * GRID // height
    cells = rows * GRID + np.arange(width) * GRID // width
    counts = np.bincount((cells * 256 + classes).ravel(), minlength=GRID * GRID * 256)
    return np.asarray(counts.reshape(-1, 256)[:, :IGNORE] / classes.size, np.float64)


def similarity(one: Layout, other: Layout) -> float:
    """The share of pixels that have a counterpart of their class in their cell, 0 to 1."""
    return float(np.minimum(one, other).sum())
