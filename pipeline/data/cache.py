"""Frames decoded once: uint8 arrays at the working size in one memory-mapped file.

A PNG of two megapixels takes longer to decode than many a training step. With a cache folder each
is decoded once, before the first step; then a crop costs the pages that it touches. What is made of
files that have changed takes the place of what was made of them before. All else stays: other
widths, data sets that are gone. The folder may be removed whenever nothing trains.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from pipeline.data.images import UInt8
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import Sample
from pipeline.data.reading import LabelReader, decoder_code, read_frame, values_at_top
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.files import read_record, replacing, sweep, write_json
from pipeline.progress import each

Reader = Callable[[int], UInt8]
_VERSION = 2
_GROUP = 64


class _Cached(BaseModel):
    """What is in a cache file."""

    place: str = ""
    shapes: list[tuple[int, ...]] = []


def frame_reader(spec: DatasetSpec, samples: Sequence[Sample], cache: Path | None) -> Reader:
    """Frame index -> (H, W, 3) uint8 RGB at the working width; with a cache, not to be written to.

    Args:
        cache: the folder to keep decoded frames in; none decodes a file each time.

    Raises:
        UserError: with a cache, a frame that cannot be read, or too little room on the disk.
    """

    read = partial(_frame, spec, samples)
    if cache is None:
        return read
    files = [sample.image for sample in samples]
    return _cached(read, files, {"width": spec.width}, cache, f"{spec.name}, frames")


def class_reader(
    spec: DatasetSpec, samples: Sequence[Sample], space: LabelSpace, cache: Path | None
) -> Reader:
    """Frame index -> (H, W) uint8 class indices at the working width; see `frame_reader`."""
    read = partial(_classes, LabelReader(spec, space), samples)
    if cache is None:
        return read
    decoding = spec.model_dump(
        mode="json", include={"width", "encoding", "channel", "decoder", "strict"}
    )
    if spec.decoder is not None:
        decoding["code"] = decoder_code(spec.decoder)
    classes = {raw: space.index_of(name) for raw, name in spec.values.items()}
    if spec.divide != 1:
        decoding["divide"] = spec.divide
    if spec.label_scale != 1:
        decoding["label_scale"] = spec.label_scale
    if skies := values_at_top(spec):
        decoding["at_top"] = skies
    files = [sample.label for sample in samples if sample.label is not None]
    return _cached(read, files, {**decoding, "classes": classes}, cache, f"{spec.name}, labels")


def _frame(spec: DatasetSpec, samples: Sequence[Sample], index: int) -> UInt8:
    return read_frame(spec, samples[index])


def _classes(labels: LabelReader, samples: Sequence[Sample], index: int) -> UInt8:
    return labels.read(samples[index])


class _Mapped:
    """Reads arrays from a cache file; goes to another process as the file's path."""

    def __init__(self, data: Path, shapes: list[tuple[int, ...]]) -> None:
        self.data, self.shapes = data, shapes
        self.ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
        if not data.is_file() or data.stat().st_size != self.ends[-1]:
            raise UserError(
                f"Cache file {data} is not whole. Remove it and {data.with_suffix('.json')}, run "
                "again."
            )
        self.flat = np.memmap(data, np.uint8, "r")

    def __reduce__(self) -> tuple[object, ...]:
        return _Mapped, (self.data, self.shapes)

    def __call__(self, index: int) -> UInt8:
        return np.asarray(self.flat[self.ends[index] : self.ends[index + 1]]).reshape(
            self.shapes[index]
        )


def _cached(
    read: Reader, files: list[Path], how: Mapping[str, object], folder: Path, title: str
) -> Reader:
    """`read` through a file in `folder` that holds all its results, made if it is not there.

    The file is found by what it was made from: paths, sizes and times of `files`, and `how`.
    """
    stats = [(str(file.absolute()), (s := file.stat()).st_size, s.st_mtime_ns) for file in files]
    key, place = _hash([_VERSION, how, stats]), _hash([how, [path for path, *_ in stats]])
    data, shapes_file = folder / f"{key}.bin", folder / f"{key}.json"
    if not shapes_file.is_file():
        sweep(folder)
        shapes = _fill(read, len(files), data, title)
        write_json(shapes_file, {"what": title, "place": place, "shapes": shapes})
        _remove_older(shapes_file, place)
    way_out = f"Remove it and {data}, run again."
    shapes = read_record(shapes_file, _Cached, way_out).shapes
    return _Mapped(data, shapes)


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _remove_older(newest: Path, place: str) -> None:
    """Remove what was made of the same files in the same way before they changed."""
    for other in newest.parent.glob("[0-9a-f]" * len(newest.stem) + ".json"):  # ours alone
        with suppress(FileNotFoundError, UserError):  # removed by another training; or damaged
            if other != newest and read_record(other, _Cached, "").place == place:
                other.unlink()
                other.with_suffix(".bin").unlink()


def _fill(read: Reader, count: int, data: Path, title: str) -> list[tuple[int, ...]]:
    """Write the results of `read` one behind the other; their shapes."""
    data.parent.mkdir(parents=True, exist_ok=True)
    needed, free = read(0).size * count, shutil.disk_usage(data.parent).free
    if needed > free:
        raise UserError(
            f"The cache of {title} needs {needed / 1e9:.1f} GB in {data.parent}, where "
            f"{free / 1e9:.1f} GB are free. Make room, lower `width`, or leave compute.cache out."
        )
    shapes: list[tuple[int, ...]] = []
    groups = range(0, count, _GROUP)
    with (
        replacing(data) as part,
        part.open("wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        # Few at a time: decoded frames that wait for the disk take memory.
        decoded = (
            array
            for start in groups
            for array in pool.map(read, range(start, min(start + _GROUP, count)))
        )
        for array in each(decoded, f"cache: {title}", count):
            file.write(np.ascontiguousarray(array).data)
            shapes.append(array.shape)
    return shapes
