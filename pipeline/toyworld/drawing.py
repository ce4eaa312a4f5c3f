"""A seeded toy world: two tiny labelled street data sets that disagree only in how they look.

``write_toy_world`` draws ``toy-sim`` (a flat, saturated "video game", in GTA5's directory layout)
and ``toy-real`` (a muted, textured, hazy "camera", in Cityscapes' layout). Both show the same
kind of street with similar class shares, so that translation between them is possible, but the
palettes are chosen to mislead a network that has seen only one of them.

Units: lengths in metres (x right, y up, z ahead of the camera), picture positions in pixels,
colours in 0..255 RGB. Labels are Cityscapes label ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Span = tuple[float, float]
StyleName = Literal["sim", "real"]
Array = NDArray[Any]
Pixels = NDArray[np.int32]
Things = Iterator[tuple[float, Callable[[], None]]]  # distance, and what paints it
SIZE = (128, 64)  # width, height
VERSION = 1  # raise it whenever the pictures change: old worlds are then refused, not mixed
RECORD = "toyworld.json"
TRAIN_CITIES = ("arnsmark", "brunnfeld")
VAL_CITY = "tolmstadt"
UNLABELED, EGO, ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE = 0, 1, 7, 8, 11, 12, 13, 17
LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR = 19, 20, 21, 22, 23, 24, 25, 26
TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 27, 28, 31, 32, 33
_SCALE = 4  # the picture is drawn this many times larger and averaged down
_FAR = 120.0  # metres to the end of the street
_NEAR = 2.0
_CIRCLE = np.array([(math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * np.pi, 13)[:-1]])


@dataclass(frozen=True)
class Style:
    """How one of the two worlds looks. Spans are uniform ranges drawn once a frame."""

    horizon: Span  # share of the height above the horizon
    camera_height: Span
    road_width: Span
    gap_chance: float  # that a stretch of frontage is a wall, fence or hedge, not a building
    lawn_chance: float  # that a side of the street has a grass strip
    trees: float  # expected number a side, as persons
    persons: float
    cars: float  # expected number a street
    jitter: float  # standard deviation of a painted thing's brightness, as a share
    side_light: Span  # light on the left and on the right facades
    front_light: float  # light on faces turned towards the camera
    haze: float  # share of light lost at the end of the street
    shadow: float  # darkness under vehicles
    shadow_blur: float  # in drawn pixels
    gradient: float  # darkening of the picture's bottom against its top
    vignette: float
    blur: float  # standard deviation in pixels of SIZE
    noise: float  # sensor noise in grey levels
    cast: float  # standard deviation of the frame's colour cast, as a share
    jpeg: int | None  # quality of the recompression
    bonnet: bool  # whether the camera sees its own car
    colours: Mapping[str, Sequence[Colour]]
    texture: Mapping[int, Span] = field(default_factory=dict)  # id: fine, coarse (grey levels)


STYLES: Mapping[StyleName, Style] = {
    "sim": Style(
        horizon=(0.39, 0.46), camera_height=(1.45, 1.75), road_width=(8.5, 11.0),
        gap_chance=0.27, lawn_chance=0.45, trees=1.5, cars=6, persons=2.2,
        jitter=0.03, side_light=(0.78, 1.0), front_light=0.62, haze=0.0,
        shadow=0.55, shadow_blur=0.0, gradient=0.0, vignette=0.0, blur=0.0, noise=0.0, cast=0.0,
        jpeg=None, bonnet=False,
        colours={
            "sky": [(64, 200, 250)], "cloud": [(250, 250, 255)],
            "road": [(150, 146, 186)], "marking": [(255, 250, 120)],
            "sidewalk": [(238, 214, 150)], "kerb": [(255, 245, 215)],
            "terrain": [(176, 236, 60)], "trunk": [(150, 80, 30)], "leaves": [(36, 180, 66)],
            "building": [(250, 150, 90), (245, 120, 150), (105, 100, 112)],
            "window": [(60, 90, 220)], "shop": [(140, 40, 110)],
            "wall": [(205, 120, 230)], "fence": [(160, 60, 30)], "pole": [(40, 60, 90)],
            "light": [(30, 30, 40)], "sign": [(255, 60, 40), (40, 80, 255), (255, 255, 255)],
            "car": [(235, 30, 40), (250, 220, 30), (30, 70, 235), (20, 220, 220)],
            "glass": [(25, 30, 70)], "tyre": [(15, 15, 25)], "metal": [(215, 225, 245)],
            "truck": [(240, 240, 250), (250, 120, 20)], "bus": [(255, 190, 0)],
            "train": [(0, 180, 150)], "cycle": [(230, 30, 180)],
            "cloth": [(255, 60, 60), (70, 60, 255), (255, 240, 80)],
            "trouser": [(40, 40, 130)], "skin": [(255, 190, 140)], "bin": [(0, 120, 120)],
            "bonnet": [(30, 30, 30)],
        },
    ),
    "real": Style(
        horizon=(0.42, 0.49), camera_height=(1.35, 1.6), road_width=(9.5, 12.0),
        gap_chance=0.30, lawn_chance=0.4, trees=1.7, cars=6.5, persons=2.5,
        jitter=0.10, side_light=(0.94, 1.0), front_light=0.88, haze=0.55,
        shadow=0.5, shadow_blur=5.0, gradient=0.08, vignette=0.16, blur=0.55, noise=4.0, cast=0.03,
        jpeg=80, bonnet=True,
        colours={
            "sky": [(212, 215, 216)], "cloud": [(234, 234, 232)],
            "road": [(96, 94, 93)], "marking": [(188, 186, 180)],
            "sidewalk": [(142, 128, 120)], "kerb": [(160, 154, 148)],
            "terrain": [(112, 110, 68)], "trunk": [(62, 54, 46)], "leaves": [(58, 68, 44)],
            "building": [(128, 86, 68), (164, 148, 122), (148, 142, 138)],
            "window": [(62, 66, 70)], "shop": [(74, 66, 62)],
            "wall": [(136, 122, 108)], "fence": [(92, 82, 72)], "pole": [(86, 90, 92)],
            "light": [(34, 36, 34)], "sign": [(170, 52, 46), (52, 76, 132), (205, 202, 196)],
            "car": [(40, 42, 46), (172, 174, 178), (46, 56, 82), (110, 34, 34)],
            "glass": [(36, 42, 48)], "tyre": [(24, 24, 24)], "metal": [(150, 152, 154)],
            "truck": [(190, 188, 182), (88, 98, 92)], "bus": [(168, 150, 84)],
            "train": [(120, 48, 44)], "cycle": [(50, 50, 54)],
            "cloth": [(52, 54, 66), (104, 56, 50), (120, 114, 100)],
            "trouser": [(40, 42, 52)], "skin": [(178, 138, 116)], "bin": [(70, 72, 66)],
            "bonnet": [(38, 40, 44)],
        },
        texture={
            ROAD: (5, 4), SIDEWALK: (8, 5), TERRAIN: (12, 10), BUILDING: (9, 8), WALL: (10, 7),
            FENCE: (14, 5), VEGETATION: (20, 16), SKY: (1, 7), CAR: (4, 4), PERSON: (6, 4),
        },
    ),
}  # fmt: skip


class _Painter:
    """A pinhole camera on a flat street, and the two drawings it fills with the same polygons.

    ``picture`` is (H, W, 4) uint8: RGB and visibility (255 near .. 0 infinitely far); ``ids`` is
    (H, W) uint8. Both are in drawn pixels, ``_SCALE`` times the frame's.
    """

    def __init__(self, style: Style, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.style, self.rng = style, rng
        self.width, self.height = size[0] * _SCALE, size[1] * _SCALE
        self.picture: NDArray[np.uint8] = np.zeros((self.height, self.width, 4), np.uint8)
        self.ids: NDArray[np.uint8] = np.zeros((self.height, self.width), np.uint8)
        self.vanish_u = self.width * (0.5 + rng.uniform(-0.09, 0.09))
        self.vanish_v = self.height * rng.uniform(*style.horizon)
        self.focal = 0.9 * self.width
        self.eye = rng.uniform(*style.camera_height)

    def colour(self, name: str) -> Colour:
        """One of the style's colours for ``name``, a little brighter or darker."""
        options = self.style.colours[name]
        base = options[int(self.rng.integers(len(options)))] if len(options) > 1 else options[0]
        return _lit(base, 1 + self.style.jitter * max(-2.0, min(2.0, self.rng.standard_normal())))

    def project(self, points: Array) -> Pixels:
        """Drawn pixels, int32 (..., 2), of points (..., 3) in metres."""
        scale = self.focal / np.maximum(points[..., 2], 0.5)
        pixels = np.empty((*points.shape[:-1], 2))
        pixels[..., 0] = self.vanish_u + scale * points[..., 0]
        pixels[..., 1] = self.vanish_v + scale * (self.eye - points[..., 1])
        return np.rint(pixels, out=pixels).astype(np.int32)

    def fill(self, points: Array, label: int, colour: Colour) -> None:
        """Fill polygons: ``points`` is (corners, 3) or (polygons, corners, 3) in metres."""
        polygons = points.reshape(-1, *points.shape[-2:])
        z = (polygons[0, 0, 2] + polygons[-1, 2, 2]) / 2  # corners 0 and 2 are opposite ones
        self.fill_pixels(list(self.project(polygons)), label, colour, z)

    def fill_pixels(self, polygons: Sequence[Pixels], label: int, colour: Colour, z: float) -> None:
        """Fill polygons of (corners, 2) drawn pixels in both drawings."""
        cv2.fillPoly(self.picture, polygons, (*colour, 255 * math.exp(-z / _FAR)))
        cv2.fillPoly(self.ids, polygons, label)

    def shade(self, x0: float, x1: float, z0: float, z1: float) -> None:
        """Darken the picture in a rectangle of the ground; labels stay."""
        pixels = self.project(_ground(x0, x1, z0, z1))
        pad = int(3 * self.style.shadow_blur) + 2
        limits = (self.width, self.height)
        u0, v0 = np.clip(pixels.min(axis=0) - pad, 0, limits).tolist()
        u1, v1 = np.clip(pixels.max(axis=0) + pad, 0, limits).tolist()
        if u1 <= u0 or v1 <= v0:
            return
        mask = np.zeros((v1 - v0, u1 - u0), np.float32)
        cv2.fillPoly(mask, [pixels - (u0, v0)], self.style.shadow)
        if self.style.shadow_blur:
            mask = cv2.GaussianBlur(mask, (0, 0), self.style.shadow_blur)
        patch = self.picture[v0:v1, u0:u1, :3]
        patch[:] = (patch * (1 - mask[..., None])).astype(np.uint8)


