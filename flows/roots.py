"""The folders that a worker may use: what a server sends names no file elsewhere."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.config.settings import Config
from pipeline.errors import UserError

ROOTS = "SIM2REAL_ROOTS"
"""The environment variable that holds them, as PATH does; without it, nothing is refused."""
_OURS = Path(__file__).parent.parent
"""Where this code and the data that it ships are."""


def check_roots(paths: Iterable[Path]) -> None:
    """Raise `UserError` for a path that is in none of the folders that this worker may use."""
    allowed = [Path(root) for root in os.environ.get(ROOTS, "").split(os.pathsep) if root]
    for path in paths if allowed else ():
        if not any(path.resolve().is_relative_to(root) for root in (*allowed, _OURS)):
            raise UserError(
                f"{path} is in none of the folders that this worker may use: "
                f"{', '.join(map(str, allowed))}. Start it with --root for that folder, too."
            )


def files_named(config: Config) -> list[Path]:
    """The files and folders that a configuration names by an absolute path."""
    return list(_paths(config.model_dump()))


def _paths(value: object) -> Iterator[Path]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith("/")):
        yield Path(value)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _paths(item)
