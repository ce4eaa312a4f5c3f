"""Pictures of what has flipped: a frame, its translation, and where the label no longer fits."""

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.images import UInt8, resize_rgb

TILE = 320
"""Pixels in a row of each picture."""
_CAPTION, _GAP, _MARK = 22, 4, (255, 0, 255)


def strip(source: UInt8, translation: UInt8, flipped: npt.NDArray[np.bool_], caption: str) -> UInt8:
    """A source frame, its translation, and this in grey with flipped pixels marked.

    Args:
        source: (H, W, 3) uint8, as is `translation`.
        flipped: (H, W).

    Returns:
        (height, width, 3) uint8, the caption above.
    """
    grey = cv2.cvtColor(cv2.cvtColor(translation, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    marked = (40 + 0.5 * grey).astype(np.uint8)
    marked[flipped] = (0.35 * translation[flipped] + 0.65 * np.array(_MARK)).astype(np.uint8)
    height = max(1, round(source.shape[0] * TILE / source.shape[1]))
    sheet = Image.new("RGB", (3 * (TILE + _GAP) + _GAP, _CAPTION + height + _GAP))
    for i, picture in enumerate((source, translation, marked)):
        tile = Image.fromarray(resize_rgb(picture, (TILE, height)))
        sheet.paste(tile, (_GAP + i * (TILE + _GAP), _CAPTION))
    font = ImageFont.load_default(13)
    ImageDraw.Draw(sheet).text((_GAP + 2, 3), caption, (255, 255, 255), font)
    return np.asarray(sheet)