def _lit(colour: Colour, light: float) -> Colour:
    red, green, blue = (min(channel * light, 255.0) for channel in colour)
    return red, green, blue


def _ground(x0: float, x1: float, z0: float, z1: float) -> Array:
    return np.array([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)])


def _front(x0: float, x1: float, y0: float, y1: float, z: float, inset: float = 0) -> Array:
    return np.array([(x0, y0, z), (x1, y0, z), (x1 - inset, y1, z), (x0 + inset, y1, z)])


def _side(x: float, y0: float, y1: float, z0: float, z1: float) -> Array:
    return np.array([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)])


def _disc(x: float, y: float, z: float, radius: float | Array) -> Array:
    points = np.empty((len(_CIRCLE), 3))
    points[:, 0], points[:, 1], points[:, 2] = radius * _CIRCLE[:, 0], radius * _CIRCLE[:, 1], z
    points[:, :2] += (x, y)
    return points


def _sky_and_ground(p: _Painter) -> None:
    horizon = int(np.ceil(p.vanish_v))
    for top, bottom, label, name in (
        (0, horizon - 1, SKY, "sky"), (horizon, p.height, TERRAIN, "terrain")
    ):  # fmt: skip
        cv2.rectangle(p.picture, (0, top), (p.width, bottom), (*p.colour(name), 255), -1)
        p.ids[top : bottom + 1] = label
    for _ in range(int(p.rng.poisson(1.6))):
        u, v, cloud = p.rng.uniform(0, p.width), p.rng.uniform(0, horizon * 0.8), p.colour("cloud")
        for _ in range(4):
            radius = p.width * p.rng.uniform(0.03, 0.08)
            puff = (_CIRCLE * (radius, 0.3 * radius) + (u, v)).astype(np.int32)
            p.fill_pixels([puff], SKY, cloud, 0.0)
            u += radius * p.rng.uniform(-0.9, 0.9)
    # The ground recedes within one polygon, so its visibility follows from the row.
    ahead = p.focal * p.eye / np.maximum(np.arange(horizon, p.height) - p.vanish_v, 1e-3)
    p.picture[horizon:, :, 3] = (255 * np.exp(-ahead / _FAR))[:, None]


