"""Colours: one an arm in every figure, and classes that can be told apart."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from pipeline.config.settings import AFTER, BEFORE, IDEAL
from pipeline.data.images import UInt8
from pipeline.data.labels import LabelSpace
from pipeline.scoring.metrics import Float

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_ARM_COLORS = {BEFORE: "#d55e00", AFTER: "#0072b2", IDEAL: "#009e73"}
MORE_COLORS = (
    *("#cc79a7", "#56b4e9", "#e69f00", "#5f6b7a", "#332288", "#882255", "#44aa99", "#999933"),
    *("#aa4499", "#661100"),
)
CURVE_COLORS = (_ARM_COLORS[IDEAL], _ARM_COLORS[AFTER], *MORE_COLORS)
"""Of labelled frames alone, which come to the oracle, and of those with others besides."""

_ALIKE, _ALIKE_DEEP, _DEEP = 0.08, 0.14, 0.45
"""Distance in OKLab below which two colours of small regions look alike, also where both are deep;
lightness up to which a colour is deep."""
_APART = 0.16
"""Distance of a new colour from all others, where there is such a one."""


def arm_colors(arms: Sequence[str]) -> dict[str, str]:
    """One colour an arm, the same in every figure."""
    more = [arm for arm in arms if arm not in _ARM_COLORS]
    extra = {arm: MORE_COLORS[i % len(MORE_COLORS)] for i, arm in enumerate(more)}
    return {arm: (_ARM_COLORS | extra)[arm] for arm in arms}


def distinct_palette(space: LabelSpace) -> UInt8:
    """(256, 3) uint8 RGB by class index, like `LabelSpace.palette`, for a page alone.

    A class that looks like an earlier one, or like the black of what is not scored, gets the
    nearest colour that looks like none: Cityscapes draws car, truck and bus in deep blues.
    """
    table = space.palette
    own = _oklab(table[: len(space.classes)])
    used = [_oklab(np.zeros(3, np.uint8))]
    alike = []
    for index, color in enumerate(own):
        if any(_look_alike(color, other) for other in used):
            alike.append(index)
        else:
            used.append(color)
    candidates = _candidates()
    seen = _oklab(candidates)
    for index in alike:
        apart = np.min([_distance(seen, other) for other in used], axis=0)
        enough = apart >= min(_APART, float(apart.max()))
        best = int(np.where(enough, _distance(seen, own[index]), np.inf).argmin())
        table[index] = candidates[best]
        used.append(seen[best])
    return table


def _look_alike(one: Float, other: Float) -> bool:
    deep = max(one[0], other[0]) < _DEEP
    return bool(_distance(one, other) < (_ALIKE_DEEP if deep else _ALIKE))


@cache
def _candidates() -> UInt8:
    """(N, 3) uint8: a grid of all colours but the darkest."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.asarray(grid[_oklab(grid)[:, 0] > 0.4])


def _oklab(rgb: UInt8) -> Float:
    """(..., 3) uint8 sRGB as OKLab (Ottosson 2020), in which equal distances look alike."""
    channel = rgb / 255
    linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ _TO_CONES.T)
    return np.asarray(cones @ _TO_LAB.T)


_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _distance(one: Float, other: Float) -> Float:
    return np.asarray(np.linalg.norm(one - other, axis=-1))
