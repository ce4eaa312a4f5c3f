"""Reading and writing pictures: RGB uint8 arrays, errors that name the file."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from pipeline.errors import UserError
from pipeline.files import open_regular, replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""File name endings that count as images, in the order in which they are looked for."""
ARRAY = ".npy"
LABEL_SUFFIXES = (*SUFFIXES, ARRAY)
"""Labels may be arrays that NumPy saved, too."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
"""What `SUFFIXES` stand for. Files of other formats are refused whatever they are called: PIL would
hand PostScript to Ghostscript, which runs it."""
MAX_PIXELS, MAX_BYTES = 1 << 27, 1 << 29
"""Larger images are refused before they are decoded: 16384x8192 pixels, 512 MiB of a file."""
_STRETCHED = {"L;2": 85, "L;4": 17}
"""Grey values of few bits are stretched by PIL to 0..255; in a label they are ids."""
UInt8 = npt.NDArray[np.uint8]
Raw = npt.NDArray[Any]
"""Pixels of whatever type a file stores: bool, uint8, uint16, int32 or float32."""

JPEG_OPTIONS = [
    *[int(cv2.IMWRITE_JPEG_QUALITY), 95],
    *[int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR), int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)],
]


class Header(NamedTuple):
    """What an image file says of itself in front of its pixels."""

    format: str
    size: tuple[int, int]
    """Width and height."""
    mode: str
    """PIL's word for a pixel: `P` is an index into a palette, `L` a grey value of 8 bits, ..."""
    stored: str
    """PIL's word for how a pixel is stored: `L;4` has 4 bits, `RGB;16B` three times 16, ..."""
    lossy: bool
    """Stored by JPEG or lossy WebP, which do not keep values."""
    orientation: int
    """By EXIF; 1 is upright."""
    transparent: bool
    palette: bytes
    """R, G, B of each index in turn; empty without a palette."""

    @property
    def channels(self) -> int:
        """Numbers a pixel; 1 for an index into a palette."""
        return Image.getmodebands(self.mode)

    @property
    def wide(self) -> bool:
        """Whether a channel has 16 bits."""
        return ";16" in self.stored and not self.stored.startswith("BGR")  # those are 5, 6, 5 bits


class OpenImage(NamedTuple):
    """An image file that is open: nothing of its pixels is decoded yet."""

    image: ImageFile.ImageFile
    header: Header
    file: BinaryIO


@contextmanager
def open_image(path: Path) -> Iterator[OpenImage]:
    """Open an image file of one of `FORMATS`; the only way in which images are opened.

    Raises:
        UserError: no such file, no regular file, too large, damaged or of a foreign format; also
            for what goes wrong in the block, where pixels are decoded.
    """
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise UserError(
                    f"{path} has {size:,} bytes; images of at most {MAX_BYTES:,} bytes are read. "
                    "Replace the file, or take the frame out of the data set."
                )
            start = file.read(34)
            file.seek(0)
            Image.MAX_IMAGE_PIXELS = None  # PIL only warns of images that are refused here
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path} is {image.width}x{image.height}; images of at most {MAX_PIXELS:,} "
                    "pixels are read. Cut it into parts, or take the frame out of the data set."
                )
            yield OpenImage(image, _header(image, start), file)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"No file {path}.") from error
    except Exception as error:  # decoders raise all sorts of things on damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"it is none of {', '.join(FORMATS)}" if unknown else str(error)
        raise UserError(
            f"{path} cannot be read as an image ({why}). The file is damaged or of a foreign "
            "format: replace it, or take the frame out of the data set."
        ) from error


def read_header(path: Path) -> Header:
    """What an image file says of itself, without decoding pixels; `UserError` when it is none."""
    if path.suffix.lower() == ARRAY:
        return _array_header(_read_array(path))
    with open_image(path) as opened:
        return opened.header


def _array_header(raw: Raw) -> Header:
    """What an image file of these values would say: (H, W), or (H, W, 3 or 4)."""
    kind = "F" if raw.dtype.kind == "f" else "L" if raw.dtype.itemsize == 1 else "I"
    mode = kind if raw.ndim == 2 else "RGB" if raw.shape[2] == 3 else "RGBA"
    stored = {"I": "I;32"}.get(mode, mode)
    return Header("NPY", (raw.shape[1], raw.shape[0]), mode, stored, False, 1, False, b"")


