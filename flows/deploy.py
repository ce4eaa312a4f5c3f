"""What runs on workers need: the server, what it has to know, and the workers."""

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from flows.roots import ROOTS
from flows.server import HEARTBEAT_SECONDS, LOOPBACK, use_named_server
from pipeline.errors import UserError
from pipeline.runtime.cost import WORKER

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOLS = {
    "cpu": "sim2real: runs, and what is made of finished parts",
    "gpu": "sim2real: trainings and translations, one a worker",
}
LOST = "sim2real: lost runs"
"""The name of the automation."""
_LIMITS = {"cpu": 16, "gpu": 1}
"""How many flow runs a worker does at a time: a parent waits, a GPU is never shared."""


def start_server(host: str, port: int) -> NoReturn:
    """Become a Prefect server, with its UI, that only this machine reaches unless asked.

    Raises:
        UserError: other machines would reach it, and it has no password.
    """
    if host not in LOOPBACK and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise UserError(
            f"--host {host} lets other machines in. Set PREFECT_SERVER_API_AUTH_STRING to a "
            "USER:PASSWORD here, and PREFECT_API_AUTH_STRING to the same where it is used; the "
            "way between needs TLS or a VPN."
        )
    environment = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{host}:{port}",
        "PREFECT_SERVER_UI_API_URL": f"http://{host}:{port}/api",  # or pages ask port 4200
        "DO_NOT_TRACK": "1",
        **os.environ,
    }
    print(f"export PREFECT_API_URL=http://{host}:{port}/api", flush=True)
    _become(["server", "start", "--host", host, "--port", str(port)], environment)


def _become(command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Become a command of Prefect's, which ends by SIGTERM and Ctrl-C."""
    # What a shell's `&` ignores would stay ignored, and with it SIGTERM, which Prefect's worker
    # turns into SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.execve(sys.executable, [sys.executable, "-P", "-m", "prefect", *command], environment)


def deploy(lost_after: int) -> list[str]:
    """Make pools, queues, deployments and the automation where they are not yet; update the rest.

    Args:
        lost_after: seconds without a heartbeat after which a flow run counts as crashed.

    Returns:
        What there is now, as lines.

    Raises:
        UserError: no server is named, or it does not answer.
    """
    if lost_after < 2 * HEARTBEAT_SECONDS:
        raise UserError(
            f"--lost-after {lost_after}: runs give a sign of life every {HEARTBEAT_SECONDS} "
            f"seconds. Give at least {2 * HEARTBEAT_SECONDS}."
        )
    use_named_server()
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        _make_pools(client)
        _make_automation(client, lost_after)
        return [
            *[f"pool {name}: {about}" for name, about in POOLS.items()],
            "queues of pool gpu: urgent (what others wait for) before default",
            *_make_deployments(),
            f"automation {LOST!r}: crashed after {lost_after} seconds without a sign of life",
        ]


def _make_pools(client: "SyncPrefectClient") -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    from flows.dispatch import LATER, URGENT

    template = ProcessWorker.get_default_base_job_template()
    for name, about in POOLS.items():
        pool = WorkPoolCreate(
            name=name, description=about, type="process", base_job_template=template
        )
        with suppress(ObjectAlreadyExists):  # with the limits and the kind that somebody gave it
            client.create_work_pool(pool)
    for priority, queue in enumerate((URGENT, LATER), start=1):
        try:
            found = client.read_work_queue_by_name(queue, work_pool_name="gpu")
        except ObjectNotFound:
            found = client.create_work_queue(queue, work_pool_name="gpu", priority=priority)
        client.update_work_queue(found.id, priority=priority, is_paused=found.is_paused)


def _make_deployments() -> list[str]:
    from prefect.types.entrypoint import EntrypointType

    from flows.adapt import adapt
    from flows.dispatch import STAGE
    from flows.work import stage

    # By modules that each machine has installed: no file or folder of this one is named.
    made: list[tuple[Any, str, str, dict[str, Any]]] = [
        (adapt, "adapt", "cpu", {"workers": True}),
        (stage, STAGE.partition("/")[2], "gpu", {}),
    ]
    lines = []
    for flow, name, pool, parameters in made:
        flow.to_deployment(
            name,
            work_pool_name=pool,
            parameters=parameters,
            # At once: Prefect would first start a process that prepares a folder of code.
            job_variables={"command": "python -m prefect.engine"},
            entrypoint_type=EntrypointType.MODULE_PATH,
        ).apply()
        lines.append(f"deployment {flow.name}/{name} in pool {pool}")
    return lines


def _make_automation(client: "SyncPrefectClient", lost_after: int) -> None:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    ends = ("Completed", "Failed", "Crashed", "Cancelled")
    automation = AutomationCore(
        name=LOST,
        description="A run whose process and worker died together would stay Running for ever.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ends)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related={
                "prefect.resource.role": "flow",
                "prefect.resource.name": ["adapt", "stage"],
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=lost_after),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No sign of life for {lost_after} seconds: process and worker are gone.",
            )
        ],
    )
    known = client.read_automations_by_name(LOST)
    for old in known:
        client.update_automation(old.id, automation)
    if not known:
        client.create_automation(automation)


