"""What synthetic frames are worth: arms that differ in how many labelled target frames they had."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.config.settings import IDEAL
from pipeline.csv_files import write_table
from pipeline.scoring.metrics import Metric, in_steps, tabled
from pipeline.text import count, number, percent, spread
from reports.chance import change, columns, sign
from reports.sentences import main_of, ours, trained_on
from reports.summary import Difference, Recipe, Spread, Summary

NOTE = (
    "A change is against as many labelled frames alone, on the same test frames. Beyond chance: "
    "larger than ± over seeds, and with a 95% interval over test frames that is clear of zero. "
    "Labelled frames are spaced evenly over the target; what others would give is not known. All "
    "arms train for as many steps as their recipes say, however few their frames are."
)
"""What all of these numbers mean."""


ALONE = "alone"
"""The title of the curve of networks that learn from labelled frames of the target only."""


@dataclass(frozen=True)
class Curve:
    """Arms that are alike but for the number of labelled frames of the target."""

    title: str
    """`ALONE`, or what else they learn from."""
    arms: Mapping[int, str]
    """Number of frames, ascending -> arm."""


def curves(recipes: Mapping[str, Recipe]) -> list[Curve]:
    """The curves of a run: labelled frames alone, then those with something besides."""
    found: dict[str, dict[int, str]] = {}
    for arm, recipe in recipes.items():
        if frames := recipe.frames.get("target"):
            alike = recipe.model_copy(update={"frames": {**recipe.frames, "target": 0}})
            key = json.dumps(alike.model_dump(), sort_keys=True)
            found.setdefault(key, {})[frames] = arm
    made: list[Curve] = []
    for arms in found.values():
        first = next(iter(arms.values()))
        title = _title(recipes[first])
        taken = title in [curve.title for curve in made]
        made.append(Curve(f"{title} ({first})" if taken else title, dict(sorted(arms.items()))))
    return sorted(made, key=lambda curve: curve.title != ALONE)


def numbers_of(found: Sequence[Curve]) -> list[int]:
    """The numbers of labelled frames on any of the curves, ascending."""
    return sorted({frames for curve in found for frames in curve.arms})


def _title(recipe: Recipe) -> str:
    shares = {kind: share for kind, share in recipe.train.items() if kind != "target"}
    others = trained_on(recipe.model_copy(update={"train": shares, "start": None}))
    start = f", starting from {recipe.start}" if recipe.start else ""
    return f"{f'with {others}' if others else ALONE}{start}"


def alone_of(found: Sequence[Curve]) -> Curve | None:
    """The curve of labelled frames alone."""
    return next((curve for curve in found if curve.title == ALONE), None)


def compared_arms(recipes: Mapping[str, Recipe]) -> dict[str, list[str]]:
    """Arm -> those that it is compared with: alone, the adaptation; else, as many frames alone."""
    found = curves(recipes)
    alone, main = alone_of(found), main_of(ours(recipes))
    if alone is None:
        return {}
    pairs = {arm: [main] for arm in alone.arms.values() if main}
    for curve in found:
        if curve != alone:
            pairs |= {arm: [alone.arms[n]] for n, arm in curve.arms.items() if n in alone.arms}
    return pairs


@dataclass(frozen=True)
class Point:
    """An arm on a curve: one row of the table."""

    frames: int
    arm: str
    curve: str
    scores: Mapping[str, Spread]
    change: Mapping[str, Difference | None]
    """Metric -> how far it is above as many labelled frames alone."""
    of_oracle: Mapping[str, float | None]
    """Metric -> its part of the oracle's score."""


def points(report: Summary) -> list[Point]:
    """All arms of the curves by their number of frames; none where a run has no such arms."""
    pairs = compared_arms(report.recipes)
    nothing = {metric.key: None for metric in tabled()}
    found = curves(report.recipes)
    return [
        Point(
            frames,
            arm,
            curve.title,
            report.arms[arm],
            change(report, arm, pairs[arm][0])
            if arm in pairs and curve.title != ALONE
            else nothing,
            {metric.key: _of_oracle(report, arm, metric) for metric in tabled()},
        )
        for frames in numbers_of(found)
        for curve in found
        if (arm := curve.arms.get(frames))
    ]


def _of_oracle(report: Summary, arm: str, metric: Metric) -> float | None:
    score, ideal = (report.score(one, metric.key) for one in (arm, IDEAL))
    return None if score is None or not ideal else score / ideal


def write_budget(path: Path, rows: Sequence[Point]) -> None:
    """Write the table as CSV: one column a number; accuracies and IoU are fractions."""
    table = []
    for point in rows:
        row: dict[str, object] = {"frames": point.frames, "arm": point.arm, "curve": point.curve}
        for key, score in point.scores.items():
            row |= columns(key, score, point.change[key])
            row[f"{key}_of_oracle"] = point.of_oracle[key]
        table.append(row)
    write_table(path, list(table[0]), table)


