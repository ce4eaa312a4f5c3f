"""Frames and labels of a data set as arrays, at its working width or as they are stored."""

import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.data.images import (
    ARRAY,
    Header,
    Raw,
    UInt8,
    image_size,
    open_image,
    read_header,
    read_raw,
    read_rgb,
    resize_indices,
    resize_rgb,
    stored_values,
)
from pipeline.data.labels import ASKED, IGNORE, SKY_AT_TOP, LabelSpace
from pipeline.data.listing import Sample
from pipeline.data.spec import DECODERS, DatasetSpec, code_file, raw_value
from pipeline.errors import UserError
from pipeline.files import open_regular

ALLOW_CODE = "SIM2REAL_ALLOW_CODE"
"""The environment variable that `--allow-code` sets to 1: a decoder's file may be run. Processes
that are started inherit it."""
Decoder = Callable[[Path], npt.ArrayLike]
"""Label file -> raw values, (H, W)."""
UNNAMED = 254
"""Class index of values without a name, where they are told from those that are ignored."""
_PLAIN = re.compile(r"1|L;?[24]?|P;?[124]?|LA|RGB[AX]?|BGR[AX]?|(I|LA|RGBA?);16[BLNS]*|I;32[BLNS]*")
"""How the values of labels may be stored: not where PIL inverts, scales or cuts them."""
_ROWS = 32  # so many rows of colours at a time stay in the processor's cache


def read_frame(spec: DatasetSpec, sample: Sample) -> UInt8:
    """A frame as (H, W, 3) uint8 RGB at the data set's working width."""
    return at_width(read_rgb(sample.image), spec.width)


def at_width(rgb: UInt8, width: int | None) -> UInt8:
    """A frame (H, W, 3) uint8 as it is read at a working width; None: as it is."""
    return resize_rgb(rgb, size_at(width, (rgb.shape[1], rgb.shape[0])))


def working_size(spec: DatasetSpec, size: tuple[int, int]) -> tuple[int, int]:
    """The width and height at which a frame of `size` is read."""
    return size_at(spec.width, size)


def size_at(width: int | None, size: tuple[int, int]) -> tuple[int, int]:
    """A (width, height) brought to a width, aspect kept; None: as it is."""
    if width is None or width == size[0]:
        return size
    return width, max(1, round(size[1] * width / size[0]))


def sizes_differ(spec: DatasetSpec, image: tuple[int, int], label: tuple[int, int]) -> str | None:
    """What is wrong with the size of a frame beside its label's (width, height), if anything."""
    scaled = spec.label_scale != 1
    full = (round(label[0] / spec.label_scale), round(label[1] / spec.label_scale))
    said = label == tuple(round(side * spec.label_scale) for side in image)
    # Translated frames are stored at the working width beside labels of the original size.
    if said or image in (full, working_size(spec, full)):
        return None
    seen = f"image {image[0]}x{image[1]}, label {label[0]}x{label[1]}"
    if scaled:
        return f"{seen}, and `label_scale` {spec.label_scale:g} is said"
    if scale := scale_of(image, label):
        return f"{seen}: if all are so, `label_scale: {scale:g}` reads them"
    return seen


def scale_of(image: tuple[int, int], label: tuple[int, int]) -> float | None:
    """How many times as wide and high as its frame a label is; None where it is cut otherwise."""
    scale = label[0] / image[0]
    return scale if scale != 1 and abs(image[1] * scale - label[1]) < 1 else None


def label_fault(spec: DatasetSpec, header: Header) -> tuple[str, str] | None:
    """Why a label file is not read, as its header shows: the kind of fault and what is seen."""
    encoding, channels = spec.encoding, header.channels
    said = f"where `encoding: {encoding}` is said"
    if header.lossy:
        return "label-jpeg", f"{header.format} blurs ids into their neighbours"
    if header.orientation != 1:
        return "rotated-frame", f"the label has EXIF orientation {header.orientation}"
    if header.mode == "F":
        return "label-depth", "floating point pixels"
    if not _PLAIN.fullmatch(header.stored):
        return "label-depth", f"pixels stored as {header.stored}, which are changed when read"
    if encoding == "ids" and channels > 1:
        return "label-colours", f"a colour image ({channels} channels), {said}"
    if encoding == "rgb" and channels < 3 and header.mode != "P":
        return "label-ids", f"{channels} channel(s), {said}"
    if encoding == "rgb" and header.wide:
        return "label-depth", "16 bits a channel, where colours of 8 bits are read"
    if encoding == "channel" and channels == 1:
        return "label-ids", f"1 channel, {said}"
    if encoding == "channel" and channels <= spec.channel:
        return "label-channel", f"{channels} channels, and channel {spec.channel} is said"
    return None


