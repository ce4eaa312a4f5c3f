"""Prefect's server: the one that PREFECT_API_URL names, or one that lives as long as this process.

The temporary server is Prefect's own, started here and not by Prefect for four reasons: it ends
with the process that started it, also when that is killed (it reads a pipe that then closes); no
signal to the process group reaches it, so that a flow never waits for a server that is gone; it
answers this process alone, by a password made for it; and its database is found below any folder,
where an address would need some characters of the path to be quoted.
"""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from flows.signals import named_server
from pipeline.errors import UserError

ANSWER_SECONDS = 15.0
"""How long a server that was named may take to say its version."""
HEARTBEAT_SECONDS = 30
"""Between two signs of life that a flow run gives."""
LOOPBACK = ("127.0.0.1", "localhost")
DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    # Errors are shown by the command line, once and without a traceback.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
}
"""Settings of Prefect where the user has none."""


@contextmanager
def prefect_server(folder: Path) -> Iterator[None]:
    """Let flows in this block report to a server: a named one, or a temporary one.

    Prefect is imported here first: its settings come from the environment as it is then.

    Args:
        folder: Prefect's files are kept in `.prefect` below it.

    Raises:
        UserError: the server does not answer, or is of another major version.
    """
    _set_environment({"PREFECT_HOME": str(folder.absolute() / ".prefect"), **DEFAULTS})
    if url := named_server():
        _ask_version(url)
        yield
        return
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    password = f"sim2real:{secrets.token_urlsafe(24)}"
    with (
        _temporary(folder, password) as url,
        temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password}),
    ):
        yield


def use_named_server() -> str:
    """The address of the server that the user has named, which answers.

    Raises:
        UserError: none is named, it does not answer, or is of another major version.
    """
    _set_environment({name: value for name, value in DEFAULTS.items() if "LOGGING" not in name})
    url = named_server()
    if url is None:
        raise UserError(
            "Workers need a Prefect server. Start one with `sim2real server`, and set "
            "PREFECT_API_URL to the address that it says."
        )
    _ask_version(url)
    return url


def _set_environment(defaults: dict[str, str]) -> None:
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # A proxy reaches the servers of others, never this machine's.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), *LOOPBACK]))


@contextmanager
def _temporary(folder: Path, password: str) -> Iterator[str]:
    """The address of a server that ends with the block, or with this process."""
    home = folder / ".prefect"
    home.mkdir(parents=True, exist_ok=True)
    log = home / "server.log"
    with socket.socket() as listening, log.open("wb") as output:
        listening.bind((LOOPBACK[0], 0))
        listening.listen()
        port = listening.getsockname()[1]
        process = subprocess.Popen(
            [
                # -P: nothing is imported from the working folder, which may be anyone's.
                *[sys.executable, "-P", "-m", "uvicorn", "--factory", "flows.server:temporary_app"],
                *["--app-dir", str(Path(__file__).parent.parent), "--log-level", "error"],
                # The socket that is handed over; the port is for who looks at processes.
                *["--fd", str(listening.fileno()), "--port", str(port)],
            ],
            pass_fds=[listening.fileno()],
            cwd=folder,
            env={
                **os.environ,
                "PREFECT_UI_ENABLED": "0",
                "PREFECT_SERVER_API_AUTH_STRING": password,
                # Below the working folder: `?` and `%` in an absolute path would mean something.
                "PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///.prefect/prefect.db",
            },
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with process:
        try:
            url = f"http://{LOOPBACK[0]}:{port}/api"
            _wait_until_ready(process, f"{url}/health", log)
            yield url
        finally:
            process.kill()


def temporary_app() -> object:
    """Prefect's server as uvicorn serves it, until whoever started this process is gone."""
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with_parent, daemon=True).start()
    return create_app(ephemeral=True, final=True)


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the other end is closed
    os._exit(0)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    import httpx

    seconds = float(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise UserError(
                f"Prefect's temporary server ended with status {process.returncode}; {log} says "
                "why. Fix that, or name a running server in PREFECT_API_URL."
            )
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=1, trust_env=False).is_success:
                return
        time.sleep(0.05)
    raise UserError(
        f"Prefect's temporary server did not start within {seconds:g} seconds. Give it longer with "
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, name a running server in "
        "PREFECT_API_URL, or run the stages one by one, without Prefect: sim2real train-cyclegan, "
        "translate, train-segmentation, evaluate, report."
    )


def _ask_version(url: str) -> None:
    """Raise `UserError` unless a Prefect server of this major version answers at `url`."""
    from prefect.client.base import ServerType, determine_server_type
    from prefect.client.orchestration import get_client
    from prefect.settings import (
        PREFECT_API_REQUEST_TIMEOUT,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    if determine_server_type() == ServerType.CLOUD:  # works with every version
        return
    own = version("prefect")
    advice = "Set PREFECT_API_URL to its address, which ends in /api; or unset it to run without."
    at_once = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS}
    try:
        # Prefect's own client knows of proxies, certificates, passwords and keys.
        with temporary_settings(at_once), get_client(sync_client=True) as client:
            theirs = client.api_version()
    except Exception as error:  # the client raises whatever it meets in an answer
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise UserError(
                f"The server at PREFECT_API_URL={url} wants another password. Set "
                "PREFECT_API_AUTH_STRING to the USER:PASSWORD that it was started with."
            ) from error
        if not url.rstrip("/").endswith("/api"):
            advice = f"{url} does not end in /api. {advice}"
        raise UserError(
            f"No Prefect server answers at PREFECT_API_URL={url} ({error}). {advice}"
        ) from error
    if not isinstance(theirs, str) or theirs.split(".")[0] != own.split(".")[0]:
        raise UserError(
            f"The server at PREFECT_API_URL={url} is Prefect {theirs}, and {own} is installed here."
            f" Use one of the same major version. {advice}"
        )
