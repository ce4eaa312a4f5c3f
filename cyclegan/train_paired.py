"""Training on pairs (pix2pix): one loop, top to bottom."""

import copy
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cyclegan.checkpoints import load_start
from cyclegan.data import pair_reader, pairs
from cyclegan.losses import critic_loss, gan_loss
from cyclegan.networks import build_discriminator, build_generator, initialise, to_network
from cyclegan.samples import pair_grid, spread
from cyclegan.steps import (
    CHECKPOINT,
    Skips,
    adam,
    check_crop,
    decay,
    is_finite,
    save_last,
    set_rate,
    trainable,
)
from pipeline.config.settings import ComputeConfig, CycleGANConfig
from pipeline.data.images import write_image
from pipeline.data.spec import DatasetSpec
from pipeline.progress import progress
from pipeline.runtime.checkpoint import continuing
from pipeline.runtime.device import explain_memory, fused, make_fabric
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.runtime.loader import Draws, batches
from pipeline.runtime.log import TrainingLog, check_finite
from pipeline.runtime.step import follow, seed_step


def train_paired(
    config: CycleGANConfig,
    source: DatasetSpec,
    target: DatasetSpec,
    folder: Path,
    compute: ComputeConfig,
    ranks: Ranks = ONE_RANK,
) -> None:
    """Train a source -> target translator on frames of equal name (Isola et al., 2017, eq. 4).

    Writes what `cyclegan.train.train` writes and continues as it does; the translator has the same
    name in the checkpoint. No label is read.

    Raises:
        UserError: no frames of equal name, a frame cannot be read, is smaller than the crop or of
            another size than its pair, or the crop is too small for the discriminator; training
            cannot start from `config.start`; losses stay not finite.
    """
    check_crop(config)
    source_samples, target_samples = pairs(source, target)
    steps_per_epoch = config.steps_per_epoch or -(-len(source_samples) // config.batch_size)
    steps = steps_per_epoch * (config.epochs + config.decay_epochs)

    # Networks and optimisers.
    fabric = make_fabric(compute, training=True)
    seed_step(config.seed, 0)
    generator = build_generator(config)
    networks = {"source_to_target": generator, "critic": build_discriminator(config)}
    for network in networks.values():
        initialise(network)
        network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.start is not None and not (folder / CHECKPOINT).is_file():
        for name, given in load_start(config, say=True).items():
            networks[name].load_state_dict(given)
    optimizers = {
        "generators": adam([generator], config.learning_rate),
        "critics": adam([networks["critic"]], config.learning_rate),
    }
    averages = {"source_to_target": copy.deepcopy(generator)} if config.generator_average else {}
    skips = Skips()

    # Continue where an earlier run stopped.
    start = 0
    if (folder / CHECKPOINT).is_file():
        with continuing(folder / CHECKPOINT, steps, "cyclegan") as state:
            start = state["step"]
            for name, network in networks.items():
                network.load_state_dict(state["networks"][name])
            for name, average in averages.items():
                average.load_state_dict(state["averages"][name])
            for name, optimizer in optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            skips = Skips(**state["skips"])

    source_to_target, critic = (
        fabric.setup_module(fused(network) if compute.compile else network)
        for network in networks.values()
    )

    read = pair_reader(source, source_samples, target, target_samples, config.crop, compute.cache)
    loader = batches(
        Draws(read, len(source_samples), seed=config.seed, stream=1),
        first=start,
        last=steps,
        batch_size=config.batch_size,
        workers=compute.workers,
        pin=fabric.device.type == "cuda",
    )
    kind = config.adversarial_loss

    with (
        TrainingLog(folder, step=start) as log,
        progress(
            folder, "pix2pix", steps, done=start, images_per_unit=config.batch_size
        ) as advance,
        explain_memory("cyclegan"),
    ):
        for step, batch in enumerate(loader, start + 1):
            rate = config.learning_rate * decay(step - 1, steps_per_epoch, config)
            set_rate(optimizers.values(), rate)
            seed_step(config.seed, step)
            real_source = to_network(batch["source"].to(fabric.device, non_blocking=True))
            real_target = to_network(batch["target"].to(fabric.device, non_blocking=True))

            # Generator. The discriminator sees each picture with the frame it was made from.
            trainable([critic], False)
            losses: dict[str, Tensor] = {}
            fake_target = source_to_target(real_source)
            fake_pair = torch.cat([real_source, fake_target], 1)
            losses["fool_critic"] = gan_loss(critic(fake_pair), real=True, kind=kind)
            losses["pair"] = config.paired_weight * F.l1_loss(fake_target, real_target)
            optimizers["generators"].zero_grad()
            fabric.backward(losses["fool_critic"] + losses["pair"])

            # Discriminator.
            trainable([critic], True)
            real_pair = torch.cat([real_source, real_target], 1)
            losses["critic"] = critic_loss(critic, real_pair, fake_pair.detach(), kind)
            optimizers["critics"].zero_grad()
            fabric.backward(losses["critic"])

            # Neither loss depends on the other's update, so both are judged before either is made.
            names = list(batch["name"])
            if is_finite(losses, networks.values()):
                skips.good()
                for optimizer in optimizers.values():
                    optimizer.step()
                for name, average in averages.items():
                    follow(average, networks[name], config.generator_average, step)
                log.add(step, names, losses)
            else:
                skips.skip(step, names, losses)

            last = step == steps
            save = last or step % config.checkpoint_every == 0
            if save or step % config.log_every == 0:
                log.flush(learning_rate=rate, skipped=skips.total)
            if last or step % config.sample_every == 0:
                grid = pair_grid(
                    averages.get("source_to_target", generator),
                    spread(source, source_samples),
                    spread(target, target_samples),
                )
                write_image(folder / "samples" / f"step-{step:07d}.png", grid)
                log.picture(step, "samples", grid)
            if save:
                check_finite(networks.values(), step, names)
                save_last(
                    folder,
                    {
                        "step": step,
                        "config": config.model_dump(mode="json"),
                        "networks": {k: v.state_dict() for k, v in networks.items()},
                        "averages": {k: v.state_dict() for k, v in averages.items()},
                        "optimizers": {k: v.state_dict() for k, v in optimizers.items()},
                        "skips": asdict(skips),
                    },
                )
            advance(1)
