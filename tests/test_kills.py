"""Every command, killed at each change that it makes to a folder, and given once more; and every
file of a run, damaged.

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
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cyclegan.checkpoints import load_generator
from flows import cli
from flows.ablate import ablation, take_over
from flows.plan import plan
from flows.prepare import prepare
from flows.show import show_result, show_status
from pipeline.config.load import load_config
from pipeline.data.frames import MANIFEST
from pipeline.data.listing import evenly
from pipeline.errors import UserError
from pipeline.files import PART, REMOVED, TAKEN, write_json
from pipeline.run.contents import STORE
from pipeline.run.folder import locked, read_run
from pipeline.run.stage import check, run_stage
from pipeline.runtime.checkpoint import continuing, load_checkpoint
from pipeline.scoring import bootstrap
from reports.report import write_comparison, write_report
from segmentation.train import load_segmenter
from tests.conftest import TINY
from tests.helpers import equal, without_seconds

SETTINGS: dict[str, Any] = {
    "arms": {"source_only": "source", "adapted": "translated"},
    "cyclegan": TINY["cyclegan"]
    | {"steps_per_epoch": 1, "checkpoint_every": 1, "log_every": 1, "sample_every": 1},
    "segmentation": TINY["segmentation"] | {"steps": 2, "checkpoint_every": 1, "log_every": 1},
    "evaluation": {"pictures": 1, "save": "label_ids", "overlays": True},
    "selection": {"frames": 2},
    "compute": {"accelerator": "cpu", "cache": "cache"},
}
IMPORTED = (
    *["albumentations", "torch.utils.tensorboard", "cyclegan.train", "cyclegan.translate"],
    *["segmentation.train", "segmentation.evaluate", "segmentation.score_files", "reports.check"],
    *[
        "segmentation.selection",
        "segmentation.gate",
        "segmentation.pseudo_labels",
        "pipeline.intake.discover",
        "flows.doctor",
        "flows.show",
    ],
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


def lend() -> None:
    """What `run --ablate` does before its stages: it takes over those of the plain run."""
    config, run = ablation(load_config(Path("tiny.yaml"))), Path("l")
    with locked(run):
        prepare(config, run, [])
        take_over(config, run, Path("r"))


def label() -> None:
    """What `label-target` does, in a run that takes the trained network over."""
    align = "translation={method: class_alignment, pseudo_labels: source_only}"
    config, run = load_config(Path("tiny.yaml"), [align]), Path("p")
    with locked(run):
        stages = prepare(config, run, [])
        take_over(config, run, Path("r"))
        inputs = check(run, stages)
    (stage,) = (stage for stage in stages if stage.command == "label-target")
    run_stage(run, stage, inputs[stage.name])


TRAINED = ("cyclegan", "translated", "segmentation")
LOOKED_AT = ("evaluation", "selection")
PREDICTIONS = "r/evaluation/adapted/seed-0/predictions_ids"
CHEAP = {
    "report": Command(["report", "r"], (*TRAINED, *LOOKED_AT, "report")),
    "compare": Command(["compare", "r", "--out", "c"], (*TRAINED, *LOOKED_AT, "report")),
    "export": Command(["export", "r", "--to", "x.pth"], TRAINED),
    "export all": Command(["export", "r", "--to", "reference"], TRAINED),
    "export network": Command(["export", "r/adapted", "--to", "model"], (*TRAINED, "evaluation")),
    "check": Command(
        ["check", "gta5", "--root", "folder", "--out", "checked", "--quarantine"], status=1
    ),
    "new-dataset": Command(["new-dataset", "folder", "--out", "d/new.yaml"], again=2),
    "predictions": Command(
        ["evaluate", "r", "--predictions", PREDICTIONS, "--out", "s"], (*TRAINED, "evaluation")
    ),
}
DEAR = {
    "train-cyclegan": Command(["train-cyclegan", "r", "--config", "tiny.yaml"]),
    "translate": Command(["translate", "r"], ("cyclegan",)),
    "translate frames": Command(
        ["translate", "r", "--input", "folder/images", "--out", "t"], ("cyclegan",)
    ),
    "predict": Command(
        ["predict", "r/adapted", "--input", "folder/images", "--out", "p", "--overlay"], TRAINED
    ),
    "train-segmentation": Command(["train-segmentation", "r"], ("cyclegan", "translated")),
    "evaluate": Command(["evaluate", "r"], TRAINED),
    "select": Command(["select", "r"], TRAINED),
    "gate": Command(["gate", "r"], TRAINED),
    "label-target": Command(label, TRAINED),
    "lend": Command(lend, (*TRAINED, "evaluation")),
    "force": Command(force, (*TRAINED, *LOOKED_AT, "report")),
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
    _forks().send((command, folder, kill, after, notes))
    status: int = _forks().recv()
    return status


@cache
def _forks() -> Connection:
    """To a process with all that commands import and one thread, whose forks take no time."""
    ours, theirs = Pipe()
    get_context("spawn").Process(target=_fork, args=(theirs,), daemon=True).start()
    return ours


def _fork(requests: Connection) -> None:
    for name in IMPORTED:
        import_module(name)
    while True:
        request = requests.recv()
        if not (child := os.fork()):
            _child(*request)
        requests.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


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
            try:
                return change(*paths, **how)
            finally:  # also after one that finds no such file
                if counted == kill:
                    os.kill(os.getpid(), signal.SIGKILL)

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
        unlike = path.name in {"said", STORE} or "/tensorboard/" in name
        if not path.is_file() or unlike:
            continue
        data = path.read_bytes()
        if path.name in {"progress.json", "stage.json"}:
            record = json.loads(data)
            for time in ("seconds", "rate", "cost"):
                record.pop(time, None)
            # Of what tells times, and of pickles, whose equal values may be other bytes.
            hashed = record.get("results", {})
            for file in [name for name in hashed if name.endswith((".html", ".pt", MANIFEST))]:
                del hashed[file]
            found[name] = record
        elif path.name == MANIFEST:
            found[name] = without_seconds(data)
        elif path.suffix == ".pt":
            found[name] = load_checkpoint(path)
        elif path.suffix == ".html":
            cost = rb'(?s)<section id="cost">.*?</section>|\d+ min \d+ s|[\d.]+ (s|MB|GB)\b'
            found[name] = re.sub(cost, b"", data)
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
    done = ["train-cyclegan", "translate", "train-segmentation", "evaluate", "select", "report"]
    for name in done:
        command = (DEAR | CHEAP)[name]
        assert call(command, folder) == 0, (folder / "said").read_text()
    return folder


LONG = {"export network", "label-target", "force"}


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
    assert call(command, place, notes=notes) == command.status, (place / "said").read_text()
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
        code = call(command, place, kill=number, after=after)
        if code == command.status and number > len(kinds) // 2:
            # Progress is recorded every few seconds: this time there were fewer changes.
            shutil.rmtree(place)
            continue
        assert code == -signal.SIGKILL, where
        ended = after and number == len(kinds)
        status = call(command, place)
        said = (place / "said").read_text()
        due = command.again if ended and command.again is not None else command.status
        assert status == due, f"{where}: {said}"
        assert "Traceback" not in said, where
        found = content(place)
        assert found.keys() == expected.keys(), where
        assert [key for key in found if not equal(found[key], expected[key])] == [], where
        left = [p for p in place.rglob(".*") if p.name.startswith((PART, REMOVED, TAKEN))]
        assert left == [], where
        shutil.rmtree(place)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in [*CHEAP, *DEAR]],
)
def test_killed_and_given_once_more(name: str, finished: Path, tmp_path: Path) -> None:
    walk(name, finished, tmp_path, whole=False)


@pytest.mark.soak
@pytest.mark.parametrize("name", [*CHEAP, *DEAR])
def test_killed_at_every_change(name: str, finished: Path, tmp_path: Path) -> None:
    walk(name, finished, tmp_path, whole=True)


DAMAGES: dict[str, Callable[[bytes, Path], bytes]] = {
    "empty": lambda data, run: b"",
    "braces": lambda data, run: b"{}",
    "list": lambda data, run: b"[1]",
    "noise": lambda data, run: np.random.default_rng(0).bytes(200),
    "half": lambda data, run: data[: len(data) // 2],
    "other": lambda data, run: (
        run / "segmentation/adapted/seed-0/checkpoints/last.pt"
    ).read_bytes(),
}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("one each", marks=pytest.mark.slow),
        *(pytest.param(d, marks=pytest.mark.soak) for d in DAMAGES),
    ],
)
def test_every_damaged_file_is_one_message(
    damage: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads a damaged file says so, and no hash helps: as in runs of earlier versions."""
    few = partial(bootstrap.resample, resamples=10)
    monkeypatch.setattr(bootstrap, "resample", few)
    run = tmp_path / "r"
    shutil.copytree(finished / "r", run)
    for path in run.rglob("stage.json"):
        write_json(path, {k: v for k, v in json.loads(path.read_text()).items() if k != "results"})
    unread = ("tensorboard", "predictions_ids", "overlays", "report.md", "index.html")
    files = [p for p in sorted(run.rglob("*")) if p.is_file() and not {*p.parts} & {*unread}]
    # One of a kind is enough of pictures and of what each arm has.
    files = list({re.sub(r"source_only|adapted|\d", "#", str(p)): p for p in files}.values())
    commands: list[Callable[[], object]] = [
        lambda: show_status(run),
        lambda: show_result(run),
        lambda: write_report(read_run(run), run, tmp_path / "report"),
        lambda: write_comparison({"r": (read_run(run), run)}, tmp_path / "compared"),
        lambda: load_generator(run / "cyclegan/checkpoints/last.pt"),
        lambda: load_segmenter(run / "segmentation/adapted/seed-0/checkpoints/last.pt"),
        lambda: check(run, plan(read_run(run), run)),
    ]
    if damage == "one each":
        files = evenly(files, 2 * len(DAMAGES))
    said: list[str] = []
    for number, path in enumerate(files):
        whole = path.read_bytes()
        kind = list(DAMAGES)[number % len(DAMAGES)] if damage == "one each" else damage
        path.write_bytes(DAMAGES[kind](whole, run))
        for command in commands:
            try:
                command()
            except UserError as error:
                said.append(str(error))
            except Exception as error:
                raise AssertionError(f"{path}: {error!r}") from error
        path.write_bytes(whole)
    assert len(said) > len(DAMAGES)
    assert [message for message in said if str(tmp_path) not in message] == []


