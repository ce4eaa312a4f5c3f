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
from cyclegan.steps import CHECKPOINT, check_crop, prepare, save_last, set_up, trainable
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import CycleGANConfig
from pipeline.data.listing import list_samples
from pipeline.data.spec import DatasetSpec
from pipeline.runtime.checkpoint import continuing
from pipeline.runtime.device import explain_memory, make_fabric
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.runtime.log import training_log
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
    writes and continues as it does, with the same arguments and errors; the translator has the
    same name in the checkpoint. Labels are read with `labels` alone.
    """
    check_crop(config)
    contrast = config.contrastive
    assert contrast is not None, "config.contrastive says how to compare"
    source_samples = list_samples(source, labelled=labels is not None)
    target_samples = list_samples(target, labelled=False)
    frames = max(len(source_samples), len(target_samples))

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
    training = prepare(
        networks, config, folder, fabric.device, frames=frames, say=ranks.is_rank_zero
    )
    steps = training.steps

    # Continue where an earlier run stopped.
    start = 0
    if (folder / CHECKPOINT).is_file():
        with continuing(folder / CHECKPOINT, steps, "cyclegan") as state:
            start = state["step"]
            training.load(state)

    source_to_target, heads, discriminator = set_up(
        fabric, compute, encoding, networks["heads"], networks["discriminator"]
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
            training.begin(step, ranks)
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
            updated = training.update(trained, step, names, ranks)

            # Records, on rank zero.
            if log is None:
                continue
            training.record(log, step, names, trained if updated else {})
            if training.due(step, config.sample_every):
                drawn = spread(source, source_samples), spread(target, target_samples)
                translator = training.translators["source_to_target"]
                training.sample(log, step, pair_grid(translator, *drawn))
            if training.due(step, config.checkpoint_every):
                save_last(folder, training.state(step))
            log.advance(1)
