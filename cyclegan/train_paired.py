"""Training on pairs (pix2pix): one loop, top to bottom."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cyclegan.data import pair_reader, pairs
from cyclegan.losses import discriminator_loss, gan_loss
from cyclegan.networks import build_discriminator, build_generator, to_network
from cyclegan.samples import pair_grid, spread
from cyclegan.steps import CHECKPOINT, check_crop, prepare, save_last, set_up, trainable
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import CycleGANConfig
from pipeline.data.spec import DatasetSpec
from pipeline.runtime.checkpoint import continuing
from pipeline.runtime.device import explain_memory, make_fabric
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.runtime.loader import IndexedDataset, batches
from pipeline.runtime.log import training_log
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

    # Networks and optimisers.
    fabric = make_fabric(compute, training=True, device=ranks.local_rank)
    seed_step(config.seed, 0)
    networks = {
        "source_to_target": build_generator(config),
        "discriminator": build_discriminator(config),
    }
    training = prepare(
        networks, config, folder, fabric.device, frames=len(source_samples), say=ranks.is_rank_zero
    )
    steps = training.steps

    # Continue where an earlier run stopped.
    start = 0
    if (folder / CHECKPOINT).is_file():
        with continuing(folder / CHECKPOINT, steps, "cyclegan") as state:
            start = state["step"]
            training.load(state)

    source_to_target, discriminator = set_up(fabric, compute, *networks.values())
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
            training.begin(step, ranks)
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
            updated = training.update(trained, step, names, ranks)

            # Records, on rank zero.
            if log is None:
                continue
            training.record(log, step, names, trained if updated else {})
            if training.due(step, config.sample_every):
                shown = spread(source, source_samples), spread(target, target_samples)
                translator = training.translators["source_to_target"]
                training.sample(log, step, pair_grid(translator, *shown))
            if training.due(step, config.checkpoint_every):
                save_last(folder, training.state(step))
            log.advance(1)
