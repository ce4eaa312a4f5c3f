"""The report of a run, and of several: files that can be mailed, made from files on disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from markupsafe import Markup
from plotly.offline import get_plotlyjs
from pydantic import BaseModel

from pipeline.config.settings import AFTER, BEFORE, IDEAL, Config
from pipeline.config.translation import TRANSLATED, CycleGANConfig
from pipeline.csv_files import read_table
from pipeline.data.labels import load_label_space
from pipeline.data.spec import missing_classes
from pipeline.errors import UserError
from pipeline.files import explain_damage, read_record, sweep, write_json, write_text
from pipeline.intake.lost import LostClasses
from pipeline.run.folder import (
    LOST_FILE,
    RUN_FILE,
    STAGE_FILE,
    StageRecord,
    check_results,
    cyclegan_folder,
    read_run_record,
    read_stage,
    translated_folder,
)
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.scoring.evaluation import Evaluation
from pipeline.scoring.metrics import Counts, Metric, headline, in_steps
from pipeline.text import duration, size
from pipeline.yaml_files import yaml_text
from reports import figures, sentences, tables
from reports.budget import points, write_budget
from reports.collect import report_of
from reports.pages import environment
from reports.selection import TABLE, read_networks, write_networks
from reports.settings import ordered_arms, settings_that_differ
from reports.steps import steps_of, write_steps
from reports.summary import Summary

T = TypeVar("T")

LEADERS = 5
"""Checkpoints shown of the translators' leaderboard."""


def write_report(config: Config, run: Path, folder: Path) -> None:
    """Write `index.html`, `report.json`, `per_class.csv` and `report.md` into `folder`.

    `index.html` holds everything it shows and asks no network for anything. Pictures that are no
    longer there are left out, and the report says so.

    Raises:
        UserError: an arm or seed has not been scored.
    """
    for name in config.used_translations:
        for stage, wanted in (
            (cyclegan_folder(name), "leaderboard.csv"),
            (cyclegan_folder(name), "drift.json"),
            (translated_folder(name), "manifest.csv"),
        ):
            if (run / stage / STAGE_FILE).is_file():
                check_results(run, stage, wanted)
    evaluations = tables.read_evaluations(run, config)
    report = report_of(config, run, evaluations)
    shares = tables.shares_of_truth(evaluations)
    steps = steps_of(config, run, report)
    candidates = read_networks(config, run, report)
    budget = points(report)
    lost = _lost_classes(config, run)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=config.name,
            config=config,
            report=report,
            shares=shares,
            arms=list(report.arms),
            colors=figures.arm_colors(list(report.arms)),
            cards=[_card(report, metric) for metric in headline()],
            space=load_label_space(config.label_space),
            confusions=_confusions(evaluations),
            lost=lost,
            settings=yaml_text(config.model_dump(mode="json")),
            plotly=Markup(get_plotlyjs()),
            **_pictures(config, run, report, evaluations),
            steps=steps,
            candidates=candidates,
            budget=budget,
            budget_plots={
                metric.title: figures.plot_div(
                    figures.budget_figure(report, metric), f"budget-{metric.key}"
                )
                for metric in in_steps()
                if budget
            },
            translations=[_translation(config, run, name) for name in config.used_translations],
            curves=_curves(run, config),
            **_provenance(config, run),
        )
    )
    text = environment(pages=False).get_template("report.md.j2")
    write_json(folder / "report.json", report.as_json())
    tables.write_classes(folder / "per_class.csv", report, shares)
    if steps:
        write_steps(folder / "steps.csv", steps)
    if candidates:
        write_networks(folder / TABLE, candidates)
    if budget:
        write_budget(folder / "budget.csv", budget)
    shown = {"report": report, "shares": shares, "steps": steps, "budget": budget, "lost": lost}
    write_text(folder / "report.md", text.render(shown, candidates=candidates))
    write_text(folder / "index.html", page)


