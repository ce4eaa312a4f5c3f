"""Image files: every format is read as it is stored or refused, and nothing else happens."""

import io
import os
import socket
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from pipeline.data import images
from pipeline.data.images import read_header, read_raw, read_rgb, resize_indices
from pipeline.data.labels import CITYSCAPES_IDS, load_label_space
from pipeline.data.listing import Sample
from pipeline.data.reading import LabelReader
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError

SPACE = load_label_space("cityscapes19")
IDS = np.kron(np.array([[7, 8, 11, 13], [14, 12, 5, 0]], np.uint8), np.ones((4, 6), np.uint8))
"""(8, 24) uint8 Cityscapes ids below 16, so that four bits hold them."""


def encoded(pixels: Any, kind: str, **options: Any) -> bytes:
    """An image file of `kind` in memory."""
    file = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(file, kind, **options)
    return file.getvalue()


def png(bits: int, color: int, rows: bytes, size: tuple[int, int], palette: bytes = b"") -> bytes:
    """A PNG of few bits a pixel, which PIL does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", *size, bits, color, 0, 0, 0)
    middle = chunk(b"PLTE", palette) if palette else b""
    body = middle + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def packed(ids: npt.NDArray[np.uint8], bits: int) -> bytes:
    """The rows of a PNG of `bits` a pixel, unfiltered."""
    spread = np.unpackbits(ids[:, :, None], axis=2)[:, :, 8 - bits :]
    return b"".join(b"\0" + np.packbits(row).tobytes() for row in spread)


def indexed(ids: npt.NDArray[np.uint8], palette: bytes) -> Image.Image:
    picture = Image.fromarray(ids)
    picture.putpalette(palette)
    return picture


def labels(encoding: str = "ids", **fields: Any) -> DatasetSpec:
    given = {"values": {str(k): v for k, v in CITYSCAPES_IDS.items() if k >= 0}} | fields
    return DatasetSpec(
        name="own", root=Path(), images="{frame}", labels="{frame}", encoding=encoding, **given
    )


# Labels of all depths.


def tiff(pixels: Any, **options: Any) -> bytes:
    return encoded(pixels, "TIFF", **options)


wide = IDS.astype(np.int32)
AS_MEANT: dict[str, bytes] = {
    "8 bits": encoded(IDS, "PNG"),
    "16 bits": encoded(IDS.astype(np.uint16), "PNG"),
    "4 bits of grey": png(4, 0, packed(IDS, 4), (24, 8)),
    "4 bits of a palette": png(4, 3, packed(IDS, 4), (24, 8), bytes(range(48))),
    "palette": encoded(indexed(IDS, bytes(range(256)) * 3), "PNG"),
    "palette of a BMP": encoded(indexed(IDS, bytes(range(256)) * 3), "BMP"),
    "32 bits": tiff(wide),
    "TIFF": tiff(IDS, compression="tiff_lzw"),
    "PGM": b"P5 24 8 255\n" + IDS.tobytes(),
    "PGM of 16 bits": b"P5 24 8 65535\n" + IDS.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("kind", AS_MEANT)
def test_labels_are_read_as_they_are_meant(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(AS_MEANT[kind])
    assert LabelReader(labels(), SPACE).raw(path).tolist() == IDS.tolist()


REFUSED: dict[str, tuple[bytes, str]] = {
    "JPEG": (encoded(IDS, "JPEG"), "JPEG blurs ids"),
    "JPEG in a TIFF": (tiff(IDS, compression="jpeg"), "TIFF blurs ids"),
    "negative": (tiff(np.where(IDS == 0, -1, wide)), r"values from -1 to 14, where ids are 0"),
    "beyond 16 bits": (tiff(wide + 65536), "values from 65536 to 65550"),
    "floats": (tiff(IDS + np.float32(0.6)), "floating point"),
    "inverted": (tiff(IDS, tiffinfo={262: 0}), "stored as L;I"),
    "scaled": (b"P5 24 8 33\n" + IDS.tobytes(), "stored as L of 0 to 33"),
    "colours": (encoded(Image.fromarray(IDS).convert("RGB"), "PNG"), r"3 channels.*`encoding: ids"),
    "alpha": (encoded(Image.fromarray(IDS).convert("LA"), "PNG"), r"2 channels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_may_mean_another_thing_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    data, message = REFUSED[kind]
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.png is no label of data set own: .*{message}"):
        LabelReader(labels(), SPACE).raw(path)


def test_one_bit_is_two_ids(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(IDS == 7, "PNG"))
    values = {"1": "road", "0": "unlabeled"}
    raw = LabelReader(labels(values=values), SPACE).raw(tmp_path / "a.png")
    assert raw.dtype == np.uint8
    assert raw.tolist() == (IDS == 7).astype(int).tolist()


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_colours_in_webp(tmp_path: Path, lossless: bool, alpha: bool) -> None:
    rgb = Image.fromarray(np.dstack([IDS * 9, IDS, IDS]))
    if alpha:
        rgb.putalpha(Image.fromarray(IDS + 100))
    (tmp_path / "a.webp").write_bytes(encoded(rgb, "WEBP", lossless=lossless, exact=True))
    reader = LabelReader(labels("rgb", values={"63,7,7": "road"}), SPACE)
    if lossless:
        assert (reader.raw(tmp_path / "a.webp") == np.dstack([IDS * 9, IDS, IDS])).all()
    else:
        with pytest.raises(UserError, match="WEBP blurs ids"):
            reader.raw(tmp_path / "a.webp")


def test_colours_of_palette_files_are_read_as_colours(tmp_path: Path) -> None:
    """Programs store pictures of few colours so, each with a palette of its own."""
    rgb = np.dstack([IDS * 9, IDS + 50, 255 - IDS])
    picture = Image.fromarray(rgb).quantize(256, dither=Image.Dither.NONE)
    reader = LabelReader(labels("rgb", values={"63,57,248": "road"}), SPACE)
    for kind in ("PNG", "TIFF", "BMP"):
        path = tmp_path / f"a.{kind.lower()}"
        path.write_bytes(encoded(picture, kind))
        assert read_header(path).mode == "P"
        assert (reader.raw(path) == rgb).all()
        frame = Sample("a", path, path)
        assert ((reader.read(frame) == 0) == (IDS == 7)).all()


# Files that are no images, or not to be opened.


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        for path in sorted(tmp_path.iterdir()):
            with pytest.raises(UserError, match=rf"{path.name} is no regular file"):
                read_rgb(path)
    with pytest.raises(UserError, match=r"No file .*none\.png"):
        read_header(tmp_path / "none.png")


def test_formats_for_other_programs_are_refused(tmp_path: Path) -> None:
    """PIL alone opens PostScript, and starts Ghostscript to draw it."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n%%EndComments\n%%EOF\n")
    for read in (read_header, read_rgb, read_raw):
        with pytest.raises(UserError, match=r"cannot be read as an image \(it is none of PNG"):
            read(path)


