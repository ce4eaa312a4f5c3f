"""Translating frames with a trained generator: same size, same names, original labels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.checkpoints import load_generator
from cyclegan.networks import to_network, to_rgb
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import TranslationConfig
from pipeline.config.translators import TranslationInputs
from pipeline.csv_files import write_table
from pipeline.data.images import UInt8, write_image
from pipeline.data.listing import list_samples, translated_path
from pipeline.data.reading import read_frame
from pipeline.data.spec import DatasetSpec, save_spec, translated_spec
from pipeline.errors import UserError
from pipeline.progress import part_folder, progress
from pipeline.runtime.device import make_fabric

GROUP = 4
"""Frames translated at a time. A group is always made whole, so that a frame's neighbours in the
batch, and with them its last bit, do not depend on where an earlier run was interrupted."""


SHIFTS = [
    *[(0, 0), (1, 2), (2, 3), (3, 1), (2, 2), (3, 0), (0, 1), (1, 3)],
    *[(0, 2), (1, 0), (2, 1), (3, 3), (0, 3), (1, 1), (2, 0), (3, 2)],
]
"""Offsets (down, right) on the generator's grid of 4 pixels. Of the first four, each row and each
column is met once, so that stripes and the finest chequerboard cancel in their mean."""


def translate(
    config: TranslationConfig, given: TranslationInputs, folder: Path, compute: ComputeConfig
) -> None:
    """Translate every source frame into `folder/images` with the generator in `given.generator`.

    Pictures have the size at which the data set is read. Frames that are there already are kept.
    `dataset.yaml`, the spec of the translated set with the original labels, and `manifest.csv`
    are written last.

    Raises:
        UserError: no checkpoint, or a frame that cannot be read.
    """
    checkpoint = given.generator
    assert checkpoint is not None, "CycleGAN translates with a generator"
    if not checkpoint.is_file():
        raise UserError(f"No checkpoint {checkpoint}. Run `sim2real train-cyclegan` first.")
    fabric = make_fabric(compute, training=False)
    generator = load_generator(checkpoint, batch_norm=config.batch_norm, say=True)
    generator.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = fabric.setup_module(generator.eval())
    translate_frames(
        given.source,
        folder,
        compute,
        together=lambda frames: translate_group(network, frames, config.shifts),
        part=given.part,
    )


def translate_frames(
    source: DatasetSpec,
    folder: Path,
    compute: ComputeConfig,
    *,
    each: Callable[[int, UInt8], UInt8] = lambda _, frame: frame,
    together: Callable[[list[UInt8]], list[UInt8]] = lambda frames: frames,
    columns: Mapping[str, Sequence[object]] | None = None,
    part: tuple[int, int] | None = None,
) -> None:
    """Write a translation of `source` to `folder`: pictures, `manifest.csv` and `dataset.yaml`.

    Args:
        each: changes one frame (H, W, 3) uint8, given its number; called in threads.
        together: changes the frames of a group, after that.
        columns: further columns of the manifest, a value a frame.
        part: (i, n): write the pictures of part i of n alone. Parts are made of whole groups, so
            that all of them together write what one call would.

    Raises:
        UserError: a frame that cannot be read.
    """
    samples = list_samples(source, labelled=False)
    numbers = range(len(samples))
    paths = [translated_path(source, sample, folder) for sample in samples]
    groups = [numbers[i : i + GROUP] for i in numbers[::GROUP]]
    title, place = "translation", folder
    if part:
        groups = groups[part[0] :: part[1]]
        title = f"translation, part {part[0] + 1} of {part[1]}"
        place = part_folder(folder, *part)
    todo = [group for group in groups if not all(paths[i].is_file() for i in group)]
    total = sum(map(len, groups))
    done = total - sum(map(len, todo))
    with (
        progress(place, title, total, done=done, unit="images") as advance,
        ThreadPoolExecutor(max_workers=max(2, compute.workers)) as threads,
    ):
        writing: list[Future[None]] = []
        for group, frames in _read_ahead(
            threads, todo, lambda i: each(i, read_frame(source, samples[i]))
        ):
            pictures = together(frames)
            for future in writing:
                future.result()
            writing = [
                threads.submit(write_image, paths[i], picture)
                for i, picture in zip(group, pictures, strict=True)
            ]
            advance(len(group))
        for future in writing:
            future.result()
    if part:
        return
    more = columns or {}
    rows = [
        {
            "name": sample.name,
            "source": str(sample.image),
            "translated": str(paths[i].relative_to(folder)),
            **{column: str(values[i]) for column, values in more.items()},
        }
        for i, sample in enumerate(samples)
    ]
    write_table(folder / "manifest.csv", list(rows[0]), rows)
    save_spec(translated_spec(source, folder), folder / "dataset.yaml")


def _read_ahead(
    threads: ThreadPoolExecutor, groups: list[range], read: Callable[[int], UInt8]
) -> Iterator[tuple[range, list[UInt8]]]:
    """Each group with its frames; the next group is read while the current one is used."""
    reading: list[Future[UInt8]] = []
    for i, group in enumerate(groups):
        current = reading or [threads.submit(read, number) for number in group]
        following = groups[i + 1] if i + 1 < len(groups) else []
        reading = [threads.submit(read, number) for number in following]
        yield group, [future.result() for future in current]


def translate_group(network: nn.Module, frames: list[UInt8], shifts: int = 1) -> list[UInt8]:
    """Translate frames (H, W, 3) uint8; those of one size go through the network together.

    Args:
        shifts: how many shifted translations to average, at most 16 (`TranslationConfig`).
    """
    pictures: dict[int, UInt8] = {}
    for shape in sorted({frame.shape for frame in frames}):
        members = [i for i, frame in enumerate(frames) if frame.shape == shape]
        translated = _translate_batch(network, np.stack([frames[i] for i in members]), shifts)
        pictures |= dict(zip(members, translated, strict=True))
    return [pictures[i] for i in range(len(frames))]


def translate_frame(network: nn.Module, rgb: UInt8) -> UInt8:
    """Translate one frame (H, W, 3) uint8 to a picture of exactly its size."""
    return translate_group(network, [rgb])[0]


@torch.inference_mode()
def _translate_batch(network: nn.Module, rgb: UInt8, shifts: int) -> UInt8:
    """(N, H, W, 3) uint8 -> the same shape, padded to what the generator takes on the way."""
    height, width = rgb.shape[1:3]
    device = next(network.parameters()).device
    multiple: int = getattr(network, "multiple")  # noqa: B009 - torch types it as a Tensor
    x = to_network(torch.from_numpy(rgb).to(device))
    total = torch.zeros_like(x)
    for down, right in SHIFTS[:shifts]:
        below, beside = -(height + down) % multiple, -(width + right) % multiple
        shifted = reflect(x, (right, beside, down, below))
        shifted = shifted.contiguous(memory_format=torch.channels_last)
        total += network(shifted)[:, :, down : down + height, right : right + width]
    return np.ascontiguousarray(to_rgb(total / shifts).cpu().numpy())


def reflect(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Pad (N, C, H, W) by reflection: left, right, top, bottom, each of any size.

    A reflection is at most as wide as the picture; wider paddings are made of several.
    """
    rest = list(padding)
    while any(rest):
        height, width = max(1, x.shape[2] - 1), max(1, x.shape[3] - 1)
        now = [
            min(side, limit)
            for side, limit in zip(rest, (width, width, height, height), strict=True)
        ]
        x = F.pad(x, now, mode="reflect")
        rest = [side - done for side, done in zip(rest, now, strict=True)]
    return x
