"""What a report says class by class: where scores are lost, and what the data sets hold.

All is computed from stored counts of pixels, and from a sample of labels.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise

import numpy as np

from pipeline.config.settings import BEFORE, IDEAL, Config
from pipeline.config.translation import TRANSLATED
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import list_samples
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.intake.lost import census
from pipeline.scoring.evaluation import Evaluation
from pipeline.scoring.metrics import METRICS, Counts, Float, mean_iou, plain, ranking, tabled
from pipeline.text import count, difference, listed, margins, number, percent
from reports.chance import change, sign, sign_of
from reports.sentences import main_of, ours
from reports.summary import Confusion, Data, Names, Recipe, SourcePoint, Summary

COSTLIEST = 3
"""Confusions that are said in words."""
LEAST_FRAMES = 10
"""Test frames below which their resemblance is not measured."""


def worse(report: Summary) -> dict[str, list[str]]:
    """Arm of ours -> the classes whose IoU is below that of `source_only` beyond chance."""
    found: dict[str, list[str]] = {}
    scores = report.class_scores.get("class_iou", {})
    for arm in ours(report.recipes):
        compared = report.comparisons.get(arm, {}).get(BEFORE)
        if compared and BEFORE in scores:
            found[arm] = [
                name
                for name, gap in compared.breakdowns["class_iou"].items()
                if gap
                and sign_of(
                    METRICS["mean_iou"],
                    gap,
                    {end: scores[end][name] for end in (arm, BEFORE)},
                )
                == -1
            ]
    return found


def lost_iou(report: Summary, space: LabelSpace) -> dict[str, Names]:
    """Arm -> class -> its part of what mean IoU lacks to 1; the parts of an arm add up to 1.

    None for a class that no mean counts.
    """
    averaged = {c.name for c in space.classes if c.averaged}
    found = {}
    for arm, values in (report.breakdowns.get("class_iou") or {}).items():
        lacks = {n: 1 - v for n, v in values.items() if v is not None and n in averaged}
        whole = sum(lacks.values())
        found[arm] = {
            name: lacks[name] / whole if name in lacks and whole else None for name in values
        }
    return found


def confusions(counts: Counts, space: LabelSpace, most: int = COSTLIEST) -> list[Confusion]:
    """What is taken for what at the greatest cost in mean IoU, the first costs most.

    Args:
        counts: (K, K + 1), rows truth, columns prediction, the last one void.
    """
    names, classes = [*space.class_names, "void"], len(counts)
    rows, columns = np.nonzero(counts)
    wrong = rows != columns
    rows, columns = rows[wrong], columns[wrong]
    # As many tables as there are confusions, in each of which one has been set right.
    tables = np.repeat(counts[None], len(rows), axis=0)
    index, pixels = np.arange(len(rows)), counts[rows, columns]
    tables[index, rows, columns] = 0
    tables[index, rows, rows] += pixels
    costs = mean_iou(tables, space) - mean_iou(counts, space)
    truth = counts.sum(axis=1)
    found = []
    for i in np.argsort(-costs, kind="stable")[:most]:
        if not costs[i] > 0:
            continue
        label, seen, share = names[rows[i]], names[columns[i]], float(pixels[i] / truth[rows[i]])
        points = difference(float(costs[i])).removeprefix("+")
        found.append(
            Confusion(
                truth=label,
                seen=seen,
                share=share,
                cost=float(costs[i]),
                text=f"{percent(share)} of {label} "
                f"{'is given no class' if columns[i] == classes else f'is taken for {seen}'}, "
                f"which costs {points} points of mean IoU",
            )
        )
    return found


def floors(counts: Counts, space: LabelSpace) -> dict[str, float | None]:
    """Metric -> its value where the largest class of the truth is predicted everywhere."""
    truth = counts.sum(axis=1)
    constant = np.zeros_like(counts)
    constant[:, truth.argmax()] = truth
    return {m.key: plain(m.formula(constant, space)) for m in tabled() if m.formula}


def resemblance(evaluations: Mapping[str, Sequence[Evaluation]], main: str | None) -> float | None:
    """The correlation of neighbouring test frames, in the order of their names.

    Of the frames' differences in per-pixel accuracy between the arm that stands for the adaptation
    and `source_only`, or else of the first arm's accuracies: the lag-1 autocorrelation, by which
    intervals that take frames as independent are too narrow.
    """
    arms = [arm for arm in (main, BEFORE) if arm in evaluations] or list(evaluations)[:1]
    first, *others = [_by_frame(evaluations[arm]) for arm in arms if arm]
    values = first - others[0] if others else first
    values = values[~np.isnan(values)]
    if len(values) < LEAST_FRAMES or not values.std():
        return None
    centred = values - values.mean()
    return float((centred[1:] * centred[:-1]).sum() / (centred**2).sum())


def _by_frame(seeds: Sequence[Evaluation]) -> Float:
    """Per-pixel accuracies (N,) of an arm, means over its seeds, by the frames' names."""
    formula = METRICS["pixel_accuracy"].formula
    order = np.argsort(seeds[0].frames.names)
    return np.asarray(np.mean([formula(s.frames.counts, None)[order] for s in seeds], axis=0))  # type: ignore[arg-type,misc]


# What the data sets hold.


