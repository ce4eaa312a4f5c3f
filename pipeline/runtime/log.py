"""The log of a training, and the search for values that are not finite."""

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import UserError
from pipeline.files import naming, replacing
from pipeline.progress import Advance, progress
from pipeline.runtime.distributed import Ranks

_LOSSES_SHOWN = 4


def check_finite(networks: Iterable[torch.nn.Module], step: int, names: list[str]) -> None:
    """Raise `UserError` when a weight is not finite, before it is saved as something good."""
    for network in networks:
        for key, value in network.state_dict().items():
            if not value.isfinite().all():
                raise UserError(_not_finite(f"Weight {key!r}", step, names))


def _not_finite(what: str, step: int, names: list[str]) -> str:
    return (
        f"{what} is not finite at step {step}, on {', '.join(names)}. Look at these frames (blank "
        "or damaged ones are the usual cause) or lower learning_rate. The last checkpoint is "
        "unharmed: run again to continue from it."
    )


@contextmanager
def training_log(
    folder: Path,
    title: str,
    steps: int,
    ranks: Ranks,
    *,
    done: int,
    images_per_step: int | None = None,
) -> Iterator["TrainingLog | None"]:
    """The log and the progress of a training, on rank zero; None on the others.

    Args:
        done: steps that an earlier run has taken.
        images_per_step: where given, the rate is shown in images.
    """
    if not ranks.is_rank_zero:
        yield None
        return
    shown = progress(folder, title, steps, done=done, images_per_unit=images_per_step)
    with TrainingLog(folder, step=done) as log, shown as advance:
        log.advance = advance
        yield log


class TrainingLog:
    """`log.jsonl` and TensorBoard events, cut back to the checkpoint when training continues.

    Losses stay on the device until `flush`, so that a step never waits for them. `flush` is also
    where a loss that is not finite is found: it names the step and its files.
    """

    advance: Advance
    """Called with the number of steps taken since the last call; shows the losses beside them."""

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
        self.advance.note = ", ".join(f"{key} {entry[key]:.3g}" for key in keys[:_LOSSES_SHOWN])
        self._waiting.clear()

    def picture(self, step: int, name: str, rgb: npt.NDArray[np.uint8]) -> None:
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
