"""What the commands show of runs and data sets: tables and notes."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.estimate import estimate
from flows.plan import plan
from pipeline.config.settings import IDEAL, Config
from pipeline.data.labels import load_label_space
from pipeline.data.spec import DatasetSpec, built_in_specs, missing_classes, plug_ins, spec_fields
from pipeline.errors import UserError
from pipeline.files import explain_damage, remove_tree
from pipeline.progress import recorded
from pipeline.run.folder import (
    CONFIG_FILE,
    INPUTS_FILE,
    check_results,
    locked,
    read_run,
    read_stage,
)
from pipeline.run.lock import Holder, holders
from pipeline.run.stage import Stage, is_done
from pipeline.schema import parse
from pipeline.scoring.metrics import headline
from pipeline.text import count, duration, number, percent, size

PARTIAL = "report-partial"
"""The folder of a report of a run that is not whole, in the run's."""


def show_result(folder: Path, place: str = "report") -> None:
    """The headline of a run's report, where it is, and the next sensible command.

    Args:
        place: its folder in the run's.
    """
    from reports.sentences import NO_ORACLE
    from reports.summary import read_headline

    if is_done(folder, place):
        check_results(folder, place, "report.json")
    path = folder / place / "report.json"
    report = read_headline(path)
    # A report of before may lack a metric.
    metrics = [m for m in headline() if all(m.key in values for values in report.arms.values())]
    table = Table("arm", *(metric.title for metric in metrics))
    with explain_damage(path, f"Write it anew: `sim2real report {folder}`."):
        for arm, values in report.arms.items():
            table.add_row(arm, *(number(values[m.key].mean, m.unit) for m in metrics))
        closed_by = report.gap_closed_by_arm if IDEAL in report.arms else {}
        for arm, closed in closed_by.items():
            table.add_row(f"gap closed by {arm}", *(percent(closed[m.key]) for m in metrics))
    console = Console()
    console.print(table)
    if IDEAL not in report.arms:
        console.print(NO_ORACLE, soft_wrap=True)
    _say(console, *_told(folder, place))


def _told(folder: Path, place: str = "report") -> list[str]:
    """What a report says first, its path, and the next command."""
    from reports.summary import read_headline

    path = folder / place / "report.json"
    report = read_headline(path)
    advice = report.advice.replace("RUN", str(folder))
    return [
        *([report.headline] if report.headline else []),
        f"Report: {path.with_name('index.html')}",
        *([f"Next: {advice}"] if advice else []),
    ]


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def write_partial_report(run: Path) -> bool:
    """Write a report of what has been scored so far into `report-partial/`; False for a whole run.

    Raises:
        UserError: nothing has been scored.
    """
    from reports.collect import scored_part
    from reports.report import write_report

    config, folder = read_run(run), run / PARTIAL
    stages = plan(config, run)
    whole = all(is_done(run, stage.name) for stage in stages if stage.command == "evaluate")
    with locked(run):
        if folder.is_dir():
            remove_tree(folder)
        if not whole:
            write_report(scored_part(config, run), run, folder)
    return not whole


def write_status(run: Path) -> None:
    """What `show_status` shows, as JSON: seconds, null where they are not known."""
    stages = plan(read_run(run), run)
    working = holders(run)
    fields = ("name", "state", "progress", "seconds", "seconds_left")
    rows = [
        {
            **dict(zip(fields, row, strict=True)),
            "worked_on_by": [holder.model_dump() for holder in _at(row[0], working)],
        }
        for row in status_rows(run, stages)
    ]
    print(json.dumps({"run": str(run), "stages": rows}, indent=2))


def _at(stage: str, working: dict[str, Holder]) -> list[Holder]:
    """Who is at a stage, or at a part of it."""
    return [h for name, h in working.items() if name == stage or name.startswith(f"{stage} ")]


