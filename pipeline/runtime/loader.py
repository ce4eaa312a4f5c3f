"""Training data: datasets of reproducible random items, and the processes that read them ahead.

Every random choice is a function of (seed, index). There is no generator whose state
could be lost: a run that continues at step n makes the choices that an undisturbed run would make,
with any number of reading processes.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, default_collate

from pipeline.errors import UserError
from pipeline.runtime.launch import end_with_parent

Item = dict[str, Any]


class IndexedDataset(Dataset[Item | UserError]):
    """Index, without end, -> item. Frames are visited in a new random order each epoch.

    Args:
        read: (frame, generator of this index) -> item; a pure function of the two.
        frames: number of frames.
        stream: tells apart the choices of several data sets under one seed.
        pick: chooses the frame, instead of epochs; what it returns goes to `read`.
    """

    def __init__(
        self,
        read: Callable[[Any, np.random.Generator], Item],
        frames: int,
        *,
        seed: int,
        stream: int = 0,
        pick: Callable[[np.random.Generator], Any] | None = None,
    ) -> None:
        self.read, self.frames, self.key, self.pick = read, frames, (seed, stream), pick
        self._order = (-1, np.arange(0))

    def __getitem__(self, index: int) -> Item | UserError:
        rng = np.random.default_rng([*self.key, 1, index])
        try:
            return self.read(self.pick(rng) if self.pick else self._in_turn(index), rng)
        except UserError as error:
            # An exception that leaves a reading process comes out wrapped in its traceback.
            return error

    def _in_turn(self, index: int) -> int:
        epoch, position = divmod(index, self.frames)
        if self._order[0] != epoch:
            order = np.random.default_rng([*self.key, 0, epoch]).permutation(self.frames)
            self._order = (epoch, order)
        return int(self._order[1][position])

    @property
    def module(self) -> str:
        """The name of the module that `read` is from."""
        read = self.read.func if isinstance(self.read, partial) else self.read
        return str(read.__module__)

    def __len__(self) -> int:
        raise TypeError("an IndexedDataset has no end")


def batches(
    dataset: IndexedDataset,
    *,
    first: int,
    last: int,
    batch_size: int,
    workers: int,
    pin: bool,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Item]:
    """The batches of steps `first` to `last` - 1, each of `batch_size` consecutive indices.

    Args:
        pin: keep batches in pinned memory, for a GPU.
        shard: (rank, world size): which of how many equal parts of each batch to read.

    Raises:
        UserError: a batch has no equal parts, a frame could not be read, or a reading process died.
    """
    rank, world_size = shard
    if batch_size % world_size:
        raise UserError(
            f"batch_size {batch_size} is that of all devices together and must be a multiple of "
            f"the {world_size} processes that share it. Start another number of them."
        )
    part = batch_size // world_size
    starts = range(first * batch_size + rank * part, last * batch_size, batch_size)
    loader: DataLoader[Item | UserError] = DataLoader(
        dataset,
        batch_sampler=(list(range(start, start + part)) for start in starts),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        multiprocessing_context=_clean_processes(dataset.module) if workers else None,
        worker_init_fn=end_with_parent,
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches, None)
        except RuntimeError as error:
            if "open files" in str(error):
                raise UserError(
                    "This process may not open as many files as its reading processes send it. "
                    "Raise the limit (`ulimit -n 4096`), or lower compute.workers."
                ) from error
            if not str(error).startswith("DataLoader worker"):
                raise
            raise UserError(
                f"A process that reads frames died ({error}). Lower compute.workers, or give the "
                "machine more memory (in containers: shared memory)."
            ) from error
        if batch is None:
            return
        if isinstance(batch, UserError):
            raise batch
        yield batch


@cache
def _clean_processes(module: str) -> BaseContext:
    """How reading processes start: forked from one that holds nothing but imported modules.

    A fork of this process would take over its locks, open files and the exit handlers of other
    libraries' threads; a fresh interpreter would import torch anew for each.

    Args:
        module: what readers need besides this one; only the first call's is imported beforehand.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, module])
    return context


def _collate(items: list[Item | UserError]) -> Item | UserError:
    if mistake := next((item for item in items if isinstance(item, UserError)), None):
        return mistake
    try:
        batch: Item = default_collate(items)
        return batch
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        return UserError(
            "The shared memory (/dev/shm) through which reading processes hand over frames is full:"
            " lower compute.workers or batch_size, or give the machine more of it (docker: "
            "--shm-size)."
        )


def random_crop(
    rng: np.random.Generator, size: tuple[int, int], crop: tuple[int, int], name: str
) -> tuple[slice, slice]:
    """Rows and columns of a random `crop` (width, height) of a frame of `size` (width, height)."""
    if size[0] < crop[0] or size[1] < crop[1]:
        raise UserError(
            f"{name} is {size[0]}x{size[1]}, smaller than the crop {crop[0]}x{crop[1]}. "
            "Lower `crop`, or raise `width` of the data set."
        )
    left = int(rng.integers(size[0] - crop[0] + 1))
    top = int(rng.integers(size[1] - crop[1] + 1))
    return slice(top, top + crop[1]), slice(left, left + crop[0])
