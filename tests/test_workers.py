"""A real server with a password, two real workers, and what happens when one of them dies."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from pipeline.run.lock import holders
from tests.conftest import TINY, cli_command

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
        for _ in range(600):
            with contextlib.suppress(URLError), urlopen(f"{api}/health"):
                break
            time.sleep(0.5)
        else:
            pytest.fail((place / "server.log").read_text())
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


def until(condition: Callable[[], object], log: Path, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"nothing happened: {log.read_text()}")
        time.sleep(0.2)


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

        until(victims, place / "run.log")
        (victim,) = victims()
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
