"""The table of a ladder: runs that add one step each to an adaptation, beside each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.settings import IDEAL, Config
from pipeline.csv_files import write_table
from pipeline.files import write_json, write_text
from pipeline.run.folder import LADDER_FILE, RUN_FILE, read_run_record
from reports import tables
from reports.figures import arm_colors
from reports.markdown import ladder_markdown
from reports.pages import environment
from reports.report import HEADLINE
from reports.tables import METRICS


@dataclass(frozen=True)
class Row:
    """One row of a ladder: a run in the folder `name`. Gaps are measured from the row
    `source_only` to the row `oracle`."""

    name: str
    title: str
    base: str | None
    """The row that it adds something to, and is compared with."""
    arm: str
    """The arm whose scores it shows."""
    config: Config


def write_ladder(
    name: str, rows: Sequence[Row], folder: Path, seconds: Mapping[str, float | None]
) -> None:
    """Write `index.html`, `report.md`, `ladder.csv` and `ladder.json` into `folder`.

    Args:
        rows: their runs are in `folder`.
        seconds: row -> seconds of computation; None: the row is not done and has no scores yet.

    Raises:
        UserError: a row's scores are damaged, or of other frames.
    """
    done = [row for row in rows if seconds[row.name] is not None]
    evaluations = {
        row.name: tables.read_evaluations(folder / row.name, row.config)[row.arm] for row in done
    }
    bases = {row.name: [row.base] if row.base else [] for row in rows}
    # The rows are the arms of a summary: what it says of arms holds for them.
    summary = tables.summary(rows[0].config, evaluations, bases) if done else None
    lines = [_line(row, summary, seconds[row.name]) for row in rows]
    found = {
        "name": name,
        "device": _device(folder, rows),
        "seeds": list(rows[0].config.seeds),
        **{
            key: summary[key] if summary else None
            for key in ("label_space", "dataset", "split", "images", "protocol", "resamplings")
        },
        "rows": lines,
    }
    write_json(folder / LADDER_FILE, found)
    flat = [_flat(line) for line in lines]
    write_table(folder / "ladder.csv", list(flat[0]), flat)
    title = f"{name}: what each step brings"
    about, sentences, notes = _about(found, len(done)), _sentences(lines), _notes(found)
    text = [" ".join(about), *sentences, *notes]
    write_text(folder / "report.md", ladder_markdown(title, lines, text))
    colors = arm_colors(list(dict.fromkeys(row.arm for row in rows)))
    page = environment().get_template("ladder.html.j2")
    write_text(
        folder / "index.html",
        page.render(
            title=title,
            rows=lines,
            colors={row.name: colors[row.arm] for row in rows},
            cards=[{"metric": metric, "title": METRICS[metric]} for metric in HEADLINE],
            about=about,
            notes=notes,
            sentences=sentences,
            changed=tables.settings_that_differ({row.title: row.config for row in rows}),
        ),
    )


def _line(row: Row, summary: tables.Summary | None, seconds: float | None) -> dict[str, Any]:
    """What the table says of a row; without scores when it is not done."""
    nothing = dict.fromkeys(METRICS)
    line = {"row": row.name, "title": row.title, "base": row.base, "seconds": seconds}
    if summary is None or seconds is None:
        return {**line, "scores": None, "change": nothing, "gap_closed": nothing}
    scores = summary["arms"][row.name]
    compared = summary["comparisons"].get(row.name, {}).get(row.base, nothing)
    below = summary["arms"].get(row.base)
    return {
        **line,
        "scores": scores,
        "change": {
            metric: compared[metric] or _difference(scores[metric], below and below[metric])
            for metric in METRICS
        },
        "gap_closed": summary["gap_closed_by_arm"].get(row.name, nothing),
    }


def _difference(score: dict[str, Any], below: dict[str, Any] | None) -> dict[str, Any] | None:
    """The difference of two scores that kept no counts of their frames."""
    if below is None or score["mean"] is None or below["mean"] is None:
        return None
    return {"difference": score["mean"] - below["mean"], "interval": None, "better": None}


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    """One column a number; accuracies and IoU are fractions."""
    flat = {key: line[key] for key in ("row", "title", "base")}
    for metric in METRICS:
        score = (line["scores"] or {}).get(metric) or {}
        low, high = score.get("interval") or (None, None)
        flat |= {
            metric: score.get("mean"),
            f"{metric}_std": score.get("std"),
            f"{metric}_low": low,
            f"{metric}_high": high,
            f"{metric}_change": (line["change"][metric] or {}).get("difference"),
            f"{metric}_gap_closed": line["gap_closed"][metric],
        }
    return flat | {"hours": line["seconds"] and line["seconds"] / 3600}


def _device(folder: Path, rows: Sequence[Row]) -> str:
    """What the rows were computed on, as far as it was recorded."""
    if rows[0].config.compute.accelerator == "cpu":
        return "CPU"
    files = [folder / row.name / RUN_FILE for row in rows]
    gpus = {read_run_record(path).machine.get("gpus") for path in files if path.is_file()}
    return ", ".join(sorted(" + ".join(str(g).split("\n")) for g in gpus if g)) or "CPU"


def _about(found: dict[str, Any], done: int) -> list[str]:
    """What was scored."""
    seeds, lines = len(found["seeds"]), []
    if done:
        lines.append(
            f"Scored on {found['images']} frames of {tables.scored_on(found)}, label space "
            f"{found['label_space']}. "
            + (
                f"Means over {seeds} seeds ± their standard deviation."
                if seeds > 1
                else "One seed."
            )
        )
    if done < len(found["rows"]):
        lines.append(f"{done} of {len(found['rows'])} rows are done; the others follow.")
    return lines


def _notes(found: dict[str, Any]) -> list[str]:
    """How to read the table."""
    lines = [
        "A row with + has all that the row above it has. A change is against the row that is added "
        "to; for translators that is source only."
    ]
    if found["resamplings"]:
        lines.append(
            f"Intervals are 95% over test frames, by {found['resamplings']} resamplings; what "
            "another training would give is not in them."
        )
    lines.append(
        "Gap closed: (row − source only) / (oracle − source only). Hours: computation that the row "
        f"needs by itself, all seeds, from CycleGAN to its scores, on {found['device']}; stages "
        "that rows share are counted in each and were computed once."
    )
    return lines


def _sentences(lines: list[dict[str, Any]]) -> list[str]:
    """What the ladder found, in plain language."""
    sentences = []
    for metric in ("pixel_accuracy", "mean_iou"):
        scored = [
            line
            for line in lines
            if line["scores"]
            and line["scores"][metric]["mean"] is not None
            and line["row"] != IDEAL
        ]
        if len(scored) < 2:
            continue
        best = max(scored, key=lambda line: line["scores"][metric]["mean"])
        closed = best["gap_closed"][metric]
        share = f"; {tables.percent(closed, 0)} of the gap closed" if closed is not None else ""
        score = tables.spread(best["scores"][metric])
        sentences.append(
            f"Highest {METRICS[metric]} without target labels: {best['title']}, {score}{share}."
        )
    if sentences:
        sentences.append(
            "The labels of the test set chose these rows, so their scores are a little too good: "
            "keep frames apart to score the one you choose."
        )
    return sentences