def _house(p: _Painter, side: int, x: float, z0: float, z1: float) -> None:
    top, light, wall = p.rng.uniform(5.5, 13), p.style.side_light[side > 0], p.colour("building")
    p.fill(_front(x, x + side * 12, 0, top, z0), BUILDING, _lit(wall, p.style.front_light))
    p.fill(_side(x, 0, top, z0, z1), BUILDING, _lit(wall, light))
    p.fill(_side(x, top - 0.5, top, z0, z1), BUILDING, _lit(wall, light * 0.7))
    p.fill(_side(x, 0.4, 2.6, z0 + 0.8, z1 - 0.8), BUILDING, _lit(p.colour("shop"), light))
    panes = [
        _side(x, y, y + 1.7, z, z + 1.4)
        for y in np.arange(3.6, top - 2.0, 3.0)
        for z in np.arange(z0 + 1.0, min(z1 - 1.8, 70), 2.6)
    ]
    if panes:
        p.fill(np.stack(panes), BUILDING, _lit(p.colour("window"), light))


def _tree(p: _Painter, x: float, z: float) -> None:
    base, radius, leaves = p.rng.uniform(2.4, 3.4), p.rng.uniform(1.2, 2.3), p.colour("leaves")
    p.fill(_front(x - 0.17, x + 0.17, 0, base + radius, z), VEGETATION, p.colour("trunk"))
    # Dark blobs first and low, bright ones last and high: a crown lit from above.
    for light in (0.62, 0.62, 0.8, 0.8, 1.0) if z < 60 else (0.7, 1.0):
        dx, dy, *edge = p.rng.uniform(-1, 1, 2 + len(_CIRCLE))
        outline = radius * (1.25 - 0.55 * light) * (1 + 0.17 * np.array(edge))
        middle = base + radius * (0.7 + 2.2 * (light - 0.7) + 0.2 * dy)
        p.fill(_disc(x + 0.5 * dx * radius, middle, z, outline), VEGETATION, _lit(leaves, light))


