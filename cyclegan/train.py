"""CycleGAN training: one loop, top to bottom."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.data import crop_reader
from cyclegan.networks import (
    PatchDiscriminator,
    ResnetGenerator,
    initialise,
    minimum_side,
    to_network,
)
from cyclegan.pool import ImagePool
from cyclegan.translate import translate_frame
from pipeline.config import ComputeConfig, CycleGANConfig
from pipeline.datasets import DatasetSpec, list_samples, read_frame
from pipeline.errors import UserError
from pipeline.images import UInt8, write_image
from pipeline.progress import progress
from pipeline.training import (
    Draws,
    TrainingLog,
    batches,
    check_finite,
    explain_memory,
    load_checkpoint,
    make_fabric,
    save_checkpoint,
    seed_step,
)

CHECKPOINT = Path("checkpoints") / "last.pt"
SAMPLE_FRAMES = 3


def train(
    config: CycleGANConfig,
    source: DatasetSpec,
    target: DatasetSpec,
    folder: Path,
    compute: ComputeConfig,
) -> None:
    """Train source -> target and target -> source translators (Zhu et al., ICCV 2017, eq. 3).

    Writes `checkpoints/last.pt`, `log.jsonl`, TensorBoard events and `samples/*.png` below
    `folder`, and continues from a checkpoint that is there. No label is read.

    Raises:
        UserError: a frame cannot be read or is smaller than the crop; a loss is not finite.
    """
    smallest = minimum_side(config.discriminator_layers)
    if min(config.crop) < smallest:
        raise UserError(
            f"cyclegan.crop {list(config.crop)} is smaller than the {smallest} pixels that "
            f"{config.discriminator_layers} discriminator layers need."
        )
    source_samples = list_samples(source, labelled=False)
    target_samples = list_samples(target, labelled=False)
    steps_per_epoch = config.steps_per_epoch or -(
        -max(len(source_samples), len(target_samples)) // config.batch_size
    )
    steps = steps_per_epoch * (config.epochs + config.decay_epochs)

    # Networks and optimisers.
    fabric = make_fabric(compute, training=True)
    seed_step(config.seed, 0)
    networks: dict[str, nn.Module] = {
        "source_to_target": ResnetGenerator(config.blocks, config.generator_width),
        "target_to_source": ResnetGenerator(config.blocks, config.generator_width),
        "source_critic": PatchDiscriminator(
            config.discriminator_layers, config.discriminator_width
        ),
        "target_critic": PatchDiscriminator(
            config.discriminator_layers, config.discriminator_width
        ),
    }
    for network in networks.values():
        initialise(network)
        network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    generators = [networks["source_to_target"], networks["target_to_source"]]
    critics = [networks["source_critic"], networks["target_critic"]]
    optimizers = {
        "generators": _adam(generators, config.learning_rate),
        "critics": _adam(critics, config.learning_rate),
    }
    pools = {"source": ImagePool(config.pool_size), "target": ImagePool(config.pool_size)}

    # Continue where an earlier run stopped.
    start = 0
    if (folder / CHECKPOINT).is_file():
        state = load_checkpoint(folder / CHECKPOINT)
        start = state["step"]
        for name, network in networks.items():
            network.load_state_dict(state["networks"][name])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, pool in pools.items():
            pool.images = [image.to(fabric.device) for image in state["pools"][name]]

    source_to_target = fabric.setup_module(networks["source_to_target"])
    target_to_source = fabric.setup_module(networks["target_to_source"])
    source_critic = fabric.setup_module(networks["source_critic"])
    target_critic = fabric.setup_module(networks["target_critic"])

    readers = [
        Draws(
            crop_reader(spec, samples, config.crop, compute.cache),
            len(samples),
            seed=config.seed,
            stream=i,
        )
        for i, (spec, samples) in enumerate(
            [(source, source_samples), (target, target_samples)], start=1
        )
    ]
    loaders = [
        batches(
            reader,
            first=start,
            last=steps,
            batch_size=config.batch_size,
            workers=compute.workers,
            pin=fabric.device.type == "cuda",
        )
        for reader in readers
    ]
    log = TrainingLog(folder, step=start)
    weight = config.cycle_weight

    with progress(folder, "CycleGAN", steps, done=start) as advance, explain_memory("cyclegan"):
        for step, (source_batch, target_batch) in enumerate(zip(*loaders, strict=True), start + 1):
            rate = config.learning_rate * decay(step - 1, steps_per_epoch, config)
            for optimizer in optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = rate
            seed_step(config.seed, step)
            real_source = to_network(source_batch["rgb"].to(fabric.device, non_blocking=True))
            real_target = to_network(target_batch["rgb"].to(fabric.device, non_blocking=True))

            # Generators. InstanceNorm keeps images of a batch apart, so each generator sees both
            # domains in one pass: one half is translated, the other is to stay as it is.
            _trainable(critics, False)
            losses: dict[str, Tensor] = {}
            if config.identity_weight > 0:
                fake_target, same_target = source_to_target(
                    torch.cat([real_source, real_target])
                ).chunk(2)
                fake_source, same_source = target_to_source(
                    torch.cat([real_target, real_source])
                ).chunk(2)
                identity = F.l1_loss(same_source, real_source) + F.l1_loss(same_target, real_target)
                losses["identity"] = weight * config.identity_weight * identity
            else:
                fake_target = source_to_target(real_source)
                fake_source = target_to_source(real_target)
            back_source, back_target = target_to_source(fake_target), source_to_target(fake_source)
            losses["cycle_source"] = weight * F.l1_loss(back_source, real_source)
            losses["cycle_target"] = weight * F.l1_loss(back_target, real_target)
            losses["fool_target_critic"] = gan_loss(target_critic(fake_target), real=True)
            losses["fool_source_critic"] = gan_loss(source_critic(fake_source), real=True)
            optimizers["generators"].zero_grad()
            fabric.backward(torch.stack(list(losses.values())).sum())
            optimizers["generators"].step()

            # Discriminators, on real images and on images from the pools.
            _trainable(critics, True)
            rng = np.random.default_rng([config.seed, 3, step])
            pooled_target = pools["target"].query(fake_target, rng)
            pooled_source = pools["source"].query(fake_source, rng)
            losses["target_critic"] = critic_loss(target_critic, real_target, pooled_target)
            losses["source_critic"] = critic_loss(source_critic, real_source, pooled_source)
            optimizers["critics"].zero_grad()
            fabric.backward(losses["target_critic"] + losses["source_critic"])
            optimizers["critics"].step()

            names = [*source_batch["name"], *target_batch["name"]]
            log.add(step, names, losses)
            last = step == steps
            save = last or step % config.checkpoint_every == 0
            if save or step % config.log_every == 0:
                log.flush(learning_rate=rate)
            if last or step % config.sample_every == 0:
                grid = sample_grid(
                    source_to_target,
                    target_to_source,
                    _spread(source, source_samples),
                    _spread(target, target_samples),
                )
                write_image(folder / "samples" / f"step-{step:07d}.png", grid)
                log.picture(step, "samples", grid)
            if save:
                check_finite(networks.values(), step, names)
                save_checkpoint(
                    folder / CHECKPOINT,
                    {
                        "step": step,
                        "config": config.model_dump(mode="json"),
                        "networks": {k: v.state_dict() for k, v in networks.items()},
                        "optimizers": {k: v.state_dict() for k, v in optimizers.items()},
                        "pools": {k: v.images for k, v in pools.items()},
                    },
                )
            advance(1)
    log.close()


def decay(step: int, steps_per_epoch: int, config: CycleGANConfig) -> float:
    """The learning rate's factor at a step (from 0): 1, then falling linearly epoch by epoch."""
    epoch = step // steps_per_epoch
    return 1 - max(0, epoch + 1 - config.epochs) / (config.decay_epochs + 1)


