"""The numbers of a report, collected from the evaluations of a run. No metric is computed here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from pipeline.config.settings import AFTER, BEFORE, IDEAL, Config
from pipeline.csv_files import write_table
from pipeline.data.labels import LabelSpace, load_label_space
from pipeline.errors import UserError
from pipeline.run.folder import STAGE_FILE, check_results, network_folder
from pipeline.scoring import bootstrap
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.scoring.evaluation import FILE, Evaluation
from pipeline.scoring.metrics import (
    BREAKDOWNS,
    METRICS,
    Counts,
    Float,
    Metric,
    Score,
    class_columns,
    tabled,
)
from reports.budget import compared_arms
from reports.classes import fewer_source_frames
from reports.settings import ordered_arms, recipes
from reports.summary import Comparison, Difference, Names, Spread, Summary

Evaluations = Mapping[str, Sequence[Evaluation]]
"""Arm -> its evaluations, one a seed."""
Drawn = Mapping[str, Float]
"""Metric -> its value in each drawing of the test frames, as `bootstrap.resample` returns it."""


def evaluation_folder(run: Path, arm: str, seed: int) -> Path:
    """Where the scores of one arm and seed are."""
    return run / network_folder("evaluation", arm, seed)


def read_evaluations(run: Path, config: Config) -> dict[str, list[Evaluation]]:
    """Arm -> its evaluations in the order of `config.seeds`.

    Raises:
        UserError: an arm or seed has not been scored.
    """
    space = space_of(config)
    folders = {
        arm: [evaluation_folder(run, arm, seed) for seed in config.seeds]
        for arm in ordered_arms(config)
    }
    everything = [folder for of_arm in folders.values() for folder in of_arm]
    missing = [str(path) for f in everything if not (path := f / FILE).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"No file {missing[0]}{more}. Run `sim2real evaluate {run}` first.")
    for folder in everything:
        if (folder / STAGE_FILE).is_file():
            check_results(run, folder.relative_to(run).as_posix())
    return {arm: [Evaluation.read(f, space) for f in of_arm] for arm, of_arm in folders.items()}


def space_of(config: Config) -> LabelSpace:
    """The classes of a run, with those that its means count."""
    return load_label_space(config.label_space).averaging(config.evaluation.classes)


def summary(
    config: Config,
    evaluations: Evaluations,
    against: Mapping[str, Sequence[str]] | None = None,
) -> Summary:
    """The scores of a report, with no word yet of what they are worth.

    Args:
        against: arm -> the arms that it is compared with frame by frame; none: each with
            `source_only`, `adapted`, its base and what `reports.budget` asks for.
    """
    if against is None:
        told = recipes(config)
        more, fewer = compared_arms(told), fewer_source_frames(told)
        against = {
            arm: _compared_with(config, arm, [*more.get(arm, ()), *fewer.get(arm, ())])
            for arm in evaluations
        }
    first = first_evaluation(evaluations)
    drawn = drawn_metrics(evaluations, space_of(config))
    arms = {
        arm: {m.key: _over_seeds(scores, m.key, drawn[arm]) for m in tabled()}
        for arm, scores in evaluations.items()
    }
    details = {key: _details(evaluations, drawn, key) for key in BREAKDOWNS}
    breakdowns = {key: _means_of(of_arms) for key, of_arms in details.items()}
    gaps = {
        arm: {m.key: gap_closed(arms, arm, m) for m in tabled()}
        for arm in arms
        if arm not in (BEFORE, IDEAL)
    }
    compared = {
        arm: {
            than: _compare(arms, breakdowns, drawn, arm, than)
            for than in against[arm]
            if than in evaluations and than != arm
        }
        for arm in evaluations
        if against.get(arm)
    }
    return Summary(
        class_scores={b.key: found for b in class_columns() if (found := details[b.key])},
        name=config.name,
        label_space=str(first.protocol["label_space"]),
        dataset=first.dataset,
        split=first.split,
        images=first.images,
        protocol=first.protocol,
        recipes=recipes(config),
        arms=arms,
        gap_closed=gaps.get(AFTER, {m.key: None for m in tabled()}),
        gap_closed_by_arm=gaps,
        gap_closed_intervals={
            arm: {m.key: _gap_interval(drawn, arm, m) for m in tabled()} for arm in gaps
        },
        comparisons=compared,
        resamplings=bootstrap.RESAMPLES,
        absent_classes=first.absent_classes,
        breakdowns=breakdowns,
        scores=_means(evaluations, breakdowns),
        void_predictions={
            arm: sum(sum(s.void_predictions) for s in scores) for arm, scores in evaluations.items()
        },
    )


def _means_of(of_arms: Mapping[str, Mapping[str, Spread]] | None) -> dict[str, Names] | None:
    if of_arms is None:
        return None
    return {arm: {name: s.mean for name, s in found.items()} for arm, found in of_arms.items()}


def _compared_with(config: Config, arm: str, more: Sequence[str]) -> list[str]:
    usual = [] if arm == BEFORE else [BEFORE, AFTER]
    base = config.arms[arm].base
    return list(dict.fromkeys([*usual, *([base] if base else []), *more]))


def _means(
    evaluations: Evaluations, breakdowns: Mapping[str, object]
) -> dict[str, dict[str, Spread] | None]:
    """The means of breakdowns that are not among the metrics in tables."""
    keys = {b.mean: key for key, b in BREAKDOWNS.items() if not METRICS[b.mean].table}
    return {
        mean: {arm: _over_seeds(scores, mean) for arm, scores in evaluations.items()}
        if breakdowns[key]
        else None
        for mean, key in keys.items()
    }


def between_runs(
    config: Config, evaluations: Mapping[str, Evaluations]
) -> dict[str, dict[str, Comparison]]:
    """Run -> arm -> how far it is above the arm of that name in the first run, on the same frames.

    Without the runs and arms that were scored on others.
    """
    (_, base), *others = evaluations.items()
    found: dict[str, dict[str, Comparison]] = {}
    for run, arms in others:
        pairs = {
            arm: {"here": scores, "there": base[arm]}
            for arm, scores in arms.items()
            if arm in base and _frames(scores) == _frames(base[arm])
        }
        # The two runs' arms are the arms of a summary: what it says of arms holds for them.
        both = {f"{arm} {run}": pair[run] for arm, pair in pairs.items() for run in pair}
        against = {f"{arm} here": [f"{arm} there"] for arm in pairs}
        compared = summary(config, both, against).comparisons if pairs else {}
        found[run] = {arm: compared[f"{arm} here"][f"{arm} there"] for arm in pairs}
    return {run: arms for run, arms in found.items() if arms}


def _frames(scores: Sequence[Evaluation]) -> list[list[str]]:
    """The distinct lists of frames that the seeds of an arm were scored on."""
    lists = [found.frames.names for found in scores]
    return [names for i, names in enumerate(lists) if names not in lists[:i]]


def _details(
    evaluations: Evaluations, drawn: Mapping[str, Drawn], key: str
) -> dict[str, dict[str, Spread]] | None:
    """Arm -> class or category -> its values over the seeds; None where it is not known of all.

    With an interval for the columns of the table of classes.
    """
    mean = BREAKDOWNS[key].mean
    for evaluation in (e for scores in evaluations.values() for e in scores):
        known = not BREAKDOWNS[key].about or evaluation.scores.get(mean) is not None
        if not known or key not in evaluation.breakdowns:
            return None
    return {
        arm: {
            name: _spread(
                {str(s.seed): s.breakdowns[key][name] for s in scores},
                drawn[arm][key][:, index] if key in drawn[arm] else None,
            )
            for index, name in enumerate(scores[0].breakdowns[key])
        }
        for arm, scores in evaluations.items()
    }


def drawn_metrics(evaluations: Evaluations, space: LabelSpace) -> dict[str, Drawn]:
    """Arm -> its metrics in each drawing of the test frames."""
    if len({tuple(found.frames.names) for seeds in evaluations.values() for found in seeds}) > 1:
        raise UserError(
            "The arms were scored on unlike frames, and cannot be compared frame by frame. Score "
            "them anew with `sim2real run --force evaluation`."
        )
    return {
        arm: bootstrap.resample([found.frames.counts for found in seeds], space)
        for arm, seeds in evaluations.items()
    }


def _compare(
    arms: Mapping[str, Mapping[str, Spread]],
    breakdowns: Mapping[str, Mapping[str, Names] | None],
    drawn: Mapping[str, Drawn],
    arm: str,
    than: str,
) -> Comparison:
    """How far `arm` is above `than` on the same frames."""
    ours, theirs = drawn[arm], drawn[than]
    by_name: dict[str, dict[str, Difference | None]] = {}
    for key, values in breakdowns.items():
        if values and BREAKDOWNS[key].compared:
            by_name[key] = {
                name: _difference(
                    METRICS[BREAKDOWNS[key].mean],
                    (values[arm][name], values[than][name]),
                    (ours[key][:, index], theirs[key][:, index]),
                )
                for index, name in enumerate(values[arm])
            }
    return Comparison(
        scores={
            m.key: _difference(
                m,
                (arms[arm][m.key].mean, arms[than][m.key].mean),
                (ours[m.key], theirs[m.key]),
            )
            for m in tabled()
        },
        breakdowns=by_name,
    )


def _difference(
    metric: Metric,
    values: tuple[Score, Score],
    drawn: tuple[Float, Float],
) -> Difference | None:
    """First minus second, and what the drawings say of it; None where one has no value."""
    if values[0] is None or values[1] is None:
        return None
    return Difference(
        difference=values[0] - values[1],
        interval=bootstrap.interval(drawn[0] - drawn[1]),
        better=bootstrap.share_better(metric.gain(*drawn)),
    )


def _gap_interval(
    drawn: Mapping[str, Drawn], arm: str, metric: Metric
) -> bootstrap.Interval | None:
    """None where an arm is missing, or a drawing has no gap: its share is then anything."""
    if not {BEFORE, arm, IDEAL} <= drawn.keys():
        return None
    before, after, ideal = (drawn[name][metric.key] for name in (BEFORE, arm, IDEAL))
    if not (metric.gain(ideal, before) > 0).all():
        return None
    return bootstrap.interval((after - before) / (ideal - before))


def gap_closed(arms: Mapping[str, Mapping[str, Spread]], arm: str, metric: Metric) -> float | None:
    """(arm - source_only) / (oracle - source_only), of the means over seeds.

    None when one of the three is missing or the oracle is not better than source_only.
    """
    before, after, ideal = (
        arms[name][metric.key].mean if name in arms else None for name in (BEFORE, arm, IDEAL)
    )
    if before is None or after is None or ideal is None or metric.gain(ideal, before) <= 0:
        return None
    return float((after - before) / (ideal - before))


def first_evaluation(evaluations: Evaluations) -> Evaluation:
    """Any evaluation: what does not depend on the arm is equal in all of them."""
    return next(iter(evaluations.values()))[0]


def summed_confusion(evaluations: Sequence[Evaluation]) -> Counts:
    """(K, K + 1) pixel counts of all seeds together, void predictions in the last column."""
    return np.asarray(sum(evaluation.table for evaluation in evaluations))


def write_classes(path: Path, report: Summary) -> None:
    """Write a table of one row a class: each arm's scores and the share of the scored pixels."""
    columns: dict[str, Mapping[str, object]] = {
        f"{breakdown.column}_{arm}": values[arm]
        for arm in report.arms
        for breakdown in class_columns()
        if (values := report.breakdowns[breakdown.key])
    }
    for arm, scores in report.class_scores.get("class_iou", {}).items():
        for end, which in (("low", 0), ("high", 1)):
            columns[f"iou_{arm}_{end}"] = {
                name: score.interval[which] if score.interval else None
                for name, score in scores.items()
            }
    sets = {name: report.data.shares.get(name) for name in ("source", "target")}
    columns |= {f"share_of_{name}": part for name, part in sets.items() if part}
    columns["test_frames"] = report.data.test_frames
    columns |= {f"lost_iou_{arm}": part for arm, part in report.lost_iou.items()}
    rows = [
        {
            "class": name,
            **{column: values[name] for column, values in columns.items()},
            "share_of_truth": share,
        }
        for name, share in (report.data.shares["test"] or {}).items()
    ]
    write_table(path, list(rows[0]), rows)