def data(
    config: Config, space: LabelSpace, report: Summary, first: Evaluation
) -> tuple[Data, int | None]:
    """What the data sets hold, and whether more synthetic data would help.

    Beside it the number of frames of the source; None where they are not there.
    """
    truth = first.table.sum(axis=1)
    labelled = {"source": config.source}
    if "target" in config.labels_read:
        labelled["target"] = config.target
    shares: dict[str, Names | None] = dict.fromkeys(("source", "target"))
    for name, spec in labelled.items():
        with suppress(UserError):
            shares[name] = _shares(spec, space)
    shares["test"] = dict(
        zip(first.classes, (truth / max(1, int(truth.sum()))).tolist(), strict=True)
    )
    shown = (first.frames.counts.sum(axis=2) > 0).sum(axis=0)
    frames = dict(zip(first.classes, shown.tolist(), strict=True))
    total = frame_count(config.source)
    found = Data(
        shares=shares, test_frames=frames, source_points=source_points(report.recipes, total)
    )
    return found.model_copy(update={"sentences": buying_sentences(report, found)}), total


def _shares(spec: DatasetSpec, space: LabelSpace) -> Names | None:
    counted = census(spec, space)
    shares = counted.classes(space)
    whole = sum(shares.values())
    return {name: share / whole for name, share in shares.items()} if whole else None


def frame_count(spec: DatasetSpec) -> int | None:
    """How many frames a data set has; None where it is not where it was."""
    with suppress(UserError):
        return len(list_samples(spec, labelled=False))
    return None


def source_points(recipes: Mapping[str, Recipe], total: int | None) -> list[SourcePoint]:
    """The arms that are alike but for their number of synthetic frames, by kind and number.

    Args:
        total: frames of the source, which an arm has that names no number.
    """
    found: dict[str, list[SourcePoint]] = {}
    for arm, recipe in recipes.items():
        synthetic = [kind for kind in recipe.train if kind != "target"]
        if arm == IDEAL or len(synthetic) != 1:
            continue
        (kind,) = synthetic
        frames = recipe.frames.get(kind, total)
        if frames is None:
            continue
        alike = recipe.model_copy(
            update={"frames": {k: n for k, n in recipe.frames.items() if k != kind}}
        )
        name = {"source": "source frames", TRANSLATED: "translated frames"}.get(kind, kind)
        point = SourcePoint(arm=arm, frames=frames, kind=name)
        found.setdefault(alike.model_dump_json(), []).append(point)
    curves = [sorted(points, key=lambda one: one.frames) for points in found.values()]
    return [p for points in curves if len({p.frames for p in points}) > 1 for p in points]


def fewer_source_frames(recipes: Mapping[str, Recipe]) -> dict[str, list[str]]:
    """Arm -> the next smaller one on its curve of `source_points`, which it is compared with."""
    points = source_points(recipes, sys.maxsize)
    return {more.arm: [fewer.arm] for fewer, more in pairwise(points) if fewer.kind == more.kind}


def buying_sentences(report: Summary, found: Data) -> list[str]:
    """Whether more synthetic data would help, as far as the run can tell."""
    return [*_by_number(report, found), *_by_class(report, found)]


def _by_number(report: Summary, found: Data) -> list[str]:
    metric = ranking()
    kinds = dict.fromkeys(point.kind for point in found.source_points)
    if not kinds:
        return [
            "What more synthetic frames would bring is not measured: no two arms differ in their "
            "number alone. Add one, e.g. `half: {train: {source: {frames: 100}}}`."
        ]
    lines = []
    for kind in kinds:
        *_, before, last = [point for point in found.source_points if point.kind == kind]
        score, less = (report.arms[p.arm][metric.key].mean for p in (last, before))
        gain = change(report, last.arm, before.arm)[metric.key]
        if score is None or less is None or gain is None:
            continue
        verdict = {
            1: "more frames of this kind still help",
            0: "that may be chance: more frames of this kind alone would bring little",
            -1: "more frames of this kind do not help",
        }[sign(report, metric, last.arm, before.arm) or 0]
        shown = margins(gain.interval, metric.unit)
        lines.append(
            f"From {count(before.frames)} to {count(last.frames)} {kind}, {metric.title} goes from "
            f"{number(less, metric.unit)} to {number(score, metric.unit)} "
            f"({difference(gain.difference, metric.unit)} points"
            f"{f', interval {shown}' if shown else ''}): {verdict}."
        )
    return lines


def _by_class(report: Summary, found: Data) -> list[str]:
    main = main_of(ours(report.recipes)) or next(iter(report.arms), None)
    lost = report.lost_iou.get(main or "", {})
    most = sorted(((v, n) for n, v in lost.items() if v), reverse=True)
    lines = []
    if main and most:
        parts = listed([f"{name} {percent(share, 0)}" for share, name in most[:COSTLIEST]])
        lines.append(f"Of the mean IoU that {main} lacks, most is lost on {parts}.")
    source, test = (found.shares.get(name) for name in ("source", "test"))
    if source and test:
        rare = [
            f"{name} ({percent(source[name])} against {percent(test[name])})"
            for _, name in most
            if (test[name] or 0) > 0 and (source.get(name) or 0) < 0.5 * (test[name] or 0)
        ]
        if rare:
            lines.append(
                f"Less than half as frequent in the source as in the test set: {listed(rare)}. "
                "Synthetic frames that show these would be the first to buy."
            )
        else:
            lines.append(
                "No class is less than half as frequent in the source as in the test set: what is "
                "lost is not for lack of synthetic pixels."
            )
    main_confusions = report.confusions.get(main or "", [])
    if main_confusions:
        lines.append(
            f"What {main} confuses at the greatest cost: "
            f"{'; '.join(found.text for found in main_confusions)}."
        )
    return lines
