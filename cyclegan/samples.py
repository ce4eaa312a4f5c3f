"""Grids of sample pictures, made while training."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from cyclegan.translate import FrameTranslator
from pipeline.data.images import UInt8, grid
from pipeline.data.listing import Sample, evenly
from pipeline.data.reading import read_frame
from pipeline.data.spec import DatasetSpec

SAMPLE_FRAMES = 3


def cycle_grid(
    source_to_target: nn.Module,
    target_to_source: nn.Module,
    source_frames: list[UInt8],
    target_frames: list[UInt8],
) -> UInt8:
    """One row a pair of frames: source, translated, back; target, translated, back.

    Args:
        source_frames, target_frames: (H, W, 3) uint8, of any sizes.
    """
    rows = []
    forth, back = FrameTranslator(source_to_target), FrameTranslator(target_to_source)
    with _evaluating(source_to_target, target_to_source):
        for source, target in zip(source_frames, target_frames, strict=False):
            there, here = forth(source), back(target)
            rows.append([source, there, back(there), target, here, forth(here)])
    return grid(rows)


def pair_grid(
    source_to_target: nn.Module, source_frames: list[UInt8], target_frames: list[UInt8]
) -> UInt8:
    """One row a frame: source, translated, one of the target (its pair, where there are pairs).

    Args:
        source_frames, target_frames: (H, W, 3) uint8, of any sizes.
    """
    pairs = zip(source_frames, target_frames, strict=False)
    translate = FrameTranslator(source_to_target)
    with _evaluating(source_to_target):
        return grid([[source, translate(source), target] for source, target in pairs])


def spread(spec: DatasetSpec, samples: list[Sample]) -> list[UInt8]:
    """A few frames from all over the set, always the same."""
    return [read_frame(spec, sample) for sample in evenly(samples, SAMPLE_FRAMES)]


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """Without dropout."""
    for network in networks:
        network.eval()
    yield
    for network in networks:
        network.train()
