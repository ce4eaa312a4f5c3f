"""What is wrong with frames and labels as their headers, names and palettes alone show.

A fault is a kind of finding and what was seen: `{"label-jpeg": "JPEG blurs ids"}`. `run` looks for
these faults before it starts, and `check` for the same and more.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from pipeline.data.images import Header, frame_fault, read_raw
from pipeline.data.labels import VOCABULARY, load_label_space
from pipeline.data.reading import label_fault, sizes_differ, working_size
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError

Faults = dict[str, str]
"""Kind of finding -> what was seen in a frame."""
Size = tuple[int, int]
"""Width and height in pixels."""

_MASK = re.compile(
    r"[_\-. ]?(masks?|labels?|label_?(train_?)?ids?|gt|seg|segmentation|semantic|annot|annotation|"
    r"colou?r|instances?|instance_?ids?|ids?|l)",
    re.IGNORECASE,
)
"""What follows the name of a frame in that of its label, where both are in one folder."""

FEW_VALUES = 64
"""A picture of one channel with at most so many values is drawn as labels are, no photograph."""


def header_faults(
    spec: DatasetSpec, image: Header | None, label: Header | None, crop: Size | None = None
) -> Faults:
    """The faults of one frame and its label, of those that there are.

    Args:
        crop: what CycleGAN cuts out of the frames, width and height.
    """
    faults: Faults = {}
    if image is not None:
        if fault := frame_fault(image):
            faults[fault[0]] = fault[1]
        width, height = working_size(spec, image.size)
        if crop is not None and (width < crop[0] or height < crop[1]):
            faults["small-frame"] = (
                f"read at {width}x{height}, and cyclegan.crop is {crop[0]}x{crop[1]}"
            )
    if label is not None:
        if fault := label_fault(spec, label):
            faults[fault[0]] = fault[1]
        elif label.palette and spec.encoding == "ids" and (seen := misdrawn(spec, label.palette)):
            faults["palette-differs"] = seen
        if image is not None and (seen := sizes_differ(spec, image.size, label.size)):
            faults["size-differs"] = seen
    return faults


def like_label(path: Path) -> bool:
    """Whether a picture of one channel has as few values as labels have, and more than one."""
    try:
        return 1 < len(np.unique(read_raw(path))) <= FEW_VALUES
    except UserError:  # which is found where frames are decoded
        return False


def add_faults_of_the_set(
    faults: Sequence[Faults], names: Sequence[str], palettes: Sequence[bytes], drawn: Iterable[int]
) -> None:
    """Add the faults that show only when a frame is seen among the others of its set.

    Args:
        faults: of each frame; these are added to.
        palettes: of the labels of ids; empty where one has none.
        drawn: positions of frames for which `like_label` is true.
    """
    alike = dict.fromkeys(
        drawn, f"one channel of at most {FEW_VALUES} values, among frames in colour"
    )
    for i, seen in (masks(names) | alike).items():
        faults[i]["mask-frames"] = seen
    for i, seen in renumbered(palettes).items():
        faults[i].setdefault("palette-differs", seen)


def masks(names: Sequence[str]) -> dict[int, str]:
    """Position -> what is seen, of the frames that are named like labels of other frames."""
    found: dict[int, str] = {}
    known = set(names)
    for i, name in enumerate(names):
        ends = (m.start() for m in re.finditer(r"(?<=[^/])[_\-. ]", name))
        frame = next(
            (name[:e] for e in ends if name[:e] in known and _MASK.fullmatch(name[e:])), ""
        )
        if frame:
            found[i] = f"named like the label of {frame}, which is a frame, too"
    return found


@cache
def cityscapes_colors() -> dict[tuple[int, ...], str]:
    """Colour -> name of the Cityscapes colours that stand for one name only."""
    shared = {"pole", "car"}
    classes = load_label_space("cityscapes19").classes
    return {one.color: one.name for one in classes if one.name not in shared}


def misdrawn(spec: DatasetSpec, palette: bytes) -> str | None:
    """Whether a palette draws indices in the colours of other names than the spec's."""
    agree, differ = 0, []
    for index, expected in _drawn(palette).items():
        named = spec.values.get(str(index), "unlabeled")
        if named == expected:
            agree += 1
        elif named in VOCABULARY - {"unlabeled"}:  # one's own names may be anything
            differ.append(f"{index} ({named}) is drawn as {expected}")
    return f"index {'; '.join(differ[:3])}" if len(differ) >= max(2, agree + 1) else None


@lru_cache(256)  # most files of a set have one palette
def _drawn(palette: bytes) -> dict[int, str]:
    """Index -> the name in whose colour a palette draws it."""
    known = cityscapes_colors()
    return {index: known[color] for index, color in enumerate(_colors(palette)) if color in known}


def renumbered(palettes: Sequence[bytes]) -> dict[int, str]:
    """Position -> what is seen, of the palettes that have the usual colours at other indices.

    A program that keeps the colours of a picture may give them new indices, in each file others.
    Palettes that are alike, cut off, or of other colours say nothing against the indices.

    Args:
        palettes: of the labels of one data set; empty where one has none.
    """
    counts = Counter(palette for palette in palettes if palette)
    if len(counts) < 2:
        return {}
    usual = _places(counts.most_common(1)[0][0])
    seen = {}
    for palette in counts:
        places = _places(palette)
        moved = [color for color in usual.keys() & places.keys() if usual[color] != places[color]]
        if len(moved) >= 2 and 2 * len(moved) > len(usual.keys() & places.keys()):
            color = min(moved)
            seen[palette] = (
                f"its palette has colour {','.join(map(str, color))} at index {places[color]}, "
                f"other labels at index {usual[color]}"
            )
    return {i: seen[palette] for i, palette in enumerate(palettes) if palette in seen}


def _colors(palette: bytes) -> list[tuple[int, ...]]:
    return [tuple(palette[i : i + 3]) for i in range(0, len(palette) - 2, 3)]


def _places(palette: bytes) -> dict[tuple[int, ...], int]:
    """Colour -> its index, of the colours that are in the palette once."""
    colors = _colors(palette)
    once = Counter(colors)
    return {color: index for index, color in enumerate(colors) if once[color] == 1}
