"""Training on pairs (pix2pix): one loop, top to bottom."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cyclegan.data import pair_reader, pairs
from cyclegan.losses import discriminator_loss, gan_loss
from cyclegan.networks import build_discriminator, build_generator, to_network
from cyclegan.samples import pair_grid, spread
from cyclegan.steps import (
    CHECKPOINT,
    check_crop,
    decay,
    prepare,
    save_last,
    set_rate,
    trainable,
    update,
)
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import CycleGANConfig
from pipeline.data.images import write_image
from pipeline.data.spec import DatasetSpec
from pipeline.runtime.checkpoint import continuing
from pipeline.runtime.device import explain_memory, fused, make_fabric
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.runtime.loader import IndexedDataset, batches
from pipeline.runtime.log import check_finite, training_log
from pipeline.runtime.step import backward, seed_step


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

    Args:
        ranks: those that train these networks together. Each works on its shard of every batch;
            rank zero alone writes.

    Raises:
        UserError: no frames of equal name, a frame cannot be read, is smaller than the crop or of
            another size than its pair, or the crop is too small for the discriminator; training
            cannot start from `config.start`; losses stay not finite.
    """
    check_crop(config)
    source_samples, target_samples = pairs(source, target, say=ranks.is_rank_zero)
    steps_per_epoch = config.steps_per_epoch or -(-len(source_samples) // config.batch_size)
    steps = steps_per_epoch * (config.epochs + config.decay_epochs)

    # Networks and optimisers.
    fabric = make_fabric(compute, training=True, device=ranks.local_rank)
    seed_step(config.seed, 0)
    networks = {
        "source_to_target": build_generator(config),
        "discriminator": build_discriminator(config),
    }
    resuming = (folder / CHECKPOINT).is_file()
    training = prepare(networks, config, fabric.device, resuming=resuming, say=ranks.is_rank_zero)

    # Continue where an earlier run stopped.
    start = 0
    if resuming:
        with continuing(folder / CHECKPOINT, steps, "cyclegan") as state:
            start = state["step"]
            training.load(state)

    source_to_target, discriminator = (
        fabric.setup_module(fused(network) if compute.compile else network)
        for network in networks.values()
    )

    with ranks.rank_zero_first():  # fills the cache
        read = pair_reader(
            source, source_samples, target, target_samples, config.crop, compute.cache
        )
    loader = batches(
        IndexedDataset(read, len(source_samples), seed=config.seed, stream=1),
        first=start,
        last=steps,
        batch_size=config.batch_size,
        workers=compute.workers,
        pin=fabric.device.type == "cuda",
        shard=(ranks.rank, ranks.world_size),
    )
    kind = config.adversarial_loss

    images = config.batch_size
    with (
        training_log(folder, "pix2pix", steps, ranks, done=start, images_per_step=images) as log,
        explain_memory("cyclegan"),
    ):
        for step, batch in enumerate(loader, start + 1):
            rate = config.learning_rate * decay(step - 1, steps_per_epoch, config)
            set_rate(training.optimizers.values(), rate)
            seed_step(config.seed, step, ranks.rank)
            real_source = to_network(batch["source"].to(fabric.device, non_blocking=True))
            real_target = to_network(batch["target"].to(fabric.device, non_blocking=True))

            # Generator. The discriminator sees each picture with the frame it was made from.
            trainable([discriminator], False)
            losses: dict[str, Tensor] = {}
            fake_target = source_to_target(real_source)
            fake_pair = torch.cat([real_source, fake_target], 1)
            losses["gan_loss_G"] = gan_loss(discriminator(fake_pair), real=True, kind=kind)
            losses["pair_loss"] = config.paired_weight * F.l1_loss(fake_target, real_target)
            training.optimizers["generators"].zero_grad()
            trained = backward(fabric, losses)

            # Discriminator.
            trainable([discriminator], True)
            real_pair = torch.cat([real_source, real_target], 1)
            loss = discriminator_loss(discriminator, real_pair, fake_pair.detach(), kind)
            losses = {"discriminator_loss": loss}
            training.optimizers["discriminators"].zero_grad()
            trained |= backward(fabric, losses)

            names = list(batch["name"])
            updated = update(training, trained, config, step, names, ranks)

            # Records, on rank zero.
            if log is None:
                continue
            if updated:
                log.add(step, names, trained)
            last = step == steps
            save = last or step % config.checkpoint_every == 0
            if save:
                check_finite(networks.values(), step, names)
            if save or step % config.log_every == 0:
                log.flush(learning_rate=rate, skipped=training.skips.total)
            if last or step % config.sample_every == 0:
                grid = pair_grid(
                    training.translators["source_to_target"],
                    spread(source, source_samples),
                    spread(target, target_samples),
                )
                write_image(folder / "samples" / f"step-{step:07d}.png", grid)
                log.picture(step, "samples", grid)
            if save:
                save_last(folder, training.state(step, config))
            log.advance(1)
