"""The table of steps: arms that each add one thing to another arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.settings import BEFORE, IDEAL, Config
from pipeline.csv_files import write_table
from pipeline.run.folder import STAGE_FILE, network_folder, read_stage
from pipeline.scoring.metrics import in_steps, tabled
from pipeline.text import percent, spread
from reports.chance import change, columns
from reports.honesty import did_nothing
from reports.sentences import ours
from reports.summary import Difference, Spread, Summary


@dataclass(frozen=True)
class Step:
    """One row of the table."""

    arm: str
    title: str
    base: str | None
    """The arm that it adds something to, and is compared with."""
    scores: Mapping[str, Spread]
    change: Mapping[str, Difference | None]
    """Metric -> how far it is above its base."""
    gap_closed: Mapping[str, float | None]
    seconds: float | None
    """Of the computation that it needs by itself, all seeds, with what it shares with others."""
    note: str = ""
    """Why its row is no gain, where what it adds did nothing."""


def steps_of(config: Config, run: Path, report: Summary) -> list[Step]:
    """The arms with a base, those that they add to, and the oracle; none without any base."""
    bases = {arm.base for arm in config.arms.values() if arm.base}
    shown = [
        (name, arm)
        for name, arm in config.arms.items()
        if bases and (arm.base or name in bases or name == IDEAL)
    ]
    nothing, idle = {metric.key: None for metric in tabled()}, did_nothing(report)
    return [
        Step(
            name,
            f"{arm.title or name}{' (did nothing)' if name in idle else ''}",
            arm.base,
            report.arms[name],
            change(report, name, arm.base) if arm.base in report.arms else nothing,
            report.gap_closed_by_arm.get(name, nothing),
            _seconds(run, [network_folder("evaluation", name, seed) for seed in config.seeds]),
            idle.get(name, ""),
        )
        for name, arm in shown
    ]


def _seconds(run: Path, stages: list[str]) -> float | None:
    """What stages took, with all that they read; None where one has no record."""
    needed: set[str] = set()
    total = 0.0
    while stages:
        if (name := stages.pop()) in needed:
            continue
        needed.add(name)
        if not (run / name / STAGE_FILE).is_file():
            return None
        record = read_stage(run, name)
        total += record.seconds
        reads = record.inputs.get("reads")
        stages.extend(reads if isinstance(reads, dict) else ())
    return total


def write_steps(path: Path, steps: Sequence[Step]) -> None:
    """Write the table as CSV: one column a number; accuracies and IoU are fractions."""
    rows = []
    for step in steps:
        row: dict[str, object] = {"arm": step.arm, "title": step.title, "base": step.base}
        for key, score in step.scores.items():
            row |= columns(key, score, step.change[key])
            row[f"{key}_gap_closed"] = step.gap_closed[key]
        rows.append(row | {"hours": step.seconds and step.seconds / 3600, "note": step.note})
    write_table(path, list(rows[0]), rows)


def step_sentences(report: Summary, steps: Sequence[Step]) -> list[str]:
    """What the steps brought, in plain language."""
    sentences = []
    unlabelled = {BEFORE, *ours(report.recipes)}
    for metric in in_steps():
        scored = [
            (metric.gain(mean, 0.0), step)
            for step in steps
            if (mean := step.scores[metric.key].mean) is not None
            and step.arm in unlabelled
            and not step.note
        ]
        if len(scored) < 2:
            continue
        best = max(scored, key=lambda pair: pair[0])[1]
        closed, score = best.gap_closed[metric.key], best.scores[metric.key]
        part = f"; {percent(closed, 0)} of the gap closed" if closed is not None else ""
        sentences.append(
            f"{'Highest' if metric.higher_is_better else 'Lowest'} {metric.title} without target "
            f"labels: {best.title}, {spread(score.mean, score.std, metric.unit)}{part}."
        )
    if sentences:
        sentences.append(
            "The labels of the test set chose these, so their scores are a little too good: keep "
            "frames apart to score the one you choose."
        )
    return sentences
