"""Random crops of one domain's frames, or of pairs."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cyclegan.layouts import STRIDE, LabelMap, label_map, layout, similarity
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import CycleGANConfig
from pipeline.data.cache import Reader, class_reader, frame_reader
from pipeline.data.images import UInt8, read_raw
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import Sample, list_samples, pseudo_label_paths
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.runtime.distributed import Ranks
from pipeline.runtime.loader import IndexedDataset, Item, batches, random_crop

LEAST_DEVIATION = 2.0
"""Crops of a smaller standard deviation (grey levels) are drawn again: instance normalisation
turns the gradients of a near-constant picture into very large ones."""
ATTEMPTS = 10

ReadItem = Callable[[int, np.random.Generator], Item]


@dataclass(frozen=True)
class DomainLabels:
    """The classes of both domains' pixels: labels of the source, pseudo-labels of the target."""

    space: LabelSpace
    pseudo_labels: Path
    """The folder of `pseudo_label_paths`."""


def crop_reader(
    spec: DatasetSpec,
    samples: list[Sample],
    crop: tuple[int, int],
    cache: Path | None,
    labels: LabelSpace | Path | None = None,
) -> ReadItem:
    """A function (frame index, generator) -> `rgb` (h, w, 3) uint8 crop and frame `name`.

    Args:
        crop: width and height in pixels; half of the crops are mirrored.
        cache: the folder to keep decoded frames in, if any.
        labels: read `classes` (h, w) uint8, too: labels in these classes, or the pseudo-labels in
            this folder.
    """
    frames = frame_reader(spec, samples, cache)
    if isinstance(labels, Path):
        classes: Reader | None = partial(_read_pseudo_label, labels, samples)
    else:
        classes = class_reader(spec, samples, labels, cache) if labels else None
    return partial(_read_crop, samples, frames, classes, crop)


def _read_pseudo_label(folder: Path, samples: list[Sample], index: int) -> UInt8:
    return read_raw(pseudo_label_paths(folder, samples[index].name)[0]).astype(np.uint8)


def unpaired(
    config: CycleGANConfig,
    domains: Sequence[tuple[DatasetSpec, list[Sample], LabelSpace | Path | None]],
    compute: ComputeConfig,
    ranks: Ranks,
    *,
    first: int,
    last: int,
    pin: bool,
) -> Iterator[tuple[Item, ...]]:
    """This rank's batch of crops of each domain, of steps `first` to `last` - 1.

    With `config.matched_crops` those of the second domain, which has pseudo-labels, are chosen by
    those of the first.

    Args:
        domains: frames, and the classes to read their labels in or the folder of their
            pseudo-labels, if any.
        pin: keep batches in pinned memory, for a GPU.
    """
    with ranks.rank_zero_first():  # fills the cache
        readers = [
            crop_reader(spec, samples, config.crop, compute.cache, labels)
            for spec, samples, labels in domains
        ]
        if config.matched_crops:
            readers = [match_reader(config, readers[0], domains[1], compute.cache)]
    loaders = [
        batches(
            IndexedDataset(read, len(samples), seed=config.seed, stream=stream),
            first=first,
            last=last,
            batch_size=config.batch_size,
            workers=compute.workers,
            pin=pin,
            shard=(ranks.rank, ranks.world_size),
        )
        for stream, (read, (_, samples, _)) in enumerate(zip(readers, domains, strict=False), 1)
    ]
    if config.matched_crops:
        return ((both["source"], both["target"]) for both in loaders[0])
    return zip(*loaders, strict=True)


def _read_crop(
    samples: list[Sample],
    frames: Reader,
    labels: Reader | None,
    crop: tuple[int, int],
    index: int,
    rng: np.random.Generator,
) -> Item:
    name, rgb = str(samples[index].image), frames(index)
    for _ in range(ATTEMPTS):
        rows, columns = random_crop(rng, (rgb.shape[1], rgb.shape[0]), crop, name)
        if _varies(rgb[rows, columns]):
            break
    way = -1 if rng.random() < 0.5 else 1
    return _cut(rgb, labels and labels(index), rows, columns, way, name)


def _cut(
    rgb: UInt8, classes: UInt8 | None, rows: slice, columns: slice, way: int, name: str
) -> Item:
    """A crop, mirrored where `way` is -1."""
    item: Item = {"rgb": torch.from_numpy(rgb[rows, columns][:, ::way].copy()), "name": name}
    if classes is not None:
        item["classes"] = torch.from_numpy(classes[rows, columns][:, ::way].copy())
    return item


