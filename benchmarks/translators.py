"""Frames that translators make in a second of the CPU: a student and what it may learn from.

    OMP_NUM_THREADS=1 python benchmarks/translators.py [--rounds 7] [--blocks 9] [--width 64]

Frames of the toy world, 240x180, from memory to memory. Rounds are interleaved: in each, every row
translates the same frames, and its rate is divided by that of CycleGAN with 4 shifts in the same
round. Figures are medians (minimum to maximum). The last row is what every translator takes
besides: a frame read and its translation written, as PNG.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cyclegan import alignment
from cyclegan.networks import build_generator
from cyclegan.translate import GROUP, FrameTranslator
from pipeline.config.translation import CycleGANConfig, TranslationConfig
from pipeline.config.translators import STUDENT
from pipeline.data.images import UInt8, read_rgb, write_image
from pipeline.data.labels import CITYSCAPES_IDS, load_label_space
from pipeline.schema import parse
from pipeline.toyworld.drawing import render_scene

SIZE = (240, 180)
BASE = "CycleGAN, 4 shifts"


def scenes(domain: str) -> list[tuple[UInt8, UInt8]]:
    """As many frames and class indices as go through a network together."""
    space = load_label_space("cityscapes19")
    table = np.array([space.index_of(CITYSCAPES_IDS.get(i, "")) for i in range(256)], np.uint8)
    drawn = (render_scene(np.random.default_rng(i), SIZE, domain) for i in range(GROUP))
    return [(picture, table[ids]) for picture, ids in drawn]


def by_network(recipe: CycleGANConfig, shifts: int) -> Callable[[], object]:
    """Translate the frames with a generator of random weights."""
    network = build_generator(recipe).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    frames = [picture for picture, _ in scenes("sim")]
    return lambda: [made() for made in FrameTranslator(network, shifts).start(frames)]


def by_classes() -> Callable[[], None]:
    """Translate the frames by class-wise alignment with known labels of the target."""
    classes = len(load_label_space("cityscapes19").classes)
    frames = scenes("sim")
    pool = [alignment.statistics(*scene, classes) for scene in scenes("real")]
    shown = np.stack([found.pixels[:classes] >= alignment.LEAST_SHOWN for found in pool])
    softness = TranslationConfig().softness

    def translate() -> None:
        for number, (picture, labels) in enumerate(frames):
            target = alignment.choose(pool, shown, np.random.default_rng(number))
            alignment.align(picture, labels, target, softness)

    return translate


def by_files(folder: Path) -> Callable[[], None]:
    """Read and write the frames."""
    path = folder / "frame.png"
    write_image(path, scenes("sim")[0][0])

    def copy() -> None:
        for number in range(GROUP):
            write_image(folder / f"{number}.png", read_rgb(path))

    return copy


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--blocks", type=int, default=CycleGANConfig().blocks)
    parser.add_argument("--width", type=int, default=CycleGANConfig().generator_width)
    given = parser.parse_args()
    large = CycleGANConfig(blocks=given.blocks, generator_width=given.width)
    with tempfile.TemporaryDirectory() as folder:
        rows: dict[str, Callable[[], object]] = {
            "student": by_network(parse(CycleGANConfig, STUDENT, "a student"), 1),
            "class-wise alignment": by_classes(),
            "CycleGAN, 1 shift": by_network(large, 1),
            BASE: by_network(large, 4),
            "PNGs read and written": by_files(Path(folder)),
        }
        rates: dict[str, list[float]] = {name: [] for name in rows}
        for number in range(given.rounds + 1):  # the first is to warm up
            for name, work in rows.items():
                start = time.process_time()
                work()
                if number:
                    rates[name].append(GROUP / (time.process_time() - start))
    threads = torch.get_num_threads()
    print(f"CycleGAN: resnet_{given.blocks} of width {given.width}; {threads} CPU thread(s)")
    print(f"{'':22} {'frames / CPU second':28} times {BASE}")
    for name, found in rates.items():
        ratios = [rate / base for rate, base in zip(found, rates[BASE], strict=True)]
        print(f"{name:22} {spread(found):28} {spread(ratios)}")


def spread(values: list[float]) -> str:
    """Median, minimum and maximum."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
