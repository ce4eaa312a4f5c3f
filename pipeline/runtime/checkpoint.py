"""Checkpoints: written whole, read without running code, checked before they are used."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipeline.files import explain_damage, open_regular, replacing
from pipeline.runtime.device import explain_memory

ANEW = "Make its stage anew with `sim2real run --force STAGE`, or give another file."


def save_checkpoint(path: Path, state: Mapping[str, object]) -> None:
    """Write a checkpoint of tensors and plain data, whole or not at all."""
    # Given a path, torch would write its name into the file, and no two would be equal.
    with replacing(path) as part, part.open("wb") as file:
        torch.save(state, file)


def read_tensors(path: Path) -> object:
    """What `torch.save` wrote, or a `.safetensors` file, on the CPU; runs no code from the file.

    torch does not look at the checksums that it writes; this does. Files of torch before 1.6 have
    none, and those of `set_crc32_options(False)` have zeros.

    Raises:
        UserError: no regular file.
        Exception: of any kind, as a damaged or foreign file makes the unpickler raise it.
    """
    with open_regular(path) as file:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(file.read())
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


def is_segmenter(content: object) -> bool:
    """Whether the content of a file of weights is that of a segmentation training."""
    kinds = {"config": dict, "classes": list, "model": dict}
    return isinstance(content, dict) and all(
        isinstance(content.get(key), kind) for key, kind in kinds.items()
    )


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