def match_reader(
    config: CycleGANConfig,
    source: ReadItem,
    target: tuple[DatasetSpec, list[Sample], LabelSpace | Path | None],
    cache: Path | None,
) -> ReadItem:
    """A function (source frame index, generator) -> `source` and `target`, crops of like layouts.

    That of the target is the one of `config.matched_crops` random crops of all its frames, some
    mirrored, whose layout is nearest to that of the source's (`cyclegan.layouts`).

    Args:
        source: gives crops with `classes`.
        target: frames and the folder of their pseudo-labels, all of which are read here, once.
    """
    spec, samples, folder = target
    assert isinstance(folder, Path), "crops are matched by pseudo-labels"
    frames = frame_reader(spec, samples, cache)
    labels = partial(_read_pseudo_label, folder, samples)
    maps = [label_map(labels(index)) for index in range(len(samples))]
    return partial(_read_match, config, source, samples, frames, labels, maps)


def _read_match(
    config: CycleGANConfig,
    source: ReadItem,
    samples: list[Sample],
    frames: Reader,
    labels: Reader,
    maps: list[LabelMap],
    index: int,
    rng: np.random.Generator,
) -> Item:
    item = source(index, rng)
    wanted = layout(item["classes"].numpy()[::STRIDE, ::STRIDE])
    found = []
    for _ in range(config.matched_crops):
        frame = int(rng.integers(len(maps)))
        name = str(samples[frame].image)
        rows, columns = random_crop(rng, maps[frame].size, config.crop, name)
        way = -1 if rng.random() < 0.5 else 1
        alike = similarity(wanted, layout(maps[frame].cut(rows, columns)[:, ::way]))
        found.append((alike, frame, rows, columns, way, name))
    found.sort(key=lambda choice: -choice[0])
    # A crop that shows nothing is taken where all do.
    varied = (choice for choice in found if _varies(frames(choice[1])[choice[2], choice[3]]))
    _, frame, rows, columns, way, name = next(varied, found[0])
    target = _cut(frames(frame), labels(frame), rows, columns, way, name)
    return {"source": item, "target": target}


def _varies(rgb: UInt8) -> bool:
    """Whether a crop shows anything; every fourth pixel tells."""
    return float(rgb[::4, ::4].std()) >= LEAST_DEVIATION


def pairs(
    source: DatasetSpec, target: DatasetSpec, *, say: bool = True
) -> tuple[list[Sample], list[Sample]]:
    """The frames of equal name of two sets, in the same order.

    Args:
        say: tell on standard error how many frames have no pair.

    Raises:
        UserError: no name is in both.
    """
    sources = list_samples(source, labelled=False)
    targets = {sample.name: sample for sample in list_samples(target, labelled=False)}
    found = [sample for sample in sources if sample.name in targets]
    if not found:
        raise UserError(
            "cyclegan.paired needs frames of equal name in source and target, and there are none: "
            f"source begins with {sources[0].name!r}, target with {next(iter(targets))!r}. Name "
            "them alike (the fields of `images` make the name), or set cyclegan.paired to false."
        )
    if say and len(found) < max(len(sources), len(targets)):
        print(
            f"pix2pix: {len(found)} pairs; {len(sources) - len(found)} source and "
            f"{len(targets) - len(found)} target frames have none",
            file=sys.stderr,
            flush=True,
        )
    return found, [targets[sample.name] for sample in found]


def pair_reader(
    source: DatasetSpec,
    source_samples: list[Sample],
    target: DatasetSpec,
    target_samples: list[Sample],
    crop: tuple[int, int],
    cache: Path | None,
) -> ReadItem:
    """As `crop_reader`, for pairs: the same crop of both as `source` and `target`, and `name`."""
    sets = {
        "source": (source_samples, frame_reader(source, source_samples, cache)),
        "target": (target_samples, frame_reader(target, target_samples, cache)),
    }
    return partial(_read_pair, sets, crop)


def _read_pair(
    sets: dict[str, tuple[list[Sample], Reader]],
    crop: tuple[int, int],
    index: int,
    rng: np.random.Generator,
) -> Item:
    names = {domain: str(samples[index].image) for domain, (samples, _) in sets.items()}
    frames = {domain: read(index) for domain, (_, read) in sets.items()}
    height, width = frames["source"].shape[:2]
    if frames["target"].shape[:2] != (height, width):
        raise UserError(
            f"{names['target']} is {frames['target'].shape[1]}x{frames['target'].shape[0]}, its "
            f"pair {names['source']} {width}x{height}. Pairs must have one size: set `width` of "
            "both data sets."
        )
    for _ in range(ATTEMPTS):
        rows, columns = random_crop(rng, (width, height), crop, names["source"])
        if all(_varies(frame[rows, columns]) for frame in frames.values()):
            break
    step = -1 if rng.random() < 0.5 else 1
    item = {
        key: torch.from_numpy(frame[rows, columns][:, ::step].copy())
        for key, frame in frames.items()
    }
    return {**item, "name": names["source"]}
