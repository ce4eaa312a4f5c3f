"""CycleGAN training: one loop, top to bottom."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.checkpoints import load_start
from cyclegan.data import crop_reader
from cyclegan.losses import critic_loss, gan_loss
from cyclegan.networks import build_discriminator, build_generator, initialise, to_network
from cyclegan.pool import ImagePool
from cyclegan.reference import GENERATORS
from cyclegan.samples import cycle_grid, spread
from cyclegan.semantics import Judge, Leaderboard, make_probe, pseudo_classes, semantic_loss
from cyclegan.steps import (
    CHECKPOINT,
    Skips,
    adam,
    check_crop,
    decay,
    is_finite,
    save_best,
    save_last,
    set_rate,
    trainable,
)
from pipeline.config.settings import ComputeConfig, CycleGANConfig
from pipeline.data.images import write_image
from pipeline.data.listing import list_samples
from pipeline.data.spec import DatasetSpec
from pipeline.progress import progress
from pipeline.runtime.checkpoint import continuing
from pipeline.runtime.device import explain_memory, fused, make_fabric
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.runtime.loader import Draws, batches
from pipeline.runtime.log import TrainingLog, check_finite
from pipeline.runtime.step import follow, gradients, seed_step


def train(
    config: CycleGANConfig,
    source: DatasetSpec,
    target: DatasetSpec,
    folder: Path,
    compute: ComputeConfig,
    judge_on: Callable[[torch.device], Judge] | None = None,
    ranks: Ranks = ONE_RANK,
) -> None:
    """Train source -> target and target -> source translators (Zhu et al., ICCV 2017, eq. 3).

    Writes `checkpoints/last.pt`, `log.jsonl`, TensorBoard events and `samples/*.png` below
    `folder`, and continues from a checkpoint that is there. With a judge also `leaderboard.csv`,
    `drift.json` and `checkpoints/best.pt`. No label of the target is read, and of the source only
    with a judge.

    Args:
        judge_on: makes the judge that `config.semantics` asks for on a device.
        ranks: those that train these networks together. Each works on its shard of every batch;
            rank zero alone writes.

    Raises:
        UserError: a frame cannot be read or is smaller than the crop, or the crop too small for
            the discriminators; training cannot start from `config.start`; losses stay not finite.
    """
    check_crop(config)
    semantics = config.semantics
    source_samples = list_samples(source, labelled=semantics is not None)
    target_samples = list_samples(target, labelled=False)
    steps_per_epoch = config.steps_per_epoch or -(
        -max(len(source_samples), len(target_samples)) // config.batch_size
    )
    steps = steps_per_epoch * (config.epochs + config.decay_epochs)

    # Networks and optimisers.
    fabric = make_fabric(compute, training=True, device=ranks.local_rank)
    seed_step(config.seed, 0)
    networks: dict[str, nn.Module] = {
        "source_to_target": build_generator(config),
        "target_to_source": build_generator(config),
        "source_critic": build_discriminator(config),
        "target_critic": build_discriminator(config),
    }
    for network in networks.values():
        initialise(network)
        network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.start is not None and not (folder / CHECKPOINT).is_file():
        for name, given in load_start(config, say=ranks.is_rank_zero).items():
            networks[name].load_state_dict(given)
    generators = [networks["source_to_target"], networks["target_to_source"]]
    critics = [networks["source_critic"], networks["target_critic"]]
    optimizers = {
        "generators": adam(generators, config.learning_rate),
        "critics": adam(critics, config.learning_rate),
    }
    averages = {
        name: copy.deepcopy(networks[name]) for name in GENERATORS if config.generator_average > 0
    }
    pools = {"source": ImagePool(config.pool_size), "target": ImagePool(config.pool_size)}
    skips = Skips()
    leaderboard = Leaderboard()
    best: dict[str, Any] = {}

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
            for name, pool in pools.items():
                pool.images = [image.to(fabric.device) for image in state["pools"][name]]
            skips = Skips(**state["skips"])
            leaderboard = Leaderboard(**state["leaderboard"])
            best = state["best"]
            if ranks.is_rank_zero:
                save_best(folder, state)
                leaderboard.write(folder)

    source_to_target, target_to_source, source_critic, target_critic = (
        fabric.setup_module(fused(network) if compute.compile else network)
        for network in networks.values()
    )

    judge = probe = None
    consistent = semantics is not None and semantics.consistency > 0
    if semantics is not None:
        assert judge_on is not None, "config.semantics asks for a judge"
        judge = judge_on(fabric.device)
        if ranks.is_rank_zero:
            probe = make_probe(
                judge, source, source_samples, target, target_samples, semantics, fabric.device
            )
    with ranks.rank_zero_first():  # fills the cache
        readers = [
            Draws(
                crop_reader(spec, samples, config.crop, compute.cache, space),
                len(samples),
                seed=config.seed,
                stream=i,
            )
            for i, (spec, samples, space) in enumerate(
                [
                    # Labels are read where something is learnt from them.
                    (source, source_samples, judge.space if judge and consistent else None),
                    (target, target_samples, None),
                ],
                start=1,
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
            shard=(ranks.rank, ranks.world_size),
        )
        for reader in readers
    ]
    weight, kind = config.cycle_weight, config.adversarial_loss

    with (
        ranks.on_rank_zero(lambda: TrainingLog(folder, step=start)) as log,
        ranks.on_rank_zero(
            lambda: progress(
                folder, "CycleGAN", steps, done=start, images_per_unit=2 * config.batch_size
            )
        ) as advance,
        explain_memory("cyclegan"),
    ):
        for step, (source_batch, target_batch) in enumerate(zip(*loaders, strict=True), start + 1):
            rate = config.learning_rate * decay(step - 1, steps_per_epoch, config)
            set_rate(optimizers.values(), rate)
            seed_step(config.seed, step, ranks.rank)
            real_source = to_network(source_batch["rgb"].to(fabric.device, non_blocking=True))
            real_target = to_network(target_batch["rgb"].to(fabric.device, non_blocking=True))

            # Generators. InstanceNorm keeps images of a batch apart, so each generator sees both
            # domains in one pass: one half is translated, the other is to stay as it is.
            trainable(critics, False)
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
            losses["fool_target_critic"] = gan_loss(
                target_critic(fake_target), real=True, kind=kind
            )
            losses["fool_source_critic"] = gan_loss(
                source_critic(fake_source), real=True, kind=kind
            )
            if judge and semantics:
                with fabric.autocast():
                    if consistent:
                        classes = source_batch["classes"].to(fabric.device, non_blocking=True)
                        loss = semantic_loss(judge.segmenter, fake_target, classes, ranks)
                        losses["semantic_source"] = semantics.consistency * loss
                    if semantics.target_consistency > 0:
                        classes = pseudo_classes(judge.segmenter, real_target)
                        loss = semantic_loss(judge.segmenter, fake_source, classes, ranks)
                        losses["semantic_target"] = semantics.target_consistency * loss
            optimizers["generators"].zero_grad()
            fabric.backward(torch.stack(list(losses.values())).sum())

            # Discriminators, on real images and on images from the pools, which see whole batches.
            trainable(critics, True)
            rng = np.random.default_rng([config.seed, 3, step])
            pooled_before = {name: list(pool.images) for name, pool in pools.items()}
            pooled_target = ranks.shard(pools["target"].query(ranks.all_gather(fake_target), rng))
            pooled_source = ranks.shard(pools["source"].query(ranks.all_gather(fake_source), rng))
            losses["target_critic"] = critic_loss(target_critic, real_target, pooled_target, kind)
            losses["source_critic"] = critic_loss(source_critic, real_source, pooled_source, kind)
            optimizers["critics"].zero_grad()
            fabric.backward(losses["target_critic"] + losses["source_critic"])

            # Every loss is a mean over images and the parts of a batch are equal: the mean of the
            # processes' losses and gradients is that of the whole batch, and all decide alike.
            losses = {name: loss.detach() for name, loss in losses.items()}
            ranks.all_reduce_mean([*gradients(networks.values()), *losses.values()])

            # Neither loss depends on the other's update, so both are judged before either is made.
            names = [*source_batch["name"], *target_batch["name"]]
            good = is_finite(losses, networks.values())
            if good:
                skips.good()
                optimizers["generators"].step()
                optimizers["critics"].step()
                for name, average in averages.items():
                    follow(average, networks[name], config.generator_average, step)
            else:
                skips.skip(step, ranks.all_gather_objects(names), losses, say=ranks.is_rank_zero)
                for name, pool in pools.items():
                    pool.images = pooled_before[name]

            # The rest is records.
            if log is None or advance is None:
                continue
            if good:
                log.add(step, names, losses)
            last = step == steps
            save = last or step % config.checkpoint_every == 0
            used = averages or networks
            if save:
                check_finite(networks.values(), step, names)
            if save and probe:
                verdict = probe.verdict(used["source_to_target"])
                if leaderboard.add(step, verdict, probe.judge):
                    weights = {name: used[name].state_dict() for name in GENERATORS}
                    best = {"step": step, "networks": copy.deepcopy(weights)}
                log.flush(learning_rate=rate, skipped=skips.total, **verdict.row())
            if save or step % config.log_every == 0:
                log.flush(learning_rate=rate, skipped=skips.total)
            if last or step % config.sample_every == 0:
                grid = cycle_grid(
                    used["source_to_target"],
                    used["target_to_source"],
                    spread(source, source_samples),
                    spread(target, target_samples),
                )
                write_image(folder / "samples" / f"step-{step:07d}.png", grid)
                log.picture(step, "samples", grid)
            if save:
                state = {
                    "step": step,
                    "config": config.model_dump(mode="json"),
                    "networks": {k: v.state_dict() for k, v in networks.items()},
                    "averages": {k: v.state_dict() for k, v in averages.items()},
                    "optimizers": {k: v.state_dict() for k, v in optimizers.items()},
                    "pools": {k: v.images for k, v in pools.items()},
                    "skips": asdict(skips),
                    "leaderboard": asdict(leaderboard),
                    "best": best,
                }
                save_last(folder, state)
                save_best(folder, state)
                leaderboard.write(folder)
            advance(1)