def show_status(run: Path) -> None:
    """The stages of a run: state, progress, time worked, time left, who is at work."""
    config = read_run(run)
    stages = plan(config, run)
    working = holders(run)
    table = Table("stage", "state", "progress", "time", "left", *(["worker"] if working else []))
    worked, left, unknown = 0.0, 0.0, False
    for name, state, progress, seconds, remaining in status_rows(run, stages):
        time_left = "?" if remaining is None else duration(remaining)
        who = ", ".join(h.worker or f"process {h.pid}" for h in _at(name, working))
        cells = (name, state, progress, duration(seconds), time_left)
        table.add_row(*cells, *([who] if working else []))
        worked += seconds
        left += remaining or 0
        unknown |= remaining is None
    table.add_section()
    table.add_row("all", "", "", duration(worked), duration(left) + (" + ?" if unknown else ""))
    console = Console()
    console.print(table)
    if is_done(run, "report"):
        _say(console, *_told(run))
    else:
        _say(console, f"Next: sim2real run {run / CONFIG_FILE} --run {run}")
    if IDEAL not in config.arms:
        from reports.sentences import NO_ORACLE

        console.print(NO_ORACLE, soft_wrap=True)
    if (cache := config.compute.cache) is not None and cache.is_dir():
        stored = sum(file.stat().st_size for file in cache.glob("*.bin"))
        console.print(
            f"Cache: {cache}, {size(stored)}. Remove it when no run of its data sets is left.",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )


def show_runs(runs: Sequence[Path]) -> None:
    """A line for each run: how many stages are done, the time worked, and what is being made."""
    table = Table("run", "stages done", "time", "at", "last change")
    for run in runs:
        try:
            stages = plan(read_run(run), run)
        except UserError as error:
            table.add_row(run.name, "?", "", str(error).splitlines()[0][:60], "")
            continue
        rows = status_rows(run, stages)
        done = [row for row in rows if row[1] == "done"]
        begun = [
            f"{name} {progress}".strip() for name, state, progress, *_ in rows if state == "begun"
        ]
        files = [path for row in rows for path in (run / row[0]).glob("*.json")]
        changed = max((path.stat().st_mtime for path in files), default=0)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(changed)) if changed else ""
        worked = duration(sum(row[3] for row in rows))
        table.add_row(run.name, f"{len(done)} of {len(rows)}", worked, ", ".join(begun), when)
    Console().print(table)


StatusRow = tuple[str, str, str, float, float | None]


def status_rows(run: Path, stages: list[Stage]) -> list[StatusRow]:
    """Name, state, progress, seconds worked and seconds left (None: unknown) of each stage.

    The time left of a stage that has not begun is that of finished stages of the same command.
    """
    taken: dict[str, list[float]] = {}
    for stage in stages:
        if is_done(run, stage.name):
            taken.setdefault(stage.command, []).append(read_stage(run, stage.name).seconds)
    rows = []
    for stage in stages:
        folder = run / stage.name
        left: float | None
        known = recorded(folder)
        seconds = known.seconds if known else 0.0
        progress = f"{known.done}/{known.total} {known.unit}" if known and known.total else ""
        if is_done(run, stage.name):
            state, seconds, left = "done", read_stage(run, stage.name).seconds, 0.0
        elif (folder / INPUTS_FILE).is_file():
            state = "begun"
            rate = 0.0
            if known:
                rate = known.rate or known.done / max(seconds, 1e-9)
            left = (known.total - known.done) / rate if known and rate else None
        else:
            state = "to do"
            peers = taken.get(stage.command)
            left = sum(peers) / len(peers) if peers else None
        rows.append((stage.name, state, progress, seconds, left))
    return rows


def show_datasets() -> None:
    """The data sets that are known by name."""
    space = load_label_space("cityscapes19")
    table = Table("name", "what it is", box=None, padding=(0, 2, 1, 0))
    for name in built_in_specs():
        spec = parse(DatasetSpec, {"root": Path(), **spec_fields(name, Path())}, name)
        about = spec.about
        assert about is not None, name
        frames = count(about.frames, "frame") if about.frames else "as many frames as you record"
        lacks = ", ".join(missing_classes(spec, space)) or "none"
        lines = [f"{about.kind}, {frames}, {about.size}"]
        if spec.labels:
            lines += [f"labels: {spec.encoding}; lacks of the 19 classes: {lacks}"]
        table.add_row(name, "\n".join([*lines, f"licence: {about.licence}", about.url]))
    for name, function in plug_ins().items():
        table.add_row(name, f"from the plug-in {function}")
    Console().print(table)


def show_estimate(config: Config, console: Console) -> None:
    """What a run takes on this machine."""
    console.print("A run takes about, on this machine:")
    for part in estimate(config):
        disk = f", {size(part.bytes)} on disk" if part.bytes else ""
        memory = f", {size(part.memory)} of memory" if part.memory else ""
        console.print(f"  {part.command}: {duration(part.seconds)}{disk}{memory}")
