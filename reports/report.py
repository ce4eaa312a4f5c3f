"""The report of a run, and of several: files that can be mailed, made from files on disk."""

from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipeline.config.settings import AFTER, BEFORE, IDEAL, Config
from pipeline.csv_files import read_table, write_table
from pipeline.data.labels import load_label_space
from pipeline.data.spec import missing_classes
from pipeline.errors import UserError
from pipeline.files import explain_damage, read_json, sweep, write_json, write_text
from pipeline.run.folder import RUN_FILE, STAGE_FILE, check_results, read_run_record, read_stage
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.yaml_files import yaml_text
from reports import figures, sentences, tables
from reports.markdown import comparison_markdown, markdown
from reports.pages import environment
from reports.tables import METRICS, Evaluation, Summary

LEADERS = 5
"""Checkpoints shown of the translators' leaderboard."""
ANEW = "Make the stage anew with `sim2real run --force cyclegan`."
HEADLINE = ("pixel_accuracy", "mean_class_accuracy", "mean_iou")


def write_report(config: Config, run: Path, folder: Path) -> None:
    """Write `index.html`, `report.json`, `per_class.csv` and `report.md` into `folder`.

    `index.html` holds everything it shows and asks no network for anything. Pictures that are no
    longer there are left out, and the report says so.

    Raises:
        UserError: an arm or seed has not been scored.
    """
    space = load_label_space(config.label_space)
    for stage, wanted in (
        ("cyclegan", "leaderboard.csv"),
        ("cyclegan", "drift.json"),
        ("translated", "manifest.csv"),
    ):
        if (run / stage / STAGE_FILE).is_file():
            check_results(run, stage, wanted)
    evaluations = tables.read_evaluations(run, config)
    report = tables.summary(config, evaluations)
    table = tables.per_class(report, evaluations)
    cells = table.astype(object).where(table.notna(), None)
    rows: Any = cells.to_dict("records")
    lower_end = [arm for arm in report["arms"] if arm == BEFORE]
    worst_arms = [*lower_end, *sentences.ours(report)[-1:]]
    template = environment().get_template("report.html.j2")
    page = template.render(
        title=config.name,
        config=config,
        networks=dict.fromkeys(
            f"{recipe.architecture} ({recipe.encoder})"
            for recipe in map(config.recipe, config.arms)
        ),
        report=report,
        arms=tables.ordered_arms(config),
        colors=figures.arm_colors(tables.ordered_arms(config)),
        sentences=sentences.result_sentences(report),
        cards=[_card(report, metric) for metric in HEADLINE],
        left_out=sentences.left_out(report),
        settings_by_arm=tables.settings_by_arm(report),
        counts={
            "source": figures.frame_count(config.source),
            "target": figures.frame_count(config.target),
        },
        space=space,
        strip=_or_reason(figures.frame_strip, run, config, space, evaluations),
        worst_arms=worst_arms,
        worst=_or_reason(figures.worst_frames, run, config, space, evaluations, worst_arms),
        pairs=_or_reason(figures.translated_pairs, run),
        grid=_or_reason(figures.last_sample_grid, run) if config.translation.trains else None,
        has_translation=config.translates,
        rows=rows,
        confusions=_confusions(evaluations),
        drift=_drift(run, config) if config.translation.trains else None,
        curves=_curves(run, config),
        unsupplied=missing_classes(config.source, space),
        run_facts=_run_facts(run),
        durations=_durations(run, config),
        settings=_settings(config),
        plotly=Markup(get_plotlyjs()),
    )
    write_json(folder / "report.json", report)
    write_table(folder / "per_class.csv", list(map(str, table)), rows)
    write_text(folder / "report.md", markdown(report, table))
    write_text(folder / "index.html", page)


def write_comparison(runs: dict[str, tuple[Config, Path]], folder: Path) -> None:
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
    reports = {name: tables.summary(runs[name][0], found) for name, found in evaluations.items()}
    changed = tables.settings_that_differ({name: config for name, (config, _) in runs.items()})
    base, first = next(iter(reports.items()))
    compared = tables.between_runs(runs[base][0], evaluations)
    sweep(folder)
    write_json(
        folder / "report.json",
        {key: first[key] for key in ("label_space", "dataset", "split", "images")}
        | {"runs": reports, "comparisons": compared},
    )
    write_text(folder / "report.md", comparison_markdown(reports, compared, changed))
    arms = list(dict.fromkeys(arm for report in reports.values() for arm in report["arms"]))
    template = environment().get_template("comparison.html.j2")
    write_text(
        folder / "index.html",
        template.render(
            title="Comparison of runs",
            reports=reports,
            first=first,
            resamplings=max(report["resamplings"] or 0 for report in reports.values()),
            colors=figures.arm_colors(arms),
            cards=[{"metric": metric, "title": METRICS[metric]} for metric in HEADLINE],
            sentences={
                name: sentences.result_sentences(report) for name, report in reports.items()
            },
            classes=list(next(iter(first["class_iou"].values()))),
            compared=compared,
            changed=changed,
        ),
    )


