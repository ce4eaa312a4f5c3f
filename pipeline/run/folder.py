"""A run is a folder; a stage's `stage.json`, written last, is the only record that it is done.

`inputs.json`, written first, says what the folder's content was or will be made from. A stage
whose inputs are equal continues or is skipped; a stage whose inputs differ is refused.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NoReturn

from pydantic import BaseModel, Field, RootModel

from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.config.translation import TRANSLATED
from pipeline.errors import UserError
from pipeline.files import read_record, sweep, write_json
from pipeline.run.contents import hashes, sha256
from pipeline.run.lock import FOLDER, lock
from pipeline.runtime.cost import Cost, spent
from pipeline.yaml_files import write_yaml

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
INPUTS_FILE = "inputs.json"
STAGE_FILE = "stage.json"
LOST_FILE = "lost_classes.json"
"""The classes that fall to nothing, as they were said before the run began."""

Inputs = dict[str, object]

_SMALL = 1 << 26
"""Bytes of results up to which they are read anew whenever they are checked."""


class StageRecord(BaseModel):
    """The content of a `stage.json`."""

    fingerprint: str
    seconds: float = Field(ge=0, allow_inf_nan=False)
    inputs: Inputs
    results: dict[str, str] = {}
    """File below the stage's folder -> sha256; earlier versions recorded none."""
    cost: Cost | None = None
    """What was spent on it; earlier versions recorded nothing."""


class RunRecord(BaseModel):
    """The content of a `run.json`, as far as it is read."""

    versions: dict[str, str | None] = {}
    commit: str | None = None
    machine: dict[str, str | int | None] = {}


class _InputsRecord(RootModel[Inputs]):
    pass


def translated_folder(translation: str) -> str:
    """The stage in which the frames of a translation are made."""
    return TRANSLATED if translation == TRANSLATED else f"translations/{translation}"


def cyclegan_folder(translation: str) -> str:
    """The stage in which the networks of a translation are trained."""
    return "cyclegan" if translation == TRANSLATED else f"cyclegans/{translation}"


def network_folder(kind: str, arm: str, seed: int) -> str:
    """The stage of one network: `segmentation`, `pseudo_labels`, `evaluation` or `selection`."""
    return f"{kind}/{arm}/seed-{seed}"


def gate_folder(translation: str) -> str:
    """The stage that looks whether labels still fit the frames of a translation."""
    return f"gates/{translation}"


def fingerprint(inputs: Inputs) -> str:
    """A hash of everything that a stage's result depends on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: object, new: object, place: str = "") -> list[str]:
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
    recorded = recorded_inputs(run, name)
    if recorded is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                f"{folder} holds files, but no {INPUTS_FILE} that says what they were made from. "
                "Move them away."
            )
        return "absent"
    # Through JSON, so that tuples and lists compare equal.
    if changed := differences(recorded, json.loads(json.dumps(inputs))):
        refuse(run, name, changed)
    return "done" if (folder / STAGE_FILE).is_file() else "begun"


def refuse(run: Path, name: str, changed: Sequence[str]) -> NoReturn:
    """Raise `UserError`: a stage was made from other inputs, which differ in `changed`."""
    raise UserError(
        f"{run / name} was made with other settings or data:\n"
        + "".join(f"  {line}\n" for line in changed)
        + "Start a new run with --run DIR, or make it and what follows from it anew with "
        f"--force {name}."
    )


def recorded_inputs(run: Path, name: str) -> Inputs | None:
    """What the content of a stage's folder was or will be made from; None where nothing is."""
    path = run / name / INPUTS_FILE
    return read_record(path, _InputsRecord, _anew(name)).root if path.is_file() else None


def read_stage(run: Path, name: str) -> StageRecord:
    """The record of a complete stage."""
    return read_record(run / name / STAGE_FILE, StageRecord, _anew(name))


def read_run_record(path: Path) -> RunRecord:
    """What a `run.json` says of versions and machine."""
    return read_record(path, RunRecord, "Remove it: reports then do not tell what the run ran on.")


def _anew(name: str) -> str:
    return f"Make the stage and what follows from it anew with `sim2real run --force {name}`."


def begin_stage(folder: Path, inputs: Inputs) -> None:
    """Record what the content of `folder` is going to be made from."""
    write_json(folder / INPUTS_FILE, inputs)


