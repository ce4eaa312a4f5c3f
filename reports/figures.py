"""Pictures and plots of a report, ready to stand inside a page: data URIs and plotly divs."""

import base64
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from PIL import Image

from pipeline.config.settings import AFTER, BEFORE, IDEAL, Config
from pipeline.csv_files import read_table
from pipeline.data.images import UInt8, read_raw, read_rgb, resize_indices, resize_rgb, size_within
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader, read_frame
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.files import explain_damage
from pipeline.scoring.metrics import Metric, headline
from pipeline.text import count
from reports.budget import curves, numbers_of
from reports.sentences import main_of, ours
from reports.settings import ordered_arms
from reports.summary import Summary
from reports.tables import Evaluations, evaluation_folder

WORST = 4
"""Test frames shown with the lowest scores."""
PAIRS = 6
"""Source and translated frames shown beside each other."""
FEW = 12
"""Up to so many classes, a confusion matrix has room for its numbers, and three fit in a row."""
POINTS = 600
"""Longer curves are averaged down to about this many points."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
INK, LINE = "#1f2933", "#dfe4ea"

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_ARM_COLORS = {BEFORE: "#d55e00", AFTER: "#0072b2", IDEAL: "#009e73"}
_MORE_COLORS = (
    *("#cc79a7", "#56b4e9", "#e69f00", "#5f6b7a", "#332288", "#882255", "#44aa99", "#999933"),
    *("#aa4499", "#661100"),
)
_CURVE_COLORS = (_ARM_COLORS[IDEAL], _ARM_COLORS[AFTER], *_MORE_COLORS)
"""Of labelled frames alone, which come to the oracle, and of those with others besides."""

T = TypeVar("T")
Figure = Any
"""A plotly figure; the library has no types."""
Step = tuple[str, str, str]
"""Key in the log, its name in the legend, its colour."""
RECONSTRUCTION: tuple[Step, ...] = (
    ("cycle_loss_source", "source → translated → back", "#d55e00"),
    ("cycle_loss_target", "target → translated → back", "#009e73"),
    ("identity_loss", "identity", "#0072b2"),
    ("pair_loss", "translated → its pair", "#d55e00"),
    ("semantic_loss_source", "semantic, translated source", "#cc79a7"),
    ("semantic_loss_target", "semantic, translated target", "#e69f00"),
)
ADVERSARIAL: tuple[Step, ...] = (
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


def arm_colors(arms: Sequence[str]) -> dict[str, str]:
    """One colour an arm, the same in every figure."""
    more = [arm for arm in arms if arm not in _ARM_COLORS]
    extra = {arm: _MORE_COLORS[i % len(_MORE_COLORS)] for i, arm in enumerate(more)}
    return {arm: (_ARM_COLORS | extra)[arm] for arm in arms}


def photo(rgb: UInt8, width: int) -> str:
    """(H, W, 3) uint8 as a JPEG data URI, at most `width` pixels wide."""
    size = size_within(rgb.shape, width)
    return _data_uri(Image.fromarray(resize_rgb(rgb, size)), "JPEG", quality=85, optimize=True)


def label_picture(indices: UInt8, palette: UInt8, width: int) -> str:
    """(H, W) uint8 class indices as a PNG data URI, at most `width` pixels wide."""
    image = Image.fromarray(resize_indices(indices, size_within(indices.shape, width)))
    image.putpalette(palette.tobytes())
    return _data_uri(image, "PNG", optimize=True)


def _data_uri(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def frame_count(spec: DatasetSpec) -> int | None:
    """How many frames a data set has, or None when it is not where it was."""
    try:
        return len(list_samples(spec, labelled=False))
    except UserError:
        return None


def _spaced(items: Sequence[T], count: int) -> list[T]:
    """At most so many of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


@dataclass(frozen=True)
class Frame:
    """A test frame with its ground truth and each arm's prediction, as data URIs."""

    name: str
    frame: str
    truth: str
    predictions: dict[str, str]
    """Arm -> prediction of the network of the first seed."""
    scores: dict[str, dict[str, float | None]]
    """Arm -> metric -> value; empty where they are not shown."""


