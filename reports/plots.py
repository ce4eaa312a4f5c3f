"""Figures of a comparison as PNG and SVG, for papers and slides."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pipeline.files import replacing
from pipeline.scoring.metrics import ranking
from reports.budget import curves
from reports.colors import arm_colors
from reports.comparison import Place, Row
from reports.summary import Summary

_LONGEST = 40
_STYLE: Any = {
    "text.parse_math": False,  # names are text
    "svg.hashsalt": "sim2real",  # equal figures are equal files
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_figures(
    folder: Path, board: Sequence[Place], rows: Sequence[Row], reports: Mapping[str, Summary]
) -> None:
    """Write `leaderboard`, `classes` (a heat map) and, where runs have arms of few labelled frames,
    `budget` into `folder`, each as `.png` and `.svg`."""
    with mpl.rc_context(_STYLE):
        if board:
            _save(folder / "leaderboard", _leaderboard(board))
        if rows:
            _save(folder / "classes", _classes(rows))
        if any(curves(report.recipes) for report in reports.values()):
            _save(folder / "budget", _budget(reports))


def _save(path: Path, figure: Figure) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of scripts that the font lacks
        for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
            with replacing(path.with_suffix(f".{kind}")) as part:
                figure.savefig(part, format=kind, bbox_inches="tight", **options)


def _name(text: str) -> str:
    """A name as a label: one line, of bounded length."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST else f"{flat[: _LONGEST - 1]}…"


def _leaderboard(board: Sequence[Place]) -> Figure:
    """Scores with their intervals over the test frames; hollow: with labels of the target."""
    figure = Figure(figsize=(7, 0.8 + 0.35 * len(board)))
    axes = figure.subplots()
    colors = arm_colors(list(dict.fromkeys(place.arm for place in board)))
    for position, place in enumerate(board):
        mean = place.score.mean or 0.0
        low, high = place.score.interval or (mean, mean)
        axes.plot([100 * low, 100 * high], [position, position], color=colors[place.arm])
        face = "white" if place.target_labels else colors[place.arm]
        axes.plot(
            100 * mean, position, "o", color=colors[place.arm], markerfacecolor=face, zorder=3
        )
    axes.set_yticks(range(len(board)), [_name(f"{one.run}: {one.arm}") for one in board])
    axes.invert_yaxis()
    axes.set_xlabel(f"{ranking().title} in %, 95% interval over test frames")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _classes(rows: Sequence[Row]) -> Figure:
    """IoU, runs x classes; a class that no frame shows or predicts is empty."""
    names = list(rows[0].classes)
    values = [
        [float("nan") if (v := row.classes[name].mean) is None else 100 * v for name in names]
        for row in rows
    ]
    figure = Figure(figsize=(2.5 + 0.5 * len(names), 1.5 + 0.35 * len(rows)))
    axes = figure.subplots()
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(names)), [_name(n) for n in names], rotation=60, ha="right")
    axes.set_yticks(range(len(rows)), [_name(f"{row.run}: {row.arm}") for row in rows])
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value == value:
                ink = "black" if value > 50 else "white"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=7)
    figure.colorbar(image, ax=axes, label="IoU in %")
    return figure


def _budget(reports: Mapping[str, Summary]) -> Figure:
    """Score over the number of labelled target frames, a line a run and curve."""
    metric = ranking()
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for run, report in reports.items():
        for curve in curves(report.recipes):
            means = {n: report.arms[arm][metric.key].mean for n, arm in curve.arms.items()}
            line = {n: 100 * mean for n, mean in means.items() if mean is not None}
            label = _name(f"{run}: {curve.title}")
            axes.plot(list(line), list(line.values()), "o-", label=label)
    axes.set_xscale("log")
    axes.set_xlabel("labelled frames of the target")
    axes.set_ylabel(f"{metric.title} in %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure
