"""Segmentation training: one loop, the same for every arm."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config import ComputeConfig, SegmentationConfig
from pipeline.datasets import DatasetSpec, list_samples
from pipeline.labels import IGNORE, LabelSpace
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
from segmentation.data import training_reader
from segmentation.models import Segmenter, build_model

CHECKPOINT = Path("checkpoints") / "last.pt"


def train(
    config: SegmentationConfig,
    space: LabelSpace,
    dataset: DatasetSpec,
    seed: int,
    folder: Path,
    compute: ComputeConfig,
    *,
    title: str = "segmentation",
) -> None:
    """Train a network on the labelled frames of `dataset` for a fixed number of steps.

    Writes `checkpoints/last.pt` (the result: never a checkpoint chosen on labels), `log.jsonl`
    and TensorBoard events below `folder`, and continues from a checkpoint that is there.

    Raises:
        UserError: a name is unknown, a frame or label cannot be read, a loss is not finite.
    """
    samples = list_samples(dataset, labelled=True)

    # Network and optimiser.
    fabric = make_fabric(compute, training=True)
    seed_step(seed, 0)
    resuming = (folder / CHECKPOINT).is_file()
    model = build_model(config, len(space.classes), pretrained=not resuming)
    model.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _adamw(model, config)

    # Continue where an earlier run stopped.
    start = 0
    if resuming:
        state = load_checkpoint(folder / CHECKPOINT)
        start = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    network = fabric.setup_module(model)
    network.train()
    read = training_reader(dataset, samples, space, config.augmentation, config.crop, compute.cache)
    loader = batches(
        Draws(read, len(samples), seed=seed),
        first=start,
        last=config.steps,
        batch_size=config.batch_size,
        workers=compute.workers,
        pin=fabric.device.type == "cuda",
    )
    with (
        TrainingLog(folder, step=start) as log,
        progress(folder, title, config.steps, done=start) as advance,
        explain_memory("segmentation"),
    ):
        for step, batch in enumerate(loader, start + 1):
            factor = learning_rate_factor(step - 1, config)
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * factor
            seed_step(seed, step)
            logits = network(batch["rgb"].to(fabric.device, non_blocking=True))
            label = batch["label"].to(fabric.device, non_blocking=True)
            loss = cross_entropy(logits, label)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()

            log.add(step, batch["name"], {"loss": loss})
            save = step == config.steps or step % config.checkpoint_every == 0
            if save or step % config.log_every == 0:
                log.flush(learning_rate=config.learning_rate * factor)
            if save:
                check_finite([model], step, batch["name"])
                save_checkpoint(
                    folder / CHECKPOINT,
                    {
                        "step": step,
                        "config": config.model_dump(mode="json"),
                        "classes": space.class_names,
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    },
                )
            advance(1)


def cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the pixels that are not ignored; 0 when all are.

    Args:
        logits: (N, classes, H, W) float32.
        label: (N, H, W) int64 class indices or `IGNORE`.
    """
    total = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="sum")
    return total / (label != IGNORE).sum().clamp(min=1)


def learning_rate_factor(step: int, config: SegmentationConfig) -> float:
    """Linear warmup, times the poly schedule (Chen et al., DeepLab, section 4.1)."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return float(warmup * (1 - step / config.steps) ** config.poly_power)


def _adamw(model: Segmenter, config: SegmentationConfig) -> torch.optim.AdamW:
    """AdamW with the encoder's own rate; `full_rate` in each group is the schedule's top."""
    encoder = list(model.network.encoder.parameters())  # type: ignore[union-attr]
    inside = {id(p) for p in encoder}
    rest: list[nn.Parameter] = [p for p in model.parameters() if id(p) not in inside]
    encoder_rate = config.learning_rate * config.encoder_learning_rate_factor
    return torch.optim.AdamW(
        [
            {"params": encoder, "lr": encoder_rate, "full_rate": encoder_rate},
            {"params": rest, "lr": config.learning_rate, "full_rate": config.learning_rate},
        ],
        weight_decay=config.weight_decay,
        fused=True,
    )


def load_segmenter(checkpoint: Path) -> Segmenter:
    """The trained network of a checkpoint, in evaluation mode."""
    state = load_checkpoint(checkpoint)
    config = SegmentationConfig.model_validate(state["config"])
    model = build_model(config, len(state["classes"]), pretrained=False)
    model.load_state_dict(state["model"])
    return model.eval()
