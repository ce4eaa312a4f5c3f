"""A step of our CycleGAN training against a plain one, in one process, interleaved.

Ours is the loop that users run, with reading, image pool and log, in the precision that it takes on
this device. The plain step is the reference implementation's: nn.InstanceNorm2d, contiguous 32-bit
tensors, six passes of the generators, torch's default Adam, batches that lie ready. On a GPU it is
timed twice, the second time with TF32 and cudnn.benchmark.

Prints the median of the paired ratios plain / ours with minimum and maximum (above 1: ours is
faster), on a GPU also peak memory and the share of its peak arithmetic (`--peak`) that our step
reaches, and how much the process grows over our steps.

    OMP_NUM_THREADS=1 python benchmarks/cyclegan_step.py
    python benchmarks/cyclegan_step.py --blocks 9 --width 64 --size 1024x512   # on a GPU
"""

import argparse
import itertools
import resource
import tempfile
from functools import partial
from pathlib import Path

import torch
from steps import DEVICE, TrainingStep, compare, device_name
from torch import Tensor, nn
from torch.nn import functional as F

import cyclegan.train
from cyclegan.networks import (
    InstanceNorm,
    PictureConv,
    build_discriminator,
    build_generator,
    initialise,
    to_network,
)
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import CycleGANConfig
from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.toyworld.writing import write_toy_world


class PlainStep:
    """The reference's step, on two fixed batches and with the newest translations for a pool."""

    def __init__(self, config: CycleGANConfig, device: torch.device) -> None:
        networks = [build_generator(config), build_generator(config)]
        networks += [build_discriminator(config), build_discriminator(config)]
        for network in networks:
            initialise(with_torch_layers(network))
            network.to(device)
        self.g, self.f, self.d_x, self.d_y = networks
        betas = (0.5, 0.999)
        both = itertools.chain(self.g.parameters(), self.f.parameters())
        self.generators = torch.optim.Adam(both, 2e-4, betas)
        both = itertools.chain(self.d_x.parameters(), self.d_y.parameters())
        self.discriminators = torch.optim.Adam(both, 2e-4, betas)
        size = (2, config.batch_size, config.crop[1], config.crop[0], 3)
        pixels = torch.randint(0, 256, size, dtype=torch.uint8)
        self.x, self.y = (to_network(batch.to(device)).contiguous() for batch in pixels)

    def __call__(self) -> None:
        fake_y, fake_x = self.g(self.x), self.f(self.y)
        back_x, back_y = self.f(fake_y), self.g(fake_x)
        same_y, same_x = self.g(self.y), self.f(self.x)
        self.trainable(False)
        self.generators.zero_grad()
        loss = squared(self.d_y(fake_y), 1) + squared(self.d_x(fake_x), 1)
        loss = loss + 10 * (F.l1_loss(back_x, self.x) + F.l1_loss(back_y, self.y))
        loss = loss + 5 * (F.l1_loss(same_x, self.x) + F.l1_loss(same_y, self.y))
        loss.backward()
        self.generators.step()
        self.trainable(True)
        self.discriminators.zero_grad()
        for network, real, fake in ((self.d_y, self.y, fake_y), (self.d_x, self.x, fake_x)):
            loss = squared(network(real), 1) + squared(network(fake.detach()), 0)
            (0.5 * loss).backward()
        self.discriminators.step()

    def trainable(self, on: bool) -> None:
        """Freeze or thaw the discriminators."""
        self.d_x.requires_grad_(on)
        self.d_y.requires_grad_(on)


def squared(logits: Tensor, aim: float) -> Tensor:
    """The least-squares loss."""
    return F.mse_loss(logits, torch.full_like(logits, aim))


def with_torch_layers(network: nn.Module) -> nn.Module:
    """Replace our layers by torch's own, as the reference implementation has them."""
    channels = 0
    for name, child in network.named_children():
        if isinstance(child, InstanceNorm):
            setattr(network, name, nn.InstanceNorm2d(channels))
        elif isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
            channels = child.out_channels
            if isinstance(child, PictureConv):
                layer = nn.Conv2d(child.in_channels, channels, child.kernel_size)
                setattr(network, name, layer)
        else:
            with_torch_layers(child)
    return network


def main(options: argparse.Namespace) -> None:
    """Measure, and say on what."""
    width, height = map(int, options.size.split("x"))
    config = CycleGANConfig(
        blocks=options.blocks,
        generator_width=options.width,
        discriminator_width=options.width,
        crop=(width, height),
        batch_size=options.batch,
        checkpoint_every=10**9,
        sample_every=10**9,
        steps_per_epoch=10**6,
    )
    print(
        f"torch {torch.__version__}, {device_name()}; resnet_{options.blocks}, width "
        f"{options.width}, {width}x{height}, batch {options.batch}"
    )
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        size = (max(width, 128), max(height, 64))
        write_toy_world(world, sim_frames=4, real_train_frames=4, real_val_frames=1, size=size)
        compute = ComputeConfig(compile=options.compile, precision=options.precision)
        source = {"root": world / "toy-sim"} | spec_fields("gta5", Path())
        target = {"root": world / "toy-real", "split": "train"} | spec_fields("cityscapes", Path())
        specs = map(DatasetSpec.model_validate, (source, target))
        training = partial(cyclegan.train.train, config, *specs, Path(folder) / "run", compute)
        ours = TrainingStep(training)
        plain = PlainStep(config, DEVICE)
        compare(plain, ours, name="reference", pairs=options.pairs, peak=options.peak)
        if options.steps:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(options.steps):
                ours()
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(f"peak memory of the process over {options.steps} steps: +{grown / 1024:.1f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--size", default="128x128", help="crop, WIDTHxHEIGHT")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compute.compile of ours")
    parser.add_argument("--precision", default="auto", help="compute.precision of ours")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=0, help="further steps, for their memory")
    parser.add_argument("--peak", type=float, default=790, help="TFLOP/s of the GPU in bf16")
    main(parser.parse_args())
