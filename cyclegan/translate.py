"""Translating frames with a trained generator: same size, same names, original labels.

from cyclegan.translate import load_translator

translate = load_translator("runs/demo/cyclegan/checkpoints/last.pt")
picture = translate(frame)  # (H, W, 3) uint8 RGB, any size -> the same
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.checkpoints import load_generator
from cyclegan.networks import to_network, to_rgb
from cyclegan.strips import in_strips
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import TranslationConfig
from pipeline.config.translators import TranslationInputs
from pipeline.data.frames import GROUP, Frames, convert, data_set_frames
from pipeline.data.images import UInt8, write_image
from pipeline.data.listing import Sample, translated_path
from pipeline.data.spec import DatasetSpec, save_spec, translated_spec
from pipeline.errors import UserError
from pipeline.run.contents import sha256
from pipeline.runtime.device import free_memory, fused, on_device
from pipeline.runtime.threads import usable_cores

Promise = Callable[[], UInt8]
"""Waits for a picture (H, W, 3) uint8 that a device may still be at work on."""
SHIFTS = [
    *[(0, 0), (1, 2), (2, 3), (3, 1), (2, 2), (3, 0), (0, 1), (1, 3)],
    *[(0, 2), (1, 0), (2, 1), (3, 3), (0, 3), (1, 1), (2, 0), (3, 2)],
]
"""Offsets (down, right) on the generator's grid of 4 pixels. Of the first four, each row and each
column is met once, so that stripes and the finest chequerboard cancel in their mean."""


PIXELS_AT_ONCE = 1 << 20
"""Pixels that go through a generator at a time on a CPU, which more do not make faster."""
ACTIVATIONS = 5
"""How many of its largest layers a pass holds at its height, all counted."""
STRIP = 1 << 28
"""Bytes of the largest layer in a strip."""


@dataclass
class FrameTranslator:
    """A generator as a function of frames of any size.

    On a GPU copies and computation run on while the caller prepares the next frames.
    """

    network: nn.Module
    """(N, 3, H, W) in [-1, 1] -> the same, for sides that are multiples of its `multiple`."""
    shifts: int = 1
    """Shifted translations to average, at most 16 (`TranslationConfig`)."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    strips: Literal["auto", "always", "never"] = "never"
    """See `ComputeConfig`."""
    compiled: nn.Module | None = None
    """What takes the place of `network` for whole frames."""
    _fit: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Shape of a frame -> how many go through the network together; 0: not even one whole."""

    def __call__(self, rgb: UInt8) -> UInt8:
        """Translate one frame (H, W, 3) uint8 to a picture of exactly its size."""
        return self.start([rgb])[0]()

    def start(self, frames: list[UInt8]) -> list[Promise]:
        """Begin to translate frames (H, W, 3) uint8; those of one size go through together."""
        promises: dict[int, Promise] = {}
        for shape in sorted({frame.shape for frame in frames}):
            members = [i for i, frame in enumerate(frames) if frame.shape == shape]
            if shape not in self._fit:
                self._fit[shape] = self._at_once(shape)
            at_once = self._fit[shape]
            for first in range(0, len(members), max(1, at_once)):
                some = members[first : first + max(1, at_once)]
                pictures = self._batch([frames[i] for i in some], whole=at_once > 0)
                promises |= {i: partial(pictures, n) for n, i in enumerate(some)}
        return [promises[i] for i in range(len(frames))]

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return next(self.network.parameters()).device

    @property
    def _multiple(self) -> int:
        multiple: int = getattr(self.network, "multiple")  # noqa: B009 - torch types it as a Tensor
        return multiple

    def _at_once(self, shape: tuple[int, ...]) -> int:
        """How many frames go through the network together, by the memory that is free."""
        pixels = shape[0] * shape[1]
        cpu = self.device.type == "cpu"
        most = max(1, min(GROUP, PIXELS_AT_ONCE // pixels)) if cpu else GROUP
        if self.strips == "never":
            return most
        needed = ACTIVATIONS * self._layer_bytes * pixels
        free = free_memory(self.device)
        fit = 0 if self.strips == "always" else int(0.9 * free / needed)
        if fit == 0 and self.strips == "auto":
            print(
                f"Frames of {shape[1]}x{shape[0]} are translated in strips of rows: whole they "
                f"take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.",
                file=sys.stderr,
                flush=True,
            )
        return min(most, fit)

    @cached_property
    def _layer_bytes(self) -> float:
        """Bytes of the largest layer's result, for each pixel of a frame."""
        side, largest = max(64, 2 * self._multiple), 0

        def note(_: nn.Module, __: object, out: Tensor) -> None:
            nonlocal largest
            largest = max(largest, out.numel())

        hooks = [layer.register_forward_hook(note) for layer in self.network.modules()]
        with torch.inference_mode():
            self.network(torch.zeros(1, 3, side, side, device=self.device))
        for hook in hooks:
            hook.remove()
        return 4 * largest / side**2

    @torch.inference_mode()
    def _batch(self, frames: list[UInt8], *, whole: bool) -> Callable[[int], UInt8]:
        """Begin to translate frames of one size; a function from the number of one to its picture.

        On the way they are padded to what the generator takes.
        """
        height, width = frames[0].shape[:2]
        device, gpu = self.device, self.device.type == "cuda"
        multiple = self._multiple
        rgb = torch.empty((len(frames), height, width, 3), dtype=torch.uint8, pin_memory=gpu)
        np.stack(frames, out=rgb.numpy())
        x = to_network(rgb.to(device, non_blocking=True))
        total = torch.zeros_like(x)
        half = self.precision == "bf16-mixed"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            for down, right in SHIFTS[: self.shifts]:
                below, beside = -(height + down) % multiple, -(width + right) % multiple
                shifted = reflect(x, (right, beside, down, below))
                shifted = shifted.contiguous(memory_format=torch.channels_last)
                made = self._whole(shifted) if whole else None
                if made is None:
                    made = self._in_strips(shifted)
                total += made[:, :, down : down + height, right : right + width]
        pictures = to_rgb(total / self.shifts)
        if not gpu:
            there = np.ascontiguousarray(pictures.numpy())
            return lambda number: there[number]
        host = torch.empty(pictures.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(pictures, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

        def wait(number: int) -> UInt8:
            copied.synchronize()
            return np.asarray(host[number].numpy())

        return wait

    def _whole(self, x: Tensor) -> Tensor | None:
        """None where a GPU's memory does not suffice, of which others may have taken some."""
        try:
            made: Tensor = (self.compiled or self.network)(x)
        except torch.OutOfMemoryError:
            if self.strips == "never":
                raise
            return None
        return made

    def _in_strips(self, x: Tensor) -> Tensor:
        room = min(STRIP, free_memory(self.device) // (2 * ACTIVATIONS))
        rows = max(8, int(room / (self._layer_bytes * x.shape[3])))
        return in_strips(self.network, x, rows).to(x.device)


def load_translator(
    weights: str | Path,
    config: TranslationConfig | None = None,
    compute: ComputeConfig | None = None,
    *,
    say: bool = False,
) -> FrameTranslator:
    """A trained generator as a function of frames: (H, W, 3) uint8 RGB -> the same, of any size.

    Args:
        weights: a checkpoint of ours, or a `.pth` file of the reference implementation.
        config: its `shifts`, `precision` and `batch_norm` count.
        compute: its `accelerator`, `compile` and `strips` count.
        say: name on standard error what batch norms do, where there are any.

    Raises:
        UserError: as `cyclegan.checkpoints.load_generator`.
    """
    config, compute = config or TranslationConfig(), compute or ComputeConfig()
    generator = load_generator(Path(weights), batch_norm=config.batch_norm, say=say)
    generator = on_device(generator, compute)
    compiled = fused(generator) if compute.compile else None
    return FrameTranslator(generator, config.shifts, config.precision, compute.strips, compiled)


def translate(
    config: TranslationConfig, given: TranslationInputs, folder: Path, compute: ComputeConfig
) -> None:
    """Translate every source frame into `folder/images` with the generator in `given.generator`.

    Pictures have the size at which the data set is read. Frames that are there already are kept.
    `manifest.csv`, and `dataset.yaml`, the spec of the translated set with the original labels, are
    written last.

    Raises:
        UserError: no checkpoint, or more frames than may be cannot be read.
    """
    checkpoint = given.generator
    assert checkpoint is not None, "CycleGAN translates with a generator"
    if not checkpoint.is_file():
        raise UserError(f"No checkpoint {checkpoint}. Run `sim2real train-cyclegan` first.")
    translator = load_translator(checkpoint, config, compute, say=True)
    translate_frames(
        given.source,
        folder,
        compute,
        start=translator.start,
        weights=checkpoint,
        part=given.part,
        unreadable=config.unreadable,
    )


def translate_frames(
    source: DatasetSpec,
    folder: Path,
    compute: ComputeConfig,
    *,
    each: Callable[[int, UInt8], UInt8] | None = None,
    start: Callable[[list[UInt8]], Sequence[Promise]] | None = None,
    **how: Any,
) -> None:
    """Write a translation of `source` to `folder`: pictures, `manifest.csv` and `dataset.yaml`.

    Args:
        each: changes one frame (H, W, 3) uint8, given its number; called in threads.
        start: begins to change the frames of a group, after that.
        how: see `write_translations`.

    Raises:
        UserError: more frames than may be cannot be read.
    """
    frames = data_set_frames(source)
    paths = [
        translated_path(source, Sample(name, Path(image)), folder)
        for name, image in zip(frames.names, frames.sources, strict=True)
    ]
    if each:
        read = frames.read
        frames = replace(frames, read=lambda number: each(number, read(number)))
    write_translations(frames, paths, folder, compute, start or _as_they_are, **how)
    if how.get("part") is None:
        save_spec(translated_spec(source, folder), folder / "dataset.yaml")


def _as_they_are(frames: list[UInt8]) -> list[Promise]:
    return [partial(np.asarray, frame) for frame in frames]


def write_translations(
    frames: Frames,
    paths: Sequence[Path],
    folder: Path,
    compute: ComputeConfig,
    start: Callable[[list[UInt8]], Sequence[Promise]],
    *,
    weights: Path | None = None,
    columns: Mapping[str, Sequence[object]] | None = None,
    part: tuple[int, int] | None = None,
    unreadable: float = 0.0,
) -> None:
    """Write a translation of each frame to its path, and `manifest.csv` to `folder`.

    Args:
        start: begins to translate the frames of a group; what it returns is called in threads.
        weights: the generator's file, whose hash stands in the manifest.
        columns, part, unreadable: see `pipeline.data.frames.convert`.

    Raises:
        UserError: more frames than may be cannot be read, or the disk is too small.
    """

    def write(number: int, _: UInt8, picture: Promise) -> None:
        write_image(paths[number], picture())

    more = dict(columns or {})
    if weights:
        more["weights"] = [sha256(weights)[:16]] * len(paths)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        convert(
            frames,
            start,
            write,
            {"translated": paths},
            folder,
            title="translation",
            threads=max(2, compute.workers, usable_cores()),
            columns=more,
            part=part,
            unreadable=unreadable,
        )


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
