"""A real server with a password, two real workers, and what happens when one of them dies."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from pipeline.run.lock import holders
from pipeline.runtime.checkpoint import load_checkpoint
from tests.conftest import TINY, cli_command

T = TypeVar("T")
pytestmark = pytest.mark.server

SETTINGS = {
    "arms": {"source_only": "source", "adapted": "translated"},
    "seeds": [0, 1],
    "segmentation": TINY["segmentation"] | {"steps": 60},
    "compute": {"accelerator": "cpu"},
}
PASSWORD = "tester:only for this test"


def call(env: dict[str, str], *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        cli_command(*arguments), env=env, capture_output=True, text=True, timeout=1500
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """The shared folder, with data and a configuration."""
    folder = tmp_path_factory.mktemp("shared")
    text = yaml.safe_dump(TINY | SETTINGS).replace("${WORLD}", str(world))
    (folder / "tiny.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def env(place: Path) -> Iterator[dict[str, str]]:
    """The environment of clients of a server that `sim2real server` has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "PREFECT_HOME": str(place / "prefect"), "OMP_NUM_THREADS": "1"}
    common.pop("PREFECT_API_URL", None)
    api = f"http://127.0.0.1:{port}/api"
    with started(
        {**common, "PREFECT_SERVER_API_AUTH_STRING": PASSWORD},
        place / "server.log",
        *["server", "--port", str(port)],
    ):
        answers(api, place / "server.log")
        yield {**common, "PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": PASSWORD}


@contextlib.contextmanager
def started(
    env: dict[str, str], log: Path, *arguments: str | Path
) -> "Iterator[subprocess.Popen[bytes]]":
    """A command, as a script starts it in the background: with SIGINT ignored."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            cli_command(*arguments),
            env=env,
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"SIGTERM did not end it: {log.read_text()}")


def answers(api: str, log: Path) -> None:
    """Wait for a server."""

    def health() -> bool:
        with contextlib.suppress(URLError, ConnectionError), urlopen(f"{api}/health"):
            return True
        return False

    until(health, log, 300)


def until(condition: Callable[[], T], log: Path, seconds: float = 900) -> T:
    """Wait until a condition holds and return what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"nothing happened: {log.read_text()}")
        time.sleep(0.2)
    return value


def test_a_worker_dies_and_the_report_is_that_of_one_machine(
    env: dict[str, str], place: Path, world: Path
) -> None:
    wrong = call({**env, "PREFECT_API_AUTH_STRING": "tester:guess"}, "deploy")
    assert wrong.returncode == 2
    assert "Error: The server at" in wrong.stderr
    assert "PREFECT_API_AUTH_STRING" in wrong.stderr
    early = call(env, "worker", "--pool", "gpu")
    assert early.returncode == 2
    assert "has no pool 'gpu'. Make it with `sim2real deploy`" in early.stderr
    made = call(env, "deploy", "--lost-after", "60")
    assert made.returncode == 0, made.stderr
    alone = call(env, "run", place / "tiny.yaml", "--run", place / "alone")  # in its own process
    assert alone.returncode == 0, alone.stderr

    run, logs = place / "run", [place / f"worker-{i}.log" for i in (0, 1)]
    roots = [word for root in (place, world) for word in ("--root", root)]

    def worker(number: int) -> list[str | Path]:
        return ["worker", "--pool", "gpu", "--name", f"worker-{number}", *roots]

    with (
        started(env, logs[0], *worker(0)),
        started(env, logs[1], *worker(1)) as doomed,
        started(
            env,
            place / "run.log",
            *["run", place / "tiny.yaml", "--run", run, "--workers", "--parts", "2"],
        ) as parent,
    ):

        def victims() -> list[int]:
            """Processes of the second worker that train a network and have left a checkpoint."""
            return [
                holder.pid
                for name, holder in holders(run).items()
                if holder.worker == "worker-1" and list((run / name).glob("checkpoints/last.pt"))
            ]

        (victim,) = until(victims, place / "run.log")
        for pid in (doomed.pid, victim):
            os.kill(pid, signal.SIGKILL)
        status = json.loads(call(env, "status", run, "--json").stdout)
        assert {unit["state"] for unit in status["stages"]} >= {"begun"}
        assert parent.wait(1500) == 0, (place / "run.log").read_text()
    report = "report/report.json"
    assert (run / report).read_bytes() == (place / "alone" / report).read_bytes()
    for pattern in ("translated/images/*.png", "evaluation/*/*/per_image.csv"):
        files = list(run.glob(pattern))
        assert files
        for file in files:
            assert file.read_bytes() == (place / "alone" / file.relative_to(run)).read_bytes()
    assert holders(run) == {}
    assert "only for this test" not in "".join(
        file.read_text(errors="replace")
        for file in place.rglob("*")
        if file.suffix in (".json", ".yaml", ".log", ".jsonl")
    )


def test_what_a_worker_refuses_is_said_by_the_run(
    env: dict[str, str], place: Path, tmp_path: Path
) -> None:
    """A folder that the worker may not use: one unit fails, once, and the run says why."""
    assert call(env, "deploy", "--lost-after", "60").returncode == 0  # again: nothing changes
    log = place / "stranger.log"
    with started(env, log, "worker", "--pool", "gpu", "--root", tmp_path):
        result = call(env, "run", place / "tiny.yaml", "--run", place / "other", "--workers")
    assert result.returncode == 2, result.stderr
    assert "is in none of the folders that this worker may use" in result.stderr
    assert "cyclegan ended as Failed" in result.stderr
    assert log.read_text().count("- cyclegan of ") == 1


