"""What a step of every training loop does besides its losses: seeds, gradients, averages."""

from collections.abc import Iterable

import numpy as np
import torch


def seed_step(seed: int, step: int, share: int = 0) -> None:
    """Seed torch's global generators (dropout, weights) as a function of (seed, step).

    Args:
        share: which part of a batch is worked on here; each needs choices of its own.
    """
    key = [seed, step, share] if share else [seed, step]
    torch.manual_seed(int(np.random.default_rng(key).integers(2**63)))


def gradients(networks: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """The gradients at all weights of `networks`."""
    return [p.grad for n in networks for p in n.parameters() if p.grad is not None]


@torch.no_grad()
def follow(average: torch.nn.Module, network: torch.nn.Module, keep: float, step: int) -> None:
    """Move the weights of `average` towards those of `network`, in place.

    average = k average + (1 - k) network (Yazici et al., ICLR 2019, eq. 1), where k rises to `keep`
    over the first steps as (1 + step) / (10 + step): the initial weights are soon forgotten.
    """
    keep = min(keep, (1 + step) / (10 + step))
    # One launch for all weights.
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - keep)
