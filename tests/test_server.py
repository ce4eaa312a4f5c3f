"""Prefect's server and the processes of a run: started, stopped, killed, and others' servers."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from flows.server import prefect_server
from pipeline.errors import UserError
from pipeline.run.folder import read_run
from tests.conftest import ROOT, cli_command
from tests.helpers import assert_gone, in_a_child, wait_for

# Its sizes, seeds and arms are made few; its twelve readers, recipe and data sets stay.
SHRUNK = [
    *["source.width=96", "target.width=96", "test.width=96"],
    *["cyclegan.blocks=1", "cyclegan.generator_width=4", "cyclegan.discriminator_width=4"],
    *["cyclegan.crop=[64, 48]", "cyclegan.epochs=1", "cyclegan.decay_epochs=1"],
    *["cyclegan.steps_per_epoch=2", "segmentation.encoder=resnet18"],
    *["segmentation.encoder_weights=none", "segmentation.crop=[64, 48]", "segmentation.steps=2"],
    *[
        "segmentation.batch_size=2",
        "compute.accelerator=cpu",
        "arms={adapted: translated}",
        "seeds=[0]",
    ],
]


@pytest.mark.slow
def test_the_full_scale_configuration_with_its_readers(world: Path, tmp_path: Path) -> None:
    roots = {"GTA5_ROOT": str(world / "toy-sim"), "CITYSCAPES_ROOT": str(world / "toy-real")}
    shipped = ROOT / "configs/gta5_to_cityscapes.yaml"
    settings = [word for setting in SHRUNK for word in ("--set", setting)]
    run = tmp_path / "a%41 b?=c"  # none of it may mean anything in an address
    run.mkdir()
    (run / "uvicorn.py").write_text("open('ran', 'w')")  # somebody's file, which nothing may run
    result = subprocess.run(
        cli_command("run", shipped, "--run", run, *settings),
        env={**os.environ, **roots},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert read_run(run).compute.workers == 12
    report = json.loads((run / "report/report.json").read_text())
    assert set(report["arms"]) == {"adapted"}
    assert not (run / "ran").exists()
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


@pytest.fixture
def at_work(tiny: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that trains its translator, with a server of its own, in a group of its own."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        cli_command("run", tiny, "--run", run, "--set", "cyclegan.steps_per_epoch=4000"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: (run / "cyclegan/inputs.json").is_file(), process)
        yield process
    finally:
        process.kill()
        process.communicate()


def servers(process: subprocess.Popen[str]) -> dict[int, str]:
    """The processes of Prefect's servers that a process started: their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended
            continue
        if parent == process.pid and "uvicorn" in command:
            found[int(folder.name)] = command
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_ends_at_once_and_leaves_no_server(
    at_work: subprocess.Popen[str], stop: signal.Signals
) -> None:
    """Terminals, service managers and batch systems send it to every process."""
    started = servers(at_work)
    assert len(started) == 1
    os.killpg(at_work.pid, stop)
    _, message = at_work.communicate(timeout=20)
    assert at_work.returncode == 128 + stop, message
    assert message.count("Stopped. The same command continues.") == 1
    assert "Traceback" not in message
    assert_gone(started)


SERVED = """
import time
from pathlib import Path
from flows.server import prefect_server
with prefect_server(Path.cwd()):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_no_server_and_the_server_no_stranger_in(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVED], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        ((pid, command),) = servers(process).items()
        port = command.split("--port ")[1].split()[0]
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"http://127.0.0.1:{port}/api/admin/version")
    finally:
        process.kill()  # this process alone, as Linux does when memory ends
        process.communicate()
    assert_gone([pid])


ANSWERS = (
    ('"2.20.9"', "is Prefect 2.20.9, and "),
    ("<html>Sign in</html>", "No Prefect server answers at PREFECT_API_URL"),
    (None, "No Prefect server answers at PREFECT_API_URL"),
)


@in_a_child
def test_another_server_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body: str | None = None

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{httpd.server_port}/api"
        monkeypatch.setenv("PREFECT_API_URL", address)
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # leads nowhere
        for answer, message in ANSWERS:
            body = answer
            expected = pytest.raises(UserError, match=f"{message}(?s:.*)ends in /api")
            with expected, prefect_server(tmp_path):
                pass
        httpd.shutdown()


@in_a_child
def test_a_server_that_does_not_start_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "0.1")
    with (
        pytest.raises(UserError, match=r"not start within 0\.1 seconds\. Give it longer with"),
        prefect_server(tmp_path),
    ):
        pass