def _gap(p: _Painter, side: int, x: float, z0: float, z1: float) -> None:
    """A stretch without a house: trees behind a wall, a fence or a hedge."""
    for z in np.arange(z1 - 1, z0, -4.5):
        _tree(p, x + side * p.rng.uniform(2.5, 6.0), max(float(z), 4.0))
    label, name, top = (
        (WALL, "wall", 1.9), (FENCE, "fence", 1.6), (VEGETATION, "leaves", 1.6)
    )[int(p.rng.integers(3))]  # fmt: skip
    colour = _lit(p.colour(name), p.style.side_light[side > 0])
    p.fill(_side(x, 0, top, z0, z1), label, colour)
    if label == FENCE:
        slats = [_side(x, 0.2, 1.4, z, z + 0.3) for z in np.arange(z0 + 0.3, z1 - 0.5, 0.8)]
        p.fill(np.stack(slats), label, _lit(colour, 0.55))
    else:
        p.fill(_side(x, 0, top * 0.8, z0, z1), label, _lit(colour, 0.8))


def _vehicle(
    p: _Painter, x: float, z: float, label: int, name: str, size: Colour, oncoming: bool
) -> None:
    """A vehicle of ``size`` = width, height, length whose near face stands at ``z``."""
    width, height, length = size
    left, right, car = x - width / 2, x + width / 2, label == CAR
    waist, inset = (0.56 * height, 0.16 * width) if car else (0.45 * height, 0.0)
    near, far = ((0.22, 0.7) if oncoming else (0.08, 0.7)) if car else (0.0, 1.0)
    near, far = z + near * length, z + far * length
    body, glass, tyre = p.colour(name), p.colour("glass"), p.colour("tyre")
    facing = _lit(body, p.style.front_light)
    p.shade(left - 0.15, right + 0.15, z - 0.4, z + length)
    if left > 0 or right < 0:
        flank = left if left > 0 else right
        for start in (0.12, 0.68):
            span = z + start * length, z + (start + 0.2) * length
            p.fill(_side(flank, 0, 0.6, *span), label, tyre)
        p.fill(_side(flank, waist, height, near, far), label, body)
        p.fill(_side(flank, 0.3, waist, z, z + length), label, _lit(body, 0.8))
        if label != TRUCK:
            pane = _side(flank, waist + 0.05, height * 0.9, near + 0.3, far - 0.3)
            p.fill(pane, label, glass)
    lid = _ground(left, right, z, near + 0.1)
    lid[:, 1] = waist
    p.fill(lid, label, body)
    p.fill(_front(left, right, waist, height, near, inset), label, body)
    if label != TRUCK or oncoming:
        pane = _front(left + 0.12, right - 0.12, waist + 0.08, height * 0.93, near, inset)
        p.fill(pane, label, glass)
    p.fill(_front(left, right, 0.25, waist, z), label, facing)
    lamp = p.colour("cloud") if oncoming else (225.0, 30.0, 25.0)
    for start, inner in ((left, left + 0.05), (right - 0.3, right - 0.4)):
        p.fill(_front(start, start + 0.3, 0, 0.45, z), label, tyre)
        p.fill(_front(inner, inner + 0.35, waist * 0.68, waist * 0.9, z), label, lamp)
    p.fill(_front(x - 0.26, x + 0.26, waist * 0.45, waist * 0.62, z), label, p.colour("metal"))


