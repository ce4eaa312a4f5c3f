"""Small functions that both training loops call."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cyclegan.networks import minimum_side
from pipeline.config.settings import CycleGANConfig
from pipeline.errors import UserError
from pipeline.runtime.checkpoint import save_checkpoint
from pipeline.runtime.step import gradients

CHECKPOINT = Path("checkpoints") / "last.pt"
"""The newest checkpoint below a stage's folder."""
BEST = Path("checkpoints") / "best.pt"
"""The generators that the judge scored best, where there is one."""
MOST_SKIPPED = 10
"""Steps in a row that may be skipped before training stops."""


def check_crop(config: CycleGANConfig) -> None:
    """Raise `UserError` when the coarsest discriminator would have no logit for a crop."""
    if config.discriminator == "pixel":
        return
    smallest = minimum_side(config.discriminator_layers, config.discriminator_scales)
    if min(config.crop) < smallest:
        raise UserError(
            f"cyclegan.crop {list(config.crop)} is smaller than the {smallest} pixels that "
            f"{config.discriminator_layers} discriminator layers at {config.discriminator_scales} "
            "scale(s) need. Raise crop, or lower discriminator_layers or discriminator_scales."
        )


def decay(step: int, steps_per_epoch: int, config: CycleGANConfig) -> float:
    """The learning rate's factor at a step (from 0): 1, then falling linearly epoch by epoch."""
    epoch = step // steps_per_epoch
    return 1 - max(0, epoch + 1 - config.epochs) / (config.decay_epochs + 1)


def adam(networks: Iterable[nn.Module], rate: float) -> torch.optim.Adam:
    """One optimiser for all weights of `networks`, with the reference's betas."""
    parameters = [p for network in networks for p in network.parameters()]
    return torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.999), fused=True)


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Let `optimizers` learn at `rate` from now on."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def trainable(networks: Iterable[nn.Module], on: bool) -> None:
    """Whether a backward pass leaves gradients at the weights of `networks`."""
    for network in networks:
        network.requires_grad_(on)


def is_finite(losses: Mapping[str, Tensor], networks: Iterable[nn.Module]) -> bool:
    """Whether all losses and all gradients of `networks` are finite; waits for the device once."""
    norm = nn.utils.get_total_norm(gradients(networks))
    return bool(torch.stack([*losses.values(), norm]).isfinite().all())


@dataclass
class Skips:
    """Steps that were skipped because a loss or a gradient was not finite."""

    total: int = 0
    """In the whole training."""
    row: int = 0
    """Up to the last step, without a good one between."""

    def good(self) -> None:
        """Note a step that was taken."""
        self.row = 0

    def skip(
        self, step: int, names: list[str], losses: Mapping[str, Tensor], *, say: bool = True
    ) -> None:
        """Note a skipped step and tell the user.

        Args:
            say: False where another process tells.

        Raises:
            UserError: `MOST_SKIPPED` steps in a row were skipped.
        """
        self.total += 1
        self.row += 1
        bad = [name for name, loss in losses.items() if not loss.isfinite()] or ["a gradient"]
        what = f"{', '.join(bad)} not finite on {', '.join(names)}"
        if self.row >= MOST_SKIPPED:
            raise UserError(
                f"CycleGAN: {self.row} steps in a row had to be skipped, the last one step {step}: "
                f"{what}. Look at these frames (blank or damaged ones are the usual cause) or "
                "lower cyclegan.learning_rate. The last checkpoint is unharmed: run again to "
                "continue from it."
            )
        if say:
            print(f"CycleGAN: step {step} skipped, {what}", file=sys.stderr, flush=True)


def save_last(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as the newest checkpoint."""
    save_checkpoint(folder / CHECKPOINT, state)


def save_best(folder: Path, state: dict[str, Any]) -> None:
    """Write the generators that were scored best so far, as the newest checkpoint `state` has them.

    After that checkpoint, so that a kill between the two leaves the truth in one file.
    """
    if state["best"]:
        save_checkpoint(folder / BEST, {"config": state["config"], **state["best"]})
