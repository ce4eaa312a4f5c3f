"""Every command, killed at each change that it makes to a folder, and given once more.

A process dies by SIGKILL before its n-th renaming, linking or removing of a file (and, in the
whole walk, also after it), for n = 1, 2, ... until it comes to its end. Each time the same command
must then leave what it leaves undisturbed, and nothing else.
"""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import cli
from flows.ablate import ladder
from flows.prepare import prepare
from flows.stages import check, run_stage
from pipeline.config import load_config
from pipeline.contents import STORE
from pipeline.datasets import evenly
from pipeline.files import PART, REMOVED, TAKEN
from pipeline.runs import locked
from reports.ladder import write_ladder
from tests.conftest import TINY

SETTINGS: dict[str, Any] = {
    "arms": {"source_only": "source", "adapted": "translated"},
    "cyclegan": TINY["cyclegan"]
    | {"steps_per_epoch": 1, "checkpoint_every": 1, "log_every": 1, "sample_every": 1},
    "segmentation": TINY["segmentation"] | {"steps": 2, "checkpoint_every": 1, "log_every": 1},
    "evaluation": {"pictures": 1, "save": "label_ids", "overlays": True},
    "compute": {"accelerator": "cpu", "cache": "cache"},
}
SERVER = get_context("forkserver")
"""Starts each child in milliseconds, with all that a command imports and no thread."""
SERVER.set_forkserver_preload(
    [
        *["tests.test_kills", "albumentations", "torch.utils.tensorboard", "cyclegan.train"],
        *["cyclegan.translate", "segmentation.train", "segmentation.evaluate", "reports.check"],
        *["segmentation.score_files", "pipeline.intake.discover", "flows.doctor", "flows.show"],
    ]
)
CHANGES = ("replace", "rename", "link", "unlink", "rmdir")
"""The functions of `os` that change which files there are."""


@dataclass
class Command:
    """A command line, or a function, and the part of a finished run that it starts from."""

    do: list[str] | Callable[[], object]
    stages: tuple[str, ...] = ()
    """Folders of the run `r` that are there before."""
    status: int = 0
    """What it ends with: 1 where a data set has to be mended."""
    again: int | None = None
    """What a second call ends with, where that is something else."""


def force() -> None:
    """What `run --force evaluation` does, without a server."""
    run = Path("r")
    with locked(run):
        stages = prepare(load_config(Path("tiny.yaml")), run, ["evaluation"])
        inputs = check(run, stages)
        for stage in stages:
            run_stage(run, stage, inputs[stage.name])


def table() -> None:
    """The table of a ladder, none of whose rows is done."""
    rows = ladder(load_config(Path("tiny.yaml")))
    with locked(Path("l")):
        write_ladder("tiny", rows, Path("l"), {row.name: None for row in rows})


TRAINED = ("cyclegan", "translated", "segmentation")
PREDICTIONS = "r/evaluation/adapted/seed-0/predictions_ids"
CHEAP = {
    "report": Command(["report", "r"], (*TRAINED, "evaluation", "report")),
    "compare": Command(["compare", "r", "--out", "c"], (*TRAINED, "evaluation", "report")),
    "export": Command(["export", "r", "--to", "x.pth"], TRAINED),
    "export all": Command(["export", "r", "--to", "reference"], TRAINED),
    "check": Command(
        ["check", "gta5", "--root", "folder", "--out", "checked", "--quarantine"], status=1
    ),
    "new-dataset": Command(["new-dataset", "folder", "--out", "d/new.yaml"], again=2),
    "predictions": Command(
        ["evaluate", "r", "--predictions", PREDICTIONS, "--out", "s"], (*TRAINED, "evaluation")
    ),
    "ladder": Command(table),
}
DEAR = {
    "train-cyclegan": Command(["train-cyclegan", "r", "--config", "tiny.yaml"]),
    "translate": Command(["translate", "r"], ("cyclegan",)),
    "train-segmentation": Command(["train-segmentation", "r"], ("cyclegan", "translated")),
    "evaluate": Command(["evaluate", "r"], TRAINED),
    "force": Command(force, (*TRAINED, "evaluation", "report")),
}


def call(
    command: Command,
    folder: Path,
    *,
    kill: int = 0,
    after: bool = False,
    notes: Path | None = None,
) -> int:
    """Do a command in a child process; its status, negative where a signal ended it.

    Args:
        kill: the number of the change to die at; 0: none.
        after: die after that change, and not before it.
        notes: a file to write the names of the changed files to.
    """
    child = SERVER.Process(target=_child, args=(command, folder, kill, after, notes))
    child.start()
    child.join(240)
    child.kill()
    assert child.exitcode is not None
    return child.exitcode