def _person(p: _Painter, x: float, z: float, label: int = PERSON, lift: float = 0.0) -> None:
    size, stride, trouser = p.rng.uniform(0.9, 1.08), p.rng.uniform(0.02, 0.16), p.colour("trouser")
    if label == PERSON:
        p.shade(x - 0.35, x + 0.35, z - 0.15, z + 0.3)
    for foot in (-stride, stride):
        leg = _front(x + foot - 0.1, x + foot + 0.1, lift, lift + 0.85 * size, z)
        leg[2:, 0] -= foot * 0.7
        p.fill(leg, label, trouser)
    torso = _front(x - 0.27, x + 0.27, lift + 0.8 * size, lift + 1.45 * size, z)
    p.fill(torso, label, p.colour("cloth"))
    p.fill(_disc(x, lift + 1.6 * size, z, 0.16), label, p.colour("skin"))


def _cycle(p: _Painter, x: float, z: float, label: int, rider: bool) -> None:
    """A bicycle or motorcycle seen from its side, with or without its rider."""
    p.shade(x - 0.8, x + 0.8, z - 0.2, z + 0.2)
    if rider:
        _person(p, x - 0.05, z, RIDER, 0.35)
    for hub in (x - 0.55, x + 0.55):
        p.fill(_disc(hub, 0.36, z, 0.36), label, p.colour("tyre"))
        p.fill(_disc(hub, 0.36, z, 0.18), label, p.colour("metal"))
    low, high = (0.3, 0.95) if label == MOTORCYCLE else (0.5, 0.72)
    p.fill(_front(x - 0.6, x + 0.55, low, high, z, 0.08), label, p.colour("cycle"))


def _pole(p: _Painter, x: float, z: float, kind: int) -> None:
    """A lamp post (0), a traffic light (1) or a traffic sign (2)."""
    top = (6.0, 3.2, 2.6)[kind]
    p.fill(_front(x - 0.1, x + 0.1, 0, top, z), POLE, p.colour("pole"))
    if kind == 0:
        p.fill(_front(x, x - math.copysign(1.4, x), 5.8, 6.0, z), POLE, p.colour("pole"))
    elif kind == 1:
        p.fill(_front(x - 0.28, x + 0.28, 2.5, 3.7, z), LIGHT, p.colour("light"))
        lamp = int(p.rng.integers(3))
        glow = ((250, 50, 40), (250, 200, 50), (60, 240, 120))[lamp]
        p.fill(_disc(x, 3.45 - 0.36 * lamp, z, 0.2), LIGHT, glow)
    else:
        p.fill(_disc(x, 2.5, z, 0.45), SIGN, p.colour("sign"))
        p.fill(_disc(x, 2.5, z, 0.24), SIGN, p.colour("metal"))


