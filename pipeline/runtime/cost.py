"""What a stage costs: time on devices and memory."""

import os
import resource
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

WORKER = "SIM2REAL_WORKER"
"""The environment variable that names the worker that a process belongs to."""


class Cost(BaseModel):
    """What was spent on a stage, by the process that finished it."""

    device_seconds: float = Field(ge=0, allow_inf_nan=False)
    """Seconds worked, times the devices that worked side by side; of all attempts and parts."""
    peak_memory: int | None = Field(None, ge=0)
    """Bytes of memory, of the largest process of the last attempt."""
    peak_gpu_memory: int | None = Field(None, ge=0)
    """Bytes of the GPU's memory that torch took in that process; None: it used none."""
    host: str
    worker: str | None = None


def begin_counting() -> None:
    """Let the peaks of `spent` begin here."""
    with suppress(OSError):  # not on Linux, or not allowed: then it is the peak of the process
        Path("/proc/self/clear_refs").write_text("5")
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def spent(seconds: float, devices: int) -> Cost:
    """What the work since `begin_counting` cost, which took `seconds` in all."""
    cuda = _cuda()
    return Cost(
        device_seconds=round(seconds * devices, 1),
        peak_memory=_peak_of_ranks() if devices > 1 else _peak(),
        peak_gpu_memory=cuda.max_memory_allocated() if cuda else None,
        host=socket.gethostname(),
        worker=os.environ.get(WORKER) or None,
    )


def _cuda() -> Any:
    """torch.cuda where it is at work already: nothing is imported for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_initialized() else None


def _peak() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _peak_of_ranks() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
