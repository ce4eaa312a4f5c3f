"""How many threads compute, and how they wait for each other."""

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def choose_threads() -> None:
    """Set OpenMP's defaults for this process and those it starts, before torch is imported.

    A thread for each core that this process may use; what the user has set wins. Threads sleep
    while they wait. By default they spin, and beside any other busy process a training with two
    threads then falls to a small part of the speed that one thread has (`benchmarks/threads.py`).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def usable_cores(cpus: Path = _CPUS, quota: Path = _QUOTA) -> int:
    """Cores of this process: those of its affinity, a pair of hyperthreads as one, within the
    container's quota of processor time.

    Args:
        cpus: Linux' folder of processors.
        quota: the container's file `cpu.max`: microseconds of processor time or `max`, in how many.
    """
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        try:
            cores.add((cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:  # no such file in some containers
            cores.add(str(cpu))
    try:
        most, period = quota.read_text().split()
        limit = len(cores) if most == "max" else math.ceil(int(most) / int(period))
    except (OSError, ValueError):
        limit = len(cores)
    return max(1, min(len(cores), limit))
