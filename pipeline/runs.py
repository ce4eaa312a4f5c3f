"""A run is a folder; a stage's `stage.json`, written last, is the only record that it is done.

`inputs.json`, written first, says what the folder's content was or will be made from. A stage
whose inputs are equal continues or is skipped; a stage whose inputs differ is refused.
"""

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.files import read_json, write_json, write_yaml

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
INPUTS_FILE = "inputs.json"
STAGE_FILE = "stage.json"

Inputs = dict[str, Any]


def fingerprint(inputs: Inputs) -> str:
    """A hash of everything that a stage's result depends on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """The fields in which two nested values differ, as `a.b: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{place}.{key}".strip("."))
        ]
    return [] if old == new else [f"{place}: {old!r} -> {new!r}"]


def stage_state(run: Path, name: str, inputs: Inputs) -> Literal["done", "begun", "absent"]:
    """How far the stage `name` of a run is.

    Raises:
        UserError: the folder holds work made from other inputs, or from unknown ones.
    """
    folder = run / name
    path = folder / INPUTS_FILE
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                f"{folder} holds files, but no {INPUTS_FILE} that says what they were made from. "
                "Move them away."
            )
        return "absent"
    # Through JSON, so that tuples and lists compare equal.
    changed = differences(read_json(path), json.loads(json.dumps(inputs)))
    if changed:
        raise UserError(
            f"{folder} was made with other settings:\n"
            + "".join(f"  {line}\n" for line in changed)
            + "Start a new run with --run DIR, or make it and what follows from it anew with "
            f"--force {name}."
        )
    return "done" if (folder / STAGE_FILE).is_file() else "begun"


def begin_stage(folder: Path, inputs: Inputs) -> None:
    """Record what the content of `folder` is going to be made from."""
    write_json(folder / INPUTS_FILE, inputs)


def finish_stage(folder: Path, inputs: Inputs, *, seconds: float) -> None:
    """Record that the stage is complete."""
    write_json(
        folder / STAGE_FILE,
        {"fingerprint": fingerprint(inputs), "seconds": round(seconds, 1), "inputs": inputs},
    )


def write_run(folder: Path, config: Config) -> None:
    """Write the whole resolved configuration, and what it runs on."""
    write_yaml(folder / CONFIG_FILE, config.model_dump(mode="json"))
    write_json(
        folder / RUN_FILE,
        {
            "versions": {name: _version(name) for name in _PACKAGES} | {"python": sys.version},
            "commit": _output(["git", "rev-parse", "HEAD"]),
            "machine": {
                "system": platform.platform(),
                "cpus": os.cpu_count(),
                "gpus": _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]),
            },
            "seeds": {"cyclegan": config.cyclegan.seed, "segmentation": list(config.seeds)},
        },
    )


def read_run(folder: Path) -> Config:
    """The configuration of an existing run folder."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} is no run folder: it has no {CONFIG_FILE}. Make one with "
            "`sim2real run CONFIG --run DIR`; the commands that train make it with --config CONFIG."
        )
    return load_config(folder / CONFIG_FILE)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run for as long as the block lasts, also after a kill."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder}: {error.strerror}. Give another folder with --run DIR."
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder} is being worked on by another process. Wait for it, or use --run DIR."
            ) from error
        yield


_PACKAGES = (
    *["sim2real", "torch", "torchvision", "lightning", "segmentation-models-pytorch", "timm"],
    *["albumentations", "numpy", "prefect"],
)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _output(command: list[str]) -> str | None:
    """What a command prints, run where this code is; None when it fails or does not exist."""
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