def _lost_classes(config: Config, run: Path) -> list[str]:
    """What comes to nothing between labels and classes, in the words of `check` and `run`."""
    if (run / LOST_FILE).is_file():
        way_out = "Remove it: the report then does not tell which classes are lost."
        return [lost.text for lost in read_record(run / LOST_FILE, LostClasses, way_out).root]
    missing = missing_classes(config.source, load_label_space(config.label_space))
    named = f"no value of data set {config.source.name} is named {', '.join(missing)}: lost"
    return [named] if missing else []


def _pictures(
    config: Config, run: Path, report: Summary, evaluations: tables.Evaluations
) -> dict[str, object]:
    """What the page shows of the test frames."""
    space = load_label_space(config.label_space)
    worst_arms = [arm for arm in report.arms if arm == BEFORE] + sentences.ours(report.recipes)[-1:]
    return {
        "strip": _or_reason(lambda: figures.frame_strip(run, config, space, evaluations)),
        "worst_arms": worst_arms,
        "worst": _or_reason(
            lambda: figures.worst_frames(run, config, space, evaluations, worst_arms)
        ),
    }


@dataclass(frozen=True)
class Translation:
    """What the page shows of one translation; texts say why something is not shown."""

    name: str
    method: str
    source: str
    origin: str
    """Seeds and weights, as a text."""
    recipe: CycleGANConfig
    pairs: list[figures.Pair] | str
    grid: figures.Grid | str | None = None
    drift: "Drift | None" = None
    curves: Mapping[str, Markup] | None = None


def _translation(config: Config, run: Path, name: str) -> Translation:
    settings, recipe = config.all_translations[name], config.cyclegan_recipe(name)
    title, stage = settings.translator.title, translated_folder(name)
    title += f" of {settings.teacher}" if settings.teacher else ""
    shown = Translation(
        name,
        title,
        settings.source,
        f"{title}, seed {settings.seed}",
        recipe,
        _or_reason(lambda: figures.translated_pairs(run, stage)),
    )
    if settings.weights is not None:
        return replace(shown, origin=f"generator {settings.weights.name}")
    if not settings.trains:
        return shown
    folder = run / cyclegan_folder(name)
    start = f", from the networks of {recipe.start.name}" if recipe.start else ""
    return replace(
        shown,
        origin=f"{title} trained once, with seed {recipe.seed}{start}",
        grid=_or_reason(lambda: figures.last_sample_grid(folder)),
        drift=_drift(run, cyclegan_folder(name), best=settings.checkpoint == "best"),
        curves=_cyclegan_curves(folder, name),
    )


def _provenance(config: Config, run: Path) -> dict[str, object]:
    """What the page says of networks, data, time and machine."""
    recipes = map(config.recipe, config.arms)
    return {
        "networks": dict.fromkeys(f"{one.architecture} ({one.encoder})" for one in recipes),
        "counts": {
            "source": figures.frame_count(config.source),
            "target": figures.frame_count(config.target),
        },
        "record": read_run_record(run / RUN_FILE) if (run / RUN_FILE).is_file() else None,
        "durations": _durations(run, config),
    }


def write_comparison(runs: Mapping[str, tuple[Config, Path]], folder: Path) -> None:
    """Write `index.html`, `report.json` and `report.md` over several runs into `folder`.

    Args:
        runs: name to show -> its configuration and folder.

    Raises:
        UserError: a run has not been scored, or two were scored on different classes or frames.
    """
    if not runs:
        raise UserError("No run to compare. Give the folders of two or more runs.")
    evaluations = {
        name: tables.read_evaluations(run, config) for name, (config, run) in runs.items()
    }
    _comparable({name: tables.first_evaluation(found) for name, found in evaluations.items()})
    reports = {name: report_of(*runs[name], found) for name, found in evaluations.items()}
    base, first = next(iter(reports.items()))
    compared = tables.between_runs(runs[base][0], evaluations)
    arms = list(dict.fromkeys(arm for report in reports.values() for arm in report.arms))
    shown = {
        "reports": reports,
        "compared": compared,
        "changed": settings_that_differ({name: config for name, (config, _) in runs.items()}),
    }
    sweep(folder)
    write_json(
        folder / "report.json",
        {
            **{key: getattr(first, key) for key in ("label_space", "dataset", "split", "images")},
            "runs": {name: report.as_json() for name, report in reports.items()},
            "comparisons": {
                run: {arm: found.model_dump(mode="json") for arm, found in of_run.items()}
                for run, of_run in compared.items()
            },
        },
    )
    text = environment(pages=False).get_template("comparison.md.j2")
    page = environment().get_template("comparison.html.j2")
    write_text(folder / "report.md", text.render(shown))
    write_text(
        folder / "index.html",
        page.render(
            shown, title="Comparison of runs", first=first, colors=figures.arm_colors(arms)
        ),
    )


