"""The report of a run, and of several, as GitHub markdown."""

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports.sentences import left_out, result_sentences, trained_on
from reports.tables import (
    FURTHER,
    METRICS,
    Summary,
    bounds,
    class_value,
    hours,
    margins,
    percent,
    points,
    scored_on,
    settings_by_arm,
    share,
    spread,
)

HOW_COMPARED = (
    "Differences in percentage points, 95% intervals over test frames, and the share of "
    "{resamplings} resamplings in which the arm is better."
)


def markdown(report: Summary, table: pd.DataFrame) -> str:
    """The report as GitHub markdown."""
    arms = list(report["arms"])
    headline = [
        [arm, *(_scored(report["arms"][arm][metric]) for metric in METRICS)] for arm in arms
    ] + [
        [
            f"gap closed by {arm}",
            *(
                _with(
                    percent(closed[metric], 0),
                    bounds(report["gap_closed_intervals"][arm][metric], 0),
                )
                for metric in METRICS
            ),
        ]
        for arm, closed in report["gap_closed_by_arm"].items()
    ]
    columns = [*(f"{key}_{arm}" for key in ("accuracy", "iou") for arm in arms)]
    classes = [
        [
            row["class"],
            share(row["share_of_truth"]),
            *(class_value(row[column]) for column in columns),
        ]
        for row in table.to_dict("records")
    ]
    titles = ["share of truth", *(f"{key} {arm}" for key in ("accuracy", "IoU") for arm in arms)]
    return "\n".join(
        [
            f"# {_cell(report['name'])}",
            "",
            *result_sentences(report),
            "",
            *_grid(["arm", *METRICS.values()], headline),
            "",
            f"Scored on {report['images']} frames of {_cell(scored_on(report))}, label space "
            f"{_cell(report['label_space'])}. Pictures, curves and confusion matrices: "
            "`index.html`.",
            "",
            *_training(report),
            *_pairs(report),
            "## Classes",
            "",
            *_grid(["class", *titles], classes),
            "",
            *([_cell(note), ""] if (note := left_out(report)) else []),
            *_further(report),
            "## Protocol",
            "",
            *_protocol(report["protocol"]),
            "",
        ]
    )


def _further(report: Summary) -> list[str]:
    """Scores that not every label space and data set has."""
    lines: list[str] = []
    for key, title in FURTHER.items():
        if report[key]:
            names = next(iter(report[key].values()))
            rows = [[name, *(class_value(v[name]) for v in report[key].values())] for name in names]
            rows.append(["mean", *map(spread, report[f"mean_{key}"].values())])
            lines += [f"## {title}", "", *_grid(["", *report["arms"]], rows), ""]
    return lines


def _training(report: Summary) -> list[str]:
    """What the arms were trained on, and in which settings they differ."""
    rows = [[arm, trained_on(recipe)] for arm, recipe in report["recipes"].items()]
    settings = [[key, *values.values()] for key, values in settings_by_arm(report).items()]
    return [
        "## Training",
        "",
        *_grid(["arm", "trained on"], rows),
        "",
        *(
            _grid(["setting", *report["recipes"]], settings)
            if settings
            else ["All arms share the recipe."]
        ),
        "",
    ]


def _pairs(report: Summary) -> list[str]:
    """The arms compared on the same frames."""
    rows = [
        [arm, than, *(_compared(found[metric]) for metric in METRICS)]
        for arm, others in report["comparisons"].items()
        for than, found in others.items()
    ]
    if not rows:
        return []
    return [
        "## Arms compared on the same frames",
        "",
        HOW_COMPARED.format(resamplings=report["resamplings"]),
        "",
        *_grid(["arm", "against", *METRICS.values()], rows),
        "",
    ]


def comparison_markdown(
    reports: dict[str, Summary],
    compared: dict[str, dict[str, Any]],
    changed: dict[str, dict[str, str]],
) -> str:
    """Several runs as GitHub markdown."""
    first = next(iter(reports.values()))
    rows = [
        [run, arm, *(_scored(scores[metric]) for metric in METRICS)]
        for run, report in reports.items()
        for arm, scores in report["arms"].items()
    ]
    gaps = [
        [
            run,
            arm,
            *(
                _with(
                    percent(closed[metric], 0),
                    bounds(report["gap_closed_intervals"][arm][metric], 0),
                )
                for metric in METRICS
            ),
        ]
        for run, report in reports.items()
        for arm, closed in report["gap_closed_by_arm"].items()
    ]
    pairs = [
        [run, arm, *(_compared(found[metric]) for metric in METRICS)]
        for run, arms in compared.items()
        for arm, found in arms.items()
    ]
    against = [
        f"## Against {_cell(next(iter(reports)))}",
        "",
        HOW_COMPARED.format(resamplings=first["resamplings"]),
        "",
        *_grid(["run", "arm", *METRICS.values()], pairs),
        "",
    ]
    settings = [[key, *(values[run] for run in reports)] for key, values in changed.items()]
    return "\n".join(
        [
            "# Comparison",
            "",
            f"Scored on {first['images']} frames of {_cell(scored_on(first))}, label space "
            f"{_cell(first['label_space'])}.",
            "",
            *_grid(["run", "arm", *METRICS.values()], rows),
            "",
            "## Gap closed",
            "",
            *_grid(["run", "arm", *METRICS.values()], gaps),
            "",
            *(against if pairs else []),
            "## Settings that differ",
            "",
            *(_grid(["setting", *reports], settings) if settings else ["None."]),
            "",
        ]
    )


def ladder_markdown(title: str, rows: Sequence[dict[str, Any]], notes: Sequence[str]) -> str:
    """The table of a ladder as GitHub markdown."""
    gaps = ("pixel_accuracy", "mean_iou")
    header = [
        *("", *METRICS.values(), f"change of {METRICS['mean_iou']}"),
        *(f"gap closed, {METRICS[metric]}" for metric in gaps),
        "hours",
    ]
    cells = [
        [
            row["title"],
            *(_scored(row["scores"][metric]) if row["scores"] else "to do" for metric in METRICS),
            _moved(row["change"]["mean_iou"]),
            *(percent(row["gap_closed"][metric], 0) for metric in gaps),
            hours(row["seconds"]),
        ]
        for row in rows
    ]
    lines = [f"# {_cell(title)}", "", *_grid(header, cells), ""]
    lines += [line for note in notes for line in (_cell(note), "")]
    return "\n".join(lines)


def _scored(score: dict[str, Any]) -> str:
    return _with(spread(score), bounds(score["interval"]))


def _with(text: str, addition: str) -> str:
    return f"{text} ({addition})" if addition else text


def _compared(drawn: dict[str, Any] | None) -> str:
    better = drawn["better"] if drawn else None
    return _moved(drawn) if better is None else f"{_moved(drawn)}, {percent(better)}"


def _moved(drawn: dict[str, Any] | None) -> str:
    return _with(points(drawn["difference"]), margins(drawn["interval"])) if drawn else "–"


def _protocol(protocol: dict[str, Any]) -> list[str]:
    return [f"- {key.replace('_', ' ')}: {_cell(value)}" for key, value in protocol.items()]


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A markdown table, numbers to the right."""
    cells = [[_cell(text) for text in row] for row in (header, *rows)]
    lines = [cells[0], ["---", *["---:"] * (len(header) - 1)], *cells[1:]]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: Any) -> str:
    """Text that stays text in a markdown table."""
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")
