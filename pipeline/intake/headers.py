"""A look at the headers of a whole data set before a run starts."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pipeline.data.images import Header, read_header
from pipeline.data.listing import Sample, evenly
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.intake.faults import Faults, Size, add_faults_of_the_set, header_faults, like_label
from pipeline.intake.findings import MOST_FRAMES, kinds
from pipeline.progress import each

_DECODED = 20  # pictures of one channel that a run decodes before it starts


class _Seen(NamedTuple):
    faults: Faults
    image: Header | None
    palette: bytes


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

    def look(sample: Sample) -> _Seen:
        try:
            image = read_header(sample.image)
            # What a decoder reads has no header.
            label = read_header(sample.label) if sample.label and not spec.decoder else None
        except UserError as error:
            return _Seen({"unreadable": str(error)}, None, b"")
        palette = label.palette if label and spec.encoding == "ids" else b""
        return _Seen(header_faults(spec, image, label, crop), image, palette)

    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as threads:  # to wait for a disk together
        found = threads.map(look, samples)
        seen = list(each(found, f"headers: {spec.name}", len(samples), unit="frames"))
    grey = [i for i, one in enumerate(seen) if one.image and one.image.channels == 1]
    few = evenly(grey, _DECODED) if len(grey) < len(samples) else []  # else they are grey frames
    faults = [one.faults for one in seen]
    add_faults_of_the_set(
        faults,
        [sample.name for sample in samples],
        [one.palette for one in seen],
        [i for i in few if like_label(samples[i].image)],
    )
    found_kinds = dict.fromkeys(kind for frame in faults for kind in frame)
    if found_kinds:
        raise UserError("\n".join(_message(spec, samples, faults, kind) for kind in found_kinds))
    return [one.image.size for one in seen if one.image is not None]


def _message(
    spec: DatasetSpec, samples: Sequence[Sample], faults: Sequence[Faults], kind: str
) -> str:
    known, where = kinds()[kind], [i for i, frame in enumerate(faults) if kind in frame]
    sample, detail = samples[where[0]], faults[where[0]][kind]
    of_label = kind.startswith("label") or kind == "palette-differs"
    if kind != "unreadable":  # which names its file
        detail = f"{sample.label if of_label else sample.image}: {detail}"
    listed = known.quarantines and len(where) <= MOST_FRAMES * len(samples)
    return (
        f"Data set {spec.name}: {known.title}: {len(where):,} of {len(samples):,}. "
        f"{detail.removesuffix('.')}. {known.advice}"
        + (" `sim2real check --quarantine` lists them." if listed else "")
    )