def _bin(p: _Painter, x: float, z: float) -> None:
    """A litter bin: none of the classes, as some things are in both originals."""
    p.fill(_front(x - 0.3, x + 0.3, 0, 1.0, z), UNLABELED, p.colour("bin"))


def _street(p: _Painter) -> None:
    """Paint a whole street: the ground, then the facades, then what stands before them."""
    style, rng = p.style, p.rng
    _sky_and_ground(p)
    width = rng.uniform(*style.road_width)
    left = -width * rng.uniform(0.55, 0.68)  # traffic keeps to the right
    middle, edges = left + width / 2, {-1: left, 1: left + width}
    far, things = 4 * _FAR, list[tuple[float, Callable[[], None]]]()
    receding = p.picture[..., 3].copy()
    for side, edge in edges.items():
        walk = rng.uniform(2.8, 4.6)
        lawn = rng.uniform(1.5, 4.0) if rng.random() < style.lawn_chance else 0.0
        inner = edge + side * (lawn if rng.random() < 0.5 else 0.0)
        outer = inner + side * walk
        p.fill(_ground(inner, outer, 1, far), SIDEWALK, p.colour("sidewalk"))
        p.fill(_ground(edge, edge + side * 0.35, 1, far), SIDEWALK, p.colour("kerb"))
        things += _standing(p, side, edge, (inner + side * 0.5, outer - side * 0.5))
        things += _driving(p, side, edge, (edge + middle) / 2 - side * 0.5)
        edges[side] = edge + side * (walk + lawn)
    p.fill(_ground(left, left + width, 1, far), ROAD, p.colour("road"))
    marking, dash = p.colour("marking"), 5.9 if rng.random() < 0.3 else 3.0
    for z in np.arange(1.5 + rng.uniform(0, 6), 80, 6):
        p.fill(_ground(middle - 0.1, middle + 0.1, z, z + dash), ROAD, marking)
    if rng.random() < 0.15:
        z = rng.uniform(9, 18)
        stripes = [_ground(x, x + 0.5, z, z + 3) for x in np.arange(left + 0.4, left + width, 1.0)]
        p.fill(np.stack(stripes), ROAD, marking)
    p.picture[..., 3] = receding

    x = -60.0
    while x < 60:  # houses and trees that close the street at its end
        end = x + rng.uniform(8, 18)
        label, name = (VEGETATION, "leaves") if rng.random() < 0.5 else (BUILDING, "building")
        colour = _lit(p.colour(name), style.front_light)
        p.fill(_front(x, end, 0, rng.uniform(5, 11), _FAR), label, colour)
        x = end
    for side, x in edges.items():
        ends = [_NEAR]
        while ends[-1] < _FAR:
            ends.append(ends[-1] + rng.uniform(7, 17))
        for z0, z1 in zip(ends[-2::-1], ends[:0:-1], strict=True):
            (_gap if rng.random() < style.gap_chance else _house)(p, side, x, z0, z1)
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()


def _driving(p: _Painter, side: int, edge: float, lane: float) -> Things:
    """The vehicles of one side of the road: a moving queue and a parked one."""
    rng, car = p.rng, (CAR, "car", (1.8, 1.5, 4.2))
    large = ((TRUCK, "truck", (2.4, 3.2, 7.0)), (BUS, "bus", (2.5, 3.1, 11.0)))
    z = rng.uniform(9, 23)
    for _ in range(int(rng.poisson(p.style.cars / 4))):
        chance = rng.random()
        kind = large[int(rng.integers(2))] if chance < 0.3 else car
        if 0.3 < chance < 0.37 and side < 0:
            kind = (TRAIN, "train", (2.5, 3.4, 24.0))
        yield z, partial(_vehicle, p, lane + rng.uniform(-0.3, 0.3), z, *kind, side < 0)
        z += kind[2][2] + rng.uniform(5, 20)
    z = rng.uniform(5.5, 24)
    for _ in range(int(rng.poisson(p.style.cars / 4))):
        yield z, partial(_vehicle, p, edge - side * 1.1, z, *car, side < 0)
        z += 5.0 + rng.exponential(4)


