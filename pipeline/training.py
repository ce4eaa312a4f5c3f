"""What the training loops need: a device, seeds, checkpoints, a log."""

import json
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from pipeline.config import ComputeConfig
from pipeline.errors import UserError
from pipeline.files import explain_damage, naming, open_regular, replacing
from pipeline.launch import torchrun

ANEW = "Make its stage anew with `sim2real run --force STAGE`, or give another file."


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
        asked = f"torchrun's --nproc-per-node is {launch.local_size}" if launch else None
        raise UserError(
            f"{asked or f'compute.devices is {compute.devices}'}, but torch sees {found} GPU(s). "
            f"Set it to at most {found}, or let CUDA_VISIBLE_DEVICES show more."
        )


def make_fabric(compute: ComputeConfig, *, training: bool, device: int = 0) -> Fabric:
    """One device; the configured precision for training, 32 bits for what is stored or scored.

    Args:
        device: which GPU, where there are several.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    kind = accelerator(compute)
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


def seed_step(seed: int, step: int, share: int = 0) -> None:
    """Seed torch's global generators (dropout, weights) as a function of (seed, step).

    Args:
        share: which part of a batch is worked on here; each needs choices of its own.
    """
    key = [seed, step, share] if share else [seed, step]
    torch.manual_seed(int(np.random.default_rng(key).integers(2**63)))


def fused(network: torch.nn.Module) -> torch.nn.Module:
    """A compiled form for crops of one size; `network` itself stays as it is for other sizes."""
    compiled: torch.nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]
    return compiled


def gradients(networks: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """The gradients at all weights of `networks`."""
    return [p.grad for n in networks for p in n.parameters() if p.grad is not None]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain data, whole or not at all."""
    # Given a path, torch would write its name into the file, and no two would be equal.
    with replacing(path) as part, part.open("wb") as file:
        torch.save(state, file)


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; runs no code from the file.

    torch does not look at the checksums that it writes; this does. Files of torch before 1.6 have
    none, and those of `set_crc32_options(False)` have zeros.

    Raises:
        UserError: no regular file.
        Exception: of any kind, as a damaged or foreign file makes the unpickler raise it.
    """
    with open_regular(path) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as records:
                summed = any(record.CRC for record in records.infolist())
                if summed and (bad := records.testzip()):
                    raise ValueError(f"the checksum of {bad} is wrong")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; runs no code from the file.

    Raises:
        UserError: the file is damaged or not a checkpoint of ours.
    """
    with explain_damage(path, ANEW):
        state = read_tensors(path)
        if not isinstance(state, dict):
            raise ValueError(f"it holds {type(state).__name__}, not a dictionary")
    return state


@contextmanager
def continuing(path: Path, steps: int, section: str) -> Iterator[dict[str, Any]]:
    """The state in a checkpoint that training continues from, for as long as it is taken over.

    Args:
        steps: of the whole training.
        section: the settings of the training, for advice.

    Raises:
        UserError: the file is damaged, or the checkpoint of another training.
    """
    state = load_checkpoint(path)
    with explain_damage(path, ANEW), explain_memory(section):
        step = state["step"]
        if type(step) is not int or not 0 <= step <= steps:
            raise ValueError(f"step {step!r:.50} of a training of {steps} steps")
        yield state


@torch.no_grad()
def follow(average: torch.nn.Module, network: torch.nn.Module, keep: float, step: int) -> None:
    """Move the weights of `average` towards those of `network`, in place.

    average = k average + (1 - k) network (Yazici et al., ICLR 2019, eq. 1), where k rises to `keep`
    over the first steps as (1 + step) / (10 + step): the initial weights are soon forgotten.
    """
    keep = min(keep, (1 + step) / (10 + step))
    # One launch for all weights.
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - keep)


def check_finite(networks: Iterable[torch.nn.Module], step: int, names: list[str]) -> None:
    """Raise `UserError` when a weight is not finite, before it is saved as something good."""
    for network in networks:
        for key, value in network.state_dict().items():
            if not value.isfinite().all():
                raise UserError(_not_finite(f"Weight {key!r}", step, names))


