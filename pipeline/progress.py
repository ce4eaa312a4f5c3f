"""Progress of long work: a bar on a terminal, lines in logs, a file for `status`."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from pipeline.files import read_record, stats, write_json
from pipeline.text import duration

T = TypeVar("T")

FILE = "progress.json"
_FILE_SECONDS = 2.0
_LINE_SECONDS = 30.0
_FIRST_LINE_SECONDS = 1.0
_WINDOW_SECONDS = 60.0
"""The rate is that of the last so many seconds: it follows a machine that others use. It is said
early: many a work takes less or far more than is thought."""


class Recorded(BaseModel):
    """How far a stage is: the content of a `progress.json`."""

    done: int = Field(ge=0)
    total: int = Field(ge=0)
    unit: str
    seconds: float = Field(ge=0, allow_inf_nan=False)
    rate: float = Field(0, ge=0, allow_inf_nan=False)
    """Units a second in the last minute; 0 where it is not known."""


class Advance:
    """What work calls with the number of units finished since its last call.

    Shows a bar on a terminal, or a line now and then.
    """

    def __init__(
        self, bar: Progress, title: str, total: int, done: int, unit: str, images: int | None
    ) -> None:
        self.bar, self.title, self.total, self.done, self.unit = bar, title, total, done, unit
        self.per_unit, self.rate_unit = images or 1, "images" if images else unit
        self.task = bar.add_task(title, total=total, completed=done, rate="")
        self.seen = deque([(time.monotonic(), done)])
        self.last_line = self.seen[0][0] + _FIRST_LINE_SECONDS - _LINE_SECONDS
        self.rate = 0.0
        self.note = ""
        """Shown beside the rate: the losses of a training."""
        self.then: Callable[[], None] = lambda: None
        """Called after each advance."""

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        self.seen.append((now, self.done))
        while len(self.seen) > 2 and now - self.seen[0][0] > _WINDOW_SECONDS:
            self.seen.popleft()
        then, before = self.seen[0]
        self.rate = (self.done - before) / max(now - then, 1e-9)
        speed = f"{self.rate * self.per_unit:.1f} {self.rate_unit}/s"
        left = f"{duration((self.total - self.done) / max(self.rate, 1e-9))} left"
        note = f", {self.note}" if self.note else ""
        self.bar.update(self.task, completed=self.done, rate=f"{speed}, {left}{note}")
        if self.bar.disable and now - self.last_line > _LINE_SECONDS:
            self.last_line = now
            line = f"{self.title}: {self.done}/{self.total} {self.unit}, {speed}, {left}{note}"
            print(line, file=sys.stderr, flush=True)
        self.then()


def part_folder(folder: Path, part: int, parts: int) -> Path:
    """Where part i of n of a stage, from 0, says how far it is."""
    return folder / "parts" / f"{part + 1}-of-{parts}"


def recorded(folder: Path) -> Recorded | None:
    """How far the stage in `folder` is, and what all of its parts took; None: it has not said."""
    own = _own(folder)
    parts = [found for place in stats(folder, "parts/*") if (found := _own(place))]
    if not parts:
        return own
    seconds = sum(part.seconds for part in parts)
    if own:
        return own.model_copy(update={"seconds": own.seconds + seconds})
    done, total = sum(part.done for part in parts), sum(part.total for part in parts)
    return Recorded(done=done, total=total, unit=parts[0].unit, seconds=seconds)


def part_is_done(folder: Path, part: int, parts: int) -> bool:
    """Whether part i of n of a stage has come to its end."""
    found = _own(part_folder(folder, part, parts))
    return found is not None and found.done == found.total


def _own(folder: Path) -> Recorded | None:
    path = folder / FILE
    way_out = "Remove it: it only tells how far the stage is and how long that took."
    return read_record(path, Recorded, way_out) if path.is_file() else None


@contextmanager
def progress(
    folder: Path,
    title: str,
    total: int,
    *,
    done: int = 0,
    unit: str = "steps",
    images_per_unit: int | None = None,
) -> Iterator[Advance]:
    """Show and record how far a stage is.

    Args:
        folder: the stage's folder; `progress.json` there holds `done`, `total`, `unit` and the
            `seconds` worked so far, over all the runs that it took.
        done: units finished earlier.
        images_per_unit: where given, the rate is shown in images.

    Yields:
        What to call with the number of units finished since the last call.
    """
    path = folder / FILE
    earlier = _own(folder) if done else None
    before = earlier.seconds if earlier else 0.0
    start = last_file = time.monotonic()
    how_far = f"continued at {unit.removesuffix('s')} {done:,} of {total:,}" if done else ""
    print(f"{title}: {how_far or f'{total:,} {unit}'}", file=sys.stderr, flush=True)
    with _shown(title, total, done, unit, images_per_unit) as advance:

        def record() -> None:
            seconds = round(before + time.monotonic() - start, 1)
            state = {"done": advance.done, "total": total, "unit": unit, "seconds": seconds}
            write_json(path, {**state, "rate": round(advance.rate, 6)})

        def now_and_then() -> None:
            nonlocal last_file
            if time.monotonic() - last_file > _FILE_SECONDS:
                last_file = time.monotonic()
                record()

        record()
        advance.then = now_and_then
        yield advance
        record()


def each(items: Iterable[T], title: str, total: int, *, unit: str = "images") -> Iterator[T]:
    """`items`, showing how many have been worked on; no stage's progress, so nothing is recorded.

    Args:
        total: how many there are.
    """
    with _shown(title, total, 0, unit, None, transient=True) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def _shown(
    title: str,
    total: int,
    done: int,
    unit: str,
    images_per_unit: int | None,
    *,
    transient: bool = False,
) -> Iterator[Advance]:
    """A bar on a terminal, which vanishes at the end if `transient`; else a line now and then."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=transient,
    ) as bar:
        yield Advance(bar, title, total, done, unit, images_per_unit)
