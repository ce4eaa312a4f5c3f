"""What several runs say together: a leaderboard, who is better beyond chance, tables of classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.settings import Config
from pipeline.csv_files import write_table
from pipeline.scoring import bootstrap
from pipeline.scoring.metrics import Float, class_columns, ranking, tabled
from reports.budget import points
from reports.summary import Difference, Spread, Summary, Value
from reports.tables import Evaluations, drawn_metrics, space_of

LEVEL = 0.05
"""Of the chance that so large a difference is seen where there is none, over all comparisons."""


class Place(Value):
    """One arm of one run on the leaderboard."""

    rank: int
    run: str
    arm: str
    target_labels: bool
    """Whether its network has learnt from labels of the target: it is shown, and leads nobody."""
    score: Spread
    """Of the metric by which arms are ranked."""
    behind: Difference | None
    """How far it is above the leader, the first without labels of the target, on the same frames;
    None for the leader, and where frames were not counted."""
    chance: float | None
    """The chance of so large a difference where there is none: two-sided, by the resamplings, and
    adjusted for the number of comparisons (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    tied: bool
    """Whether it may be as good as the leader, as far as test frames and seeds tell."""


def leaderboard(
    runs: Mapping[str, Config],
    evaluations: Mapping[str, Evaluations],
    reports: Mapping[str, Summary],
) -> list[Place]:
    """All arms of all runs, the best first; those without a score are left out."""
    metric = ranking()
    entries = [
        (run, arm, score)
        for run, report in reports.items()
        for arm, scores in report.arms.items()
        if (score := scores[metric.key]).mean is not None
    ]
    entries.sort(key=lambda one: -metric.gain(one[2].mean or 0.0, 0.0))
    labelled = {(run, arm): runs[run].sees_target_labels(arm) for run, arm, _ in entries}
    leader = next((one for one in entries if not labelled[one[:2]]), None)
    drawn = _drawn(runs, evaluations)
    behind: dict[tuple[str, str], Difference] = {}
    chances: dict[tuple[str, str], float] = {}
    for run, arm, score in entries:
        if leader is None or (run, arm) == leader[:2] or not {(run, arm), leader[:2]} <= {*drawn}:
            continue
        gaps = drawn[run, arm] - drawn[leader[:2]]
        behind[run, arm] = Difference(
            difference=(score.mean or 0.0) - (leader[2].mean or 0.0),
            interval=bootstrap.interval(gaps),
            better=bootstrap.share_better(metric.gain(gaps, np.zeros_like(gaps))),
        )
        chances[run, arm] = chance(gaps)
    adjusted = holm(chances)
    return [
        Place(
            rank=rank,
            run=run,
            arm=arm,
            target_labels=labelled[run, arm],
            score=score,
            behind=behind.get((run, arm)),
            chance=adjusted.get((run, arm)),
            tied=_tied(score, leader[2] if leader else None, adjusted.get((run, arm))),
        )
        for rank, (run, arm, score) in enumerate(entries, 1)
    ]


def _tied(score: Spread, leader: Spread | None, chance: float | None) -> bool:
    if leader is None or leader is score:
        return False
    gap = abs((score.mean or 0.0) - (leader.mean or 0.0))
    return gap <= max(score.std or 0.0, leader.std or 0.0) or (chance or 0.0) > LEVEL


def _drawn(
    runs: Mapping[str, Config], evaluations: Mapping[str, Evaluations]
) -> dict[tuple[str, str], Float]:
    """(run, arm) -> the ranking metric in each drawing, of arms that counted the same frames."""
    found: dict[tuple[str, str], Float] = {}
    names: list[str] | None = None
    for run, arms in evaluations.items():
        for arm, drawn in drawn_metrics(arms, space_of(runs[run])).items():
            frames = arms[arm][0].frames.names
            names = names or frames
            if frames == names:
                found[run, arm] = drawn[ranking().key]
    return found


def chance(gaps: Float) -> float:
    """The two-sided chance of differences (resamples,) where there is none: never quite 0."""
    defined = gaps[~np.isnan(gaps)]
    if not defined.size:
        return 1.0
    sides = ((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (1 + min(sides)) / (1 + defined.size)))


def holm(chances: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Chances adjusted for their number, step by step from the smallest."""
    adjusted: dict[tuple[str, str], float] = {}
    so_far = 0.0
    for position, (key, value) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        so_far = max(so_far, min(1.0, (len(chances) - position) * value))
        adjusted[key] = so_far
    return adjusted


@dataclass(frozen=True)
class Row:
    """IoU of the classes, of one arm of one run."""

    run: str
    arm: str
    target_labels: bool
    classes: Mapping[str, Spread]
    mean: Spread


def rows_of(runs: Mapping[str, Config], reports: Mapping[str, Summary]) -> list[Row]:
    """The rows of a table runs x classes."""
    return [
        Row(run, arm, runs[run].sees_target_labels(arm), classes, report.arms[arm][ranking().key])
        for run, report in reports.items()
        for arm, classes in report.class_scores.get("class_iou", {}).items()
    ]


def write_tables(folder: Path, reports: Mapping[str, Summary], board: list[Place]) -> None:
    """Write `leaderboard.csv`, `per_class.csv` (a row a run and arm), and `budget.csv` where runs
    have arms of few labelled frames; scores are fractions."""
    places: list[dict[str, object]] = []
    for place in board:
        scores = reports[place.run].arms[place.arm]
        gap = place.behind.interval if place.behind else None
        places.append(
            {
                "rank": place.rank,
                "run": place.run,
                "arm": place.arm,
                "target_labels": int(place.target_labels),
                **{m.key: scores[m.key].mean for m in tabled()},
                "behind": place.behind.difference if place.behind else None,
                "behind_low": gap[0] if gap else None,
                "behind_high": gap[1] if gap else None,
                "chance": place.chance,
                "tied": int(place.tied),
            }
        )
    if places:
        write_table(folder / "leaderboard.csv", list(places[0]), places)
    columns = {
        (b.column, name): f"{b.column} {name}"
        for b in class_columns()
        for name in next(iter(reports.values())).classes
    }
    by_class = [
        {"run": run, "arm": arm}
        | {
            title: (report.breakdowns[f"class_{kind}"] or {}).get(arm, {}).get(name)
            for (kind, name), title in columns.items()
        }
        for run, report in reports.items()
        for arm in report.arms
    ]
    write_table(folder / "per_class.csv", ["run", "arm", *columns.values()], by_class)
    budget = [
        {"run": run, "frames": point.frames, "arm": point.arm, "curve": point.curve}
        | {m.key: point.scores[m.key].mean for m in tabled()}
        for run, report in reports.items()
        for point in points(report)
    ]
    if budget:
        write_table(folder / "budget.csv", list(budget[0]), budget)