def _child(command: Command, folder: Path, kill: int, after: bool, notes: Path | None) -> None:
    os.chdir(folder)
    for stream in (1, 2):
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    counted = 0

    def watched(change: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*paths: Any, **how: Any) -> Any:
            nonlocal counted
            counted += 1
            if notes:
                with notes.open("a") as file:
                    file.write(f"{change.__name__} {os.path.basename(paths[-1])}\n")
            if counted == kill and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            done = change(*paths, **how)
            if counted == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return watch

    for name in CHANGES:
        setattr(os, name, watched(getattr(os, name)))
    status: object = 0
    try:
        if isinstance(command.do, list):
            sys.argv = ["sim2real", *command.do]
            cli.main()
        else:
            command.do()
    except SystemExit as end:
        status = end.code or 0
    os._exit(status if isinstance(status, int) else 1)


def content(folder: Path) -> dict[str, Any]:
    """File -> what is in it, without the times that things took."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        unlike = path.name in {"said", ".lock", STORE} or "/tensorboard/" in name
        if not path.is_file() or unlike:
            continue
        data = path.read_bytes()
        if path.name in {"progress.json", "stage.json"}:
            record = json.loads(data)
            del record["seconds"]
            record.get("results", {}).pop("index.html", None)
            found[name] = record
        elif path.suffix == ".html":
            found[name] = re.sub(rb"\d+ min \d+ s|\d+ s", b"", data)
        elif name.startswith("cache/"):
            found[path.suffix] = len(data)  # files are found by their times
        else:
            found[name] = data
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """A folder with a finished run `r`, its configuration and a data set without a spec."""
    folder = tmp_path_factory.mktemp("kills")
    text = yaml.safe_dump(TINY | SETTINGS).replace("${WORLD}", str(world))
    config = yaml.safe_load(text)
    config["source"]["limit"] = config["target"]["limit"] = 2
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(world / "toy-sim", folder / "folder")
    (folder / "folder/images/lone.png").write_bytes(
        (folder / "folder/images/00001.png").read_bytes()
    )
    for name in ("train-cyclegan", "translate", "train-segmentation", "evaluate", "report"):
        command = (DEAR | CHEAP)[name]
        assert call(command, folder) == 0, (folder / "said").read_text()
    return folder


def walk(name: str, finished: Path, tmp_path: Path, *, whole: bool) -> None:
    """Kill a command at its changes, and look what the next call makes of it.

    Args:
        whole: at every change, before and after it; else before two of them.
    """
    command = (CHEAP | DEAR)[name]

    def start(place: Path) -> Path:
        run = place / "r"
        shutil.copytree(finished / "folder", place / "folder")
        shutil.copy(finished / "tiny.yaml", place)
        run.mkdir()
        if command.stages:
            for file in ("run.json", "config.yaml"):
                shutil.copy(finished / "r" / file, run)
            for stage in command.stages:
                shutil.copytree(finished / "r" / stage, run / stage)
        return place

    notes = tmp_path / "notes"
    place = tmp_path / "place"
    start(place)
    assert call(command, place, notes=notes) == command.status, (undisturbed / "said").read_text()
    expected = content(place)
    shutil.rmtree(place)
    kinds = [re.sub(r"\d+|[0-9a-f]{12,}", "#", line) for line in notes.read_text().splitlines()]
    assert kinds
    numbers = range(1, len(kinds) + 1)
    tries = [(kinds.index(kind) + 1, False) for kind in evenly(list(dict.fromkeys(kinds)), 2)]
    if whole:
        tries = [(number, after) for number in numbers for after in (False, True)]
    for number, after in tries:
        start(place)
        where = f"{name}, {'after' if after else 'before'} {number}: {kinds[number - 1]}"
        assert call(command, place, kill=number, after=after) == -signal.SIGKILL, where
        ended = after and number == len(kinds)
        status = call(command, place)
        said = (place / "said").read_text()
        due = command.again if ended and command.again is not None else command.status
        assert status == due, f"{where}: {said}"
        assert "Traceback" not in said, where
        found = content(place)
        assert found.keys() == expected.keys(), where
        assert [key for key in found if found[key] != expected[key]] == [], where
        left = [p for p in place.rglob(".*") if p.name.startswith((PART, REMOVED, TAKEN))]
        assert left == [], where
        shutil.rmtree(place)


@pytest.mark.parametrize("name", [*CHEAP, *DEAR])
def test_killed_and_given_once_more(name: str, finished: Path, tmp_path: Path) -> None:
    walk(name, finished, tmp_path, whole=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CHEAP, *DEAR])
def test_killed_at_every_change(name: str, finished: Path, tmp_path: Path) -> None:
    walk(name, finished, tmp_path, whole=True)
