"""Processes that read frames ahead: clean ones, that end with who started them."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.runtime.loader import IndexedDataset, batches
from tests.conftest import ROOT
from tests.helpers import assert_gone


def read(size: int, index: int, rng: np.random.Generator) -> dict[str, Any]:
    return {"rgb": torch.full((size,), float(rng.random())), "pid": os.getpid(), "index": index}


def drawn(workers: int, **changes: Any) -> list[Any]:
    arguments = {"first": 2, "last": 5, "batch_size": 4, "workers": workers, "pin": False}
    return list(batches(IndexedDataset(partial(read, 3), 10, seed=1), **arguments | changes))


def test_reading_processes_draw_what_one_process_draws() -> None:
    alone, helped = drawn(0), drawn(2)
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one["rgb"], other["rgb"])
        assert one["index"].tolist() == other["index"].tolist()
    assert {int(pid) for batch in alone for pid in batch["pid"]} == {os.getpid()}


TRAINER = """
import fcntl, sys
from functools import partial
from tests.test_loader import read
from pipeline.runtime.loader import IndexedDataset, batches
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
dataset = IndexedDataset(partial(read, 3), 10, seed=1)
for batch in batches(dataset, first=0, last=10**6, batch_size=4, workers=2, pin=False):
    print(*{int(pid) for pid in batch["pid"]}, flush=True)
"""


@pytest.mark.slow
def test_a_killed_trainer_leaves_no_reader_and_no_lock(tmp_path: Path) -> None:
    import fcntl

    lock = tmp_path / "lock"
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    readers = {int(pid) for _ in range(4) for pid in trainer.stdout.readline().split()}
    assert len(readers) == 2
    assert trainer.pid not in readers
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    with lock.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # at once
    assert_gone(readers)
    trainer.stdout.close()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1>", "--shm-size"),
        ("something else", None),
    ],
)
def test_full_shared_memory_is_one_message(
    broken: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collate(_: object) -> None:
        raise RuntimeError(broken)

    monkeypatch.setattr("pipeline.runtime.loader.default_collate", collate)
    with pytest.raises(UserError if message else RuntimeError, match=message or broken):
        drawn(0)
