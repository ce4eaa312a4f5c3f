"""The table of a ladder: runs that add one step each to an adaptation, beside each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from pipeline.config.settings import IDEAL, Config
from pipeline.csv_files import write_table
from pipeline.files import write_json, write_text
from pipeline.run.folder import LADDER_FILE, RUN_FILE, read_run_record
from pipeline.scoring.metrics import laddered, tabled
from pipeline.text import percent, spread
from reports import tables
from reports.figures import arm_colors
from reports.pages import environment
from reports.settings import settings_that_differ
from reports.summary import Difference, Spread, Summary


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
            key: getattr(summary, key, None)
            for key in ("label_space", "dataset", "split", "images", "protocol", "resamplings")
        },
        "rows": lines,
    }
    write_json(folder / LADDER_FILE, to_jsonable_python(found))
    flat = [_flat(line) for line in lines]
    write_table(folder / "ladder.csv", list(flat[0]), flat)
    title = f"{name}: what each step brings"
    about, sentences, notes = _about(found, len(done)), _sentences(lines), _notes(found)
    text = [" ".join(about), *sentences, *notes]
    markdown = environment(pages=False).get_template("ladder.md.j2")
    write_text(folder / "report.md", markdown.render(title=title, rows=lines, notes=text))
    colors = arm_colors(list(dict.fromkeys(row.arm for row in rows)))
    page = environment().get_template("ladder.html.j2")
    write_text(
        folder / "index.html",
        page.render(
            title=title,
            rows=lines,
            colors={row.name: colors[row.arm] for row in rows},
            about=about,
            notes=notes,
            sentences=sentences,
            changed=settings_that_differ({row.title: row.config for row in rows}),
        ),
    )


def _line(row: Row, summary: Summary | None, seconds: float | None) -> dict[str, Any]:
    """What the table says of a row; without scores when it is not done."""
    nothing = {metric.key: None for metric in tabled()}
    line = {"row": row.name, "title": row.title, "base": row.base, "seconds": seconds}
    if summary is None or seconds is None:
        return {**line, "scores": None, "change": nothing, "gap_closed": nothing}
    scores, base = summary.arms[row.name], row.base or ""
    compared = summary.comparisons.get(row.name, {}).get(base)
    below = summary.arms.get(base, {})
    return {
        **line,
        "scores": scores,
        "change": {
            key: (compared and compared.scores[key]) or _difference(score, below.get(key))
            for key, score in scores.items()
        },
        "gap_closed": summary.gap_closed_by_arm.get(row.name, nothing),
    }


def _difference(score: Spread, below: Spread | None) -> Difference | None:
    """The difference of two scores that kept no counts of their frames."""
    if below is None or score.mean is None or below.mean is None:
        return None
    return Difference(difference=score.mean - below.mean, interval=None, better=None)


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    """One column a number; accuracies and IoU are fractions."""
    flat = {key: line[key] for key in ("row", "title", "base")}
    for metric in tabled():
        score: Spread | None = (line["scores"] or {}).get(metric.key)
        change: Difference | None = line["change"][metric.key]
        low, high = (score and score.interval) or (None, None)
        flat |= {
            metric.key: score and score.mean,
            f"{metric.key}_std": score and score.std,
            f"{metric.key}_low": low,
            f"{metric.key}_high": high,
            f"{metric.key}_change": change and change.difference,
            f"{metric.key}_gap_closed": line["gap_closed"][metric.key],
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
            f"Scored on {found['images']} frames of {_test_set(found)}, label space "
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


def _test_set(found: dict[str, Any]) -> str:
    return f"{found['dataset']} ({found['split']})" if found["split"] else str(found["dataset"])


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
    for metric in laddered():
        scored = [
            (metric.gain(line["scores"][metric.key].mean, 0.0), line)
            for line in lines
            if line["scores"]
            and line["scores"][metric.key].mean is not None
            and line["row"] != IDEAL
        ]
        if len(scored) < 2:
            continue
        _, best = max(scored, key=lambda pair: pair[0])
        closed = best["gap_closed"][metric.key]
        share = f"; {percent(closed, 0)} of the gap closed" if closed is not None else ""
        score = best["scores"][metric.key]
        sentences.append(
            f"{'Highest' if metric.higher_is_better else 'Lowest'} {metric.title} without target "
            f"labels: {best['title']}, {spread(score.mean, score.std, metric.unit)}{share}."
        )
    if sentences:
        sentences.append(
            "The labels of the test set chose these rows, so their scores are a little too good: "
            "keep frames apart to score the one you choose."
        )
    return sentences