def _over_seeds(evaluations: Sequence[Evaluation], key: str, drawn: Drawn | None = None) -> Spread:
    seeds = {str(evaluation.seed): evaluation.scores.get(key) for evaluation in evaluations}
    return _spread(seeds, drawn[key] if drawn is not None else None)


def _spread(seeds: dict[str, Score], drawn: Float | None) -> Spread:
    present = [value for value in seeds.values() if value is not None]
    return Spread(
        mean=fmean(present) if present else None,
        std=stdev(present) if len(present) > 1 else None,
        seeds=seeds,
        interval=bootstrap.interval(drawn) if drawn is not None else None,
    )


def flips(
    before: ConfusionMatrix, after: ConfusionMatrix, names: Sequence[str], most: int = 4
) -> list[tuple[str, str, float]]:
    """The classes that translation changes most for a frozen segmenter, by pixels.

    A class, what it is taken for, and for how many more of its pixels than before, a fraction of
    0.01 or more.
    """
    gained = (after.counts - before.counts).astype(float)
    np.fill_diagonal(gained, 0)
    truth = before.counts.sum(axis=1)
    found = []
    for position in np.argsort(gained, axis=None)[::-1][:most]:
        row, column = np.unravel_index(position, gained.shape)
        if truth[row] and (more := gained[row, column] / truth[row]) >= 0.01:
            found.append((names[row], names[column], float(more)))
    return found
