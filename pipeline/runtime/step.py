"""What every training loop shares: seeds, the backward pass, EMA updates, state of modules."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Stateful(Protocol):
    """A network or an optimiser."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state_dict: dict[str, object]) -> object: ...


def state_of(modules: Mapping[str, Stateful]) -> dict[str, dict[str, object]]:
    """Name -> state of networks or optimisers, for a checkpoint."""
    return {name: module.state_dict() for name, module in modules.items()}


def load_state(modules: Mapping[str, Stateful], state: Mapping[str, dict[str, object]]) -> None:
    """Give networks or optimisers the state that `state_of` took."""
    for name, module in modules.items():
        module.load_state_dict(state[name])


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's global generators (dropout, weights) as a function of (seed, step).

    Args:
        rank: each rank makes choices of its own for its shard of a batch.
    """
    key = [seed, step, rank] if rank else [seed, step]
    torch.manual_seed(int(np.random.default_rng(key).integers(2**63)))


def backward(fabric: "Fabric", losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backward pass of the sum of all `losses`; returns their values, without gradients."""
    fabric.backward(torch.stack(list(losses.values())).sum())
    return {name: loss.detach() for name, loss in losses.items()}


def gradients(networks: Iterable[torch.nn.Module]) -> list[Tensor]:
    """The gradients of all parameters of `networks`."""
    return [p.grad for n in networks for p in n.parameters() if p.grad is not None]


@torch.no_grad()
def ema_update(average: torch.nn.Module, network: torch.nn.Module, decay: float, step: int) -> None:
    """Update an exponential moving average of a network's parameters; its buffers are copied.

    average = decay * average + (1 - decay) * network (Yazici et al., ICLR 2019, eq. 1), where decay
    rises over the first steps as (1 + step) / (10 + step), so that the initial weights are soon
    forgotten.
    """
    decay = min(decay, (1 + step) / (10 + step))
    # One launch for all parameters.
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for averaged, newest in zip(average.buffers(), network.buffers(), strict=True):
        averaged.copy_(newest)
