"""What Ctrl-C and SIGTERM do to a flow whose server is a temporary one."""

import os
import signal
from types import FrameType

STOPPED = "Stopped. The same command continues."


def named_server() -> str | None:
    """The address of the Prefect server that the user has named; None for a temporary one."""
    return os.environ.get("PREFECT_API_URL") or None


def take_signals(at_once: bool = False) -> None:
    """Let Ctrl-C and SIGTERM end this process at once, without a farewell to Prefect's server.

    Prefect would try for a minute to tell a server that ends as well what happened. The run's
    folder is whole at any moment, and its record is the only one. Nothing changes where
    PREFECT_API_URL names a server, which then hears of it. To be called again within a flow, where
    Prefect has taken SIGTERM over.

    Args:
        at_once: also where a server is named: units that workers do would be waited for.
    """
    if at_once or not named_server():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop_at_once)


def _stop_at_once(number: int, _: FrameType | None) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    try:
        os.write(2, f"{STOPPED}\n".encode())  # print might be in the middle of a line
    finally:
        os._exit(128 + number)
