"""The process `sim2real`: packages, threads, ranks, signals, and how a command's errors end.

Libraries are imported where they are used: `--help` answers at once.
"""

import os
import signal
import sys
import time
import traceback
from importlib.metadata import version
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from threading import Timer

from flows.signals import STOPPED

_QUICK = {"status", "datasets"}
_FIRST_WORD_SECONDS = 1.5


def main() -> None:
    """Run the command line; what the user can fix is one message and status 2."""
    _guard_packages()
    from pipeline.runtime.launch import leave, torchrun
    from pipeline.runtime.threads import choose_threads

    choose_threads()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names need not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    if "--allow-code" in sys.argv:
        from pipeline.data.reading import ALLOW_CODE

        os.environ[ALLOW_CODE] = "1"  # also for the processes that this one starts
    if torchrun():
        try:
            _command_of_ranks()
        except SystemExit as end:
            leave(end.code)
        except Exception:
            traceback.print_exc()
            leave(1)
    else:
        _command()


def _guard_packages() -> None:
    """Stop when a foreign package of a name as common as ours is imported instead of ours."""
    home = Path(__file__).parent.parent
    for name in ("pipeline", "cyclegan", "segmentation", "reports", "flows"):
        spec = find_spec(name)
        origin = Path(spec.origin) if spec and spec.origin else None
        if origin is None or origin.parent.parent != home:
            print(
                f"Package {name!r} is taken from {origin}, not from {home}. Use an environment "
                "of this project's own (make install).",
                file=sys.stderr,
            )
            sys.exit(2)


def _command_of_ranks() -> None:
    """Rank zero of torchrun does the command; the others join the stages that use all devices."""
    from flows.rank import follow_rank_zero
    from pipeline.errors import UserError
    from pipeline.runtime.distributed import connected

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with connected() as ranks:
        if ranks.is_rank_zero:
            try:
                _command()
            except SystemExit as end:
                if end.code:
                    raise
            ranks.broadcast()
            return
        try:
            follow_rank_zero(ranks)
        except UserError as error:
            time.sleep(1)  # where rank zero finds the same, its message is enough
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(2)


def _command() -> None:
    """Do the command that this process was started with."""
    from flows.commands import app
    from pipeline.errors import UserError, explain

    # Not the default, so that bars, logs and files that are being written are closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = [text for text in sys.argv[1:] if text not in ("--debug", "--allow-code")]
    if arguments == ["--version"]:
        print(f"sim2real {version('sim2real')}")
        return
    first_word = Timer(_FIRST_WORD_SECONDS, _say, arguments[:1])
    first_word.daemon = True
    if arguments and arguments[0] not in _QUICK and "--help" not in arguments:
        first_word.start()
    try:
        app(args=arguments)
    except (UserError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        message = explain(error) if isinstance(error, OSError) else str(error)
        print(f"Error: {message}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C
            print(STOPPED, file=sys.stderr)
        raise
    finally:
        first_word.cancel()


def _say(command: str) -> None:
    """The first word of a command that has libraries to load."""
    print(f"{command}: loading libraries, then looking at the data", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
