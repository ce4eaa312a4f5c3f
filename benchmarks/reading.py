"""Reading labels and frames: our forms against the usual ones, in one process, interleaved.

For each: the median of the paired ratios usual / ours, with minimum and maximum; above 1 means that
ours is faster. Results are checked to be equal first. One thread throughout.

    python benchmarks/reading.py [rounds]
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cyclegan.data import crop_reader
from pipeline.data.cache import class_reader, frame_reader
from pipeline.data.images import UInt8, resize_indices, resize_rgb, write_image, write_indices
from pipeline.data.labels import CITYSCAPES_IDS, IGNORE, load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader
from pipeline.data.spec import DatasetSpec
from pipeline.schema import parse
from pipeline.toyworld.drawing import render_scene

SIZE, TRAINING_WIDTH, CROP, FRAMES = (1914, 1052), 1024, (512, 512), 4
SPACE = load_label_space("cityscapes19")
COLORS = np.random.default_rng(0).integers(0, 256, (35, 3), np.uint8)
"""A made-up colour for each of the 35 ids."""


def loop_over_ids(raw: UInt8) -> UInt8:
    """The usual remap: one pass over the picture for each id."""
    classes = np.full(raw.shape, IGNORE, np.uint8)
    for value, name in CITYSCAPES_IDS.items():
        classes[raw == value] = SPACE.index_of(name)
    return classes


def loop_over_colors(rgb: UInt8) -> UInt8:
    """The usual decoding of colours: one comparison of all pixels for each."""
    classes = np.full(rgb.shape[:2], IGNORE, np.uint8)
    for value, name in CITYSCAPES_IDS.items():
        classes[(rgb == COLORS[value]).all(axis=-1)] = SPACE.index_of(name)
    return classes


def seconds(work: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(
    name: str, usual: Callable[[], object], ours: Callable[[], object], rounds: int
) -> None:
    """Warm up, then time both in turn."""
    for work in (usual, ours):
        work()
    pairs = [(seconds(usual), seconds(ours)) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    usual_ms, ours_ms = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"{name:<46} {statistics.median(ratios):6.1f}x (min {min(ratios):.1f}, max "
        f"{max(ratios):.1f}; {usual_ms:.1f} -> {ours_ms:.1f} ms)"
    )


def write_frames(root: Path) -> None:
    """Frames of GTA5's size and layout, their labels as ids and as colours."""
    rng = np.random.default_rng(0)
    for i in range(1, FRAMES + 1):
        rgb, ids = render_scene(rng, (512, 256), "sim")
        rgb, ids = resize_rgb(rgb, SIZE), resize_indices(ids, SIZE)
        grain = rng.integers(0, 8, rgb.shape, np.uint8)  # a smooth picture would decode too fast
        write_image(root / f"images/{i:05d}.png", np.minimum(rgb, 247) + grain)
        write_indices(root / f"labels/{i:05d}.png", ids, None)
        write_image(root / f"colors/{i:05d}.png", COLORS[ids])


def main(rounds: int) -> None:
    """Compare, and say on what."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_frames(root)
        names = {str(value): name for value, name in CITYSCAPES_IDS.items()}
        base = {"name": "bench", "root": root, "images": "images/{frame}"}
        ids = parse(DatasetSpec, {**base, "labels": "labels/{frame}", "values": names}, "ids")
        colors = {",".join(map(str, COLORS[int(v)])): name for v, name in names.items()}
        fields = {**base, "labels": "colors/{frame}", "encoding": "rgb", "values": colors}
        rgb = parse(DatasetSpec, fields, "rgb")
        samples = list_samples(ids, labelled=True)
        by_id, by_color = LabelReader(ids, SPACE), LabelReader(rgb, SPACE)
        color_samples = list_samples(rgb, labelled=True)
        with Image.open(samples[0].label) as image:  # type: ignore[arg-type]
            raw = np.asarray(image)
        assert (by_id.classes(raw) == loop_over_ids(raw)).all()
        assert (by_color.classes(COLORS[raw]) == loop_over_colors(COLORS[raw])).all()

        print(f"{SIZE[0]}x{SIZE[1]}, {len(names)} values, {rounds} rounds: usual -> ours")
        compare("ids, look-up", lambda: loop_over_ids(raw), lambda: by_id.classes(raw), rounds)
        pixels = COLORS[raw]
        compare(
            "colours, look-up",
            lambda: loop_over_colors(pixels),
            lambda: by_color.classes(pixels),
            max(3, rounds // 3),
        )

        def decode_and_loop(path: Path, remap: Callable[[UInt8], UInt8]) -> UInt8:
            with Image.open(path) as image:
                return remap(np.asarray(image))

        compare(
            "ids, decode and look-up",
            lambda: decode_and_loop(samples[0].label, loop_over_ids),  # type: ignore[arg-type]
            lambda: by_id.read(samples[0]),
            rounds,
        )
        compare(
            "colours, decode and look-up",
            lambda: decode_and_loop(color_samples[0].label, loop_over_colors),  # type: ignore[arg-type]
            lambda: by_color.read(color_samples[0], native=True),
            max(3, rounds // 3),
        )

        small = ids.model_copy(update={"width": TRAINING_WIDTH})
        cache = root / "cache"
        plain, kept = (crop_reader(small, samples, CROP, where) for where in (None, cache))
        compare(
            f"a {CROP[0]}x{CROP[1]} crop of a frame, cache",
            lambda: plain(0, np.random.default_rng(0)),
            lambda: kept(0, np.random.default_rng(0)),
            rounds,
        )
        plain_both, kept_both = (
            (frame_reader(small, samples, where), class_reader(small, samples, SPACE, where))
            for where in (None, cache)
        )
        compare(
            "a whole frame and its label, cache",
            lambda: [read(1).copy() for read in plain_both],
            lambda: [read(1).copy() for read in kept_both],
            rounds,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
