"""Pictures beside a first spec: frames with their labels in colours, and where a value lies."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.images import UInt8, grid, read_raw, read_rgb, resize_rgb
from pipeline.data.labels import load_label_space, meaning
from pipeline.data.listing import spaced
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.intake.encodings import Codes, Observation, Value, codes
from pipeline.intake.tables import places

FRAMES, TILE = 4, 400
"""Rows of the overview, and the width of its pictures in pixels."""
CROPS = 24
"""At most so many values get a picture of their own, the most frequent ones."""
_LINE, _LEGEND, _MOST_LINES = 18, 330, 64
_INK, _PAPER, _MARK = (31, 41, 51), (255, 255, 255), (255, 0, 255)

Color = tuple[int, int, int]


def write_preview(
    folder: Path,
    samples: Sequence[tuple[Path, Path]],
    observation: Observation,
    names: Mapping[str, str],
    asked: Sequence[Value],
) -> None:
    """Write `frames.png`, and a picture for each of the values asked about, into `folder`.

    Pictures of an earlier preview are replaced or removed.

    Args:
        samples: image and label files.
        names: raw value -> name, for those that have one.
    """
    colors = value_colors(observation, names)
    for stale in folder.glob("value-*.png"):
        stale.unlink()
    _save(folder / "frames.png", _overview(samples, observation, names, colors))
    images = {label: image for image, label in samples}
    for value in asked[:CROPS]:
        read = read_pair(images[value.example], value.example, observation)
        if read is not None:
            name = f"value-{value.raw.replace(',', '-')}.png"
            _save(folder / name, _crop(*read, value.code))


def value_colors(observation: Observation, names: Mapping[str, str]) -> dict[int, Color]:
    """A colour for each value: that of its name, its own, or one of many bright ones."""
    space = load_label_space("cityscapes19")
    known = {name: one.color for one in space.classes for name in one.names}
    known |= {"road line": (255, 255, 255), "vehicle": known["car"], "any vehicle": known["car"]}
    known["bicyclist"] = known["rider"]
    colors = {}
    for i, value in enumerate(observation.values):
        name = names.get(value.raw)
        name = None if name is None else meaning(name)
        if observation.encoding == "rgb":
            red, green, blue = (int(part) & 255 for part in value.raw.split(","))
            colors[value.code] = red, green, blue
        elif name is not None and name not in places():
            colors[value.code] = (0, 0, 0)
        else:
            # Steps of the golden ratio around the wheel keep neighbours far apart.
            wheel = colorsys.hsv_to_rgb(i * 0.618 % 1, 0.9 if i % 2 else 0.6, 0.95)
            red, green, blue = (round(255 * part) for part in wheel)
            colors[value.code] = known.get(name or "", (red, green, blue))
    return colors


def read_pair(image: Path, label: Path, observation: Observation) -> tuple[UInt8, Codes] | None:
    """A frame (H, W, 3) and its values (H, W), brought to the label's size; None if unreadable."""
    try:
        raw = read_raw(label, colors=observation.encoding == "rgb")
        values = codes(raw, observation.encoding, observation.channel, observation.divide)
        rgb = read_rgb(image)
    except (UserError, IndexError):
        return None
    return resize_rgb(rgb, (values.shape[1], values.shape[0])), values


def _overview(
    samples: Sequence[tuple[Path, Path]],
    observation: Observation,
    names: Mapping[str, str],
    colors: Mapping[int, Color],
) -> UInt8:
    read = [read_pair(*samples[i], observation) for i in spaced(len(samples), FRAMES)]
    rows = [[_tile(rgb), _tile(paint(values, colors))] for rgb, values in filter(None, read)]
    legend = _legend(observation, names, colors)
    return grid([[grid(rows, 255), legend]], 255) if rows else legend


def paint(values: Codes, colors: Mapping[int, Color]) -> UInt8:
    """(H, W) values as (H, W, 3) colours; values without one are mid grey."""
    distinct, places = np.unique(values, return_inverse=True)
    table = np.array([colors.get(int(code), (128, 128, 128)) for code in distinct], np.uint8)
    return np.asarray(table[places.reshape(values.shape)])


