"""What one frame and its label are found to be: measured in one decode of each file.

`pipeline.intake.examine` gathers the faults and counts of all frames into findings.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from pipeline.data.images import (
    ARRAY,
    Header,
    Raw,
    UInt8,
    frame_fault,
    read_header,
    read_raw,
    read_rgb,
)
from pipeline.data.labels import IGNORE, LabelSpace, meaning
from pipeline.data.listing import Sample
from pipeline.data.reading import (
    UNNAMED,
    LabelReader,
    below_top,
    divided,
    label_fault,
    not_ids,
    packed,
    sizes_differ,
    values_at_top,
)
from pipeline.data.spec import DatasetSpec, raw_value
from pipeline.errors import UserError
from pipeline.files import open_regular
from pipeline.intake.faults import Faults, Size, cityscapes_colors, header_faults, like_label

SIGNATURE = 16
"""Side of the grey thumbnail by which frames are told apart."""
BLANK_STD = 2.0
"""A frame whose channels all vary less than this (grey levels, standard deviation) is blank."""
CONSTANT_SHARE = 0.999
"""A label in which one value covers a greater fraction says next to nothing."""
BETWEEN_SHARE = 0.12
"""Fraction of a label's borders where a pixel lies between its neighbours' ids. In labels that were
drawn it is below .07; smooth interpolation leaves .15 to .4."""
SMALL = (128, 64)
"""Width and height at which a frame's edges are compared with its label's borders."""
MANY_COLOURS = 24
"""So many colours without a name in one label come from resampling or JPEG, not from a table."""
BELOW_TOP = 1 << 32
"""Added to a raw value that is sky at the top of the frame, for its pixels elsewhere."""
_KEPT_VALUES = 64  # unnamed values of one label that are counted each by itself
_DECODED_ANYWAY = {"label-jpeg", "label-colours", "rotated-frame"}  # to find out more
_ENDINGS = {
    "JPEG": {".jpg", ".jpeg"},
    "MPO": {".jpg", ".jpeg"},
    **{name: {f".{name.lower()}"} for name in ("PNG", "WEBP", "BMP", "PPM")},
    "TIFF": {".tif", ".tiff"},
    "NPY": {ARRAY},
}
Read = TypeVar("Read")
Values = npt.NDArray[np.integer]
"""Raw values of a label, (H, W): uint8 or uint16 ids, uint32 colours R << 16 | G << 8 | B."""


@dataclass(slots=True)
class FrameFacts:
    """What was seen of one frame."""

    sample: Sample
    faults: Faults = field(default_factory=dict)
    image_bytes: int = 0
    label_bytes: int = 0
    size: Size | None = None
    image_hash: bytes = b""
    label_hash: bytes = b""
    signature: UInt8 | None = None
    """(SIGNATURE * SIGNATURE,) uint8 grey, for frames that are not blank."""
    alignment: tuple[float, float, float] | None = None
    """See `alignment`."""
    values: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """(N, 2): raw values of the label, and how many pixels each has."""
    label_pixels: int = 0
    unnamed_pixels: int = 0
    like_label: bool = False
    """Whether the image is drawn like a label."""
    palette: bytes = b""
    """Of a label of ids."""
    twin: Path | None = None
    """The image of an earlier frame that shows the same picture."""

    @property
    def name(self) -> str:
        """The frame's name."""
        return self.sample.name


