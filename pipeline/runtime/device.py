"""Where to compute: a device of the kind that is asked for, and what it takes.

Fabric is imported where a network is set up: what only translates starts 3 s of CPU sooner without.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from pipeline.config.settings import ComputeConfig
from pipeline.errors import UserError
from pipeline.runtime.launch import torchrun

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Network = TypeVar("Network", bound=torch.nn.Module)
_CONTAINER = Path("/sys/fs/cgroup")


def accelerator(compute: ComputeConfig) -> Literal["cpu", "cuda"]:
    """What kind of device to compute on.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    gpu = torch.cuda.is_available()
    if compute.accelerator == "cuda" and not gpu:
        raise UserError("compute.accelerator is 'cuda', but torch sees no GPU. Use auto or cpu.")
    return "cuda" if gpu and compute.accelerator != "cpu" else "cpu"


def check_devices(compute: ComputeConfig) -> None:
    """Raise `UserError` when this machine has fewer GPUs than processes that need one."""
    if accelerator(compute) == "cpu":
        return
    launch, found = torchrun(), torch.cuda.device_count()
    # torchrun can also show each process its own GPU alone.
    if (launch.local_rank + 1 if launch else compute.devices) > found:
        asked = f"torchrun's --nproc-per-node is {launch.local_world_size}" if launch else None
        raise UserError(
            f"{asked or f'compute.devices is {compute.devices}'}, but torch sees {found} GPU(s). "
            f"Set it to at most {found}, or let CUDA_VISIBLE_DEVICES show more."
        )


def compute_device(compute: ComputeConfig, number: int = 0) -> torch.device:
    """The CPU, or the GPU of a number, which becomes the current one.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if accelerator(compute) == "cpu":
        return torch.device("cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def make_fabric(compute: ComputeConfig, *, training: bool, device: int = 0) -> "Fabric":
    """One device; the configured precision for training, 32 bits for what is stored or scored.

    Args:
        device: which GPU, where there are several: the local rank.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    kind = compute_device(compute, device).type
    precision: Literal["32-true", "bf16-mixed"]
    if not training:
        precision = "32-true"
    elif compute.precision == "auto":
        native = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if native else "32-true"
    else:
        precision = compute.precision
    return Fabric(
        accelerator=kind,
        devices=[device] if kind == "cuda" else 1,
        precision=precision,
        # One process, whatever a cluster's variables say: Fabric would take an allocation of
        # SLURM's, MPI's or Kubeflow's for its own launch.
        plugins=[LightningEnvironment()],
    )


def on_device(network: Network, compute: ComputeConfig) -> Network:
    """A network where it is used and not trained: on one device, in 32 bits, channels last.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    network.to(compute_device(compute), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take: of a GPU, or of the machine or its container."""
    if device.type == "cuda":
        # What torch's allocator holds and does not use is free, too.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    with suppress(OSError, ValueError):  # no container, or one without a limit
        limit = int((_CONTAINER / "memory.max").read_text())
        counted = dict(line.split() for line in (_CONTAINER / "memory.stat").open())
        used = int((_CONTAINER / "memory.current").read_text()) - int(counted["inactive_file"])
        free = min(free, limit - used)
    return free


def fused(network: torch.nn.Module) -> torch.nn.Module:
    """A compiled form for crops of one size; `network` itself stays as it is for other sizes."""
    compiled: torch.nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]
    return compiled


@dataclass(frozen=True)
class Pass:
    """What a pass through a network takes."""

    seconds: float
    memory: int
    """Bytes beside the parameters: on a GPU all at the height of the pass, on a CPU the activations
    kept for the backward pass."""


def measure_pass(
    network: torch.nn.Module,
    shape: tuple[int, ...],
    compute: ComputeConfig,
    *,
    training: bool,
    device: int = 0,
) -> Pass:
    """A forward pass, in training with its backward pass, after one to warm up.

    Args:
        network: puts out a tensor, or a list of them or of such lists.
        shape: of the random batch that goes in: (N, H, W, 3) pixels, or (N, C, H, W) floats.
        device: which GPU, where there are several.
    """
    fabric = make_fabric(compute, training=training, device=device)
    pixels = shape[-1] == 3
    batch = torch.randint(0, 256, shape, dtype=torch.uint8) if pixels else torch.randn(shape)
    network, batch = network.to(fabric.device).train(training), batch.to(fabric.device)
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    cuda = fabric.device.type == "cuda"
    seconds, before = 0.0, 0
    for _ in range(2):
        kept.clear()
        if cuda:
            torch.cuda.reset_peak_memory_stats(fabric.device)
            before = torch.cuda.memory_allocated(fabric.device)
        start = time.perf_counter()
        with (
            fabric.autocast(),
            torch.inference_mode(not training),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            loss = _loss(network(batch))
        if training:
            torch.autograd.backward(loss)
        if cuda:
            torch.cuda.synchronize(fabric.device)
        seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(fabric.device) - before if cuda else sum(kept.values())
    return Pass(seconds, peak)


def _loss(out: object) -> torch.Tensor:
    """Like most losses it keeps as many values for its backward pass as a network puts out."""
    if isinstance(out, list):
        return torch.stack([_loss(part) for part in out]).sum()
    assert isinstance(out, torch.Tensor)
    return out.float().exp().mean()


@contextmanager
def explain_memory(section: str) -> Iterator[None]:
    """Turn a GPU's lack of memory into advice about the settings of `section`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The GPU's memory does not suffice: {str(error).splitlines()[0]} Lower {section}.crop "
            f"or {section}.batch_size; the run continues from its last checkpoint if these are "
            "unchanged, else give it a new folder."
        ) from error