def test_a_cancelled_run_takes_its_units_along_and_leaves_a_checkpoint(
    env: dict[str, str], place: Path, world: Path
) -> None:
    """The network has so many steps that nothing but the cancellation ends it, on any machine."""
    assert call(env, "deploy", "--lost-after", "60").returncode == 0
    run, file = place / "cancelled", place / "long.yaml"
    settings = yaml.safe_load((place / "tiny.yaml").read_text())
    settings |= {"arms": {"source_only": "source"}, "seeds": [0]}
    settings["segmentation"] |= {"steps": 1_000_000, "checkpoint_every": 20}
    file.write_text(yaml.safe_dump(settings))
    logs = [place / "cpu.log", place / "gpu.log"]
    roots = [word for root in (place, world) for word in ("--root", root)]

    def prefect(*arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", *arguments]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return result.stdout

    with (
        started(env, logs[0], "worker", "--pool", "cpu", *roots),
        started(env, logs[1], "worker", "--pool", "gpu", *roots),
    ):
        parameters = [f"run={json.dumps(str(run))}", f"config={json.dumps(str(file))}"]
        words = [word for parameter in parameters for word in ("--param", parameter)]
        said = prefect("deployment", "run", "adapt/adapt", *words)
        (parent,) = set(re.findall(r"UUID: (\S+)", said))
        until(lambda: list(run.glob("segmentation/*/*/checkpoints/last.pt")), logs[1])
        prefect("flow-run", "cancel", parent)
        until(lambda: not holders(run), logs[1], 120)
        until(lambda: "CANCELLED" in prefect("flow-run", "inspect", parent), logs[0], 60)
    states = {
        unit["state"] for unit in json.loads(call(env, "status", run, "--json").stdout)["stages"]
    }
    assert states == {"begun", "to do"}
    (checkpoint,) = run.glob("segmentation/*/*/checkpoints/last.pt")
    assert load_checkpoint(checkpoint)["step"] >= 20


@pytest.mark.soak
def test_whatever_is_killed_at_random_the_runs_end_alike(place: Path, world: Path) -> None:
    """Units, workers, runs and the server die in turn and are started again."""
    kills, moments = 20, random.Random(0)
    alone, shared = place / "undisturbed", place / "soak"
    shared.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    common = {**os.environ, "PREFECT_HOME": str(shared / "prefect"), "OMP_NUM_THREADS": "1"}
    common.pop("PREFECT_API_URL", None)
    env = {**common, "PREFECT_API_URL": api}
    made = call(common, "run", place / "tiny.yaml", "--run", alone)
    assert made.returncode == 0, made.stderr
    number = 0  # of the run

    def command(name: str) -> list[str]:
        if name == "server":
            words = ["server", "--port", str(port)]
        elif name == "parent":
            words = ["run", str(place / "tiny.yaml"), "--run", str(shared / str(number))]
            words += ["--workers", "--parts", "2"]
        else:
            words = ["worker", "--pool", "gpu", "--name", name]
            words += ["--root", str(place), "--root", str(world)]
        return cli_command(*words)

    def start(name: str) -> "subprocess.Popen[bytes]":
        with (shared / f"{name}.log").open("ab") as said:
            process = subprocess.Popen(
                command(name), env=common if name == "server" else env, stdout=said, stderr=said
            )
        if name == "server":
            answers(api, shared / "server.log")
        return process

    running = {"server": start("server")}
    assert call(env, "deploy", "--lost-after", "60").returncode == 0
    running |= {name: start(name) for name in ("worker-0", "worker-1", "parent")}
    finished: dict[Path, bytes] = {}

    def look() -> bool:
        """Whether runs go on; nothing that was done is done again, and what ends is right."""
        nonlocal number
        for record, before in finished.items():
            assert record.read_bytes() == before, record
        finished.update({p: p.read_bytes() for p in shared.glob("[0-9]*/**/stage.json")})
        if running["parent"].poll() is None:
            return True
        run = shared / str(number)
        if running["parent"].returncode:  # e.g. a unit has died three times
            running["parent"] = start("parent")
            return True
        report = Path("report/report.json")
        assert (run / report).read_bytes() == (alone / report).read_bytes()
        assert holders(run) == {}
        number += 1
        return False

    try:
        for _ in range(kills):
            end = time.monotonic() + moments.uniform(2, 40)
            while time.monotonic() < end:
                if not look():
                    running["parent"] = start("parent")
                time.sleep(0.5)
            units = [holder.pid for holder in holders(shared / str(number)).values()]
            name = moments.choice(["unit", "unit", "worker-0", "worker-1", "parent", "server"])
            print(f"{time.strftime('%X')} run {number}: {name}", flush=True)
            if name == "unit":
                for pid in units[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                continue
            running[name].kill()
            running[name].wait()
            time.sleep(moments.uniform(0, 5))
            running[name] = start(name)
        until(lambda: not look(), shared / "parent.log", 1200)
    finally:
        for process in reversed(running.values()):
            process.terminate()
        for process in running.values():
            process.wait(60)