def test_giants_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    side = 1 << 14
    path.write_bytes(png(1, 0, b"", (side, side)))  # no row of it is there
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="is 16384x16384; images of at most 134,217,728 pixels"):
            read_header(path)
        path.write_bytes(png(1, 0, b"", (side, side // 2)))
        assert read_header(path).size == (side, side // 2)
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file, which takes no room
    with pytest.raises(UserError, match=r"has 1,099,511,627,776 bytes; images of at most"):
        read_rgb(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_frames_that_exif_turns_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.img"
    picture = Image.new("RGB", (24, 8), (9, 8, 7))
    exif = Image.Exif()
    for orientation, message in (
        (1, ""),
        (0, ""),
        (9, ""),
        (3, "EXIF orientation 3"),
        (6, "EXIF orientation 6"),
    ):
        exif[0x0112] = orientation
        path.write_bytes(encoded(picture, kind, exif=exif.tobytes() if kind != "TIFF" else exif))
        assert read_header(path).orientation == (orientation if message else 1)
        if message:
            with pytest.raises(UserError, match=rf"a\.img is not read as a frame: {message}"):
                read_rgb(path)
        else:
            assert read_rgb(path).shape == (8, 24, 3)


def test_damaged_bytes_are_an_array_or_a_message(tmp_path: Path) -> None:
    """Several hundred mutations of each format, the same in every run."""
    rng = np.random.default_rng(5)
    noise = rng.integers(0, 256, (20, 30, 3), np.uint8)
    whole = {
        "grey.png": encoded(noise[:, :, 0], "PNG"),
        "palette.png": encoded(indexed(noise[:, :, 0], bytes(range(256)) * 3), "PNG"),
        "wide.png": cv2.imencode(".png", noise.astype(np.uint16) * 257)[1].tobytes(),
        "rgb.jpg": encoded(noise, "JPEG"),
        "rgb.webp": encoded(noise, "WEBP"),
        "palette.bmp": encoded(indexed(noise[:, :, 0], bytes(range(256)) * 3), "BMP"),
        "rgb.tif": encoded(noise, "TIFF"),
        "lzw.tif": encoded(noise[:, :, 0], "TIFF", compression="tiff_lzw"),
        "rgb.ppm": encoded(noise, "PPM"),
    }
    read = refused = 0
    for name, data in whole.items():
        path = tmp_path / name
        for turn in range(60):
            spoilt = bytearray(data)
            # Headers are short, and most faults of theirs are met in the first bytes.
            reach = 120 if turn % 2 else len(data)
            for place in rng.integers(0, min(reach, len(data)), int(rng.integers(1, 6))):
                spoilt[place] = int(rng.integers(256))
            cut = len(data) if turn % 3 else int(rng.integers(len(data)))
            path.write_bytes(spoilt[:cut])
            for opened in (read_header, read_rgb, read_raw):
                try:
                    opened(path)
                    read += 1
                except UserError:
                    refused += 1
    assert refused > 100
    assert read > 100


def test_formats_are_those_of_the_endings(tmp_path: Path) -> None:
    found = set()
    for suffix in images.SUFFIXES:
        path = tmp_path / f"a{suffix}"
        Image.fromarray(np.dstack([IDS] * 3)).save(path)
        assert read_rgb(path).shape == (*IDS.shape, 3)
        found.add(read_header(path).format)
    assert found == set(images.FORMATS)


def test_resized_labels_are_writable() -> None:
    """`torch.from_numpy` warns of others, and warnings are errors here."""
    label = np.arange(48, dtype=np.uint8).reshape(6, 8)
    label.setflags(write=False)
    small = torch.from_numpy(resize_indices(label, (4, 3)))
    assert small.shape == (3, 4)
    assert set(small.ravel().tolist()) < set(range(48))