@pytest.mark.parametrize("step", [-1, 3, 10**9, True, "1", None, [1]])
def test_nonsense_in_a_checkpoint_is_one_message(step: object, finished: Path) -> None:
    path = finished / "nonsense.pt"
    path_of_network = finished / "r/segmentation/adapted/seed-0/checkpoints/last.pt"
    torch.save(load_checkpoint(path_of_network) | {"step": step}, path)
    with pytest.raises(UserError, match=r"nonsense\.pt is damaged"), continuing(path, 2, "x"):
        pass


def test_what_does_not_fit_into_a_network_is_one_message(finished: Path) -> None:
    path = finished / "other.pt"
    torch.save({"step": 1, "model": {"weight": torch.ones(3)}}, path)
    with (
        pytest.raises(UserError, match=r"other\.pt is damaged.*--force"),
        continuing(path, 2, "x") as state,
    ):
        torch.nn.Linear(2, 2).load_state_dict(state["model"])


def test_a_flipped_bit_in_a_checkpoint_is_noticed(finished: Path, tmp_path: Path) -> None:
    whole = finished / "r/cyclegan/checkpoints/last.pt"
    with zipfile.ZipFile(whole) as records:
        record = max(records.infolist(), key=lambda info: info.file_size)
    data = bytearray(whole.read_bytes())
    data[record.header_offset + record.file_size // 2] ^= 2
    (tmp_path / "last.pt").write_bytes(data)
    for load in (load_checkpoint, load_generator):
        with pytest.raises(UserError, match=r"last\.pt"):
            load(tmp_path / "last.pt")


def test_checkpoints_without_checksums_are_read(tmp_path: Path) -> None:
    state = {"weight": torch.ones(100)}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "none.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("none.pt", "old.pt"):
        assert load_checkpoint(tmp_path / name).keys() == state.keys()
