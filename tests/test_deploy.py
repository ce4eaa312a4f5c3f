"""Commands for workers, and what they refuse before anything starts."""

import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows.commands import app
from flows.roots import ROOTS, check_roots, files_named
from pipeline.config.load import load_config
from pipeline.errors import UserError
from pipeline.run.folder import check_version, code_version
from tests.conftest import ROOT, Sim2Real
from tests.helpers import in_a_child


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deploy"], "Workers need a Prefect server. Start one with `sim2real server`"),
        (["worker", "--pool", "gpu"], "Workers need a Prefect server"),
        (["worker", "--pool", "tpu"], "'tpu' is not one of 'cpu', 'gpu'"),
        (["deploy", "--lost-after", "40"], "every 30 seconds. Give at least 60"),
        (["server", "--host", "0.0.0.0"], "Set PREFECT_SERVER_API_AUTH_STRING"),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[str], message: str, sim2real: Sim2Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.deploy._become", None)  # nothing becomes of this process
    told = sim2real(*arguments)
    assert told.status == 2
    assert message in told.err
    assert "Traceback" not in told.err


@in_a_child
def test_a_dead_address_is_said_soon(sim2real: Sim2Real, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("PREFECT_API_URL", url)
    told = sim2real("deploy")
    assert told.status == 2
    assert f"{url} does not end in /api" in told.err


def test_code_of_another_version_is_refused() -> None:
    ours = code_version()
    check_version(ours.rpartition(", ")[0] + ", commit of a copy without git")
    theirs = ours.replace("source ", "source 0")
    with pytest.raises(UserError, match="Install one version") as refused:
        check_version(theirs)
    assert ours in str(refused.value)
    assert theirs in str(refused.value)


def test_a_worker_reads_and_writes_in_its_folders_alone(
    tiny: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = files_named(load_config(tiny))
    assert world / "toy-sim" in named
    check_roots(named)  # no folders are set
    monkeypatch.setenv(ROOTS, f"{tmp_path}:{world}")
    check_roots([tmp_path / "run", *named])
    for path in (tmp_path / "../secret", Path("/etc/passwd")):
        with pytest.raises(UserError, match="in none of the folders"):
            check_roots([path])
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(UserError, match="in none of the folders"):
        check_roots([tmp_path / "link" / "passwd"])


def test_containers_hold_what_there_is() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "containers/Dockerfile").read_text(), re.M)
    names = {name for line in copied for name in line.split()}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= names
    assert all((ROOT / name).exists() for name in names)
    compose = yaml.safe_load((ROOT / "containers/compose.yaml").read_text())
    group: Any = typer.main.get_command(app)
    for service in compose["services"].values():
        if service["image"] == "sim2real":
            name, *arguments = service["command"]
            group.commands[name].make_context(name, arguments)  # raises for an unknown option


def test_the_documentation_names_commands_that_there_are() -> None:
    group: Any = typer.main.get_command(app)
    said = "\n".join(page.read_text() for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    blocks = "\n".join(re.findall(r"```(?:bash|cron)\n(.*?)```", said, re.S)).replace("\\\n", "")
    commands = re.findall(r"^(?:.* )?(?:\.venv/bin/)?sim2real (\w.*?)(?: &|$)", blocks, re.M)
    assert len(commands) > 20
    for command in commands:
        name, *arguments = shlex.split(command, comments=True)
        group.commands[name].make_context(name, arguments)  # raises for an unknown option
