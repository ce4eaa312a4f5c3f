"""Segmentation training: one loop, the same for every arm."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.segmentation import SegmentationConfig, SelfTrainingConfig
from pipeline.config.settings import ComputeConfig
from pipeline.data.images import UInt8, grid, write_image
from pipeline.data.labels import IGNORE, LabelSpace
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.files import explain_damage
from pipeline.runtime.checkpoint import (
    ANEW,
    continuing,
    is_segmenter,
    load_checkpoint,
    save_checkpoint,
)
from pipeline.runtime.device import explain_memory, fused, make_fabric, on_device
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.runtime.loader import batches
from pipeline.runtime.log import check_finite, training_log
from pipeline.runtime.step import (
    Stateful,
    backward,
    ema_update,
    gradients,
    load_state,
    seed_step,
    state_of,
)
from pipeline.schema import parse_record
from segmentation.data import Mixture, class_counts, labelled_frames, unlabelled_frames
from segmentation.losses import balanced_weights, class_weights, cross_entropy, dice
from segmentation.models import Segmenter, build_model, sync_batch_norms
from segmentation.self_training import (
    ClassThresholds,
    MixedBatch,
    freeze_bn_statistics,
    mask_out,
    mix_batch,
    weighted_cross_entropy,
)
from segmentation.validation import Validation

CHECKPOINT = Path("checkpoints") / "last.pt"
PATIENCE = 50
"""Steps without a labelled pixel after which training stops."""


def train(
    config: SegmentationConfig,
    space: LabelSpace,
    mixture: Mixture,
    seed: int,
    folder: Path,
    compute: ComputeConfig,
    ranks: Ranks = ONE_RANK,
    *,
    start: Path | None = None,
    self_training: SelfTrainingConfig | None = None,
    teacher_checkpoint: Path | None = None,
    target: DatasetSpec | None = None,
    validation: Validation | None = None,
    title: str = "segmentation",
) -> None:
    """Train a network on the labelled frames of `mixture` for a fixed number of steps.

    Writes `checkpoints/last.pt` (the result: never a checkpoint chosen on labels), `log.jsonl`
    and TensorBoard events below `folder`, and continues from a checkpoint that is there.

    Args:
        ranks: those that train this network together. Each works on its shard of every batch; rank
            zero alone writes.
        start: a checkpoint whose weights training starts from.
        self_training: train on the frames of `target`, too, whose labels are not read. Writes
            pictures of mixed frames to `samples/`.
        teacher_checkpoint: the network that labels these frames; None: a mean teacher.
        validation: scores the network at each checkpoint, for the log alone: what is trained is
            the same without it.

    Raises:
        UserError: a name is unknown, a frame or label cannot be read, no label holds a class, a
            loss is not finite.
    """
    # Network and optimiser.
    fabric = make_fabric(compute, training=True, device=ranks.local_rank)
    seed_step(seed, 0)
    resuming = (folder / CHECKPOINT).is_file()
    fresh = not resuming and start is None
    with ranks.rank_zero_first():  # fetches weights
        model = build_model(config, len(space.classes), pretrained=fresh)
    if start is not None and not resuming:
        check_start(start, config, space)
        with explain_damage(start, ANEW):
            model.load_state_dict(load_checkpoint(start)["model"])
    model.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _adamw(model, config)
    modules: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
    teacher = None
    if teacher_checkpoint:
        teacher = load_segmenter(teacher_checkpoint).requires_grad_(False)
        teacher.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    elif self_training:
        modules["teacher"] = teacher = copy.deepcopy(model).requires_grad_(False).eval()
    thresholds = None
    if self_training and self_training.keep:
        thresholds = ClassThresholds(len(space.classes), self_training.keep).to(fabric.device)
        modules["thresholds"] = thresholds

    # Continue where an earlier run stopped.
    first = 0
    if resuming:
        with continuing(folder / CHECKPOINT, config.steps, "segmentation") as state:
            first = state["step"]
            load_state(modules, state)

    synced = sync_batch_norms(model, ranks)
    network = fabric.setup_module(fused(synced) if compute.compile else synced)
    network.train()
    with ranks.rank_zero_first():  # fills the cache, and counts
        counts = []
        if config.rare_class_sampling or config.class_weights == "balanced":
            counts = class_counts(mixture, space, compute.cache, folder)
        datasets = [labelled_frames(mixture, space, config, seed, compute.cache, counts)]
        if self_training and target:
            datasets += [unlabelled_frames(target, config, self_training, seed, compute.cache)]
    if isinstance(config.class_weights, dict):
        weights = class_weights(config.class_weights, space)
    else:
        weights = balanced_weights(counts, [fraction for _, fraction in mixture])
    weights = weights if weights is None else weights.to(fabric.device)
    loaders = [
        batches(
            dataset,
            first=first,
            last=config.steps,
            batch_size=config.batch_size,
            workers=compute.workers,
            pin=fabric.device.type == "cuda",
            shard=(ranks.rank, ranks.world_size),
        )
        for dataset in datasets
    ]
    with (
        training_log(folder, title, config.steps, ranks, done=first) as log,
        explain_memory("segmentation"),
    ):
        labelled = first > 0
        for step, (batch, *frames) in enumerate(zip(*loaders, strict=True), first + 1):
            # On the CPU still, where to look costs no wait for a device.
            labelled = labelled or bool((batch["label"] != IGNORE).any())
            if step == min(PATIENCE, config.steps):  # one device may have met none
                labelled = bool(
                    ranks.all_reduce_sum(torch.tensor(float(labelled), device=fabric.device))
                )
            if not labelled and step == min(PATIENCE, config.steps):
                raise UserError(
                    f"{title}: no pixel of the labels in the first {step} steps belongs to a class "
                    f"of label space {space.name}; the last frame was {batch['name'][-1]}. Correct "
                    "the data set's `values` or `encoding`, or choose another label_space: "
                    "`sim2real check` shows what the labels hold."
                )
            factor = learning_rate_factor(step - 1, config)
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * factor
            seed_step(seed, step, ranks.rank)
            names = [name for part in (batch, *frames) for name in part.pop("name")]
            batch, *frames = fabric.to_device([batch, *frames])

            optimizer.zero_grad()
            logits = network(batch["rgb"])
            losses = {
                "cross_entropy": cross_entropy(
                    logits,
                    batch["label"],
                    weights=weights,
                    hard_pixels=config.hard_pixels,
                    ranks=ranks,
                )
            }
            if config.dice_weight:
                losses["dice_loss"] = config.dice_weight * dice(logits, batch["label"], ranks)
            trained = backward(fabric, losses)
            # Passes follow one another, so that they share the memory of their activations.
            mixed = None
            if self_training and teacher:
                with torch.no_grad(), fabric.autocast():
                    logits = teacher(frames[0]["rgb"])
                mixed = mix_batch(logits, batch, frames[0], self_training, ranks, thresholds)
                loss = weighted_cross_entropy(network(mixed.rgb), mixed.label, mixed.weight, ranks)
                trained |= backward(fabric, {"mixed_loss": self_training.weight * loss})
            if self_training and mixed and self_training.masked_weight:
                masked = mask_out(
                    frames[0]["rgb"], self_training.mask_block, self_training.mask_share
                )
                with freeze_bn_statistics(model):
                    logits = network(masked)
                loss = weighted_cross_entropy(
                    logits, mixed.pseudo_label, mixed.confidence_weight, ranks
                )
                trained |= backward(fabric, {"masked_loss": self_training.masked_weight * loss})

            # The ranks' means are the losses and gradients of the whole batch.
            ranks.all_reduce_mean([*gradients([model]), *trained.values()])
            optimizer.step()
            if self_training and teacher and not teacher_checkpoint:
                ema_update(teacher, model, self_training.teacher_average, step)

            # Records, on rank zero.
            if log is None:
                continue
            if ranks.world_size > 1:
                names = [*names, f"the frames of {ranks.world_size - 1} other device(s)"]
            measured = {"confident_fraction": mixed.confident_fraction} if mixed else {}
            log.add(
                step,
                names,
                {"loss": torch.stack(list(trained.values())).sum(), **trained, **measured},
            )
            # Where a training continues, labels were seen.
            save = labelled and (step == config.steps or step % config.checkpoint_every == 0)
            if save or step % config.log_every == 0:
                scored = validation.score(model, fabric) if validation and save else {}
                log.flush(learning_rate=config.learning_rate * factor, **scored)
            if save:
                check_finite([model], step, names)
                if mixed:
                    picture = _picture(frames[0]["rgb"], mixed, space)
                    write_image(folder / "samples" / f"step-{step:07d}.png", picture)
                    log.picture(step, "samples", picture)
                state = {
                    "step": step,
                    "config": config.model_dump(mode="json"),
                    "classes": space.class_names,
                    "label_space": space.model_dump(mode="json"),
                    "width": mixture[0][0].width,
                    **state_of(modules),
                }
                save_checkpoint(folder / CHECKPOINT, state)
            log.advance(1)


def _picture(frames: Tensor, mixed: MixedBatch, space: LabelSpace) -> UInt8:
    """Target frames, pseudo-labels (black where their weight is 0), mixed frames and labels."""
    palette = space.palette
    used = mixed.pseudo_label.where(mixed.confidence_weight > 0, IGNORE)
    columns = [frames, used, mixed.rgb, mixed.label]
    drawn = [
        column.cpu().numpy() if column.ndim == 4 else palette[column.cpu().numpy()]
        for column in columns
    ]
    return grid([[column[i] for column in drawn] for i in range(min(3, len(frames)))])


def check_start(path: Path, config: SegmentationConfig, space: LabelSpace) -> None:
    """Raise `UserError` when training cannot start from the checkpoint `path`."""
    if not path.is_file():
        raise UserError(f"No checkpoint {path} to start from. Give the path of a last.pt of ours.")
    state = trained_state(path)
    if state["classes"] != space.class_names:
        theirs = ", ".join(map(str, state["classes"]))
        raise UserError(
            f"{path} knows the classes {theirs}; label space {space.name} has "
            f"{', '.join(space.class_names)}. Start from a network of the same classes."
        )
    given = parse_record(SegmentationConfig, state["config"], str(path)).network
    for field, ours in config.network.items():
        if given[field] != ours:
            raise UserError(
                f"{path} has segmentation.{field} {given[field]!r}, the arm that starts from it "
                f"{ours!r}. Make them equal."
            )


def learning_rate_factor(step: int, config: SegmentationConfig) -> float:
    """Linear warmup, times the poly schedule (Chen et al., DeepLab, section 4.1; 1 is linear)."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return float(warmup * (1 - step / config.steps) ** config.poly_power)


