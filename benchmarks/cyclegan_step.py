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
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cyclegan.train
from cyclegan.networks import (
    InstanceNorm,
    build_discriminator,
    build_generator,
    initialise,
    to_network,
)
from pipeline.config import ComputeConfig, CycleGANConfig
from pipeline.datasets import DatasetSpec, spec_fields
from pipeline.toyworld import write_toy_world

WARM_UP = 3
CUDA = torch.cuda.is_available()


class OurStep:
    """`cyclegan.train.train` in a thread of its own, held at the end of each step."""

    def __init__(
        self, config: CycleGANConfig, world: Path, folder: Path, compute: ComputeConfig
    ) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        cyclegan.train.progress = self.held  # type: ignore[assignment]
        source = {"root": world / "toy-sim"} | spec_fields("gta5", Path())
        target = {"root": world / "toy-real", "split": "train"} | spec_fields("cityscapes", Path())
        specs = map(DatasetSpec.model_validate, (source, target))
        arguments = (config, *specs, folder, compute)
        threading.Thread(target=cyclegan.train.train, args=arguments, daemon=True).start()
        self.done.acquire()

    @contextmanager
    def held(self, *arguments: Any, **named: Any) -> Iterator[Callable[[int], None]]:
        """In place of the progress bar."""

        def advance(count: int) -> None:
            self.done.release()
            self.go.acquire()

        advance(0)
        yield advance

    def __call__(self) -> None:
        self.go.release()
        self.done.acquire()


class PlainStep:
    """The reference's step, on two fixed batches and with the newest translations for a pool."""

    def __init__(self, config: CycleGANConfig, device: torch.device) -> None:
        networks = [build_generator(config), build_generator(config)]
        networks += [build_discriminator(config), build_discriminator(config)]
        for network in networks:
            initialise(network)
            with_torch_norm(network).to(device)
        self.g, self.f, self.d_x, self.d_y = networks
        betas = (0.5, 0.999)
        both = itertools.chain(self.g.parameters(), self.f.parameters())
        self.generators = torch.optim.Adam(both, 2e-4, betas)
        both = itertools.chain(self.d_x.parameters(), self.d_y.parameters())
        self.critics = torch.optim.Adam(both, 2e-4, betas)
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
        self.critics.zero_grad()
        for critic, real, fake in ((self.d_y, self.y, fake_y), (self.d_x, self.x, fake_x)):
            loss = squared(critic(real), 1) + squared(critic(fake.detach()), 0)
            (0.5 * loss).backward()
        self.critics.step()

    def trainable(self, on: bool) -> None:
        """Freeze or thaw the discriminators."""
        self.d_x.requires_grad_(on)
        self.d_y.requires_grad_(on)


def squared(logits: Tensor, aim: float) -> Tensor:
    """The least-squares loss."""
    return F.mse_loss(logits, torch.full_like(logits, aim))


def with_torch_norm(network: nn.Module) -> nn.Module:
    """Replace our norm by nn.InstanceNorm2d, as the reference implementation has it."""
    channels = 0
    for name, child in network.named_children():
        if isinstance(child, InstanceNorm):
            setattr(network, name, nn.InstanceNorm2d(channels))
        elif isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
            channels = child.out_channels
        else:
            with_torch_norm(child)
    return network


def seconds(step: Callable[[], None], *, tuned: bool = False) -> float:
    """Time of one step, to its end on the device; on the CPU, of the process, others' left out.

    Args:
        tuned: with the two switches that are often recommended.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tuned
    torch.backends.cudnn.benchmark = tuned
    clock = time.perf_counter if CUDA else time.process_time
    start = clock()
    step()
    if CUDA:
        torch.cuda.synchronize()
    return clock() - start


def peak_memory(step: Callable[[], None]) -> float:
    """Peak GiB on the GPU during one step, both trainings' weights included."""
    torch.cuda.reset_peak_memory_stats()
    seconds(step)
    return torch.cuda.max_memory_allocated() / 2**30


def show(name: str, ratios: list[float]) -> None:
    """The median of paired ratios, and how far they spread."""
    print(
        f"{name}: {statistics.median(ratios):.2f}x "
        f"(min {min(ratios):.2f}, max {max(ratios):.2f}, {len(ratios)} pairs)"
    )


def arithmetic(plain: PlainStep) -> int:
    """Floating-point operations of a step, a multiplication and an addition counted as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        plain()
    return counter.get_total_flops()


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
    device = torch.device("cuda" if CUDA else "cpu")
    name = torch.cuda.get_device_name() if CUDA else f"{torch.get_num_threads()} CPU thread(s)"
    print(
        f"torch {torch.__version__}, {name}; resnet_{options.blocks}, width {options.width}, "
        f"{width}x{height}, batch {options.batch}"
    )
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        size = (max(width, 128), max(height, 64))
        write_toy_world(world, sim_frames=4, real_train_frames=4, real_val_frames=1, size=size)
        compute = ComputeConfig(compile=options.compile, precision=options.precision)
        ours = OurStep(config, world, Path(folder) / "run", compute)
        plain = PlainStep(config, device)
        for _ in range(WARM_UP):
            seconds(ours)
            seconds(plain)
        pairs = [(seconds(plain), seconds(ours)) for _ in range(options.pairs)]
        show("reference, torch's defaults", [a / b for a, b in pairs])
        if CUDA:
            for _ in range(WARM_UP):
                seconds(plain, tuned=True)
            tuned = [(seconds(plain, tuned=True), seconds(ours)) for _ in range(options.pairs)]
            show("reference, TF32 and cudnn.benchmark", [a / b for a, b in tuned])
            print(f"peak memory: plain {peak_memory(plain):.2f}, ours {peak_memory(ours):.2f} GiB")
            own = statistics.median(b for _, b in pairs)
            share = arithmetic(plain) / own / (options.peak * 1e12)
            print(f"our step: {own * 1e3:.1f} ms, {share:.0%} of {options.peak:.0f} TFLOP/s")
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
