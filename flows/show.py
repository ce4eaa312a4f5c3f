"""What the commands show of runs and data sets: tables and notes."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from flows.estimate import estimate
from flows.plan import plan
from pipeline.config.settings import IDEAL, Config
from pipeline.data.labels import load_label_space
from pipeline.data.spec import DatasetSpec, built_in_specs, missing_classes, plug_ins, spec_fields
from pipeline.errors import UserError
from pipeline.files import explain_damage, remove_tree, stats
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
from reports.sentences import NO_ORACLE
from reports.summary import read_headline

PARTIAL = "report-partial"
"""The folder of a report of a run that is not whole, in the run's."""


def show_result(folder: Path, place: str = "report") -> None:
    """The headline of a run's report, where it is, and the next sensible command.

    Args:
        place: its folder in the run's.
    """
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
    Console().print(table)
    if IDEAL not in report.arms:
        print(NO_ORACLE)
    _tell(folder, place)


def _tell(folder: Path, place: str) -> None:
    """Print what a report says first, its path, and the next command."""
    path = folder / place / "report.json"
    report = read_headline(path)
    if report.headline:
        print(report.headline)
    print(f"Report: {path.with_name('index.html')}")
    if report.advice:
        print(f"Next: {report.advice.replace('RUN', str(folder))}")


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
    rows = [
        row._asdict() | {"worked_on_by": [h.model_dump() for h in _at(row.name, working)]}
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
    for row in status_rows(run, stages):
        time_left = "?" if row.seconds_left is None else duration(row.seconds_left)
        who = ", ".join(h.worker or f"process {h.pid}" for h in _at(row.name, working))
        cells = (row.name, row.state, row.progress, duration(row.seconds), time_left)
        table.add_row(*cells, *([who] if working else []))
        worked += row.seconds
        left += row.seconds_left or 0
        unknown |= row.seconds_left is None
    table.add_section()
    table.add_row("all", "", "", duration(worked), duration(left) + (" + ?" if unknown else ""))
    Console().print(table)
    if is_done(run, "report"):
        _tell(run, "report")
    else:
        print(f"Next: sim2real run {run / CONFIG_FILE} --run {run}")
    if IDEAL not in config.arms:
        print(NO_ORACLE)
    if (cache := config.compute.cache) is not None and cache.is_dir():
        stored = size(sum(found.st_size for found in stats(cache, "*.bin").values()))
        print(f"Cache: {cache}, {stored}. Remove it when no run of its data sets is left.")


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
        done = sum(row.state == "done" for row in rows)
        begun = [f"{row.name} {row.progress}".strip() for row in rows if row.state == "begun"]
        files = [found for row in rows for found in stats(run / row.name, "*.json").values()]
        changed = max((found.st_mtime for found in files), default=0)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(changed)) if changed else ""
        worked = duration(sum(row.seconds for row in rows))
        table.add_row(run.name, f"{done} of {len(rows)}", worked, ", ".join(begun), when)
    Console().print(table)


class StatusRow(NamedTuple):
    """How far a stage is."""

    name: str
    state: Literal["done", "begun", "to do"]
    progress: str
    """E.g. `12/40 steps`; empty where it is not known."""
    seconds: float
    """Worked."""
    seconds_left: float | None
    """None: not known."""


def status_rows(run: Path, stages: list[Stage]) -> list[StatusRow]:
    """How far each stage is.

    The time left of a stage that has not begun is that of finished stages of the same command.
    """
    done = {
        stage.name: read_stage(run, stage.name).seconds
        for stage in stages
        if is_done(run, stage.name)
    }
    rows = []
    for stage in stages:
        known = recorded(run / stage.name)
        seconds = known.seconds if known else 0.0
        progress = f"{known.done}/{known.total} {known.unit}" if known and known.total else ""
        if stage.name in done:
            row = StatusRow(stage.name, "done", progress, done[stage.name], 0.0)
        elif (run / stage.name / INPUTS_FILE).is_file():
            rate = (known.rate or known.done / max(seconds, 1e-9)) if known else 0.0
            left = (known.total - known.done) / rate if known and rate else None
            row = StatusRow(stage.name, "begun", progress, seconds, left)
        else:
            peers = [done[s.name] for s in stages if s.command == stage.command and s.name in done]
            left = sum(peers) / len(peers) if peers else None
            row = StatusRow(stage.name, "to do", progress, seconds, left)
        rows.append(row)
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


def show_estimate(config: Config) -> None:
    """What a run takes on this machine."""
    print("A run takes about, on this machine:")
    for part in estimate(config):
        disk = f", {size(part.bytes)} on disk" if part.bytes else ""
        memory = f", {size(part.memory)} of memory" if part.memory else ""
        print(f"  {part.command}: {duration(part.seconds)}{disk}{memory}")