def start_worker(
    pool: str, gpus: str | None, name: str | None, roots: Sequence[Path], limit: int | None
) -> NoReturn:
    """Become a Prefect worker with the environment that runs need.

    Args:
        gpus: numbers of the GPUs that it uses, e.g. `0` or `0,1`; None: it computes on the CPU.
        roots: the folders in which it reads data and reads and writes runs.
        limit: flow runs at a time.

    Raises:
        UserError: no such server, pool or GPU, or another worker of this machine uses the GPU.
    """
    url = use_named_server()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"--root {root}: no such folder on this machine.")
    numbers = _gpus(gpus) if gpus is not None else []
    _find_pool(pool, url)
    for number in numbers:
        _keep_gpu(number)
    host = socket.gethostname()
    name = name or "-".join([host, pool, *(numbers or [str(os.getpid())])])
    code = str(Path(__file__).parent.parent)
    environment = {
        **os.environ,
        # Numbers as nvidia-smi shows them; without, no GPU is used by accident.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(numbers),
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "5"),
        # So that a run's process has this Python and this code.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")])),
        ROOTS: os.pathsep.join(str(root.resolve()) for root in roots),
        WORKER: name,
    }
    command = ["worker", "start", "--pool", pool, "--name", name]
    command += ["--limit", str(limit or _LIMITS[pool]), "--install-policy", "never"]
    _become(command, environment)


def _find_pool(pool: str, url: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound as error:
            raise UserError(
                f"The server at {url} has no pool {pool!r}. Make it with `sim2real deploy`."
            ) from error


def _gpus(text: str) -> list[str]:
    """The numbers in a text such as `0,1`."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--gpu {text!r}: give numbers of GPUs, e.g. --gpu 0 or --gpu 0,1.")
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found: list[str] = []
    if shutil.which(command[0]):
        found = subprocess.run(command, capture_output=True, text=True).stdout.split()
    for number in (wanted := list(dict.fromkeys(text.split(",")))):
        if number not in found:
            raise UserError(
                f"--gpu {number}: nvidia-smi shows {', '.join(found) or 'no GPU'} on "
                f"{socket.gethostname()}. Give one of these, or leave --gpu out to compute on the "
                "CPU."
            )
    return wanted


def _keep_gpu(number: str) -> None:
    """Let no other worker of this machine use a GPU for as long as this process lives."""
    path = Path(tempfile.gettempdir()) / f"sim2real-gpu-{number}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"--gpu {number}: another worker on {socket.gethostname()} uses it. Give another GPU, "
            "or end that worker first."
        ) from error
    os.set_inheritable(handle, True)