def _comparable(evaluations: dict[str, Evaluation]) -> None:
    """Raise `UserError` unless all were scored on the same classes and frames."""
    (name, first), *others = evaluations.items()
    for other, evaluation in others:
        spaces = [e["protocol"]["label_space"] for e in (first, evaluation)]
        if spaces[0] != spaces[1] or first["classes"] != evaluation["classes"]:
            differ = [
                f"{s} with {len(e['classes'])} classes"
                for s, e in zip(spaces, (first, evaluation), strict=True)
            ]
            what = "the label spaces"
        elif len({e["protocol"].get("classes_averaged") for e in (first, evaluation)}) > 1:
            differ = [e["protocol"].get("classes_averaged") for e in (first, evaluation)]
            what = "the classes that count in means"
        elif any(first[key] != evaluation[key] for key in ("dataset", "split", "images")):
            differ = [
                f"{tables.scored_on(e)} with {e['images']} frames" for e in (first, evaluation)
            ]
            what = "the test sets"
        else:
            continue
        raise UserError(
            f"{name} and {other} cannot be compared: {what} differ ({differ[0]}; {differ[1]}). "
            "Compare runs that were scored on the same frames and classes."
        )


def _card(report: Summary, metric: str) -> dict[str, Any]:
    """One headline metric: the share of the gap that each of our arms closes, or why none does."""
    arms, tried = report["arms"], sentences.ours(report)
    closed = {arm: report["gap_closed_by_arm"][arm][metric] for arm in tried}
    reason = None
    if None in closed.values() or not closed:
        missing = [arm for arm in (BEFORE, IDEAL) if arm not in arms]
        missing += [] if tried else [AFTER]
        reason = f"no {' and no '.join(missing)} arm" if missing else "there is no gap to close"
    return {"metric": metric, "title": METRICS[metric], "closed": closed, "reason": reason}


def _or_reason(make: Any, *inputs: Any) -> Any:
    """What `make` returns, or as text why it cannot: pictures may have moved since the run."""
    try:
        return make(*inputs)
    except UserError as error:
        return str(error)


def _confusions(evaluations: dict[str, list[Evaluation]]) -> dict[str, Markup]:
    names = tables.first_evaluation(evaluations)["classes"]
    return {
        arm: figures.plot_div(
            figures.confusion_figure(tables.summed_confusion(scores), names),
            f"confusion-{arm}",
        )
        for arm, scores in evaluations.items()
    }


def _drift(run: Path, config: Config) -> dict[str, Any] | None:
    """What the judge of the translations saw, where there was one."""
    folder = run / "cyclegan"
    if not (folder / "drift.json").is_file():
        return None
    found = read_json(folder / "drift.json", ANEW)
    columns = ["step", "agreement_after", "distance", "score"]
    leaders = read_table(folder / "leaderboard.csv", columns, ANEW)[:LEADERS]
    with explain_damage(folder / "leaderboard.csv", ANEW):
        leaderboard = [{key: float(value) for key, value in row.items()} for row in leaders]
    with explain_damage(folder / "drift.json", ANEW):
        drift = found[config.translation.checkpoint]
        names = drift["classes"]
        before, after = (ConfusionMatrix.from_counts(drift[key]) for key in ("before", "after"))
        return {
            "step": int(drift["step"]),
            "features": found["features"],
            "agreement": (before.pixel_accuracy, after.pixel_accuracy),
            "flips": tables.flips(before, after, names),
            "plots": {
                "source frames": figures.plot_div(
                    figures.confusion_figure(before.counts, names), "drift-before"
                ),
                "their translations": figures.plot_div(
                    figures.confusion_figure(after.counts, names), "drift-after"
                ),
            },
            "leaderboard": leaderboard,
        }


def _curves(run: Path, config: Config) -> dict[str, Markup]:
    """Name -> plot, for the trainings that left a log."""
    curves: dict[str, Markup] = {}
    log = figures.read_log(run / "cyclegan" / "log.jsonl")
    if len(log) and config.translation.trains:
        for name, steps in (
            ("reconstruction", figures.RECONSTRUCTION),
            ("adversarial", figures.ADVERSARIAL),
        ):
            if any(key in log for key, *_ in steps):
                curves[name] = figures.plot_div(figures.cyclegan_curves(log, steps), name)
    logs = {
        arm: [
            figures.read_log(run / "segmentation" / arm / f"seed-{seed}" / "log.jsonl")
            for seed in config.seeds
        ]
        for arm in tables.ordered_arms(config)
    }
    if any(len(table) for found in logs.values() for table in found):
        curves["segmentation"] = figures.plot_div(figures.segmentation_curves(logs), "segmentation")
    return curves


def _run_facts(run: Path) -> dict[str, Any]:
    """Versions, commit and machine of a run; empty when it was not recorded."""
    path = run / RUN_FILE
    return read_run_record(path).model_dump() if path.is_file() else {}


def _durations(run: Path, config: Config) -> dict[str, str]:
    """Stage -> how long it took, seeds together, for the stages that are complete."""
    stages = {"CycleGAN": ["cyclegan"], "translation": ["translated"]} | {
        f"{stage} {arm}": [f"{stage}/{arm}/seed-{seed}" for seed in config.seeds]
        for stage in ("segmentation", "evaluation")
        for arm in tables.ordered_arms(config)
    }
    durations = {}
    for stage, folders in stages.items():
        if all((run / folder / STAGE_FILE).is_file() for folder in folders):
            durations[stage] = _duration(sum(read_stage(run, folder).seconds for folder in folders))
    return durations


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _settings(config: Config) -> str:
    return yaml_text(config.model_dump(mode="json"))