def frame_strip(
    run: Path, config: Config, space: LabelSpace, evaluations: Evaluations
) -> list[Frame]:
    """A few test frames, evenly spaced, each with every arm's prediction; see `_frames`."""
    arms = ordered_arms(config)
    kept = [evaluations[arm][0].pictures for arm in arms]
    everywhere = [name for name in kept[0] if all(name in pictures for pictures in kept)]
    names = _spaced(everywhere, config.evaluation.pictures)
    return _frames(run, config, space, evaluations, {arm: {} for arm in arms}, names)


def worst_frames(
    run: Path,
    config: Config,
    space: LabelSpace,
    evaluations: Evaluations,
    arms: Sequence[str],
) -> list[Frame]:
    """The test frames on which the last of `arms` is worst, by the first metric; see `_frames`.

    Raises:
        UserError: as `_frames`.
    """
    if not arms:
        return []
    metric = headline()[0]
    scores = {
        arm: _frame_scores(evaluation_folder(run, arm, config.seeds[0]) / "per_image.csv")
        for arm in arms
    }
    known = [
        (metric.gain(value, 0.0), name)
        for name, row in scores[arms[-1]].items()
        if (value := row[metric.key]) is not None
    ]
    worst = [name for _, name in sorted(known)][:WORST]
    if missing := [name for name in worst for table in scores.values() if name not in table]:
        raise UserError(f"The arms were scored on unlike frames: {missing[0]} is not in all.")
    return _frames(run, config, space, evaluations, scores, worst)


def _frame_scores(path: Path) -> dict[str, dict[str, float | None]]:
    """The rows of a `per_image.csv` by the frames' names; no value where a score is not defined."""
    way_out = "Score the network anew with `sim2real run --force evaluation`."
    rows = read_table(path, ["name", headline()[0].key], way_out)
    with explain_damage(path, way_out):
        return {
            row.pop("name"): {k: float(v) if v else None for k, v in row.items()} for row in rows
        }


def _frames(
    run: Path,
    config: Config,
    space: LabelSpace,
    evaluations: Evaluations,
    scores: Mapping[str, Mapping[str, dict[str, float | None]]],
    names: Sequence[str],
) -> list[Frame]:
    """These frames; none where a prediction was not kept.

    Args:
        scores: arm -> frame -> what is shown with its prediction.

    Raises:
        UserError: the test set or a prediction is no longer there.
    """
    kept = {arm: evaluations[arm][0].pictures for arm in scores}
    if not all(name in kept[arm] for arm in scores for name in names):
        return []
    samples = {sample.name: sample for sample in list_samples(config.test, labelled=True)}
    gone = [name for name in names if name not in samples]
    if gone:
        raise UserError(f"Data set {config.test.name} no longer has frame {gone[0]!r}.")
    labels = LabelReader(config.test, space)

    def classes(indices: UInt8) -> str:
        return label_picture(indices, space.palette, 400)

    def prediction(arm: str, name: str) -> str:
        path = evaluation_folder(run, arm, config.seeds[0]) / kept[arm][name]
        return classes(read_raw(path).astype(np.uint8))

    return [
        Frame(
            name,
            photo(read_frame(config.test, samples[name]), 400),
            classes(labels.read(samples[name], native=True)),
            {arm: prediction(arm, name) for arm in scores},
            {arm: of_arm[name] for arm, of_arm in scores.items() if name in of_arm},
        )
        for name in names
    ]


@dataclass(frozen=True)
class Pair:
    """A source frame and its translation, as data URIs."""

    name: str
    source: str
    translated: str


