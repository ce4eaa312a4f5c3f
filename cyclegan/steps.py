"""What the training loops of translators share."""

import copy
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cyclegan.checkpoints import load_start
from cyclegan.networks import initialise, minimum_side
from cyclegan.reference import GENERATORS, current_names
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import CycleGANConfig
from pipeline.data.images import UInt8, write_image
from pipeline.errors import UserError
from pipeline.runtime.checkpoint import save_checkpoint
from pipeline.runtime.device import fused
from pipeline.runtime.distributed import Ranks
from pipeline.runtime.log import TrainingLog, check_finite
from pipeline.runtime.step import ema_update, gradients, load_state, seed_step, state_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT = Path("checkpoints") / "last.pt"
"""The newest checkpoint below a stage's folder."""
BEST = Path("checkpoints") / "best.pt"
"""The generators that scored best, where there is one."""
MOST_SKIPPED = 10
"""Steps in a row that may be skipped before training stops."""


def check_crop(config: CycleGANConfig) -> None:
    """Raise `UserError` when the coarsest discriminator would have no logit for a crop."""
    if config.discriminator != "patch":
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


def set_up(fabric: "Fabric", compute: ComputeConfig, *networks: nn.Module) -> list[nn.Module]:
    """`networks` as they are called in training; their weights stay the same."""
    return [fabric.setup_module(fused(one) if compute.compile else one) for one in networks]


def trainable(networks: Iterable[nn.Module], on: bool) -> None:
    """Whether a backward pass leaves gradients at the parameters of `networks`."""
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


@dataclass
class Training:
    """A translator's training: its length, its networks, what a checkpoint holds besides."""

    config: CycleGANConfig
    folder: Path
    steps_per_epoch: int
    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Adam]
    """`discriminators`, and `generators` for all other networks."""
    averages: dict[str, nn.Module]
    """EMA of the generators by name; empty where they translate as they are."""
    skips: Skips

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.steps_per_epoch * (self.config.epochs + self.config.decay_epochs)

    @property
    def translators(self) -> dict[str, nn.Module]:
        """The generators that translate: averaged where that is on."""
        return {name: self.networks[name] for name in generators(self.networks)} | self.averages

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 1."""
        return self.config.learning_rate * decay(step - 1, self.steps_per_epoch, self.config)

    def begin(self, step: int, ranks: Ranks) -> None:
        """Set the learning rate and torch's generators for a step, from 1."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step)
        seed_step(self.config.seed, step, ranks.rank)

    def state(self, step: int) -> dict[str, object]:
        """For a checkpoint after `step` steps."""
        return {
            "step": step,
            "config": self.config.model_dump(mode="json"),
            "networks": state_of(self.networks),
            "averages": state_of(self.averages),
            "optimizers": state_of(self.optimizers),
            "skips": asdict(self.skips),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint, of this version or one before."""
        load_state(self.networks, current_names(state["networks"]))
        load_state(self.averages, state["averages"])
        load_state(self.optimizers, current_names(state["optimizers"]))
        self.skips = Skips(**state["skips"])

    def update(
        self, losses: Mapping[str, Tensor], step: int, names: list[str], ranks: Ranks
    ) -> bool:
        """Take a step of all optimisers, unless a loss or a gradient is not finite; whether it did.

        Every loss is a mean over images and the shards of a batch are equal: the mean of the ranks'
        losses and gradients is that of the whole batch, and all ranks decide alike. No loss depends
        on the update of another network, so all are looked at before any update is made.

        Args:
            losses: are replaced by their means over the ranks.
            names: of this rank's frames.

        Raises:
            UserError: `MOST_SKIPPED` steps in a row were not taken.
        """
        networks = self.networks.values()
        ranks.all_reduce_mean([*gradients(networks), *losses.values()])
        if not is_finite(losses, networks):
            every = ranks.all_gather_objects(names)
            self.skips.skip(step, every, losses, say=ranks.is_rank_zero)
            return False
        self.skips.good()
        for optimizer in self.optimizers.values():
            optimizer.step()
        for name, average in self.averages.items():
            ema_update(average, self.networks[name], self.config.generator_average, step)
        return True

    def due(self, step: int, every: int) -> bool:
        """Whether a step is an `every`-th one, or the last."""
        return step == self.steps or step % every == 0

    def record(
        self,
        log: TrainingLog,
        step: int,
        names: list[str],
        losses: dict[str, Tensor],
        **numbers: float,
    ) -> None:
        """Add a step to the log, and write an entry with `numbers` where one is due.

        Args:
            losses: none where the step was not taken.

        Raises:
            UserError: a weight or a loss is not finite.
        """
        if losses:
            log.add(step, names, losses)
        save = self.due(step, self.config.checkpoint_every)
        if save:
            check_finite(self.networks.values(), step, names)
        if save or step % self.config.log_every == 0:
            log.flush(learning_rate=self.rate(step), skipped=self.skips.total, **numbers)

    def sample(self, log: TrainingLog, step: int, picture: UInt8) -> None:
        """Write sample pictures (H, W, 3) uint8."""
        write_image(self.folder / "samples" / f"step-{step:07d}.png", picture)
        log.picture(step, "samples", picture)


def prepare(
    networks: dict[str, nn.Module],
    config: CycleGANConfig,
    folder: Path,
    device: torch.device,
    *,
    frames: int,
    say: bool,
) -> Training:
    """Initialise `networks` on `device`, from `config.start` where a training begins there.

    Args:
        folder: where a checkpoint is, if one is to be loaded next.
        frames: an epoch shows each of so many once, unless `config.steps_per_epoch` says otherwise.
        say: name on standard error what training starts from.
    """
    for network in networks.values():
        initialise(network)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.start is not None and not (folder / CHECKPOINT).is_file():
        for name, given in load_start(config, say=say).items():
            networks[name].load_state_dict(given)
    discriminators = [name for name in networks if name.endswith("discriminator")]
    others = [name for name in networks if name not in discriminators]
    averaged = generators(networks) if config.generator_average > 0 else []
    parts = {"generators": others, "discriminators": discriminators}
    return Training(
        config,
        folder,
        config.steps_per_epoch or -(-frames // config.batch_size),
        networks,
        {
            part: adam([networks[name] for name in names], config.learning_rate)
            for part, names in parts.items()
        },
        {name: copy.deepcopy(networks[name]) for name in averaged},
        Skips(),
    )


def generators(networks: Iterable[str]) -> list[str]:
    """The names of the generators among those of networks."""
    return [name for name in networks if name in GENERATORS]


def save_last(folder: Path, state: Mapping[str, object]) -> None:
    """Write `state` as the newest checkpoint."""
    save_checkpoint(folder / CHECKPOINT, state)


def save_best(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the generators that were scored best so far, as the newest checkpoint `state` has them.

    After that checkpoint, so that a kill between the two leaves the truth in one file.
    """
    if state["best"]:
        save_checkpoint(folder / BEST, {"config": state["config"], **state["best"]})
