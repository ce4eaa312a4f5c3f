"""What Ctrl-C and SIGTERM do to a flow whose server is a temporary one."""

import os
import signal
import sys
from types import FrameType

STOPPED = "Stopped. The same command continues."


def take_signals() -> None:
    """Let Ctrl-C and SIGTERM end this process at once, without a farewell to Prefect's server.

    Prefect would try for a minute to tell a server that ends as well what happened. The run's
    folder is whole at any moment, and its record is the only one. Nothing changes where
    PREFECT_API_URL names a server, which then hears of it. To be called again within a flow, where
    Prefect has taken SIGTERM over.
    """
    if "PREFECT_API_URL" not in os.environ:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop_at_once)


def _stop_at_once(number: int, _: FrameType | None) -> None:
    from pipeline.launch import torchrun

    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    print(STOPPED, file=sys.stderr, flush=True)
    if torchrun():
        from pipeline.team import say_over

        say_over(128 + number)
    os._exit(128 + number)