def translated_pairs(run: Path, stage: str) -> list[Pair]:
    """A few source frames, evenly spaced, each with its translation.

    Args:
        stage: that made the translation.

    Raises:
        UserError: nothing has been translated, or a frame is no longer there.
    """
    path = run / stage / "manifest.csv"
    if not path.is_file():
        raise UserError(f"No file {path}.")
    way_out = f"Translate anew with `sim2real run --force {stage}`."
    rows = read_table(path, ["name", "source", "translated"], way_out)
    return [
        Pair(
            row["name"],
            photo(read_rgb(Path(row["source"])), 480),
            photo(read_rgb(path.parent / row["translated"]), 480),
        )
        for row in _spaced([row for row in rows if row["translated"]], PAIRS)
    ]


@dataclass(frozen=True)
class Grid:
    """Samples of CycleGAN, as a data URI."""

    step: int
    picture: str


def last_sample_grid(folder: Path) -> Grid | None:
    """The newest grid of samples of the CycleGAN in a folder, or None when there is none."""
    grids = sorted((folder / "samples").glob("step-*.png"))
    if not grids:
        return None
    step = int(grids[-1].stem.removeprefix("step-"))
    return Grid(step, photo(read_rgb(grids[-1]), 1600))


def read_log(path: Path) -> pd.DataFrame:
    """A `log.jsonl` as a table, averaged down to about `POINTS` rows; empty when there is none."""
    table = pd.DataFrame(list(_entries(path)))
    group = -(-len(table) // POINTS)
    if group < 2:
        return table
    means = table.groupby(np.arange(len(table)) // group).mean()
    means["step"] = table["step"].groupby(np.arange(len(table)) // group).last()
    return means


def _entries(path: Path) -> Iterator[dict[str, float]]:
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


def kept_losses(log: pd.DataFrame) -> list[Step]:
    """The losses that are not adversarial; those that `RECONSTRUCTION` does not name come last."""
    named = {key for key, *_ in (*RECONSTRUCTION, *ADVERSARIAL)}
    more = [key for key in log if "loss" in str(key) and key not in named]
    return [
        *RECONSTRUCTION,
        *(
            (key, key.replace("_", " "), _MORE_COLORS[i % len(_MORE_COLORS)])
            for i, key in enumerate(map(str, more))
        ),
    ]


def cyclegan_curves(log: pd.DataFrame, steps: Sequence[Step]) -> Figure:
    """Losses of CycleGAN training over its steps."""
    figure = go.Figure()
    for key, name, color in steps:
        if key in log:  # identity is not logged when its weight is 0
            figure.add_trace(_curve(log["step"], log[key], name, color))
    return _styled(figure, height=320)


def segmentation_curves(logs: dict[str, list[pd.DataFrame]]) -> Figure:
    """Training loss of all arms and seeds, one colour an arm."""
    figure = go.Figure()
    colors = arm_colors(list(logs))
    for arm, tables in logs.items():
        for i, log in enumerate(table for table in tables if "loss" in table):
            figure.add_trace(
                _curve(log["step"], log["loss"], arm, colors[arm], group=arm, legend=i == 0)
            )
    return _styled(figure, height=340)


def budget_figure(report: Summary, metric: Metric) -> Figure:
    """A score over the number of labelled target frames, a line a curve, bars over seeds.

    Level lines are the arms that need no such number: source only, the adaptation, the oracle.
    """
    found, figure = curves(report.recipes), go.Figure()
    colors = arm_colors(list(report.arms))
    scale = 100 if metric.unit == "%" else 1
    for curve, color in zip(found, cycle(_CURVE_COLORS), strict=False):
        scores = [report.arms[arm][metric.key] for arm in curve.arms.values()]
        figure.add_trace(
            go.Scatter(
                x=list(curve.arms),
                y=[None if score.mean is None else scale * score.mean for score in scores],
                error_y={"array": [scale * (score.std or 0) for score in scores], "width": 4},
                name=f"labelled frames {curve.title}",
                mode="lines+markers",
                line={"color": color, "width": 2},
                hovertemplate=f"%{{y:.1f}}{metric.unit} with %{{x:,}}",
            )
        )
    numbers = numbers_of(found)
    for arm in (BEFORE, main_of(ours(report.recipes)), IDEAL):
        if arm in report.arms and (mean := report.arms[arm][metric.key].mean) is not None:
            figure.add_trace(
                go.Scatter(
                    x=[numbers[0] / 1.4, numbers[-1] * 1.4],
                    y=[scale * mean] * 2,
                    name=arm,
                    mode="lines",
                    line={"color": colors[arm], "width": 1.6, "dash": "dash"},
                    hovertemplate=f"%{{y:.1f}}{metric.unit}",
                )
            )
    _styled(figure, height=380, hovermode="closest")
    figure.update_xaxes(
        type="log",
        tickvals=numbers,
        ticktext=list(map(count, numbers)),
        title={"text": "labelled frames of the target", "standoff": 8},
    )
    figure.update_yaxes(ticksuffix=metric.unit)
    return figure


def _curve(
    steps: "pd.Series[float]",
    values: "pd.Series[float]",
    name: str,
    color: str,
    *,
    group: str | None = None,
    legend: bool = True,
) -> Figure:
    return go.Scatter(
        # 32-bit numbers go into the page as base64, a third of their size as text.
        x=np.asarray(steps, np.float32),
        y=np.asarray(values, np.float32),
        name=name,
        mode="lines" if len(steps) > 1 else "markers",
        line={"color": color, "width": 1.6},
        marker={"color": color},
        legendgroup=group,
        showlegend=legend,
        hovertemplate="%{y:.3f} at step %{x:,.0f}",
    )


def confusion_figure(counts: npt.NDArray[np.int64], names: Sequence[str]) -> Figure:
    """A square heatmap of row-normalised pixel counts: rows are truth, columns predictions.

    Args:
        counts: (K, K) int64; or (K, K + 1), void predictions in the last column, which is shown
            where there are any.
    """
    rows = counts.sum(axis=1, keepdims=True)
    void = counts[:, len(names) :].any()
    counts = counts[:, : len(names) + void]
    share = np.divide(counts, rows, out=np.full(counts.shape, np.nan), where=rows > 0)
    # Plotly reads markup in labels; names are to be shown as they are.
    labels = [html.escape(name) for name in names]
    few = len(names) <= FEW
    figure = go.Figure(
        go.Heatmap(
            z=np.round(100 * share, 2),
            x=[*labels, *(["void"] if void else [])],
            y=labels,
            customdata=counts,
            text=[[f"{100 * s:.0f}" if s >= 0.005 else "" for s in row] for row in share],
            texttemplate="%{text}" if few else None,
            textfont={"size": 9},
            zmin=0,
            zmax=100,
            colorscale="Blues",
            showscale=False,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate=(
                "truth %{y}<br>predicted %{x}<br>%{z:.1f}% of the truth, "
                "%{customdata:,} pixels<extra></extra>"
            ),
        )
    )
    axis = {"constrain": "domain", "showgrid": False, "zeroline": False, "dtick": 1}
    size = {"size": 10}
    figure.update_xaxes(tickangle=-90 if len(names) > 7 else -45, tickfont=size, **axis)
    figure.update_yaxes(
        autorange="reversed", scaleanchor="x", constraintoward="top", tickfont=size, **axis
    )
    _styled(figure, height=340 if few else 480, hovermode="closest")
    # Margins that plotly fits by itself chase the square's size, round after round.
    figure.update_xaxes(automargin=False)
    figure.update_yaxes(automargin=False)
    room = min(150, 16 + 6 * max(map(len, names)))
    figure.update_layout(margin={"l": room, "b": room})
    return figure


def _styled(figure: Figure, *, height: int, hovermode: str = "x unified") -> Figure:
    axis = {"gridcolor": LINE, "linecolor": LINE, "zeroline": False, "automargin": True}
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode=hovermode,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def plot_div(figure: Figure, name: str) -> Markup:
    """A figure as HTML that needs plotly.js in the page; `name` is its id there."""
    text = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True, "displayModeBar": False},
    )
    return Markup(text)
