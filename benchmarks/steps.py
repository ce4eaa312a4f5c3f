"""What the benchmarks of training steps share: a real training held at each step, and ratios."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import pipeline.runtime.log

WARM_UP = 3
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


class TrainingStep:
    """A training in a thread of its own, held at the end of each step.

    Args:
        work: starts the training, whose progress bar is replaced.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        vars(pipeline.runtime.log)["progress"] = self.held
        threading.Thread(target=work, daemon=True).start()
        self.done.acquire()

    @contextmanager
    def held(self, *arguments: Any, **named: Any) -> Iterator[Callable[[int], None]]:
        """In place of the progress bar."""

        def advance(count: int) -> None:
            self.done.release()
            self.go.acquire()

        advance(0)
        yield advance

    def __call__(self) -> None:
        self.go.release()
        self.done.acquire()


def seconds(step: Callable[[], None], *, tuned: bool = False) -> float:
    """Time of one step, to its end on the device; on the CPU, of the process, others' left out.

    Args:
        tuned: with the two switches that are often recommended.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tuned
    torch.backends.cudnn.benchmark = tuned
    clock = time.perf_counter if CUDA else time.process_time
    start = clock()
    step()
    if CUDA:
        torch.cuda.synchronize()
    return clock() - start


def peak_memory(step: Callable[[], None]) -> float:
    """Peak GiB on the GPU during one step, both trainings' weights included."""
    torch.cuda.reset_peak_memory_stats()
    seconds(step)
    return torch.cuda.max_memory_allocated() / 2**30


def arithmetic(plain: Callable[[], None]) -> int:
    """Floating-point operations of a step, a multiplication and an addition counted as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        plain()
    return counter.get_total_flops()


def device_name() -> str:
    """What is measured on."""
    return torch.cuda.get_device_name() if CUDA else f"{torch.get_num_threads()} CPU thread(s)"


def compare(
    plain: Callable[[], None], ours: Callable[[], None], *, name: str, pairs: int, peak: float
) -> None:
    """Print the median of the paired ratios plain / ours, and on a GPU memory and arithmetic.

    Args:
        name: of the plain step.
        peak: TFLOP/s of the GPU.
    """
    own: list[float] = []
    for tuned in (False, True) if CUDA else (False,):
        for _ in range(WARM_UP):
            seconds(ours)
            seconds(plain, tuned=tuned)
        measured = [(seconds(plain, tuned=tuned), seconds(ours)) for _ in range(pairs)]
        own += [mine for _, mine in measured]
        ratios = [theirs / mine for theirs, mine in measured]
        print(
            f"{name}, {'TF32 and cudnn.benchmark' if tuned else 'torch defaults'}: "
            f"{statistics.median(ratios):.2f}x "
            f"(min {min(ratios):.2f}, max {max(ratios):.2f}, {pairs} pairs)"
        )
    if CUDA:
        print(f"peak memory: plain {peak_memory(plain):.2f}, ours {peak_memory(ours):.2f} GiB")
        step = statistics.median(own)
        share = arithmetic(plain) / step / (peak * 1e12)
        print(f"our step: {step * 1e3:.1f} ms, {share:.0%} of {peak:.0f} TFLOP/s")