def finish_stage(
    run: Path,
    name: str,
    inputs: Inputs,
    *,
    seconds: float,
    devices: int = 1,
    results: Sequence[str] = (),
) -> None:
    """Record that a stage is complete.

    Args:
        seconds: that it took.
        devices: how many worked side by side.
        results: patterns of the files that others will read, below the stage's folder.
    """
    folder = run / name
    paths = sorted({p for pattern in results for p in folder.glob(pattern) if p.is_file()})
    found = hashes(paths, run, f"{name}: results")
    write_json(
        folder / STAGE_FILE,
        {
            "fingerprint": fingerprint(inputs),
            "seconds": round(seconds, 1),
            "cost": spent(seconds, devices).model_dump(),
            "inputs": inputs,
            "results": {
                path.relative_to(folder).as_posix(): value
                for path, value in zip(paths, found, strict=True)
            },
        },
    )


def check_results(run: Path, name: str, wanted: str = "*") -> None:
    """Look whether the results of a complete stage are as it left them.

    Args:
        wanted: a pattern of the results that are going to be read.

    Raises:
        UserError: one is missing or has changed.
    """
    folder = run / name
    known = read_stage(run, name).results
    recorded = {folder / file: known[file] for file in known if fnmatchcase(file, wanted)}
    for path in recorded:
        if not path.is_file():
            raise UserError(f"{path}, a result of stage {name}, is missing. {_anew(name)}")
    if sum(path.stat().st_size for path in recorded) <= _SMALL:
        found = [sha256(path) for path in recorded]
    else:
        found = hashes(list(recorded), run, f"{name}: results")
    for (path, value), now in zip(recorded.items(), found, strict=True):
        if now != value:
            raise UserError(
                f"{path} is no longer what stage {name} wrote: it was damaged or replaced. "
                f"{_anew(name)}"
            )


def write_run(folder: Path, config: Config) -> None:
    """Write the whole resolved configuration, and what it runs on."""
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
    write_yaml(folder / CONFIG_FILE, config.model_dump(mode="json"))  # last: it makes it a run


def read_run(folder: Path) -> Config:
    """The configuration of an existing run folder."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} is no run folder: it has no {CONFIG_FILE}. Make one with "
            "`sim2real run CONFIG --run DIR`; the commands that train make it with --config CONFIG."
        )
    return load_config(folder / CONFIG_FILE)


@contextmanager
def locked(folder: Path, option: str = "--run") -> Iterator[None]:
    """Wait until no other process changes what a folder is made of, and keep others out.

    What a killed process left half-made there is removed, but not within stages: each of them has
    a lock of its own, and may be at work.

    Args:
        option: of the command line, that names the folder.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(folder, RUN_LOCK))
        except OSError as error:
            raise UserError(
                f"Cannot write to {folder}: {error.strerror}. Give another folder with {option} "
                "DIR."
            ) from error
        # Not below a folder that is no run: what is there may be anybody's.
        sweep(folder, below=(folder / CONFIG_FILE).is_file(), but=_OWN)
        yield


RUN_LOCK = "run"
"""The lock of what a folder as a whole is made of: its configuration, which stages there are."""
_OWN = (FOLDER, CONFIG_FILE, INPUTS_FILE)
"""What is in a folder that is swept on its own: another run, a stage, an output folder."""

_PACKAGES = (
    *["sim2real", "torch", "torchvision", "lightning-fabric", "segmentation-models-pytorch"],
    *["timm", "albumentations", "numpy", "prefect"],
)


@cache
def code_version() -> str:
    """The version, source and commit of this code; the source tells equal code, also uncommitted.

    Returns:
        e.g. `0.1.0, source 1a2b3c4d5e6f, commit 0123456789ab`.
    """
    root, source = Path(__file__).parents[2], hashlib.sha256()
    for package in ("pipeline", "cyclegan", "segmentation", "reports", "flows"):
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                source.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    commit = (_output(["git", "rev-parse", "HEAD"]) or "unknown")[:12]
    return f"{_version('sim2real')}, source {source.hexdigest()[:12]}, commit {commit}"


def check_version(theirs: str) -> None:
    """Raise `UserError` unless this code is the code that says `theirs` of itself."""
    ours = code_version()
    if ours.rpartition(", ")[0] != theirs.rpartition(", ")[0]:
        raise UserError(
            f"This worker on {platform.node()} has sim2real {ours}; the run was started with "
            f"{theirs}. Install one version on all machines, start the workers again, and start "
            "the run again: it continues."
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
