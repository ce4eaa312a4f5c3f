"""Reading and writing pictures: RGB uint8 arrays, errors that name the file."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import UserError
from pipeline.files import replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""File name endings that count as images, in the order in which they are looked for."""

UInt8 = npt.NDArray[np.uint8]

JPEG_OPTIONS = [
    *[int(cv2.IMWRITE_JPEG_QUALITY), 95],
    *[int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR), int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)],
]


def read_rgb(path: Path) -> UInt8:
    """Read an image file as (H, W, 3) uint8 RGB.

    Raises:
        UserError: the file is missing, damaged or no image.
    """
    with open_image(path) as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(
                f"{path} has {image.mode} pixels; frames of 8 bits a channel are expected. "
                "Convert the file."
            )
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # PIL asks for it
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_raw(path: Path) -> npt.NDArray[np.integer]:
    """Read a label file as it is stored: palette indices, 8- or 16-bit values, or channels.

    Returns:
        (H, W) for palette and greyscale files, (H, W, C) in RGB order otherwise.

    Raises:
        UserError: the file is missing, damaged or no image.
    """
    with open_image(path, decode=False) as header:
        wide = ";16" in str(getattr(header, "tile", ""))
    with open_image(path) as image:
        # PIL cuts 16-bit colour down to 8 bits and says nothing; OpenCV keeps it, but expands
        # palettes into colours. So each reads what it reads right.
        raw = np.asarray(image)
        if raw.ndim == 2 or not wide:
            return raw
        unchanged = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if unchanged is None:
        raise UserError(f"{path} cannot be read as an image. Replace the file.")
    order = [2, 1, 0, 3][: unchanged.shape[2]]
    return np.asarray(unchanged)[:, :, order]


def image_size(path: Path) -> tuple[int, int]:
    """Width and height from an image file's header; `UserError` when it is none."""
    with open_image(path, decode=False) as image:
        return image.size


def open_image(path: Path, *, decode: bool = True) -> Image.Image:
    """Open an image file with PIL; `UserError` names a file that cannot be read."""
    try:
        with path.open("rb") as file:
            image = Image.open(file)
            if decode:
                image.load()
    except FileNotFoundError as error:
        raise UserError(f"No file {path}.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read as an image ({error}). The file is damaged or of a foreign "
            "format: replace it, or take the frame out of the data set."
        ) from error
    return image


def write_image(path: Path, rgb: UInt8) -> None:
    """Write (H, W, 3) uint8 RGB in the format of the suffix: whole or not at all.

    JPEG is written at quality 95 without chroma subsampling; PNG is lossless.
    """
    options: Sequence[int] = JPEG_OPTIONS if path.suffix.lower() in {".jpg", ".jpeg"} else ()
    with replacing(path) as part:
        if not cv2.imwrite(str(part), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options):
            raise OSError(f"could not write {path}")


def write_indices(path: Path, indices: UInt8, palette: UInt8 | None) -> None:
    """Write (H, W) uint8 indices as a PNG drawn in `palette` (256, 3) uint8, or in grey."""
    image = Image.fromarray(indices)
    if palette is not None:
        image.putpalette(palette.tobytes())
    with replacing(path) as part:
        image.save(part, format="PNG")


def size_within(shape: tuple[int, ...], width: int) -> tuple[int, int]:
    """Width and height of an (H, W, ...) picture at most `width` wide, aspect kept."""
    scale = min(1.0, width / shape[1])
    return round(shape[1] * scale), max(1, round(shape[0] * scale))


def resize_rgb(rgb: UInt8, size: tuple[int, int]) -> UInt8:
    """Resize (H, W, 3) uint8 to `size` (width, height), bilinear with antialiasing."""
    if rgb.shape[1::-1] == size:
        return rgb
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))


def resize_indices(indices: UInt8, size: tuple[int, int]) -> UInt8:
    """Resize (H, W) uint8 class indices to `size` (width, height), nearest neighbour."""
    if indices.shape[1::-1] == size:
        return indices
    return np.asarray(Image.fromarray(indices).resize(size, Image.Resampling.NEAREST))


def grid(rows: list[list[UInt8]]) -> UInt8:
    """Pictures (H, W, 3) uint8 of any sizes in rows, on black."""
    beside = []
    for row in rows:
        height = max(picture.shape[0] for picture in row)
        beside.append(np.concatenate([_pad_to(p, height, p.shape[1]) for p in row], axis=1))
    width = max(row.shape[1] for row in beside)
    return np.concatenate([_pad_to(row, row.shape[0], width) for row in beside])


def _pad_to(picture: UInt8, height: int, width: int) -> UInt8:
    return np.pad(picture, ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)))
