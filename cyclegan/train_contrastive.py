"""One-sided contrastive training (CUT and FastCUT): one loop, top to bottom."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cyclegan.contrastive import EncodingGenerator, PatchHeads, draw_places
from cyclegan.data import DomainLabels, unpaired
from cyclegan.discriminators import FrozenEncoder, domain_discriminator, with_classes
from cyclegan.losses import contrastive_loss, discriminator_loss, gan_loss
from cyclegan.networks import ResnetGenerator, build_generator, to_network
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
from pipeline.data.listing import list_samples
from pipeline.data.spec import DatasetSpec
from pipeline.runtime.checkpoint import continuing
from pipeline.runtime.device import explain_memory, fused, make_fabric
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.runtime.log import check_finite, training_log
from pipeline.runtime.step import backward, seed_step


def train_contrastive(
    config: CycleGANConfig,
    source: DatasetSpec,
    target: DatasetSpec,
    folder: Path,
    compute: ComputeConfig,
    ranks: Ranks = ONE_RANK,
    *,
    encoder_on: Callable[[torch.device], FrozenEncoder] | None = None,
    labels: DomainLabels | None = None,
) -> None:
    """Train a source -> target translator by contrastive learning (Park et al., ECCV 2020).

    `config.contrastive` says how its parts are weighed, as in the authors' code. The generator is
    CycleGAN's, without the antialiasing that the authors added. Writes what `cyclegan.train.train`
    writes and continues as it does; the translator has the same name in the checkpoint. Labels are
    read with `labels` alone.

    Args:
        ranks: those that train these networks together. Each works on its shard of every batch;
            rank zero alone writes.
        encoder_on: makes the encoder that `config.feature_encoder` asks for on a device.
        labels: what `config.label_discriminators` and `config.matched_crops` read.

    Raises:
        UserError: a frame cannot be read or is smaller than the crop, or the crop too small for
            the discriminator; training cannot start from `config.start`; losses stay not finite.
    """
    check_crop(config)
    contrast = config.contrastive
    assert contrast is not None, "config.contrastive says how to compare"
    source_samples = list_samples(source, labelled=labels is not None)
    target_samples = list_samples(target, labelled=False)
    steps_per_epoch = config.steps_per_epoch or -(
        -max(len(source_samples), len(target_samples)) // config.batch_size
    )
    steps = steps_per_epoch * (config.epochs + config.decay_epochs)

    # Networks and optimisers.
    fabric = make_fabric(compute, training=True, device=ranks.local_rank)
    encoder = encoder_on(fabric.device) if encoder_on else None
    space, pseudo = (labels.space, labels.pseudo_labels) if labels else (None, None)
    seed_step(config.seed, 0)
    generator = build_generator(config)
    assert isinstance(generator, ResnetGenerator), "config.contrastive is for resnet generators"
    encoding = EncodingGenerator(generator)
    networks = {
        "source_to_target": generator,
        "heads": PatchHeads(encoding.channels),
        "discriminator": domain_discriminator(config, encoder, space),
    }
    resuming = (folder / CHECKPOINT).is_file()
    training = prepare(networks, config, fabric.device, resuming=resuming, say=ranks.is_rank_zero)

    # Continue where an earlier run stopped.
    start = 0
    if resuming:
        with continuing(folder / CHECKPOINT, steps, "cyclegan") as state:
            start = state["step"]
            training.load(state)

    source_to_target, heads, discriminator = (
        fabric.setup_module(fused(network) if compute.compile else network)
        for network in (encoding, networks["heads"], networks["discriminator"])
    )
    crops = unpaired(
        config,
        [(source, source_samples, space), (target, target_samples, pseudo)],
        compute,
        ranks,
        first=start,
        last=steps,
        pin=fabric.device.type == "cuda",
    )
    kind = config.adversarial_loss

    images = 2 * config.batch_size
    with (
        training_log(folder, "CUT", steps, ranks, done=start, images_per_step=images) as log,
        explain_memory("cyclegan"),
    ):
        for step, (source_batch, target_batch) in enumerate(crops, start + 1):
            rate = config.learning_rate * decay(step - 1, steps_per_epoch, config)
            set_rate(training.optimizers.values(), rate)
            seed_step(config.seed, step, ranks.rank)
            rng = np.random.default_rng([config.seed, 3, step])
            real_source = to_network(source_batch["rgb"].to(fabric.device, non_blocking=True))
            real_target = to_network(target_batch["rgb"].to(fabric.device, non_blocking=True))

            # Generator and heads. Features of what is translated are known from translating it.
            trainable([discriminator], False)
            shown = torch.cat([real_source, real_target]) if contrast.identity else real_source
            *made_from, translated = source_to_target(shown)
            if contrast.flip_equivariance and rng.random() < 0.5:
                with torch.no_grad():
                    mirrored = source_to_target(shown.flip(3), translate=False)
                made_from = [layer.flip(3) for layer in mirrored]
            made = source_to_target(translated, translate=False)
            places = draw_places(made, contrast.patches, rng)
            with torch.no_grad():
                keys = heads(made_from, places)
            queries = heads(made, places)
            # Of both halves, where target frames are shown, too: the mean of their losses.
            similar = contrastive_loss(queries, keys, contrast.temperature)
            fake_target = with_classes(config, translated[: len(real_source)], source_batch)
            losses: dict[str, Tensor] = {
                "gan_loss_G": gan_loss(discriminator(fake_target), real=True, kind=kind),
                "contrastive_loss": contrast.weight * similar.mean(),
            }
            training.optimizers["generators"].zero_grad()
            trained = backward(fabric, losses)

            # Discriminator.
            trainable([discriminator], True)
            real = with_classes(config, real_target, target_batch)
            loss = discriminator_loss(discriminator, real, fake_target.detach(), kind)
            losses = {"discriminator_loss": loss}
            training.optimizers["discriminators"].zero_grad()
            trained |= backward(fabric, losses)

            names = [*source_batch["name"], *target_batch["name"]]
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