@dataclass(frozen=True)
class Pass:
    """What a pass through a network takes."""

    seconds: float
    memory: int
    """Bytes beside the weights: on a GPU all at the height of the pass, on a CPU what the way back
    needs."""


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
        network: puts out a tensor, or a list of them.
        shape: of the random batch that goes in: (N, H, W, 3) pixels, or (N, C, H, W) floats.
        device: which GPU, where there are several.
    """
    fabric = make_fabric(compute, training=training, device=device)
    pixels = shape[-1] == 3
    batch = torch.randint(0, 256, shape, dtype=torch.uint8) if pixels else torch.randn(shape)
    network, batch = network.to(fabric.device).train(training), batch.to(fabric.device)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
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
            out: torch.Tensor | list[torch.Tensor] = network(batch)
            # Like most losses it needs as many numbers again for its way back.
            loss = (out[0] if isinstance(out, list) else out).float().exp().mean()
        if training:
            torch.autograd.backward(loss)
        if cuda:
            torch.cuda.synchronize(fabric.device)
        seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(fabric.device) - before if cuda else sum(kept.values())
    return Pass(seconds, peak)


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


def _not_finite(what: str, step: int, names: list[str]) -> str:
    return (
        f"{what} is not finite at step {step}, on {', '.join(names)}. Look at these frames (blank "
        "or damaged ones are the usual cause) or lower learning_rate. The last checkpoint is "
        "unharmed: run again to continue from it."
    )


class TrainingLog:
    """`log.jsonl` and TensorBoard events, cut back to the checkpoint when training continues.

    Losses stay on the device until `flush`, so that a step never waits for them. `flush` is also
    where a loss that is not finite is found: it names the step and its files.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "log.jsonl"
        kept = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, TypeError, KeyError):  # a kill in the middle of a line
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
        with replacing(self.path) as part:
            part.write_text("".join(kept))
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._waiting: list[tuple[int, list[str], dict[str, torch.Tensor]]] = []

    def add(self, step: int, names: list[str], losses: dict[str, torch.Tensor]) -> None:
        """Keep the losses of one step and the frames that they came from."""
        self._waiting.append((step, names, {k: v.detach() for k, v in losses.items()}))

    def flush(self, **numbers: float) -> None:
        """Write the mean losses since the last flush and `numbers` as one entry.

        Raises:
            UserError: a loss was not finite.
        """
        if not self._waiting:
            return
        keys = list(self._waiting[0][2])
        table = torch.stack(
            [torch.stack([losses[k].float() for k in keys]) for _, _, losses in self._waiting]
        ).cpu()
        bad = (~table.isfinite()).nonzero()
        if len(bad):
            step, names, _ = self._waiting[int(bad[0, 0])]
            raise UserError(_not_finite(f"Loss {keys[int(bad[0, 1])]!r}", step, names))
        step = self._waiting[-1][0]
        entry = {"step": step, **dict(zip(keys, table.mean(0).tolist(), strict=True)), **numbers}
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        with naming(self.path):
            for key, value in entry.items():
                if key != "step":
                    self._events.add_scalar(key, value, step)
        self._waiting.clear()

    def picture(self, step: int, name: str, rgb: Any) -> None:
        """Add (H, W, 3) uint8 RGB to the TensorBoard events."""
        self._events.add_image(name, rgb, step, dataformats="HWC")

    def __enter__(self) -> Self:
        self._hook, threading.excepthook = threading.excepthook, self._raised_later
        return self

    def _raised_later(self, raised: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread prints a full disk, and raises it again where we write or close next.
        if not isinstance(raised.exc_value, OSError):
            self._hook(raised)

    def __exit__(self, *_: object) -> None:
        """Finish the TensorBoard file, which has a thread of its own."""
        try:
            with naming(self.path):
                self._events.close()
        finally:
            threading.excepthook = self._hook