def budget_sentences(report: Summary) -> list[str]:
    """What the synthetic frames are worth in labelled ones, in plain language."""
    found = curves(report.recipes)
    return [
        line
        for metric in in_steps()
        for line in (
            *_worth(report, metric, alone_of(found)),
            *_shares(report, metric, found),
            *_help(report, metric, found),
        )
    ]


def _worth(report: Summary, metric: Metric, alone: Curve | None) -> list[str]:
    """The number of labelled frames that do as well as the adaptation does without any."""
    main = main_of(ours(report.recipes))
    if alone is None or main is None:
        return []
    means = {frames: report.arms[arm][metric.key].mean for frames, arm in alone.arms.items()}
    score = report.arms[main][metric.key]
    if score.mean is None:
        return []
    gains = {n: metric.gain(mean, score.mean) for n, mean in means.items() if mean is not None}
    if not gains:
        return []
    sure = {n: sign(report, metric, alone.arms[n], main) for n in gains}
    return [
        f"In {metric.title}, {main} ({spread(score.mean, score.std, metric.unit)}), which reads no "
        f"label of the target, is worth {worth(gains)}{how_sure(sure)}"
    ]


def crossings(gains: Mapping[int, float]) -> list[float]:
    """The numbers of frames at which a curve passes 0, interpolated over their logarithm.

    Args:
        gains: number of frames, ascending -> how far the curve is above the level.
    """
    return [
        few * (more / few) ** (gains[few] / (gains[few] - gains[more]))
        for few, more in pairwise(gains)
        if (gains[few] < 0) != (gains[more] < 0)
    ]


def worth(gains: Mapping[int, float]) -> str:
    """The number of labelled frames, alone, that a level is worth, in words.

    Args:
        gains: number of frames, ascending -> how far a network of so many is above the level.
    """
    few, most = next(iter(gains)), list(gains)[-1]
    found = crossings(gains)
    if not found and gains[few] >= 0:
        return (
            f"fewer than {count(few, 'labelled frame')}: trained on {count(few)} alone, a network "
            "does at least as well."
        )
    if not found:
        return (
            f"more than {count(most, 'labelled frame')}: trained on {count(most)} alone, a network "
            "does not reach it."
        )
    if len(found) == 1 and gains[few] < 0:
        return (
            f"about {count(round(found[0]), 'labelled frame')}: trained on such frames alone, a "
            "network needs so many to reach it."
        )
    where = ", ".join(count(round(n)) for n in found)
    return (
        "no one number of labelled frames: trained on such frames alone, a network passes it at "
        f"about {where}."
    )


def how_sure(signs: Mapping[int, int | None]) -> str:
    """What is left of a worth when unsure differences are left out, in words; often nothing.

    Args:
        signs: number of frames, ascending -> as `sign` says.
    """
    if all(signs.values()):
        return ""
    below = [frames for frames, value in signs.items() if value == -1]
    above = [frames for frames, value in signs.items() if value == 1]
    if not below and not above:
        return " But at no number is the difference larger than chance."
    if below and above and below[-1] > above[0]:
        return " Some of these differences are no larger than chance."
    known = [f"more than {count(below[-1])}"] if below else []
    known += [f"fewer than {count(above[0])}"] if above else []
    return f" Beyond chance it is known only to be {' and '.join(known)}."


def _shares(report: Summary, metric: Metric, found: Sequence[Curve]) -> list[str]:
    """What part of the oracle's score each number of labelled frames reaches."""
    ideal = report.score(IDEAL, metric.key)
    if not found or not ideal:
        return []
    numbers = numbers_of(found)
    parts = []
    for curve in found:
        arms = [curve.arms.get(frames) for frames in numbers]
        shares = [_of_oracle(report, arm, metric) if arm else None for arm in arms]
        parts.append(f"{curve.title} {' / '.join(percent(share, 0) for share in shares)}")
    return [
        f"With {' / '.join(map(count, numbers))} labelled frames one reaches, of the oracle's "
        f"{metric.title} ({number(ideal, metric.unit)}): {'; '.join(parts)}."
    ]


def _help(report: Summary, metric: Metric, found: Sequence[Curve]) -> list[str]:
    """Where something besides labelled frames makes a difference to as many of these alone."""
    pairs = compared_arms(report.recipes)
    lines = []
    for curve in found:
        signs = {
            n: sign(report, metric, arm, pairs[arm][0])
            for n, arm in curve.arms.items()
            if arm in pairs and curve.title != ALONE
        }
        verdicts = {1: "better", 0: "no different beyond chance", -1: "worse"}
        parts = [
            f"{verdict} with {', '.join(map(count, numbers))}"
            for value, verdict in verdicts.items()
            if (numbers := [n for n, found_sign in signs.items() if found_sign == value])
        ]
        if parts:
            lines.append(
                f"In {metric.title}, labelled frames {curve.title} are, against as many alone, "
                f"{'; '.join(parts)}."
            )
    return lines
