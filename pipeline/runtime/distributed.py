"""The ranks that train one network together, and what they exchange.

Every rank runs the same code and holds the same networks. They differ in their shard of each batch,
and in that rank zero alone writes files and messages.
"""

import importlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import FunctionCtx

from pipeline.config.settings import ComputeConfig
from pipeline.errors import UserError
from pipeline.runtime.launch import end_with_parent, torchrun

# torchrun sees a death at once. A rank zero that fills a cache may keep the others waiting for
# hours.
_TIMEOUT = timedelta(days=1)
_PATIENCE = 10.0
"""Seconds between a broken connection and its error: the rank that failed has the better one, and
torchrun ends this one meanwhile."""

T = TypeVar("T")


class _AllReduceSum(torch.autograd.Function):
    """The sum over all ranks, to the bit the same in all.

    Each uses the sum for a loss of its own, so each value's gradient is the sum of theirs.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return _AllReduceSum.forward(ctx, gradient)


@dataclass(frozen=True)
class Ranks:
    """The ranks that train together, as one of them sees them; alone, nothing is exchanged."""

    rank: int = 0
    """This process's number, from 0."""
    world_size: int = 1
    local_rank: int = 0
    """Which GPU of its machine is its own."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """This rank's part of a whole batch, whose length is a multiple of `world_size`."""
        return batch if self.world_size == 1 else batch.chunk(self.world_size)[self.rank]

    def all_gather(self, shard: Tensor) -> Tensor:
        """The whole batch of all ranks' equal shards, in their order; carries no gradient."""
        shard = shard.detach()
        if self.world_size == 1:
            return shard
        shard = shard.contiguous()
        shards = [torch.empty_like(shard) for _ in range(self.world_size)]
        dist.all_gather(shards, shard)
        return torch.cat(shards)

    def all_gather_objects(self, own: list[T]) -> list[T]:
        """The elements of all ranks' lists, in their order."""
        if self.world_size == 1:
            return own
        lists: list[list[T]] = [[]] * self.world_size
        dist.all_gather_object(lists, own)
        return [element for each in lists for element in each]

    def broadcast(self, value: T | None = None) -> T | None:
        """The `value` of rank zero."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """The sum of all ranks' `value`; a gradient goes back to every rank's."""
        if self.world_size == 1:
            return value
        out: Tensor = _AllReduceSum.apply(value)
        return out

    @torch.no_grad()
    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, the same to the bit in all."""
        if self.world_size == 1:
            return
        # One message: many small ones take longer.
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world_size
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Rank zero goes through the block before the others: it fills what they only read."""
        if self.world_size > 1 and not self.is_rank_zero:
            _barrier()
        yield
        if self.world_size > 1 and self.is_rank_zero:
            _barrier()


ONE_RANK = Ranks()


def _barrier() -> None:
    # Not torch's own, which would wait on GPUs even where tensors are on the CPU.
    dist.all_reduce(torch.zeros(1))


@contextmanager
def connected() -> Iterator[Ranks]:
    """The ranks that torchrun started, connected for the block; one rank without torchrun.

    Tensors on the CPU travel by gloo, those on GPUs by nccl. A second block within uses the
    connection of the first.
    """
    launch = torchrun()
    if launch is None or launch.world_size == 1:
        yield ONE_RANK
        return
    ranks = Ranks(launch.rank, launch.world_size, launch.local_rank)
    if dist.is_initialized():
        yield ranks
        return
    end_with_parent()
    if sys.platform == "linux" and launch.local_world_size == launch.world_size:
        # Gloo would take the address of the machine's name, which may have none.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Its functions take the group as a default where it is first imported within the block, as an
    # optimizer does, and then the group's threads outlive the block.
    importlib.import_module("torch.distributed.nn")
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_TIMEOUT)
        yield ranks
        _barrier()
    except RuntimeError:  # among others what gloo and nccl raise when another rank has failed
        time.sleep(_PATIENCE)
        raise
    dist.destroy_process_group()


@contextmanager
def process_group(compute: ComputeConfig) -> Iterator[Ranks]:
    """As `connected`, after a look at the devices of all ranks.

    Raises:
        UserError: there are not so many devices, or ranks find devices of different kinds.
    """
    from pipeline.runtime.device import accelerator, check_devices  # takes seconds to import

    with connected() as ranks:
        check_devices(compute)
        kinds = ranks.all_gather_objects([accelerator(compute)])
        if len(set(kinds)) > 1:
            raise UserError(
                f"Ranks 0 to {len(kinds) - 1} find devices of the kinds {', '.join(kinds)}. Set "
                "compute.accelerator to cpu, or make the GPUs of every machine visible to torch."
            )
        yield ranks