def gan_loss(logits: Tensor, *, real: bool) -> Tensor:
    """Least-squares GAN loss (Mao et al., ICCV 2017): mean((logits - 1)^2) or mean(logits^2)."""
    return (logits - 1).square().mean() if real else logits.square().mean()


def critic_loss(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of the losses on real and on translated images (N, 3, H, W), in one pass."""
    on_real, on_fake = critic(torch.cat([real, fake])).chunk(2)
    return 0.5 * (gan_loss(on_real, real=True) + gan_loss(on_fake, real=False))


def sample_grid(
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
    for source, target in zip(source_frames, target_frames, strict=False):
        fake_target = translate_frame(source_to_target, source)
        fake_source = translate_frame(target_to_source, target)
        there = [source, fake_target, translate_frame(target_to_source, fake_target)]
        back = [target, fake_source, translate_frame(source_to_target, fake_source)]
        rows.append(_beside([*there, *back]))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([_pad_to(row, row.shape[0], width) for row in rows])


def _beside(pictures: list[UInt8]) -> UInt8:
    height = max(picture.shape[0] for picture in pictures)
    return np.concatenate([_pad_to(p, height, p.shape[1]) for p in pictures], axis=1)


def _pad_to(picture: UInt8, height: int, width: int) -> UInt8:
    return np.pad(picture, ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)))


def _spread(spec: DatasetSpec, samples: list[Any]) -> list[UInt8]:
    """A few frames from all over the set, always the same."""
    count = min(SAMPLE_FRAMES, len(samples))
    return [read_frame(spec, samples[i * len(samples) // count]) for i in range(count)]


def _trainable(networks: list[nn.Module], on: bool) -> None:
    for network in networks:
        network.requires_grad_(on)


def _adam(networks: list[nn.Module], rate: float) -> torch.optim.Adam:
    parameters = [p for network in networks for p in network.parameters()]
    return torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.999), fused=True)