def _adamw(model: Segmenter, config: SegmentationConfig) -> torch.optim.AdamW:
    """AdamW of what learns, with the encoder's own rate.

    `full_rate` in each group is the schedule's top.
    """
    inside = {id(p) for p in model.network.encoder.parameters()}  # type: ignore[union-attr]
    learning = [p for p in model.parameters() if p.requires_grad]
    encoder = [p for p in learning if id(p) in inside]
    rest = [p for p in learning if id(p) not in inside]
    encoder_rate = config.learning_rate * config.encoder_learning_rate_factor
    return torch.optim.AdamW(
        [
            {"params": encoder, "lr": encoder_rate, "full_rate": encoder_rate},
            {"params": rest, "lr": config.learning_rate, "full_rate": config.learning_rate},
        ],
        weight_decay=config.weight_decay,
        fused=True,
    )


def trained_state(path: Path) -> dict[str, Any]:
    """What is in a checkpoint of a segmentation training.

    Raises:
        UserError: it is damaged, or something else.
    """
    state = load_checkpoint(path)
    if not is_segmenter(state):
        raise UserError(
            f"{path} is no checkpoint of a segmentation training. Give a last.pt of one."
        )
    return state


def load_segmenter(checkpoint: Path, compute: ComputeConfig | None = None) -> Segmenter:
    """The trained network of a checkpoint, in evaluation mode; on the device of `compute`, or CPU.

    Raises:
        UserError: no checkpoint, or a damaged one.
    """
    if not checkpoint.is_file():
        raise UserError(f"No checkpoint {checkpoint}. Run `sim2real train-segmentation` first.")
    network = built(load_checkpoint(checkpoint), checkpoint)
    return on_device(network, compute) if compute else network


def built(state: dict[str, Any], checkpoint: Path) -> Segmenter:
    """The network of a checkpoint's content, in evaluation mode; the path is for messages."""
    with explain_damage(checkpoint, ANEW):
        config = parse_record(SegmentationConfig, state["config"], str(checkpoint))
        model = build_model(config, len(state["classes"]), pretrained=False)
        model.load_state_dict(state["model"])
    return model.eval()