class LabelReader:
    """Reads the labels of one data set as class indices of one label space."""

    def __init__(self, spec: DatasetSpec, space: LabelSpace) -> None:
        self.spec, self.space = spec, space
        self._decode = None if spec.decoder is None else _decoder(spec.decoder)
        # 2^24 entries for colours: one look-up a pixel, whatever the number of classes.
        size = 1 << 24 if spec.encoding == "rgb" else 1 << 16
        self._table = np.full(size, UNNAMED if spec.strict else IGNORE, np.uint8)
        for raw, name in spec.values.items():
            self._table[raw_value(raw, spec.encoding)] = space.index_of(name)
        self._skies = values_at_top(spec)

    def __reduce__(self) -> tuple[object, ...]:
        # To another process without the table, which is large, and the decoder's code.
        return LabelReader, (self.spec, self.space)

    def read(self, sample: Sample, *, native: bool = False) -> UInt8:
        """The label of one frame, (H, W) uint8 class indices, `IGNORE` where none applies.

        Args:
            native: at the size on disk, for scoring, rather than at the working width.

        Raises:
            UserError: unreadable file, wrong encoding, a size unlike the image's, or a value
                without a name when the spec is strict.
        """
        assert sample.label is not None, "list_samples was not asked for labels"
        raw = self.raw(sample.label)
        size = (raw.shape[1], raw.shape[0])
        if problem := sizes_differ(self.spec, image_size(sample.image), size):
            raise UserError(
                f"Sizes differ, {sample.image} and its label {sample.label}: {problem}. `sim2real "
                "check --quarantine` lists such frames; the spec's `quarantine` leaves them out."
            )
        classes = self.classes(raw)
        if self.spec.strict and (unnamed := classes == UNNAMED).any():
            found = np.unique(raw.reshape(*size[::-1], -1)[unnamed], axis=0)[:10]
            values = "; ".join(",".join(str(v) for v in value) for value in found)
            raise UserError(
                f"{sample.label} holds values without a name: {values} "
                f"({unnamed.mean():.1%} of its pixels). Name them in `values` of data set "
                f"{self.spec.name} ('unlabeled' ignores them), or set `strict: false`."
            )
        if native:
            return classes
        if self.spec.label_scale != 1:
            size = image_size(sample.image)
        return resize_indices(classes, working_size(self.spec, size))

    def classes(self, raw: npt.NDArray[np.integer]) -> UInt8:
        """Raw values as `raw` returns them -> (H, W) uint8 class indices."""
        if raw.ndim == 3:
            classes = _look_up_colors(self._table, raw)
        elif raw.dtype == np.uint8:
            classes = np.asarray(cv2.LUT(raw, self._table[:256]))
        else:
            classes = np.asarray(self._table[raw])
        for value in self._skies:
            classes[below_top(packed(raw) == value)] = IGNORE
        return classes

    def raw(self, path: Path) -> npt.NDArray[np.integer]:
        """The raw values of a label file: (H, W) uint8 or uint16, or (H, W, 3) uint8 colours.

        Raises:
            UserError: unreadable file, or not of the encoding that the spec says.
        """
        if self._decode is not None:
            return self._decoded(path, self._decode)
        colors = self.spec.encoding == "rgb"
        if path.suffix.lower() == ARRAY:
            self._check(path, read_header(path))
            raw = read_raw(path)
        else:
            with open_image(path) as opened:
                self._check(path, opened.header)
                raw = stored_values(opened, colors=colors)
        if self.spec.encoding == "rgb":
            return np.ascontiguousarray(raw[:, :, :3])
        if self.spec.encoding == "channel":
            raw = raw[:, :, self.spec.channel]
        if self.spec.encoding == "ids":
            raw = divided(raw, self.spec.divide)
        if problem := not_ids(raw):
            raise UserError(f"{path} is no label of data set {self.spec.name}: {problem}.")
        return np.ascontiguousarray(raw, np.uint16 if raw.dtype.itemsize > 1 else np.uint8)

    def _check(self, path: Path, header: Header) -> None:
        if fault := label_fault(self.spec, header):
            raise UserError(
                f"{path} is no label of data set {self.spec.name}: {fault[1]}. Fix the file, or "
                "the data set's `encoding`; `sim2real check` says more."
            )

    def _decoded(self, path: Path, decode: Decoder) -> npt.NDArray[np.integer]:
        try:
            raw = np.asarray(decode(path))
        except Exception as error:  # code of a plug-in: it may raise anything
            raise UserError(
                f"Decoder {self.spec.decoder} fails on {path}: {type(error).__name__}: {error}"
            ) from error
        if raw.ndim != 2 or not np.issubdtype(raw.dtype, np.integer):
            raise UserError(
                f"Decoder {self.spec.decoder} returned {raw.dtype} values of shape {raw.shape} for "
                f"{path}; (H, W) integers are expected."
            )
        if raw.size and not 0 <= raw.min() <= raw.max() <= 65535:
            raise UserError(
                f"Decoder {self.spec.decoder} returned values in {raw.min()}..{raw.max()} for "
                f"{path}; 0..65535 are expected."
            )
        return raw.astype(np.uint16)