def _read_array(path: Path) -> Raw:
    """The array in a `.npy` file: numbers (H, W), (H, W, 3) or (H, W, 4).

    Raises:
        UserError: no such file, no regular file, too large, damaged, or of another form.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
            raise UserError(f"{path} has {size:,} bytes; arrays of at most {MAX_BYTES:,} are read.")
        try:
            raw = np.asarray(np.load(file, allow_pickle=False))
        except Exception as error:  # a damaged file makes NumPy raise all sorts of things
            raise UserError(
                f"{path} cannot be read as an array ({error}). Save it anew."
            ) from error
    if raw.ndim == 3 and raw.shape[2] == 1:
        raw = raw[:, :, 0]
    if raw.dtype.kind not in "buif" or raw.ndim not in (2, 3) or not raw.size:
        raise UserError(f"{path} holds {raw.dtype} of shape {raw.shape}; (H, W) ids are read.")
    if raw.ndim == 3 and (raw.shape[2] not in (3, 4) or raw.dtype != np.uint8):
        raise UserError(f"{path} holds {raw.dtype} of shape {raw.shape}; (H, W) ids are read.")
    return raw


def _header(image: ImageFile.ImageFile, start: bytes) -> Header:
    kind, mode = image.format or "", image.mode
    compression = image.info.get("compression")
    return Header(
        kind,
        image.size,
        mode,
        _stored(image, start),
        kind in {"JPEG", "MPO"}
        or compression in {"jpeg", "tiff_jpeg", "webp"}
        or (kind == "WEBP" and bool({start[12:16], start[30:34]} & {b"VP8 ", b"ALPH"})),
        _orientation(image),
        mode in {"RGBA", "LA", "PA"} or "transparency" in image.info,
        _palette(image) if mode == "P" else b"",
    )


def _stored(image: ImageFile.ImageFile, start: bytes) -> str:
    if not image.tile:  # WebP
        return image.mode
    codec, args = image.tile[0][0], image.tile[0][3]
    raw, *more = args if isinstance(args, tuple) else (args,)
    if codec.startswith("ppm") and more != [255]:  # the greatest value, which PIL makes 255
        return f"{raw};16B" if more == [65535] else f"{raw} of 0 to {more[0]}"
    if image.format == "BMP" and image.mode == "L" and start[14] >= 40 and start[28] != 8:
        return "grey of less than 8 bits"  # which PIL takes for 8 bits
    return str(raw)


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 2 to 8 where it turns or mirrors the picture."""
    said = 1
    if image.format == "TIFF":
        said = int(getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation, 1))
    elif image.info.keys() & {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}:
        with suppress(Exception):  # a damaged EXIF block turns nothing
            said = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return said if 2 <= said <= 8 else 1  # some cameras write 0 for none


def _palette(image: Image.Image) -> bytes:
    if image.palette is None:
        return b""
    stored, colors = image.palette.getdata()
    if stored == "RGB":
        return bytes(colors)
    one = Image.new("P", (1, 1))
    one.putpalette(colors, stored)
    return bytes(one.getpalette() or [])


def read_rgb(path: Path) -> UInt8:
    """Read an image file as (H, W, 3) uint8 RGB.

    Raises:
        UserError: as `open_image`, or `frame_fault` finds something.
    """
    with open_image(path) as (image, header, _):
        if fault := frame_fault(header):
            raise UserError(f"{path} is not read as a frame: {fault[1]}. Convert the file.")
        image.load()
        # PIL asks for RGBA between a palette with transparency and RGB.
        full = image.convert("RGBA") if image.mode == "P" and header.transparent else image
        return np.asarray(full if full.mode == "RGB" else full.convert("RGB"))


def frame_fault(header: Header) -> tuple[str, str] | None:
    """Why a frame is not read, if so: the kind of fault, and what is seen.

    Labels are drawn on frames as some program showed them, turned by their EXIF data or not, and no
    file says which. So nothing is turned here, and what is to be turned is refused.
    """
    if header.orientation != 1:
        seen = f"EXIF orientation {header.orientation}, which no label says whether it follows"
        return "rotated-frame", seen
    if header.mode.startswith(("I", "F")):
        return "frame-depth", f"pixels of mode {header.mode}; frames of 8 bits a channel are read"
    return None


def read_raw(path: Path, *, colors: bool = False) -> Raw:
    """Read a label file as it is stored: palette indices, numbers, or channels.

    Args:
        colors: read a palette file by the colours of its indices.

    Returns:
        (H, W) for palette and greyscale files, (H, W, C) in RGB order otherwise.

    Raises:
        UserError: as `open_image`.
    """
    if path.suffix.lower() == ARRAY:
        return _read_array(path)
    with open_image(path) as opened:
        return stored_values(opened, colors=colors)


def stored_values(opened: OpenImage, *, colors: bool = False) -> Raw:
    """As `read_raw`, of a file that is open."""
    image, header, file = opened
    raw = np.asarray(image)
    if header.mode == "P" and colors:
        table = np.zeros((256, 3), np.uint8)
        given = np.frombuffer(header.palette, np.uint8).reshape(-1, 3)[:256]
        table[: len(given)] = given
        return np.asarray(table[raw])
    if raw.ndim == 2 or not header.wide:
        return raw // _STRETCHED[header.stored] if header.stored in _STRETCHED else raw
    # PIL cuts 16-bit colour down to 8 bits and says nothing; OpenCV keeps it, but expands
    # palettes into colours. So each reads what it reads right.
    file.seek(0)
    unchanged = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if unchanged is None or unchanged.ndim != 3 or unchanged.shape[:2] != raw.shape[:2]:
        raise ValueError("its 16-bit channels cannot be decoded")
    order = [2, 1, 0, 3][: unchanged.shape[2]]
    return np.asarray(unchanged)[:, :, order]


def image_size(path: Path) -> tuple[int, int]:
    """Width and height from an image file's header; `UserError` when it is none."""
    return read_header(path).size


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
    # A copy: Pillow's own memory is read-only, and torch warns of that.
    return np.array(Image.fromarray(indices).resize(size, Image.Resampling.NEAREST))


def grid(rows: list[list[UInt8]], background: int = 0) -> UInt8:
    """Pictures (H, W, 3) uint8 of any sizes in rows, on a grey level."""
    beside = []
    for row in rows:
        height = max(picture.shape[0] for picture in row)
        padded = [_pad_to(p, height, p.shape[1], background) for p in row]
        beside.append(np.concatenate(padded, axis=1))
    width = max(row.shape[1] for row in beside)
    return np.concatenate([_pad_to(row, row.shape[0], width, background) for row in beside])


def _pad_to(picture: UInt8, height: int, width: int, value: int) -> UInt8:
    more = (0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)
    return np.pad(picture, more, constant_values=value)
