"""How near `sim2real check` comes to decoding alone: frames a second, the same files, interleaved.

    python benchmarks/doctor.py [--source FOLDER] [--frames 24] [--rounds 7] [--workers 2]

`bare` reads and decodes each image and label with PIL in as many threads and does nothing else.
Without --source the frames are those of the toy world at 1024x512, as PNG.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.labels import load_label_space
from pipeline.data.listing import Sample
from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.intake.duplicates import nearest
from pipeline.intake.examine import examine, list_files
from pipeline.toyworld.writing import write_toy_world


def bare(files: list[Sample], workers: int) -> None:
    """Decode every file of the frames."""

    def decode(frame: Sample) -> None:
        for path in (frame.image, frame.label):
            if path is not None:
                image = Image.open(io.BytesIO(path.read_bytes()))
                image.load()
                np.asarray(image)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(decode, files))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def told(values: list[float], digits: int = 2) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="folder in GTA5's layout")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    space = load_label_space("cityscapes19")
    with tempfile.TemporaryDirectory() as folder:
        if options.source is None:
            write_toy_world(
                Path(folder),
                sim_frames=options.frames,
                real_train_frames=1,
                real_val_frames=1,
                size=(1024, 512),
            )
        root = options.source or Path(folder) / "toy-sim"
        spec = DatasetSpec(**spec_fields("gta5", Path()) | {"root": root, "limit": options.frames})
        files = list_files(spec).samples
        rates: dict[str, list[float]] = {"bare": [], "check": []}
        for _ in range(options.rounds + 1):  # the first warms the file cache
            rates["bare"].append(len(files) / seconds(lambda: bare(files, options.workers)))
            check = seconds(lambda: examine(spec, space, workers=options.workers))
            rates["check"].append(len(files) / check)
    bare_rates, check_rates = rates["bare"][1:], rates["check"][1:]
    ratios = [c / b for b, c in zip(bare_rates, check_rates, strict=True)]
    print(
        f"{len(files)} frames, {options.workers} workers, {options.rounds} rounds, median (range)"
    )
    print(f"bare decoding   {told(bare_rates, 1)} frames/s")
    print(f"sim2real check  {told(check_rates, 1)} frames/s")
    print(f"check / bare    {told(ratios)}")

    count = 25_000
    table = np.random.default_rng(0).integers(0, 256, (count, 256)).astype(np.uint8)
    took = seconds(lambda: nearest(table, table, earlier=True))
    print(f"near-duplicates of {count:,} frames: {took:.1f} s")


if __name__ == "__main__":
    main()