def values_at_top(spec: DatasetSpec) -> list[int]:
    """The raw values that are sky where they touch the upper border of the frame."""
    return [
        raw_value(raw, spec.encoding)
        for raw, name in spec.values.items()
        if name.removesuffix(ASKED) == SKY_AT_TOP
    ]


def below_top(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The pixels of an (H, W) mask whose connected region does not touch the first row."""
    count, regions = cv2.connectedComponents(mask.astype(np.uint8))
    away = np.ones(count, bool)
    away[regions[0]] = False
    return np.asarray(mask & away[regions])


def packed(raw: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Raw values as one number a pixel, (H, W): colours (H, W, 3) uint8 as R << 16 | G << 8 | B."""
    if raw.ndim == 2:
        return raw
    four = cv2.cvtColor(np.ascontiguousarray(raw[:, :, :3]), cv2.COLOR_RGB2BGRA)
    return np.asarray(four.view("<u4")[:, :, 0] & 0xFFFFFF)


def decoder_code(name: str) -> str:
    """A hash of the file that holds a decoder, so that what it made is known by its code."""
    source = code_file(name)
    if not source:
        decode = inspect.unwrap(_decoder(name))
        if not inspect.isfunction(decode):
            raise UserError(
                f"Decoder {name} is no plain function, whose code is known. Make it one."
            )
        source = inspect.getsourcefile(decode) or ""
        if not os.path.isfile(source):  # a module that Python itself is built with
            return ""
    return hashlib.sha256(_content(source)).hexdigest()[:16]


def divided(raw: Raw, divisor: int) -> Raw:
    """Ids of classes from values that hold the number of an object, too; see `divide` of a spec."""
    return raw if divisor == 1 else np.where(raw >= divisor, raw // divisor, raw)


def not_ids(raw: Raw) -> str | None:
    """What is wrong with values (H, W) of more than 16 bits as ids, if anything."""
    if raw.dtype.itemsize <= 2 or not raw.size or 0 <= raw.min() <= raw.max() <= 65535:
        return None
    return (
        f"values from {raw.min()} to {raw.max()}, where ids are 0..65535: write 255 where there is "
        "no label, and ids of classes rather than of instances"
    )


def _look_up_colors(table: UInt8, rgb: npt.NDArray[np.integer]) -> UInt8:
    """table[R << 16 | G << 8 | B] for each pixel of (H, W, 3) uint8."""
    classes = np.empty(rgb.shape[:2], np.uint8)
    for top in range(0, len(rgb), _ROWS):
        # OpenCV writes B, G, R, 255 as four bytes: read as one little-endian number, masked.
        packed = cv2.cvtColor(rgb[top : top + _ROWS], cv2.COLOR_RGB2BGRA).view("<u4")[:, :, 0]
        np.take(table, packed & 0xFFFFFF, out=classes[top : top + _ROWS], mode="clip")
    return classes


def _decoder(name: str) -> Decoder:
    """The function that a spec names, of a file or an installed package that may be run.

    Raises:
        UserError: it may not, it cannot be imported, or it is no function.
    """
    load = _from_file if code_file(name) else _from_package
    try:
        decode = load(name)
    except UserError:
        raise
    except Exception as error:  # code of a plug-in: its import may raise anything
        raise UserError(
            f"Decoder {name} cannot be imported ({type(error).__name__}: {error}). Fix it, or "
            "`decoder`."
        ) from error
    if not callable(decode):
        raise UserError(f"Decoder {name} is no function. Fix `decoder`.")
    return decode


def _from_package(name: str) -> object:
    declared = {point.value: point for point in entry_points(group=DECODERS)}
    if name not in declared:
        raise UserError(
            f"Decoder {name} is declared by no installed package, so it is not run: a data set's "
            f"YAML must not choose what code is. Declared: {', '.join(declared) or 'none'}. "
            f"Install a package that declares it as an entry point of {DECODERS!r}, or write "
            "FILE.py:FUNCTION, a file beside the YAML, and give --allow-code."
        )
    loaded: object = declared[name].load()
    return loaded


def _from_file(name: str) -> object:
    file, _, function = name.rpartition(":")
    if os.environ.get(ALLOW_CODE) != "1":
        raise UserError(
            f"Decoder {name} is Python code in a file, which is not run unless you say so: it can "
            f"do on this machine whatever you can. Read {file}, then give --allow-code; or "
            f"install a package that declares the decoder as an entry point of {DECODERS!r}."
        )
    module = sys.modules[file] = ModuleType(file)
    module.__file__ = file
    # Not by `import`, which may take an older compiled file: what is hashed is what is run.
    exec(compile(_content(file), file, "exec"), module.__dict__)
    loaded: object = getattr(module, function)
    return loaded


def _content(file: str) -> bytes:
    with open_regular(Path(file)) as opened:
        return opened.read()