def _comparable(evaluations: Mapping[str, Evaluation]) -> None:
    """Raise `UserError` unless all were scored on the same classes and frames."""
    (name, first), *others = evaluations.items()
    for other, evaluation in others:
        both = (first, evaluation)
        kinds = {
            "the label spaces": [
                f"{one.protocol['label_space']} with {len(one.classes)} classes" for one in both
            ],
            "the classes": [", ".join(one.classes) for one in both],
            "the classes that count in means": [
                str(one.protocol.get("classes_averaged")) for one in both
            ],
            "the test sets": [f"{one.scored_on} with {one.images} frames" for one in both],
        }
        for what, values in kinds.items():
            if values[0] != values[1]:
                raise UserError(
                    f"{name} and {other} cannot be compared: {what} differ ({values[0]}; "
                    f"{values[1]}). Compare runs that were scored on the same frames and classes."
                )


@dataclass(frozen=True)
class Card:
    """One headline metric: the part of the gap that each arm of ours closes, or why none does."""

    metric: Metric
    closed: dict[str, float]
    reason: str | None


def _card(report: Summary, metric: Metric) -> Card:
    tried = sentences.ours(report.recipes)
    closed = {arm: report.gap_closed_by_arm[arm][metric.key] for arm in tried}
    known = {arm: value for arm, value in closed.items() if value is not None}
    if known and len(known) == len(tried):
        return Card(metric, known, None)
    missing = [arm for arm in (BEFORE, IDEAL) if arm not in report.arms]
    missing += [] if tried else [AFTER]
    reason = f"no {' and no '.join(missing)} arm" if missing else None
    reason = reason or report.no_share.get(metric.key, "there is no gap to close")
    return Card(metric, {}, reason)


def _or_reason(make: Callable[[], T]) -> T | str:
    """What `make` returns, or as text why it cannot: pictures may have moved since the run."""
    try:
        return make()
    except UserError as error:
        return str(error)


def _confusions(evaluations: tables.Evaluations) -> dict[str, Markup]:
    names = tables.first_evaluation(evaluations).classes
    return {
        arm: _confusion(f"confusion-{arm}", tables.summed_confusion(s), names)
        for arm, s in evaluations.items()
    }


def _confusion(name: str, counts: Counts, classes: Sequence[str]) -> Markup:
    return figures.plot_div(figures.confusion_figure(counts, classes), name)


class _Counted(BaseModel):
    """What a frozen segmenter sees in the probe frames at one step; see `cyclegan.semantics`."""

    step: int
    classes: list[str]
    before: list[list[int]]
    after: list[list[int]]


class _Drifts(BaseModel):
    """The content of a `drift.json`."""

    features: str
    last: _Counted
    best: _Counted | None = None


@dataclass(frozen=True)
class Drift:
    """What translations keep, where a frozen segmenter looked at them."""

    step: int
    features: str
    agreement: tuple[float, float]
    """The share of the pixels in which it agrees with the labels, before and after."""
    flips: list[tables.Flip]
    plots: dict[str, Markup]
    leaderboard: list[dict[str, float]]


