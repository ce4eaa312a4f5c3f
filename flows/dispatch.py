"""Giving a unit of work to a worker, and waiting until it is done."""

import time
from pathlib import Path
from typing import cast

from httpx import TransportError
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import LogSort
from prefect.deployments import run_deployment
from prefect.futures import PrefectFuture
from prefect.types._datetime import now

from flows.units import Unit, left
from pipeline.errors import UserError
from pipeline.run.folder import code_version
from pipeline.run.lock import wait_until_free

STAGE = "stage/stage"
"""The deployment that does one unit."""
URGENT, LATER = "urgent", "default"
"""The queues of the pool `gpu`: the first is emptied first."""
CRASHES = 3
"""How often a unit is given out whose process or machine died."""
_POLL_SECONDS = 2.0
_PATIENCE, _SILENCE = 600.0, 120.0
"""Seconds without a server after which a unit is given up, and those of one call in vain."""
_LINES = 12
"""Lines of its log that are shown of a unit that failed."""


def dispatch(
    run: Path, unit: Unit, parts: int, parent: str, wait_for: list[PrefectFuture[bool]]
) -> PrefectFuture[bool]:
    """Give a unit to the workers once others are done; `parent` is the flow run that it is for."""
    return _dispatch.submit(run, unit, parts, parent, wait_for=wait_for, return_state=False)


@task(task_run_name="{unit.name}", cache_policy=NO_CACHE)
def _dispatch(run: Path, unit: Unit, parts: int, parent: str) -> bool:
    """Let a worker do what is left of a unit; False when it was complete already.

    A unit whose worker died is given out again; one that failed is not.

    Args:
        parent: the flow run that this is for; tried again, it finds the units that it gave out.

    Raises:
        UserError: it failed, was cancelled, or its worker died three times.
    """
    # Who is at it already may be a worker of an earlier flow run; no other one need wait for it.
    wait_until_free(run, unit.name)
    if not left(run, unit):
        return False
    if not unit.urgent:  # what is urgent shall be in its queue before
        time.sleep(_POLL_SECONDS)
    began, silent = now("UTC"), 0.0
    attempt = crashes = 0
    while True:
        asked = time.monotonic()
        try:
            child = _run(run, unit, parts, f"{parent} {unit.name} {attempt}")
        except TransportError:  # the server starts again; the key finds what it was given
            time.sleep(_POLL_SECONDS)
            waited = time.monotonic() - asked
            silent = silent + waited if waited < _SILENCE else 0.0  # else it had answered
            if silent > _PATIENCE:
                raise
            continue
        state, attempt, silent = child.state, attempt + 1, 0.0
        assert state is not None
        if child.end_time is not None and child.end_time < began:
            continue  # what came of it when this flow run was tried before
        if not state.is_crashed() or (crashes := crashes + 1) == CRASHES:
            break
    if not state.is_completed():
        raise UserError(_failure(child, unit, crashes))
    if left(run, unit):
        raise UserError(
            f"{unit.name}: its worker says that it is done, and in {run} it is not. That folder "
            "must be the same storage, at the same path, on all machines."
        )
    return True


def _run(run: Path, unit: Unit, parts: int, key: str) -> FlowRun:
    """The flow run with a key, made where there is none yet, after its end."""
    found = run_deployment(
        STAGE,
        parameters={"run": str(run), "unit": unit.name, "parts": parts, "code": code_version()},
        flow_run_name=f"{run.name} {unit.name}",
        work_queue_name=URGENT if unit.urgent else LATER,
        idempotency_key=key,
        poll_interval=_POLL_SECONDS,
    )
    return cast(FlowRun, found)


def _failure(child: FlowRun, unit: Unit, crashes: int) -> str:
    """What became of a unit, and the last lines of its log."""
    state = child.state
    assert state is not None
    what = f"died {crashes} times" if crashes == CRASHES else f"ended as {state.name}"
    with get_client(sync_client=True) as client:
        logs = client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[child.id])),
            sort=LogSort.TIMESTAMP_DESC,
            limit=_LINES,
        )
    lines = [line for log in reversed(logs) for line in log.message.splitlines()][-_LINES:]
    return f"{unit.name} {what}: {state.message}\n" + "".join(f"  {line}\n" for line in lines)