def _standing(p: _Painter, side: int, edge: float, walk: Span) -> Things:
    """What stands on one side's sidewalk, and the cyclists beside it."""
    rng = p.rng

    def distance(low: float) -> float:
        return float(low * (60 / low) ** rng.random())  # denser in front, where it can be seen

    for _ in range(int(rng.poisson(p.style.trees))):
        yield (z := distance(9)), partial(_tree, p, edge + side * 0.9, z)
    for _ in range(int(rng.poisson(p.style.persons))):
        yield (z := distance(7)), partial(_person, p, rng.uniform(min(walk), max(walk)), z)
    for _ in range(1 + int(rng.poisson(1.2))):
        yield (z := distance(8)), partial(_pole, p, edge + side * 0.6, z, int(rng.integers(3)))
    if rng.random() < 0.4:
        label, rider = (MOTORCYCLE, BICYCLE)[int(rng.integers(2))], rng.random() < 0.7
        x = edge - side * (2.4 if rider else -0.8)
        yield (z := distance(6.5)), partial(_cycle, p, x, z, label, rider)
    if rng.random() < 0.3:
        yield (z := distance(8)), partial(_bin, p, edge + side * 1.0, z)


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], cell: int) -> Array:
    """Two octaves of smooth noise, (height, width), of about unit deviation."""
    octaves = [rng.standard_normal((size[1] // s + 2, size[0] // s + 2)) for s in (cell, 2 * cell)]
    grown: Array = sum(cv2.resize(octave, size) for octave in octaves)
    return grown


def _camera_effects(p: _Painter, picture: NDArray[np.uint8], ids: NDArray[np.uint8]) -> Array:
    """The averaged (H, W, 4) drawing with the style's texture, air, lens and sensor, as RGB."""
    style, rng = p.style, p.rng
    height, width = ids.shape
    image = picture[..., :3].astype(np.float64)
    for column, cell in ((0, 1), (1, 4)) if style.texture else ():
        strength = np.zeros(256)
        strength[list(style.texture)] = [spans[column] for spans in style.texture.values()]
        image += (_smooth_noise(rng, (width, height), cell) * strength[ids])[..., None]
    lost = (1 - picture[..., 3:] / 255) * style.haze / (1 - math.exp(-1))
    image += (p.colour("sky") - image) * lost
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    light = 1 - style.gradient * (down + 1) / 2 - style.vignette * (across**2 + down**2) / 2
    image *= light[..., None] * (1 + style.cast * rng.standard_normal(3))
    if style.blur:
        image = cv2.GaussianBlur(image, (0, 0), style.blur * width / SIZE[0])
    image += style.noise * rng.standard_normal(image.shape)
    result: NDArray[np.uint8] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if style.jpeg is not None:
        _, packed = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, style.jpeg])
        result = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
    return result


def render_scene(
    rng: np.random.Generator, size: tuple[int, int], style: StyleName
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one random street.

    ``size`` is (width, height) in pixels, 64x32 to 2048x1024. Returns the picture, (H, W, 3)
    uint8 RGB, and its labels, (H, W) uint8 Cityscapes label ids; only "real" frames hold id 1,
    ego vehicle.
    """
    p = _Painter(STYLES[style], rng, size)
    _street(p)
    if p.style.bonnet:
        u = np.linspace(0, p.width, 17)
        rim = np.stack([u, p.height * (0.955 + 0.03 * (2 * u / p.width - 1) ** 2)], axis=-1)
        corners = np.concatenate([rim, [(p.width, p.height), (0, p.height)]])
        p.fill_pixels([corners.astype(np.int32)], EGO, p.colour("bonnet"), 0.0)
    ids = np.ascontiguousarray(p.ids[_SCALE // 2 :: _SCALE, _SCALE // 2 :: _SCALE])
    return _camera_effects(p, cv2.resize(p.picture, size, interpolation=cv2.INTER_AREA), ids), ids