def _drift(run: Path, stage: str, *, best: bool) -> Drift | None:
    """What a segmentation network saw in the translations of a CycleGAN, where one watched it."""
    path, board = run / stage / "drift.json", run / stage / "leaderboard.csv"
    anew = f"Make the stage anew with `sim2real run --force {stage}`."
    plot = f"drift-{stage.replace('/', '-')}"
    if not path.is_file():
        return None
    drifts = read_record(path, _Drifts, anew)
    columns = ["step", "agreement_after", "distance", "score"]
    leaders = read_table(board, columns, anew)[:LEADERS]
    with explain_damage(board, anew):
        leaderboard = [{key: float(value) for key, value in row.items()} for row in leaders]
    with explain_damage(path, anew):
        drift = drifts.best if best else drifts.last
        if drift is None:
            raise ValueError("it has no best step")
        before, after = (ConfusionMatrix.from_counts(c) for c in (drift.before, drift.after))
        return Drift(
            drift.step,
            drifts.features,
            (before.pixel_accuracy, after.pixel_accuracy),
            tables.flips(before, after, drift.classes),
            {
                "source frames": _confusion(f"{plot}-before", before.counts, drift.classes),
                "their translations": _confusion(f"{plot}-after", after.counts, drift.classes),
            },
            leaderboard,
        )


def _cyclegan_curves(folder: Path, name: str) -> dict[str, Markup]:
    """Name -> plot of a CycleGAN's log, if it left one."""
    log = figures.read_log(folder / "log.jsonl")
    return {
        kind: figures.plot_div(figures.cyclegan_curves(log, steps), f"{kind}-{name}")
        for kind, steps in (
            ("reconstruction", figures.kept_losses(log)),
            ("adversarial", figures.ADVERSARIAL),
        )
        if any(key in log for key, *_ in steps)
    }


def _curves(run: Path, config: Config) -> dict[str, Markup]:
    """Name -> plot, for the trainings of segmentation networks that left a log."""
    curves: dict[str, Markup] = {}
    logs = {
        arm: [
            figures.read_log(run / "segmentation" / arm / f"seed-{seed}" / "log.jsonl")
            for seed in config.seeds
        ]
        for arm in ordered_arms(config)
    }
    if any(len(table) for found in logs.values() for table in found):
        curves["segmentation"] = figures.plot_div(figures.segmentation_curves(logs), "segmentation")
    return curves


def _took(seconds: float, records: list[StageRecord]) -> str:
    """Time, time on devices where that differs, and the largest memory, as far as is recorded."""
    costs = [record.cost for record in records if record.cost]
    parts = [duration(round(seconds))]
    if len(costs) == len(records):
        devices = sum(cost.device_seconds for cost in costs)
        if round(devices) > round(seconds):
            parts.append(f"{duration(round(devices))} on all devices together")
    for kind, peaks in (
        ("memory", [cost.peak_memory for cost in costs]),
        ("GPU memory", [cost.peak_gpu_memory for cost in costs]),
    ):
        if known := [peak for peak in peaks if peak is not None]:
            parts.append(f"{size(max(known))} of {kind}")
    return ", ".join(parts)


def _durations(run: Path, config: Config) -> dict[str, str]:
    """Stage -> what it took, seeds together, for the stages that are complete."""
    stages: dict[str, list[str]] = {}
    for name, settings in config.used_translations.items():
        which = "" if name == TRANSLATED else f" {name}"
        stages[f"{settings.translator.title}{which}"] = [cyclegan_folder(name)]
        stages[f"translation{which}"] = [translated_folder(name)]
    stages |= {
        f"{stage} {arm}": [f"{stage}/{arm}/seed-{seed}" for seed in config.seeds]
        for stage in ("segmentation", "evaluation", "selection")
        for arm in ordered_arms(config)
    }
    durations = {}
    for stage, folders in stages.items():
        if all((run / folder / STAGE_FILE).is_file() for folder in folders):
            records = [read_stage(run, folder) for folder in folders]
            durations[stage] = _took(sum(record.seconds for record in records), records)
    return durations
