"""A training step of each method that trains an unpaired translator, in one process, interleaved.

The loops are those that users run, with reading and log, on toy frames. Prints the median time of a
step of each, on the CPU of this process alone, and the median of the paired ratios to CycleGAN's.

    OMP_NUM_THREADS=1 python benchmarks/translators_step.py
    python benchmarks/translators_step.py --blocks 9 --width 64 --size 512x512   # on a GPU
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from steps import WARM_UP, TrainingStep, device_name, seconds

from cyclegan.train import train
from cyclegan.train_contrastive import train_contrastive
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import CycleGANConfig
from pipeline.config.translators import TRANSLATORS
from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.toyworld.writing import write_toy_world


def main(options: argparse.Namespace) -> None:
    """Measure, and say on what."""
    width, height = map(int, options.size.split("x"))
    common = {
        "blocks": options.blocks,
        "generator_width": options.width,
        "crop": (width, height),
        "batch_size": options.batch,
        "checkpoint_every": 10**9,
        "sample_every": 10**9,
        "steps_per_epoch": 10**6,
    }
    print(
        f"torch {torch.__version__}, {device_name()}; resnet_{options.blocks}, width "
        f"{options.width}, {width}x{height}, batch {options.batch}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = (max(width, 128), max(height, 64))
        write_toy_world(
            folder / "world", sim_frames=4, real_train_frames=4, real_val_frames=1, size=size
        )
        source = {"root": folder / "world/toy-sim"} | spec_fields("gta5", Path())
        target = {"root": folder / "world/toy-real", "split": "train"}
        target |= spec_fields("cityscapes", Path())
        specs = [DatasetSpec.model_validate(fields) for fields in (source, target)]
        steps = {}
        for method, entry in TRANSLATORS.items():
            if entry.trains and not entry.learns_pairs:
                config = CycleGANConfig.model_validate(common | entry.recipe)
                loop = train_contrastive if config.contrastive else train
                work = partial(loop, config, *specs, folder / method, ComputeConfig())
                steps[method] = TrainingStep(work)
        for _ in range(WARM_UP):
            for step in steps.values():
                step()
        times = [{m: seconds(step) for m, step in steps.items()} for _ in range(options.rounds)]
        for method in steps:
            own = statistics.median(row[method] for row in times)
            ratios = [row[method] / row["cyclegan"] for row in times]
            print(
                f"{method}: {own:.3f} s, {statistics.median(ratios):.2f} of a step of cyclegan "
                f"(min {min(ratios):.2f}, max {max(ratios):.2f}, {options.rounds} rounds)"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--size", default="128x128", help="crop, WIDTHxHEIGHT")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    main(parser.parse_args())
