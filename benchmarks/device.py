"""What a device can do at most, by torch alone: arithmetic, memory, and sums over devices.

    python benchmarks/device.py
    torchrun --standalone --nproc-per-node N benchmarks/device.py --collectives

Means of so many calls after three to warm up, on random numbers.
"""

import argparse
import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

CUDA = torch.cuda.is_available()


def seconds(work: Callable[[], object], device: torch.device, calls: int) -> float:
    """Mean time of a call, to its end on the device."""
    for number in range(3 + calls):
        if number == 3:
            _wait(device)
            start = time.perf_counter()
        work()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def arithmetic(device: torch.device, side: int, calls: int) -> None:
    """Print the rate of matrix products in each precision, and of copies."""
    for name, kind, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("TF32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        taken = seconds(lambda a=a, b=b: a @ b, device, calls)
        print(f"{name} matrix product, {side}: {2 * side**3 / taken / 1e12:.3g} TFLOP/s")
    x = torch.empty(side * side, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    moved = 2 * x.numel() * x.element_size()
    rate = moved / seconds(lambda: y.copy_(x), device, calls) / 1e12
    print(f"copy, bytes read and written: {rate:.3g} TB/s")
    if device.type == "cuda":
        host = torch.empty(side * side, dtype=torch.float32, pin_memory=True)
        taken = seconds(lambda: x.copy_(host, non_blocking=True), device, calls)
        print(f"copy from pinned memory: {moved / 2 / taken / 1e9:.3g} GB/s")


def collectives(side: int, calls: int) -> None:
    """Print the rate of sums over all devices, as training's gradients take."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", rank) if CUDA else torch.device("cpu")
    if CUDA:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if CUDA else "gloo")
    try:
        ranks = dist.get_world_size()
        x = torch.full((side * side,), float(dist.get_rank() + 1), device=device)
        dist.all_reduce(x)
        assert x[0].item() == ranks * (ranks + 1) / 2, "a wrong sum"
        taken = seconds(lambda: dist.all_reduce(x), device, calls)
        size = x.numel() * x.element_size()
        if dist.get_rank() == 0:
            # What each link carries in a ring, as NCCL's own tests count it.
            bus = 2 * (ranks - 1) / ranks * size / taken / 1e9
            print(
                f"{dist.get_backend()}, {ranks} device(s): sum of {size / 2**20:.0f} MiB in "
                f"{1e3 * taken:.3g} ms, {bus:.3g} GB/s on the bus"
            )
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Measure, and say on what."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collectives", action="store_true", help="under torchrun")
    parser.add_argument("--side", type=int, default=8192, help="of the matrices")
    parser.add_argument("--calls", type=int, default=10)
    given = parser.parse_args()
    if given.collectives:
        collectives(given.side, given.calls)
        return
    device = torch.device("cuda" if CUDA else "cpu")
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {_cudnn()}")
    if CUDA:
        about = torch.cuda.get_device_properties(device)
        print(
            f"{torch.cuda.device_count()} x {about.name}, {about.total_memory / 2**30:.0f} GiB, "
            f"{about.multi_processor_count} multiprocessors"
        )
    else:
        print(f"no GPU, {torch.get_num_threads()} CPU thread(s)")
    arithmetic(device, given.side, given.calls)


def _cudnn() -> int | None:
    return torch.backends.cudnn.version() if CUDA else None


if __name__ == "__main__":
    main()