class Examiner:
    """Looks at the frames of one data set; safe to call from several threads at once."""

    def __init__(self, spec: DatasetSpec, space: LabelSpace, crop: Size | None = None) -> None:
        self.spec, self.space, self.crop = spec, space, crop
        self.names = {
            raw_value(raw, spec.encoding): meaning(name) for raw, name in spec.values.items()
        }
        self._skies = values_at_top(spec)
        self.names |= {value | BELOW_TOP: "unlabeled" for value in self._skies}
        self.classes = {key: space.index_of(name) for key, name in self.names.items()}
        self._decoder = None if spec.decoder is None else LabelReader(spec, space)

    def look(self, sample: Sample) -> FrameFacts:
        """Decode the image and the label of one frame, each as training will."""
        facts = FrameFacts(sample)
        image, label = _header(sample.image, facts.faults), None
        if sample.label is not None and self._decoder is None:
            label = _header(sample.label, facts.faults)
        facts.faults |= header_faults(self.spec, image, label, self.crop)
        small = None if image is None else self._look_at_image(image, facts)
        if sample.label is not None:
            self._look_at_label(sample.label, label, small, facts)
        elif self.spec.labels is not None:
            facts.faults["no-label"] = f"no label beside {sample.image.name}"
        return facts

    def _look_at_image(self, header: Header, facts: FrameFacts) -> UInt8 | None:
        """Examine a frame; returns (64, 128) uint8 grey of one that is not blank."""
        path, faults = facts.sample.image, facts.faults
        facts.size = header.size
        if self.spec.width is not None and header.size[0] < self.spec.width:
            faults["upscaled"] = f"{header.size[0]} pixels wide"
        facts.image_bytes, facts.image_hash = _hashed(path)
        if frame_fault(header) or (rgb := _decoded(read_rgb, path, faults)) is None:
            return None
        facts.like_label = header.channels == 1 and like_label(path)
        if header.wide:
            faults["frame-depth-cut"] = "16 bits a channel, read as 8"
        if header.transparent:
            faults["alpha-frame"] = "alpha channel, which is dropped"
        if header.mode not in {"RGB", "RGBA", "L", "LA", "P", "PA", "1"}:
            faults["frame-mode"] = f"pixels of mode {header.mode}"
        small = _small(rgb)
        # Means vary less than pixels: most frames are seen not to be blank by them.
        if all(cv2.meanStdDev(pixels)[1].max() < BLANK_STD for pixels in (small, rgb)):
            mean = ", ".join(str(round(float(v))) for v in rgb.mean(axis=(0, 1)))
            faults["blank-frame"] = f"nothing but colour {mean}"
            return None
        few = rgb[::16, ::16]
        if np.array_equal(few[:, :, 0], few[:, :, 2]) and np.ptp(rgb, axis=2).max() == 0:
            faults["grey-frame"] = f"no colour (mode {header.mode})"
        side = SIGNATURE, SIGNATURE
        facts.signature = cv2.resize(small, side, interpolation=cv2.INTER_AREA).ravel()
        return small

    def _look_at_label(
        self, path: Path, header: Header | None, small: UInt8 | None, facts: FrameFacts
    ) -> None:
        if header is not None or self._decoder is not None:
            with suppress(OSError):
                facts.label_bytes = path.stat().st_size
        values = self._label_values(path, header, facts.faults)
        if values is None:
            return
        if header is None and facts.size is not None:
            shape = int(values.shape[1]), int(values.shape[0])
            if seen := sizes_differ(self.spec, facts.size, shape):
                facts.faults["size-differs"] = seen
        self._count(values, facts)
        if header is not None and self.spec.encoding == "ids":
            facts.palette = header.palette
        if small is not None:
            facts.alignment = alignment(small, values)
        digest = hashlib.sha1(values[::4].tobytes(), usedforsecurity=False)
        digest.update(facts.values.tobytes())
        facts.label_hash = digest.digest()[:12]

    def _label_values(self, path: Path, header: Header | None, faults: Faults) -> Values | None:
        """The raw values of a label file; None, and a fault, where it has none.

        Args:
            header: none where it is damaged, or a decoder reads the file.
        """
        if self._decoder is not None:
            try:
                decoded: Values = self._decoder.raw(path)
            except (UserError, OSError) as error:
                faults["unreadable"] = str(error)
                return None
            if not decoded.size:
                faults["unreadable"] = f"{path.name}: decoded to {decoded.shape} values"
                return None
            return decoded
        if header is None:
            return None
        fault = label_fault(self.spec, header)
        if fault and fault[0] not in _DECODED_ANYWAY:
            return None
        raw = _decoded(partial(read_raw, colors=self.spec.encoding == "rgb"), path, faults)
        return None if raw is None else self._values(raw, faults)

    def _values(self, raw: Raw, faults: Faults) -> Values | None:
        """What the spec's encoding makes of the pixels of a label file, as they are stored."""
        encoding, channel = self.spec.encoding, self.spec.channel
        if encoding == "ids":
            if raw.ndim == 2:
                return self._ids(raw, faults)
            faults["label-colours"] = self._explain_colours(raw)
            return None
        if raw.ndim == 2 or raw.shape[2] <= (channel if encoding == "channel" else 2):
            return None  # a JPEG of another encoding, which is a fault already
        if encoding == "rgb":
            return packed(raw)
        spread = np.ptp(raw[::2, ::2], axis=(0, 1))
        others = [str(i) for i in range(min(3, raw.shape[2])) if spread[i]]
        if not spread[channel] and others:
            held = raw[0, 0, channel]
            faults["label-channel"] = (
                f"channel {channel} holds only {held}; {', '.join(others)} varies"
            )
        return self._ids(np.ascontiguousarray(raw[:, :, channel]), faults)

    def _ids(self, raw: Raw, faults: Faults) -> Values | None:
        """Ids as they are read in training: 8 or 16 bits; None, and a fault, if beyond."""
        raw = divided(raw, self.spec.divide) if self.spec.encoding == "ids" else raw
        if raw.dtype in (np.uint8, np.bool_):
            return raw.astype(np.uint8, copy=False)
        if beyond := not_ids(raw):
            faults["label-depth"] = beyond
            return None
        used = np.unique(raw[::2, ::2])
        top = int(used[-1])
        if top > 255 and not any(int(value) in self.names for value in used if value > 255):
            if (used % 257 == 0).all() or (used % 256 == 0).all():
                seen = "8-bit ids stretched to 16 bits: divide by 257 or 256"
            elif top > 999 and np.isin(used // 1000, [*self.names]).mean() > 0.5:
                seen = "id * 1000 + number, as instance files hold: `divide: 1000` reads them"
            else:
                seen = "values beyond the table"
            faults["label-depth"] = f"16-bit values up to {top}: {seen}"
        return raw.astype(np.uint16)

    def _explain_colours(self, raw: Raw) -> str:
        """What a colour label is likely to be, where ids are said."""
        few = raw[::4, ::4, :3]
        few = few.reshape(-1, few.shape[2])
        for channel in range(few.shape[1]):
            others = [i for i in range(few.shape[1]) if i != channel]
            plain = not np.ptp(few[:, others], axis=0).any() or (few == few[:, :1]).all()
            if plain and np.isin(few[:, channel], [*self.names]).all():
                return f"ids in channel {channel}: `encoding: channel`, `channel: {channel}`"
        colours = {tuple(int(v) for v in colour) for colour in np.unique(few, axis=0)[:500]}
        if len(colours & cityscapes_colors().keys()) * 2 > len(colours):
            return "Cityscapes colours: `encoding: rgb`, or the files that hold ids"
        either = "`encoding: rgb` or `channel`" if raw.shape[2] > 2 else "`encoding: channel`"
        return f"{raw.shape[2]} channels: {either}"

    def _count(self, values: Values, facts: FrameFacts) -> None:
        """Count the pixels of each raw value, and find what the counts say against the label."""
        counts, faults = count_values(values), facts.faults
        for value in self._skies:
            if below := int(np.count_nonzero(below_top(values == value))):
                counts[value | BELOW_TOP] = below
                counts[value] -= below
        strange = sorted((v for v in counts if v not in self.names), key=lambda v: -counts[v])
        facts.label_pixels = values.size
        facts.unnamed_pixels = sum(counts[value] for value in strange)
        unnamed = facts.unnamed_pixels / values.size
        if self.spec.encoding == "rgb":
            if len(strange) >= MANY_COLOURS:
                faults["resampled-label"] = (
                    f"{len(strange)} colours without a name on {unnamed:.1%} of its pixels"
                )
        else:
            between, borders = between_share(values)
            if borders >= 64 and between > BETWEEN_SHARE:
                faults["resampled-label"] = f"{between:.0%} of its borders hold ids in between"
        if not any(self.classes.get(value, IGNORE) != IGNORE for value in counts):
            faults["ignored-label"] = "no pixel belongs to a class"
        elif counts[most := max(counts, key=lambda v: counts[v])] > CONSTANT_SHARE * values.size:
            name = self.names.get(most, "no name")
            faults["constant-label"] = f"{name} ({self.show(most)}) on all or nearly all of it"
        if strange:
            seen = ", ".join(map(self.show, strange[:6])) + (", ..." if len(strange) > 6 else "")
            faults["unnamed-values"] = f"{seen} on {unnamed:.2%} of its pixels"
        for value in strange[_KEPT_VALUES:]:
            del counts[value]
        facts.values = np.array(list(counts.items()), np.int64)

    def classes_of(self, path: Path, width: int) -> UInt8 | None:
        """A label as class indices, (H, W) uint8, for looking at: `UNNAMED` without a name.

        Args:
            width: at most so many pixels are kept in a row, and as many in each column.

        Returns:
            None where the file is unreadable or of another encoding.
        """
        faults: Faults = {}
        header = None if self._decoder else _header(path, faults)
        values = self._label_values(path, header, faults)
        if values is None:
            return None
        if self._skies:
            values = values.astype(np.int64)
            for value in self._skies:
                values[below_top(values == value)] |= BELOW_TOP
        step = -(-values.shape[1] // width)
        found, places = np.unique(values[::step, ::step], return_inverse=True)
        table = [self.classes.get(int(v), UNNAMED) for v in found]
        return np.array(table, np.uint8)[places].reshape(values[::step, ::step].shape)

    def show(self, value: int) -> str:
        """A raw value as the spec writes it."""
        if value & BELOW_TOP:
            return f"{self.show(value ^ BELOW_TOP)} below the top"
        if self.spec.encoding != "rgb":
            return str(value)
        return f"{value >> 16},{value >> 8 & 255},{value & 255}"


def _header(path: Path, faults: Faults) -> Header | None:
    """A file's header; a fault and None where it is no picture."""
    with suppress(OSError):
        if path.is_file() and not path.stat().st_size:
            faults["empty-file"] = f"{path.name} has no bytes"
            return None
    header = _decoded(read_header, path, faults)
    kind = header.format if header else ""
    if path.suffix.lower() not in _ENDINGS.get(kind, {path.suffix.lower()}):
        faults["wrong-ending"] = f"{path.name} is a {kind} file"
    return header


def _hashed(path: Path) -> tuple[int, bytes]:
    """A file's size in bytes, and a hash of its content."""
    with open_regular(path) as file:
        data = file.read()
    return len(data), hashlib.sha1(data, usedforsecurity=False).digest()[:12]


def _decoded(read: Callable[[Path], Read], path: Path, faults: Faults) -> Read | None:
    """What `read` makes of a file; a fault and None where it fails."""
    try:
        return read(path)
    except Exception as error:  # decoders raise all sorts of things on damaged files
        cause = error.__cause__ or error
        what = "no image" if isinstance(cause, UnidentifiedImageError) else str(cause)
        faults["unreadable"] = f"{path.name}: {what}"
        return None


def count_values(values: Values) -> dict[int, int]:
    """Value -> pixels of (H, W) whole numbers, counted by runs: labels have few."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    if flat.dtype == np.uint32:
        found, places = np.unique(flat[starts], return_inverse=True)
        pixels = np.bincount(places, weights=lengths)
    else:
        histogram = np.bincount(flat[starts], weights=lengths)
        found = np.flatnonzero(histogram)
        pixels = histogram[found]
    return {int(value): int(n) for value, n in zip(found, pixels, strict=True)}


def _small(rgb: UInt8) -> UInt8:
    """(H, W, 3) in grey, as means over the cells of a grid of `SMALL`: (64, 128)."""
    area = cv2.INTER_AREA
    while rgb.shape[1] >= 3 * SMALL[0] and rgb.shape[0] >= 3 * SMALL[1]:
        # OpenCV halves ten times as fast as it takes the mean of other cells.
        height, width = rgb.shape[0] // 2, rgb.shape[1] // 2
        even = rgb[: 2 * height, : 2 * width]
        rgb = np.asarray(cv2.resize(even, (width, height), interpolation=area))
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, SMALL, interpolation=area))


def between_share(ids: Values) -> tuple[float, int]:
    """How much of a label's borders lies between its neighbours, as after interpolation.

    Args:
        ids: (H, W) uint8 or uint16; every fourth row is looked at.

    Returns:
        The share of pixels strictly between their left and right neighbour among those whose two
        neighbours differ, and how many of these there are.
    """
    rows = ids[::4]
    left, middle, right = rows[:, :-2], rows[:, 1:-1], rows[:, 2:]
    borders = int(np.count_nonzero(left != right))
    if not borders:
        return 0.0, 0
    between = ((left < middle) & (middle < right)) | ((left > middle) & (middle > right))
    return int(np.count_nonzero(between)) / borders, borders


def alignment(grey: UInt8, values: Values) -> tuple[float, float, float] | None:
    """How strong an image's edges are on its label's borders, as a multiple of their mean.

    In a pair that belongs together the first number is about 1.5 to 3.5; for another frame's
    label all three are near 1.3.

    Args:
        grey: (64, 128) uint8, the image.
        values: (H, W), the label.

    Returns:
        For the label as it is, mirrored left to right, and upside down; None without borders.
    """
    height, width = grey.shape
    rows = np.arange(height) * values.shape[0] // height
    columns = np.arange(width) * values.shape[1] // width
    label = values[np.ix_(rows, columns)]
    borders = np.zeros(label.shape, bool)
    borders[:, 1:] |= label[:, 1:] != label[:, :-1]
    borders[1:] |= label[1:] != label[:-1]
    light = grey.astype(np.float32)
    edges = np.zeros_like(light)
    edges[:, 1:] += np.abs(np.diff(light, axis=1))
    edges[1:] += np.abs(np.diff(light, axis=0))
    np.minimum(edges, 40, out=edges)  # no single lamp decides
    mean = float(edges.mean())
    if not mean or borders.mean() < 0.01:
        return None
    own, mirrored, flipped = (
        float(edges[b].mean()) / mean for b in (borders, borders[:, ::-1], borders[::-1])
    )
    return own, mirrored, flipped