def _tile(rgb: UInt8) -> UInt8:
    """A picture of `TILE` pixels' width; labels keep their exact colours."""
    height = max(1, round(rgb.shape[0] * TILE / rgb.shape[1]))
    small = rgb.shape[1] < TILE
    way = cv2.INTER_NEAREST if small or _flat(rgb) else cv2.INTER_AREA
    return np.asarray(cv2.resize(rgb, (TILE, height), interpolation=way), np.uint8)


def _flat(rgb: UInt8) -> bool:
    return bool((rgb[::4, 1:] == rgb[::4, :-1]).mean() > 0.9)


def _legend(
    observation: Observation, names: Mapping[str, str], colors: Mapping[int, Color]
) -> UInt8:
    shown = observation.values[:_MOST_LINES]
    left = len(observation.values) - len(shown)
    height = _LINE * (len(shown) + (2 if left else 1)) + 8
    image = Image.new("RGB", (_LEGEND, height), _PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    raw_at, name_at = 42, 130 if observation.encoding == "rgb" else 90
    share_at = name_at + 130

    def line(top: int, raw: str, name: str, share: str) -> None:
        for place, text in ((raw_at, raw), (name_at, name), (share_at, share)):
            draw.text((place, top), text, _INK, font)

    line(4, "value", "name", "of pixels")
    for i, value in enumerate(shown):
        top = 4 + _LINE * (i + 1)
        draw.rectangle((12, top, 34, top + _LINE - 5), colors[value.code], _INK)
        line(top - 1, value.raw, names.get(value.raw, "?"), f"{value.share:.2%}")
    if left:
        line(4 + _LINE * (len(shown) + 1), "", f"and {left} rarer values", "")
    return np.asarray(image)


def _crop(rgb: UInt8, values: Codes, code: int) -> UInt8:
    """The surroundings of a value's largest patch, plain and with the value's pixels marked."""
    mask = (values == code).astype(np.uint8)
    _, _, facts, _ = cv2.connectedComponentsWithStats(mask)
    largest = 1 + int(np.argmax(facts[1:, cv2.CC_STAT_AREA]))
    x, y, wide, high = (int(number) for number in facts[largest, :4])
    # Enough around it to see what it is, and never less than a sixth of the frame.
    margin = max(wide, high) // 2
    wide = max(wide + 2 * margin, values.shape[1] // 6, 32)
    high = max(high + 2 * margin, values.shape[0] // 6, 24)
    middle = x + facts[largest, 2] // 2, y + facts[largest, 3] // 2
    left, right = _window(int(middle[0]), wide, values.shape[1])
    top, bottom = _window(int(middle[1]), high, values.shape[0])
    part = rgb[top:bottom, left:right]
    scale = max(1, math.ceil(240 / part.shape[1]))
    size = part.shape[1] * scale, part.shape[0] * scale
    plain = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    inside = cv2.resize(mask[top:bottom, left:right], size, interpolation=cv2.INTER_NEAREST)
    marked = plain.copy()
    marked[inside == 0] = (plain[inside == 0] * 0.45).astype(np.uint8)
    outlines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    marked = np.ascontiguousarray(marked)
    cv2.drawContours(marked, outlines, -1, _MARK, 2 if scale > 1 or size[0] > 400 else 1)
    gap = np.full((plain.shape[0], 6, 3), 255, np.uint8)
    return np.hstack([plain, gap, marked])


def _window(middle: int, length: int, limit: int) -> tuple[int, int]:
    """`length` pixels around `middle`, kept within 0..limit."""
    length = min(length, limit)
    start = min(max(0, middle - length // 2), limit - length)
    return start, start + length


def _save(path: Path, rgb: UInt8) -> None:
    with replacing(path) as part:
        Image.fromarray(rgb).save(part, format="PNG")
