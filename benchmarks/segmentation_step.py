"""A step of our segmentation training against a plain one, in one process, interleaved.

Ours is the loop that users run, with log and augmentation, in the precision that it takes on this
device; frames are read ahead by processes, whose time a CPU's row leaves out. The plain step has
the same network, contiguous 32-bit tensors, torch's default AdamW and cross-entropy, and a batch
that lies ready. On a GPU it is timed twice, the second time with TF32 and cudnn.benchmark.

Prints the median of the paired ratios plain / ours with minimum and maximum (above 1: ours is
faster), on a GPU also peak memory and the share of its peak arithmetic (`--peak`) that our step
reaches.

    OMP_NUM_THREADS=1 python benchmarks/segmentation_step.py
    python benchmarks/segmentation_step.py --recipe deeplabv3plus_r101 --workers 12   # on a GPU
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from steps import DEVICE, TrainingStep, compare, device_name
from torch.nn import functional as F

import segmentation.train
from pipeline.config.load import recipes
from pipeline.config.segmentation import SegmentationConfig
from pipeline.config.settings import ComputeConfig
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.toyworld.writing import write_toy_world
from pipeline.yaml_files import read_yaml
from segmentation.models import build_model

SPACE = load_label_space("cityscapes19")


class PlainStep:
    """What one writes first, on a fixed batch."""

    def __init__(self, config: SegmentationConfig, device: torch.device) -> None:
        segmenter = build_model(config, len(SPACE.classes), pretrained=False)
        self.network = segmenter.network.to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.learning_rate)
        size = (config.batch_size, config.crop[1], config.crop[0])
        pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        x = (pixels / 255 - segmenter.mean) / segmenter.std
        self.x = x.contiguous().to(device)
        self.label = torch.randint(0, len(SPACE.classes), size, device=device)

    def __call__(self) -> None:
        loss = F.cross_entropy(self.network(self.x), self.label, ignore_index=IGNORE)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def main(options: argparse.Namespace) -> None:
    """Measure, and say on what."""
    width, height = map(int, options.size.split("x"))
    fields = {"architecture": "deeplabv3plus", "encoder": "resnet18", "crop": (width, height)}
    fields |= {"batch_size": options.batch}
    if options.recipe:
        fields = read_yaml(recipes()[options.recipe])
    rest = {"encoder_weights": "none", "steps": 10**6, "checkpoint_every": 10**9}
    config = SegmentationConfig.model_validate(fields | rest)
    width, height = config.crop
    print(
        f"torch {torch.__version__}, {device_name()}; {config.architecture}, {config.encoder}, "
        f"{width}x{height}, batch {config.batch_size}"
    )
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        size = (width, height)
        write_toy_world(world, sim_frames=4, real_train_frames=1, real_val_frames=1, size=size)
        fields = {"root": world / "toy-sim"} | spec_fields("gta5", Path())
        frames = [(DatasetSpec.model_validate(fields), 1.0)]
        compute = ComputeConfig(
            compile=options.compile, precision=options.precision, workers=options.workers
        )
        run = Path(folder) / "run"
        training = partial(segmentation.train.train, config, SPACE, frames, 0, run, compute)
        ours = TrainingStep(training)
        plain = PlainStep(config, DEVICE)
        compare(plain, ours, name="plain loop", pairs=options.pairs, peak=options.peak)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=list(recipes()), help="its network, crop and batch")
    parser.add_argument("--size", default="256x128", help="crop, WIDTHxHEIGHT")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="compute.workers of ours")
    parser.add_argument("--compile", action="store_true", help="compute.compile of ours")
    parser.add_argument("--precision", default="auto", help="compute.precision of ours")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--peak", type=float, default=790, help="TFLOP/s of the GPU in bf16")
    main(parser.parse_args())
