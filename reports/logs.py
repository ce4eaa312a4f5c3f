"""The logs of trainings, and the charts of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from reports.charts import Chart, Series
from reports.colors import MORE_COLORS, arm_colors

POINTS = 300
"""Longer curves are averaged down to about this many points."""

Line = tuple[str, str, str]
"""Key in the log, its name in the legend, its colour."""
RECONSTRUCTION: tuple[Line, ...] = (
    ("cycle_loss_source", "source → translated → back", "#d55e00"),
    ("cycle_loss_target", "target → translated → back", "#009e73"),
    ("identity_loss", "identity", "#0072b2"),
    ("pair_loss", "translated → its pair", "#d55e00"),
    ("semantic_loss_source", "semantic, translated source", "#cc79a7"),
    ("semantic_loss_target", "semantic, translated target", "#e69f00"),
)
ADVERSARIAL: tuple[Line, ...] = (
    ("gan_loss_G", "source → target generator (G)", "#d55e00"),
    ("gan_loss_F", "target → source generator (F)", "#009e73"),
    ("discriminator_loss_target", "discriminator of target frames", "#0072b2"),
    ("discriminator_loss_source", "discriminator of source frames", "#cc79a7"),
    ("discriminator_loss", "discriminator", "#0072b2"),
)
_EARLIER_KEYS = {
    "cycle_source": "cycle_loss_source",
    "cycle_target": "cycle_loss_target",
    "identity": "identity_loss",
    "pair": "pair_loss",
    "semantic_source": "semantic_loss_source",
    "semantic_target": "semantic_loss_target",
    "fool_target_critic": "gan_loss_G",
    "fool_source_critic": "gan_loss_F",
    "fool_critic": "gan_loss_G",
    "target_critic": "discriminator_loss_target",
    "source_critic": "discriminator_loss_source",
    "critic": "discriminator_loss",
}
"""Key in logs of earlier versions -> key."""
_SEGMENTATION = {
    "loss": (
        "training loss",
        "One line a seed. Each arm learns from its own frames, so the levels of two arms do not "
        "say which is better.",
    ),
    "confident_fraction": (
        "pseudo-labels that are learned from",
        "The share of the target's pixels of whose label the teacher was sure enough.",
    ),
    "learning_rate": ("learning rate", ""),
}
"""Key in a segmentation's log -> title and caption of its chart; other keys follow these."""
_UNSEEN = {"step", "cross_entropy", "skipped"}
"""What is no curve of its own."""
_SHARES = ("fraction", "agreement", "accuracy", "share")
"""Parts of the names of what is a fraction."""


def read_log(path: Path) -> pd.DataFrame:
    """A `log.jsonl` as a table, averaged down to about `POINTS` rows; empty when there is none."""
    table = pd.DataFrame(list(entries(path)))
    group = -(-len(table) // POINTS)
    if group < 2:
        return table
    means = table.groupby(np.arange(len(table)) // group).mean()
    means["step"] = table["step"].groupby(np.arange(len(table)) // group).last()
    return means


def entries(path: Path) -> Iterator[dict[str, float]]:
    """The numbers of each entry of a `log.jsonl`; none where there is no such file."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):  # the training was killed in the middle of a line
            entry = json.loads(line)
            if isinstance(entry, dict) and "step" in entry:
                numbers = (int, float)
                yield {
                    _EARLIER_KEYS.get(key) or key: value
                    for key, value in entry.items()
                    if isinstance(value, numbers)
                }


def translator_charts(log: pd.DataFrame, method: str, recipe_note: str) -> list[Chart]:
    """What a translator's log shows.

    Args:
        recipe_note: what the adversarial losses mean.
    """
    named = {key for key, *_ in (*RECONSTRUCTION, *ADVERSARIAL)}
    more = [key for key in map(str, log) if "loss" in key and key not in named]
    kept = [
        *RECONSTRUCTION,
        *(
            (key, key.replace("_", " "), MORE_COLORS[i % len(MORE_COLORS)])
            for i, key in enumerate(more)
        ),
    ]
    rate = [("learning_rate", "learning rate", "#5f6b7a")]
    charts = [
        _chart(log, f"{method}: content losses", kept, "With their weights, over steps."),
        _chart(log, f"{method}: generators against discriminators", ADVERSARIAL, recipe_note),
        _chart(log, f"{method}: learning rate", rate, ""),
    ]
    return [chart for chart in charts if chart.series]


def _chart(log: pd.DataFrame, title: str, lines: Sequence[Line], caption: str) -> Chart:
    found = [line for line in lines if line[0] in log]  # identity is not logged at weight 0
    return Chart(title, [_series(log, *line) for line in found], caption)


def _series(log: pd.DataFrame, key: str, name: str, color: str, *, again: bool = False) -> Series:
    table = log[["step", key]].dropna()
    scale = 100 if _is_share(key) else 1
    values = [None if not np.isfinite(v) else scale * float(v) for v in table[key]]
    return Series(name, color, table["step"].tolist(), values, points=len(table) < 2, again=again)


def _is_share(key: str) -> bool:
    return any(part in key for part in _SHARES)


def segmentation_charts(logs: Mapping[str, Sequence[pd.DataFrame]]) -> list[Chart]:
    """What the logs of all arms and seeds show: a chart a number, one colour an arm."""
    colors = arm_colors(list(logs))
    keys = {str(key) for tables in logs.values() for table in tables for key in table}
    order = [*_SEGMENTATION, *sorted(keys - _SEGMENTATION.keys() - _UNSEEN)]
    charts = []
    for key in order:
        title, caption = _SEGMENTATION.get(key, (key.replace("_", " "), ""))
        series = [
            _series(log, key, arm, colors[arm], again=i > 0)
            for arm, tables in logs.items()
            for i, log in enumerate(table for table in tables if key in table)
            if log[key].notna().any()
        ]
        if series:
            unit = "%" if _is_share(key) else ""
            charts.append(Chart(f"Segmentation: {title}", series, caption, unit=unit))
    return charts
