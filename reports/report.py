"""The report of a run, and of several: files that can be mailed, made from files on disk."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.config.settings import Config
from pipeline.data.labels import load_label_space
from pipeline.data.spec import missing_classes
from pipeline.errors import UserError
from pipeline.files import read_record, sweep, write_json, write_text
from pipeline.intake.lost import LostClasses
from pipeline.run.folder import (
    LOST_FILE,
    STAGE_FILE,
    check_results,
    cyclegan_folder,
    translated_folder,
)
from pipeline.scoring.evaluation import Evaluation
from reports import logs, tables
from reports.budget import points, write_budget
from reports.collect import report_of
from reports.colors import arm_colors
from reports.comparison import leaderboard, rows_of, write_tables
from reports.latex import class_table
from reports.page import report_page
from reports.pages import environment, readable
from reports.plots import write_figures
from reports.selection import TABLE, read_networks, write_networks
from reports.settings import settings_that_differ
from reports.steps import steps_of, write_steps


def write_report(config: Config, run: Path, folder: Path) -> None:
    """Write `index.html`, `report.json`, `report.md`, `per_class.csv` and so on into `folder`.

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
    steps = steps_of(config, run, report)
    candidates = read_networks(config, run, report)
    budget = points(report)
    lost = _lost_classes(config, run)
    page = report_page(
        config, run, report, evaluations, steps=steps, candidates=candidates, lost=lost
    )
    text = environment(pages=False).get_template("report.md.j2")
    write_json(folder / "report.json", report.model_dump(mode="json"))
    tables.write_classes(folder / "per_class.csv", report)
    logs.write_losses(folder / "losses.csv", config, run)
    if steps:
        write_steps(folder / "steps.csv", steps)
    if candidates:
        write_networks(folder / TABLE, candidates)
    if budget:
        write_budget(folder / "budget.csv", budget)
    shown = {"report": report, "steps": steps, "budget": budget, "lost": lost}
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


def write_comparison(runs: Mapping[str, tuple[Config, Path]], folder: Path) -> None:
    """Write `index.html`, `report.json` and `report.md` over several runs into `folder`; besides
    `leaderboard.csv`, `per_class.csv`, `table.tex` and `figures/`.

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
    configs = {name: config for name, (config, _) in runs.items()}
    board = leaderboard(configs, evaluations, reports)
    rows = rows_of(configs, reports)
    arms = list(dict.fromkeys(arm for report in reports.values() for arm in report.arms))
    shown = {
        "reports": reports,
        "compared": compared,
        "changed": settings_that_differ(configs),
        "board": board,
        "rows": rows,
    }
    sweep(folder)
    sweep(folder / "figures")
    write_json(
        folder / "report.json",
        {
            **{key: getattr(first, key) for key in ("label_space", "dataset", "split", "images")},
            "runs": {name: report.model_dump(mode="json") for name, report in reports.items()},
            "leaderboard": [place.model_dump(mode="json") for place in board],
            "comparisons": {
                run: {arm: found.model_dump(mode="json") for arm, found in of_run.items()}
                for run, of_run in compared.items()
            },
        },
    )
    text = environment(pages=False).get_template("comparison.md.j2")
    page = environment().get_template("comparison.html.j2")
    write_text(folder / "report.md", text.render(shown))
    write_tables(folder, reports, board)
    write_figures(folder / "figures", board, rows, reports)
    if rows:
        write_text(folder / "table.tex", class_table(rows, first.scored_on, first.published))
    write_text(
        folder / "index.html",
        readable(
            page.render(shown, title="Comparison of runs", first=first, colors=arm_colors(arms))
        ),
    )


def _comparable(evaluations: Mapping[str, Evaluation]) -> None:
    """Raise `UserError` unless all were scored on the same classes and frames."""
    kinds = {
        name: {
            "the label spaces": f"{one.protocol['label_space']} with {len(one.classes)} classes",
            "the classes": ", ".join(one.classes),
            "the classes that count in means": str(one.protocol.get("classes_averaged")),
            "the test sets": f"{one.scored_on} with {one.images} frames",
        }
        for name, one in evaluations.items()
    }
    (name, first), *others = kinds.items()
    for other, found in others:
        for what, value in found.items():
            if value != first[what]:
                raise UserError(
                    f"{name} and {other} cannot be compared: {what} differ ({first[what]}; "
                    f"{value}). Compare runs that were scored on the same frames and classes."
                )
