"""CycleGAN training: one loop, top to bottom."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cyclegan.data import DomainLabels, unpaired
from cyclegan.discriminators import FrozenEncoder, domain_discriminator, with_classes
from cyclegan.losses import discriminator_loss, gan_loss
from cyclegan.networks import build_generator, to_network
from cyclegan.pool import ImagePool
from cyclegan.samples import cycle_grid, spread
from cyclegan.semantics import (
    Leaderboard,
    SemanticEvaluator,
    make_probe,
    pseudo_labels,
    semantic_loss,
)
from cyclegan.steps import (
    CHECKPOINT,
    check_crop,
    prepare,
    save_best,
    save_last,
    set_up,
    trainable,
)
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import CycleGANConfig
from pipeline.data.listing import list_samples
from pipeline.data.spec import DatasetSpec
from pipeline.runtime.checkpoint import continuing
from pipeline.runtime.device import explain_memory, make_fabric
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.runtime.log import training_log
from pipeline.runtime.step import backward, seed_step, state_of


def train(
    config: CycleGANConfig,
    source: DatasetSpec,
    target: DatasetSpec,
    folder: Path,
    compute: ComputeConfig,
    evaluator_on: Callable[[torch.device], SemanticEvaluator] | None = None,
    ranks: Ranks = ONE_RANK,
    *,
    encoder_on: Callable[[torch.device], FrozenEncoder] | None = None,
    labels: DomainLabels | None = None,
) -> None:
    """Train source -> target and target -> source translators (Zhu et al., ICCV 2017, eq. 3).

    Writes `checkpoints/last.pt`, `log.jsonl`, TensorBoard events and `samples/*.png` below
    `folder`, and continues from a checkpoint that is there. With a semantic evaluator also
    `leaderboard.csv`, `drift.json` and `checkpoints/best.pt`. No label of the target is read, and
    of the source only with an evaluator or `labels`.

    Args:
        evaluator_on: makes the semantic evaluator that `config.semantics` asks for on a device.
        ranks: those that train these networks together. Each works on its shard of every batch;
            rank zero alone writes.
        encoder_on: makes the encoder that `config.feature_encoder` asks for on a device.
        labels: what `config.label_discriminators` and `config.matched_crops` read.

    Raises:
        UserError: a frame cannot be read or is smaller than the crop, or the crop too small for
            the discriminators; training cannot start from `config.start`; losses stay not finite.
    """
    check_crop(config)
    semantics = config.semantics
    source_samples = list_samples(source, labelled=semantics is not None or labels is not None)
    target_samples = list_samples(target, labelled=False)
    frames = max(len(source_samples), len(target_samples))

    # Networks and optimisers.
    fabric = make_fabric(compute, training=True, device=ranks.local_rank)
    encoder = encoder_on(fabric.device) if encoder_on else None
    space, pseudo = (labels.space, labels.pseudo_labels) if labels else (None, None)
    seed_step(config.seed, 0)
    networks = {
        "source_to_target": build_generator(config),
        "target_to_source": build_generator(config),
        "source_discriminator": domain_discriminator(config, encoder, space),
        "target_discriminator": domain_discriminator(config, encoder, space),
    }
    training = prepare(
        networks, config, folder, fabric.device, frames=frames, say=ranks.is_rank_zero
    )
    steps = training.steps
    pools = {"source": ImagePool(config.pool_size), "target": ImagePool(config.pool_size)}
    leaderboard = Leaderboard()
    best: dict[str, object] = {}

    # Continue where an earlier run stopped.
    start = 0
    if (folder / CHECKPOINT).is_file():
        with continuing(folder / CHECKPOINT, steps, "cyclegan") as state:
            start = state["step"]
            training.load(state)
            for name, pool in pools.items():
                pool.images = [image.to(fabric.device) for image in state["pools"][name]]
            leaderboard = Leaderboard(**state["leaderboard"])
            best = state["best"]
            if ranks.is_rank_zero:
                save_best(folder, state)
                leaderboard.write(folder)

    source_to_target, target_to_source, source_discriminator, target_discriminator = set_up(
        fabric, compute, *networks.values()
    )
    discriminators = [source_discriminator, target_discriminator]

    evaluator = probe = None
    consistent = semantics is not None and semantics.consistency > 0
    if semantics is not None:
        assert evaluator_on is not None, "config.semantics asks for a semantic evaluator"
        evaluator = evaluator_on(fabric.device)
        if ranks.is_rank_zero:
            probe = make_probe(
                evaluator, source, source_samples, target, target_samples, semantics, fabric.device
            )
    # Labels are read where a loss, a discriminator or the choice of crops needs them.
    if evaluator and consistent:
        space = evaluator.space
    crops = unpaired(
        config,
        [(source, source_samples, space), (target, target_samples, pseudo)],
        compute,
        ranks,
        first=start,
        last=steps,
        pin=fabric.device.type == "cuda",
    )
    weight, kind = config.cycle_weight, config.adversarial_loss

    images = 2 * config.batch_size
    with (
        training_log(folder, "CycleGAN", steps, ranks, done=start, images_per_step=images) as log,
        explain_memory("cyclegan"),
    ):
        for step, (source_batch, target_batch) in enumerate(crops, start + 1):
            training.begin(step, ranks)
            real_source = to_network(source_batch["rgb"].to(fabric.device, non_blocking=True))
            real_target = to_network(target_batch["rgb"].to(fabric.device, non_blocking=True))

            # Generators. InstanceNorm keeps images of a batch apart, so each generator sees both
            # domains in one pass: one half is translated, the other is to stay as it is.
            trainable(discriminators, False)
            losses: dict[str, Tensor] = {}
            if config.identity_weight > 0:
                fake_target, same_target = source_to_target(
                    torch.cat([real_source, real_target])
                ).chunk(2)
                fake_source, same_source = target_to_source(
                    torch.cat([real_target, real_source])
                ).chunk(2)
                identity = F.l1_loss(same_source, real_source) + F.l1_loss(same_target, real_target)
                losses["identity_loss"] = weight * config.identity_weight * identity
            else:
                fake_target = source_to_target(real_source)
                fake_source = target_to_source(real_target)
            back_source, back_target = target_to_source(fake_target), source_to_target(fake_source)
            losses["cycle_loss_source"] = weight * F.l1_loss(back_source, real_source)
            losses["cycle_loss_target"] = weight * F.l1_loss(back_target, real_target)
            seen_target = with_classes(config, fake_target, source_batch)
            seen_source = with_classes(config, fake_source, target_batch)
            losses["gan_loss_G"] = gan_loss(target_discriminator(seen_target), real=True, kind=kind)
            losses["gan_loss_F"] = gan_loss(source_discriminator(seen_source), real=True, kind=kind)
            if evaluator and semantics:
                with fabric.autocast():
                    if consistent:
                        classes = source_batch["classes"].to(fabric.device, non_blocking=True)
                        loss = semantic_loss(evaluator.segmenter, fake_target, classes, ranks)
                        losses["semantic_loss_source"] = semantics.consistency * loss
                    if semantics.target_consistency > 0:
                        classes = pseudo_labels(evaluator.segmenter, real_target)
                        loss = semantic_loss(evaluator.segmenter, fake_source, classes, ranks)
                        losses["semantic_loss_target"] = semantics.target_consistency * loss
            training.optimizers["generators"].zero_grad()
            trained = backward(fabric, losses)

            # Discriminators, on real images and on images from the pools, which see whole batches.
            trainable(discriminators, True)
            rng = np.random.default_rng([config.seed, 3, step])
            pooled_before = {name: list(pool.images) for name, pool in pools.items()}
            pooled_target = pools["target"].query(ranks.all_gather(seen_target), rng)
            pooled_source = pools["source"].query(ranks.all_gather(seen_source), rng)
            losses = {
                f"discriminator_loss_{name}": discriminator_loss(
                    discriminator, with_classes(config, real, batch), ranks.shard(pooled), kind
                )
                for name, discriminator, real, batch, pooled in (
                    ("target", target_discriminator, real_target, target_batch, pooled_target),
                    ("source", source_discriminator, real_source, source_batch, pooled_source),
                )
            }
            training.optimizers["discriminators"].zero_grad()
            trained |= backward(fabric, losses)

            names = [*source_batch["name"], *target_batch["name"]]
            updated = training.update(trained, step, names, ranks)
            if not updated:
                for name, pool in pools.items():
                    pool.images = pooled_before[name]

            # Records, on rank zero.
            if log is None:
                continue
            save, translators = training.due(step, config.checkpoint_every), training.translators
            scores: dict[str, float] = {}
            if save and probe:
                score = probe.score(translators["source_to_target"])
                if leaderboard.add(step, score, probe.evaluator):
                    best = {"step": step, "networks": copy.deepcopy(state_of(translators))}
                scores = score.row()
            training.record(log, step, names, trained if updated else {}, **scores)
            if training.due(step, config.sample_every):
                shown = spread(source, source_samples), spread(target, target_samples)
                both = translators["source_to_target"], translators["target_to_source"]
                training.sample(log, step, cycle_grid(*both, *shown))
            if save:
                state = training.state(step) | {
                    "pools": {name: pool.images for name, pool in pools.items()},
                    "leaderboard": asdict(leaderboard),
                    "best": best,
                }
                save_last(folder, state)
                save_best(folder, state)
                leaderboard.write(folder)
            log.advance(1)
