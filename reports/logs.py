"""The logs of trainings, and the charts of them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config.settings import Config
from pipeline.csv_files import write_table
from pipeline.run.folder import cyclegan_folder, network_folder
from reports.charts import Chart, Series
from reports.colors import MORE_COLORS, arm_colors
from reports.settings import ordered_arms

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
_VALIDATED = (
    "At each checkpoint, on a few labelled frames outside the test set. Where these are the "
    "target's, its labels were read for this curve, by which nothing is chosen."
)
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
    "validation_pixel_accuracy": ("per-pixel accuracy on validation frames", _VALIDATED),
    "validation_mean_iou": ("mean IoU on validation frames", _VALIDATED),
    "learning_rate": ("learning rate", ""),
}
"""Key in a segmentation's log -> title and caption of its chart; other keys follow these."""
_UNSEEN = {"step", "cross_entropy", "skipped"}
"""What is no curve of its own."""
_SHARES = ("fraction", "agreement", "accuracy", "share", "mean_iou")
"""Parts of the names of what is a fraction."""


def table_of(log: Sequence[dict[str, float]]) -> pd.DataFrame:
    """The entries of a log as a table, averaged down to about `POINTS` rows."""
    table = pd.DataFrame(log)
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


@dataclass(frozen=True)
class Log:
    """The log of one training of a run."""

    name: str
    """Of the arm, or of the translation whose translator it is."""
    translator: bool
    seed: int
    entries: list[dict[str, float]]


def logs_of(config: Config, run: Path) -> Iterator[Log]:
    """The logs that trainings have left: translators first."""
    paths = [
        (name, True, config.cyclegan_recipe(name).seed, run / cyclegan_folder(name))
        for name, settings in config.used_translations.items()
        if settings.trains
    ]
    paths += [
        (arm, False, seed, run / network_folder("segmentation", arm, seed))
        for arm in ordered_arms(config)
        for seed in config.seeds
    ]
    for name, translator, seed, folder in paths:
        if found := list(entries(folder / "log.jsonl")):
            yield Log(name, translator, seed, found)


def write_losses(path: Path, config: Config, run: Path) -> None:
    """Write all logs as one table: a row an entry, a column a number; none without any log."""
    rows = [
        {"training": f"translator {log.name}" if log.translator else log.name, "seed": log.seed}
        | entry
        for log in logs_of(config, run)
        for entry in log.entries
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if rows:
        write_table(path, columns, [dict.fromkeys(columns) | row for row in rows])


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


def segmentation_charts(config: Config, found: Sequence[Log]) -> list[Chart]:
    """What the logs of all arms and seeds show: a chart a number, one colour an arm."""
    logs: dict[str, list[pd.DataFrame]] = {arm: [] for arm in ordered_arms(config)}
    for log in found:
        if not log.translator:
            logs[log.name].append(table_of(log.entries))
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
