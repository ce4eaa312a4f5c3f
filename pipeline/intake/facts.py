"""What one frame and its label are found to be: measured in one decode of each file.

Nothing here judges a data set. A `mark` is a fault that a single frame can have, with what was
seen; `pipeline.intake.doctor` gathers marks and counts into findings.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from pipeline.data.images import Header, UInt8, frame_fault, read_header, read_raw, read_rgb
from pipeline.data.labels import IGNORE, LabelSpace
from pipeline.data.reading import UNNAMED, LabelReader, label_fault, not_ids, sizes_differ
from pipeline.data.spec import DatasetSpec, raw_value
from pipeline.errors import UserError
from pipeline.files import open_regular
from pipeline.intake.common import Files
from pipeline.intake.headers import cityscapes_colors, header_faults, like_label

SIGNATURE = 16
"""Side of the grey thumbnail by which frames are told apart."""

BLANK_STD = 2.0
"""A frame whose channels all vary less than this (grey levels, standard deviation) is blank."""
CONSTANT_SHARE = 0.999
"""A label in which one value covers more than this says next to nothing."""
BETWEEN_SHARE = 0.12
"""Share of a label's borders where a pixel lies between its neighbours' ids. In labels that were
drawn it is below .07; smooth interpolation leaves .15 to .4."""
SMALL = (128, 64)
"""Width and height at which a frame's edges are compared with its label's borders."""
MANY_COLOURS = 24
"""So many colours without a name in one label come from resampling or JPEG, not from a table."""
Read = TypeVar("Read")
_KEPT_VALUES = 64  # unnamed values of one label that are counted each by itself

_ENDINGS = {
    "JPEG": {".jpg", ".jpeg"},
    "MPO": {".jpg", ".jpeg"},
    **{name: {f".{name.lower()}"} for name in ("PNG", "WEBP", "BMP", "PPM")},
    "TIFF": {".tif", ".tiff"},
}


@dataclass
class FrameFacts:
    """What was seen of one frame. `values` are (raw value, pixels) pairs of the label."""

    files: Files
    marks: dict[str, str] = field(default_factory=dict)
    image_bytes: int = 0
    label_bytes: int = 0
    size: tuple[int, int] | None = None
    image_hash: bytes = b""
    label_hash: bytes = b""
    signature: UInt8 | None = None
    """(SIGNATURE * SIGNATURE,) uint8 grey, for frames that are not blank."""
    small: UInt8 | None = None
    """(64, 128) uint8 grey, while the label is looked at."""
    alignment: tuple[float, float, float] | None = None
    """See `alignment`."""
    values: list[tuple[int, int]] = field(default_factory=list)
    label_pixels: int = 0
    unnamed_pixels: int = 0
    like_label: bool = False
    """Whether the image is drawn like a label."""
    palette: bytes = b""
    """Of a label of ids."""


class Examiner:
    """Looks at the frames of one data set; safe to call from several threads at once."""

    def __init__(
        self, spec: DatasetSpec, space: LabelSpace, crop: tuple[int, int] | None = None
    ) -> None:
        self.spec, self.space, self.crop = spec, space, crop
        keys = [raw_value(raw, spec.encoding) for raw in spec.values]
        self.names = dict(zip(keys, spec.values.values(), strict=True))
        self.classes = {key: space.index_of(name) for key, name in self.names.items()}
        self._keys = np.array(keys, np.int64)
        self._reader = None if spec.decoder is None else LabelReader(spec, space)

    def look(self, files: Files) -> FrameFacts:
        """Decode the image and the label of one frame, each as training will."""
        facts = FrameFacts(files)
        image = label = None
        if files.image is not None and (image := _open(files.image, facts)):
            facts.size = image.size
        if files.label is not None and self._reader is None:
            label = _open(files.label, facts)
        facts.marks |= header_faults(self.spec, image, label, self.crop)
        if files.image is not None and image is not None:
            self._look_at_image(files.image, image, facts)
        if files.label is not None:
            self._look_at_label(files.label, label, facts)
        elif self.spec.labels is not None:
            facts.marks["no-label"] = f"no label beside {_short(files.image)}"
        if files.other_label is not None:
            facts.marks["two-labels"] = f"{_short(files.label)} and {files.other_label.name}"
        facts.small = None
        return facts

    def _look_at_image(self, path: Path, header: Header, facts: FrameFacts) -> None:
        facts.image_bytes, facts.image_hash = _hashed(path)
        if frame_fault(header) or (rgb := _decoded(read_rgb, path, facts)) is None:
            return
        facts.like_label = header.channels == 1 and like_label(path)
        if header.wide:
            facts.marks["frame-depth-cut"] = "16 bits a channel, read as 8"
        if header.transparent:
            facts.marks["alpha-frame"] = "alpha channel, which is dropped"
        if header.mode not in {"RGB", "RGBA", "L", "LA", "P", "PA", "1"}:
            facts.marks["frame-mode"] = f"pixels of mode {header.mode}"
        small = _small(rgb)
        # Means vary less than pixels: most frames are seen not to be blank by them.
        if all(cv2.meanStdDev(pixels)[1].max() < BLANK_STD for pixels in (small, rgb)):
            mean = ", ".join(str(round(float(v))) for v in rgb.mean(axis=(0, 1)))
            facts.marks["blank-frame"] = f"nothing but colour {mean}"
            return
        few = rgb[::16, ::16]
        if np.array_equal(few[:, :, 0], few[:, :, 2]) and np.ptp(rgb, axis=2).max() == 0:
            facts.marks["grey-frame"] = f"no colour (mode {header.mode})"
        facts.small = small
        side = SIGNATURE, SIGNATURE
        facts.signature = cv2.resize(facts.small, side, interpolation=cv2.INTER_AREA).ravel()

    def _look_at_label(self, path: Path, header: Header | None, facts: FrameFacts) -> None:
        values = self._read_label(path, header, facts)
        if values is None:
            return
        if header is None and facts.size is not None:
            shape = int(values.shape[1]), int(values.shape[0])
            if seen := sizes_differ(self.spec, facts.size, shape):
                facts.marks["size-differs"] = seen
        counts = self._count(values, facts)
        self._look_at_counts(counts, facts)
        if header is not None and self.spec.encoding == "ids":
            facts.palette = header.palette
        if facts.small is not None:
            facts.alignment = alignment(facts.small, values)
        digest = hashlib.sha1(values[::4].tobytes(), usedforsecurity=False)
        digest.update(repr(facts.values).encode())
        facts.label_hash = digest.digest()[:12]

    def _read_label(self, path: Path, header: Header | None, facts: FrameFacts) -> Any:
        """The raw values of a label file; None where it has none.

        Args:
            header: none where it is damaged, or a decoder reads the file.
        """
        if self._reader is not None:
            try:
                facts.label_bytes = path.stat().st_size
                values: Any = self._reader.raw(path)
            except (UserError, OSError) as error:
                facts.marks["unreadable"] = str(error)
                return None
            if not values.size:
                facts.marks["unreadable"] = f"{path.name}: decoded to {values.shape} values"
                return None
            return values
        if header is None:
            return None
        facts.label_bytes = path.stat().st_size
        fault = label_fault(self.spec, header)
        if fault and fault[0] not in {"label-jpeg", "label-colours", "rotated-frame"}:
            return None
        raw = _decoded(partial(read_raw, colors=self.spec.encoding == "rgb"), path, facts)
        return None if raw is None else self._values(raw, facts)

    def _values(self, raw: npt.NDArray[Any], facts: FrameFacts) -> Any:
        """(H, W) uint8 or uint16 ids, uint32 colours; None (and a mark) for another encoding."""
        encoding, channel = self.spec.encoding, self.spec.channel
        if encoding == "ids":
            if raw.ndim == 2:
                return self._ids(raw, facts)
            facts.marks["label-colours"] = self._explain_colours(raw)
            return None
        if raw.ndim == 2 or raw.shape[2] <= (channel if encoding == "channel" else 2):
            return None  # a JPEG of another encoding, which is marked
        if encoding == "channel":
            spread = np.ptp(raw[::2, ::2], axis=(0, 1))
            others = [i for i in range(min(3, raw.shape[2])) if spread[i]]
            if not spread[channel] and others:
                found = ", ".join(map(str, others))
                held = raw[0, 0, channel]
                facts.marks["label-channel"] = (
                    f"channel {channel} holds only {held}; {found} varies"
                )
            return self._ids(np.ascontiguousarray(raw[:, :, channel]), facts)
        packed = cv2.cvtColor(np.ascontiguousarray(raw[:, :, :3]), cv2.COLOR_RGB2BGRA)
        return packed.view("<u4")[:, :, 0] & 0xFFFFFF

    def _ids(self, raw: npt.NDArray[Any], facts: FrameFacts) -> npt.NDArray[Any] | None:
        """Ids as they are read in training: 8 or 16 bits; None (and a mark) if beyond."""
        if raw.dtype == np.uint8:
            return raw
        if raw.dtype == np.bool_:
            return raw.astype(np.uint8)
        if beyond := not_ids(raw):
            facts.marks["label-depth"] = beyond
            return None
        used = np.unique(raw[::2, ::2])
        top = int(used[-1])
        if top > 255 and not any(int(value) in self.names for value in used if value > 255):
            if (used % 257 == 0).all() or (used % 256 == 0).all():
                seen = "8-bit ids stretched to 16 bits: divide by 257 or 256"
            elif np.isin(used // 1000, self._keys).mean() > 0.5 and top > 999:
                seen = "id * 1000 + number, as instance files hold; the labels are other files"
            else:
                seen = "values beyond the table"
            facts.marks["label-depth"] = f"16-bit values up to {top}: {seen}"
        return raw.astype(np.uint16)

    def _explain_colours(self, raw: npt.NDArray[Any]) -> str:
        """What a colour label is likely to be, where ids are said."""
        few = raw[::4, ::4, :3]
        few = few.reshape(-1, few.shape[2])
        for channel in range(few.shape[1]):
            others = [i for i in range(few.shape[1]) if i != channel]
            plain = not np.ptp(few[:, others], axis=0).any() or (few == few[:, :1]).all()
            if plain and np.isin(few[:, channel], self._keys).all():
                return f"ids in channel {channel}: `encoding: channel`, `channel: {channel}`"
        colours = {tuple(int(v) for v in colour) for colour in np.unique(few, axis=0)[:500]}
        if len(colours & cityscapes_colors().keys()) * 2 > len(colours):
            return "Cityscapes colours: `encoding: rgb`, or the files that hold ids"
        either = "`encoding: rgb` or `channel`" if raw.shape[2] > 2 else "`encoding: channel`"
        return f"{raw.shape[2]} channels: {either}"

    def _count(self, values: npt.NDArray[Any], facts: FrameFacts) -> dict[int, int]:
        """Raw value -> pixels; sets `values`, `label_pixels` and `unnamed_pixels`."""
        counts = count_values(values)
        strange = sorted((n, v) for v, n in counts.items() if v not in self.names)[::-1]
        facts.unnamed_pixels = sum(n for n, _ in strange)
        facts.label_pixels = values.size
        if self.spec.encoding == "rgb":
            if len(strange) >= MANY_COLOURS:
                share = facts.unnamed_pixels / values.size
                facts.marks["resampled-label"] = (
                    f"{len(strange)} colours without a name on {share:.1%} of its pixels"
                )
        else:
            share, borders = between_share(values)
            if borders >= 64 and share > BETWEEN_SHARE:
                facts.marks["resampled-label"] = f"{share:.0%} of its borders hold ids in between"
        for _, value in strange[_KEPT_VALUES:]:
            del counts[value]
        facts.values = list(counts.items())
        return counts

    def _look_at_counts(self, counts: dict[int, int], facts: FrameFacts) -> None:
        value, most = max(counts.items(), key=lambda item: item[1])
        scored = sum(n for v, n in counts.items() if self.classes.get(v, IGNORE) != IGNORE)
        if not scored:
            facts.marks["ignored-label"] = "no pixel belongs to a class"
        elif most > CONSTANT_SHARE * facts.label_pixels:
            name = self.names.get(value, "no name")
            facts.marks["constant-label"] = (
                f"{name} ({self.show(value)}) on all or nearly all of it"
            )
        if facts.unnamed_pixels:
            strange = sorted((v for v in counts if v not in self.names), key=lambda v: -counts[v])
            seen = ", ".join(map(self.show, strange[:6]))
            more = ", ..." if len(strange) > 6 else ""
            share = facts.unnamed_pixels / facts.label_pixels
            facts.marks["unnamed-values"] = f"{seen}{more} on {share:.2%} of its pixels"

    def classes_of(self, path: Path, width: int) -> UInt8 | None:
        """A label as class indices, (H, W) uint8, for looking at: `UNNAMED` without a name.

        Args:
            width: at most so many pixels are kept in a row, and as many in each column.

        Returns:
            None where the file is unreadable or of another encoding.
        """
        facts = FrameFacts(Files("", None, path))
        header = None if self._reader else _open(path, facts)
        values = self._read_label(path, header, facts)
        if values is None:
            return None
        step = -(-values.shape[1] // width)
        found, places = np.unique(values[::step, ::step], return_inverse=True)
        table = [self.classes.get(int(v), UNNAMED) for v in found]
        return np.array(table, np.uint8)[places].reshape(values[::step, ::step].shape)

    def show(self, value: int) -> str:
        """A raw value as the spec writes it."""
        if self.spec.encoding != "rgb":
            return str(value)
        return f"{value >> 16},{value >> 8 & 255},{value & 255}"


def _open(path: Path, facts: FrameFacts) -> Header | None:
    """A file's header; a mark and None where it is no picture."""
    with suppress(OSError):
        if path.is_file() and not path.stat().st_size:
            facts.marks["empty-file"] = f"{path.name} has no bytes"
            return None
    header = _decoded(read_header, path, facts)
    kind = header.format if header else ""
    if path.suffix.lower() not in _ENDINGS.get(kind, {path.suffix.lower()}):
        facts.marks["wrong-ending"] = f"{path.name} is a {kind} file"
    return header


def _hashed(path: Path) -> tuple[int, bytes]:
    """A file's size in bytes, and a hash of its content."""
    with open_regular(path) as file:
        data = file.read()
    return len(data), hashlib.sha1(data, usedforsecurity=False).digest()[:12]


def _decoded(read: Callable[[Path], Read], path: Path, facts: FrameFacts) -> Read | None:
    """What `read` makes of a file; a mark and None where it fails."""
    try:
        return read(path)
    except Exception as error:  # decoders raise all sorts of things on damaged files
        cause = error.__cause__ or error
        what = "no image" if isinstance(cause, UnidentifiedImageError) else str(cause)
        facts.marks["unreadable"] = f"{path.name}: {what}"
        return None


def count_values(values: npt.NDArray[Any]) -> dict[int, int]:
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


def between_share(ids: npt.NDArray[Any]) -> tuple[float, int]:
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


def alignment(grey: UInt8, values: npt.NDArray[Any]) -> tuple[float, float, float] | None:
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


def _short(path: Path | None) -> str:
    return path.name if path else "the image"
