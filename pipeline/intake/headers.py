"""What headers and names alone show to be wrong with frames and labels: `run` looks at all of them
before it starts, and the doctor finds the same.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from pipeline.data.images import Header, frame_fault, read_header, read_raw
from pipeline.data.labels import VOCABULARY, load_label_space
from pipeline.data.listing import Sample, evenly
from pipeline.data.reading import label_fault, sizes_differ, working_size
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.intake.findings import KINDS, MOST_FRAMES
from pipeline.progress import each

_MASK = re.compile(
    r"[_\-. ]?(masks?|labels?|label_?(train_?)?ids?|gt|seg|segmentation|semantic|annot|annotation|"
    r"colou?r|instances?|instance_?ids?|ids?|l)",
    re.IGNORECASE,
)
"""What follows the name of a frame in that of its label, where both are in one folder."""

FEW_VALUES = 64
"""A picture of one channel with at most so many values is drawn as labels are, no photograph."""
_DECODED = 20  # pictures of one channel that a run decodes before it starts

Size = tuple[int, int]


def check_headers(
    spec: DatasetSpec, samples: Sequence[Sample], *, crop: Size | None = None
) -> list[Size]:
    """Look at the names and headers of all frames, and of labels where samples have them.

    Args:
        crop: what CycleGAN cuts out of the frames, width and height.

    Returns:
        The width and height of each frame as it is stored.

    Raises:
        UserError: shows each kind of fault with its count and a frame that has it.
    """
    labelled = spec.decoder is None  # else there is no header to look at
    faults: dict[str, dict[int, str]] = defaultdict(dict)

    def look(sample: Sample) -> tuple[dict[str, str], Header | None, bytes]:
        try:
            image = read_header(sample.image)
            label = read_header(sample.label) if sample.label and labelled else None
        except UserError as error:
            return {"unreadable": str(error)}, None, b""
        palette = b"" if label is None or spec.encoding != "ids" else label.palette
        return header_faults(spec, image, label, crop), image, palette

    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as threads:  # to wait for a disk together
        found = threads.map(look, samples)
        looks = list(each(found, f"headers: {spec.name}", len(samples), unit="frames"))
    for i, (marks, _, _) in enumerate(looks):
        for kind, detail in marks.items():
            faults[kind][i] = detail
    faults["mask-frames"] = masks([sample.name for sample in samples])
    one_channel = [i for i, (_, image, _) in enumerate(looks) if image and image.channels == 1]
    if len(one_channel) < len(samples):  # else they are grey frames
        drawn = [i for i in evenly(one_channel, _DECODED) if like_label(samples[i].image)]
        faults["mask-frames"] |= dict.fromkeys(drawn, LIKE_LABEL)
    for i, detail in renumbered([palette for _, _, palette in looks]).items():
        faults["palette-differs"].setdefault(i, detail)
    told = [_told(spec, samples, kind, where) for kind, where in faults.items() if where]
    if told:
        raise UserError("\n".join(told))
    return [image.size for _, image, _ in looks if image is not None]


def _told(spec: DatasetSpec, samples: Sequence[Sample], kind: str, where: dict[int, str]) -> str:
    known, (first, detail) = KINDS[kind], next(iter(where.items()))
    sample = samples[first]
    of_label = kind.startswith("label") or kind == "palette-differs"
    if kind != "unreadable":  # which names its file
        detail = f"{sample.label if of_label else sample.image}: {detail}"
    listed = known.quarantines and len(where) <= MOST_FRAMES * len(samples)
    return (
        f"Data set {spec.name}: {known.title}: {len(where):,} of {len(samples):,}. "
        f"{detail.removesuffix('.')}. {known.advice}"
        + (" `sim2real check --quarantine` lists them." if listed else "")
    )


def header_faults(
    spec: DatasetSpec, image: Header | None, label: Header | None, crop: Size | None = None
) -> dict[str, str]:
    """Kind of fault -> what is seen, of one frame and its label where there are such."""
    faults = {}
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


LIKE_LABEL = f"one channel of at most {FEW_VALUES} values, among frames in colour"


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
