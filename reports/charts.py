"""Charts as typed values: `charts.html.j2` draws them as SVG, text around it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pipeline.config.settings import BEFORE, IDEAL
from pipeline.scoring.metrics import Metric
from pipeline.text import count
from reports.budget import curves, numbers_of
from reports.colors import CURVE_COLORS, arm_colors
from reports.sentences import main_of, ours
from reports.summary import SourcePoint, Summary

SIDE = 1000
"""Units of a chart's side in its SVG, which is stretched over the place that it has."""


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float | None]
    spread: Sequence[float] = ()
    """Half of each point's bar."""
    points: bool = False
    """Whether points are marked."""
    dashed: bool = False
    again: bool = False
    """Whether the legend has its name already."""


@dataclass(frozen=True)
class Tick:
    """A number beside an axis."""

    place: float
    """From the left, or from the top, of the plot: 0 to 100."""
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines over one axis, scaled to their values."""

    title: str
    series: Sequence[Series]
    caption: str = ""
    x_title: str = "step"
    unit: str = ""
    logarithmic: bool = False
    """Whether the x axis is, with a tick at each of `x_ticks`."""
    x_ticks: Sequence[float] = field(default=())

    @cached_property
    def x_range(self) -> tuple[float, float]:
        """The ends of the x axis."""
        values = [x for one in self.series for x in one.x]
        return min(values), max(values)

    @cached_property
    def y_range(self) -> tuple[float, float]:
        """The ends of the y axis: round numbers about the values."""
        low, high, _ = self._y_scale
        return low, high

    @cached_property
    def _y_scale(self) -> tuple[float, float, float]:
        ends = [
            y + side * (one.spread[i] if one.spread else 0)
            for one in self.series
            for i, y in enumerate(one.y)
            if y is not None
            for side in (-1, 1)
        ]
        low, high = min(ends, default=0.0), max(ends, default=1.0)
        step = _step(high - low or abs(high) or 1.0)
        bottom, top = math.floor(low / step), math.ceil(high / step)
        return bottom * step, max(top, bottom + 1) * step, step

    @property
    def y_ticks(self) -> list[Tick]:
        """The numbers left of the plot."""
        low, high, step = self._y_scale
        number = round((high - low) / step)
        values = [low + i * step for i in range(number + 1)]
        return [Tick(self._top(y) * 100 / SIDE, f"{y:.10g}{self.unit}") for y in values]

    @property
    def x_labels(self) -> list[Tick]:
        """The numbers below the plot."""
        low, high = self.x_range
        ticks = list(self.x_ticks)
        if not ticks:
            step = _step(high - low or 1.0)
            first = math.ceil(low / step)
            ticks = [i * step for i in range(first, math.floor(high / step) + 1)]
        return [Tick(self._left(x) * 100 / SIDE, count(round(x))) for x in ticks]

    def path(self, one: Series) -> str:
        """A series' line, as the `d` of an SVG path: points joined where they follow."""
        parts, pen = [], "M"
        for x, y in zip(one.x, one.y, strict=True):
            if y is None:
                pen = "M"
                continue
            parts.append(f"{pen}{self._left(x):.0f} {self._top(y):.0f}")
            pen = "L"
        return "".join(parts)

    def marks(self, one: Series) -> str:
        """Its points: strokes without length, which round caps make dots of."""
        return "".join(
            f"M{self._left(x):.0f} {self._top(y):.0f}h0"
            for x, y in zip(one.x, one.y, strict=True)
            if y is not None
        )

    def bars(self, one: Series) -> str:
        """The bars of its points."""
        return "".join(
            f"M{self._left(x):.0f} {self._top(y - half):.0f}V{self._top(y + half):.0f}"
            for x, y, half in zip(one.x, one.y, one.spread, strict=True)
            if y is not None and half
        )

    def _left(self, x: float) -> float:
        low, high = self.x_range
        if self.logarithmic:
            low, high, x = math.log(low), math.log(high), math.log(x)
        return SIDE * (x - low) / (high - low) if high > low else SIDE / 2

    def _top(self, y: float) -> float:
        low, high, _ = self._y_scale
        return SIDE * (high - y) / (high - low)


def _step(span: float) -> float:
    """A round number that fits into `span` three to six times."""
    power = 10.0 ** math.floor(math.log10(span / 3))
    return next(power * n for n in (5, 2, 1) if power * n <= span / 3)


@dataclass(frozen=True)
class GapRow:
    """An arm's place between the ends of the gap, in percent of the axis; None where unknown."""

    arm: str
    at: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class GapBar:
    """The gap in a metric as an axis with every arm on it."""

    metric: Metric
    rows: list[GapRow]
    ends: tuple[float, float] | None
    """Where source only and the oracle are; None without one of them."""


def gap_bar(report: Summary, metric: Metric) -> GapBar:
    """Every arm on the axis of one metric."""
    scores = {arm: found[metric.key] for arm, found in report.arms.items()}
    values = [
        value
        for score in scores.values()
        for value in (score.mean, *(score.interval or ()))
        if value is not None
    ]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.04 * ((high - low) or 1.0)
    low, high = low - room, high + room
    if metric.unit == "%":
        low, high = max(0.0, low), min(1.0, high)

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = [
        GapRow(
            arm,
            None if score.mean is None else place(score.mean),
            (place(score.interval[0]), place(score.interval[1])) if score.interval else None,
        )
        for arm, score in scores.items()
    ]
    ends = {row.arm: row.at for row in rows}
    before, ideal = ends.get(BEFORE), ends.get(IDEAL)
    known = before is not None and ideal is not None
    return GapBar(metric, rows, (before, ideal) if known else None)  # type: ignore[arg-type]


def budget_chart(report: Summary, metric: Metric) -> Chart:
    """A score over the number of labelled target frames, a line a curve, bars over seeds.

    Level lines are the arms that need no such number: source only, the adaptation, the oracle.
    """
    found = curves(report.recipes)
    colors, scale = arm_colors(list(report.arms)), 100 if metric.unit == "%" else 1
    series = [
        _curve(f"labelled frames {curve.title}", index, curve.arms, report, metric)
        for index, curve in enumerate(found)
    ]
    numbers = numbers_of(found)
    for arm in (BEFORE, main_of(ours(report.recipes)), IDEAL):
        if arm in report.arms and (mean := report.arms[arm][metric.key].mean) is not None:
            ends = [numbers[0] / 1.4, numbers[-1] * 1.4]
            series.append(Series(arm, colors[arm], ends, [scale * mean] * 2, dashed=True))
    return _by_frames(metric, series, "labelled frames of the target", numbers)


def source_chart(report: Summary, metric: Metric) -> Chart:
    """A score over the number of synthetic frames, a line a kind, bars over seeds."""
    kinds: dict[str, list[SourcePoint]] = {}
    for point in sorted(report.data.source_points, key=lambda point: point.frames):
        kinds.setdefault(point.kind, []).append(point)
    series = [
        _curve(kind, index, {point.frames: point.arm for point in found}, report, metric)
        for index, (kind, found) in enumerate(kinds.items())
    ]
    numbers = sorted({point.frames for point in report.data.source_points})
    return _by_frames(metric, series, "synthetic frames", numbers)


def _curve(
    name: str, index: int, arms: Mapping[int, str], report: Summary, metric: Metric
) -> Series:
    """Scores of arms over their numbers of frames."""
    scale = 100 if metric.unit == "%" else 1
    scores = [report.arms[arm][metric.key] for arm in arms.values()]
    return Series(
        name,
        CURVE_COLORS[index % len(CURVE_COLORS)],
        list(arms),
        [None if score.mean is None else scale * score.mean for score in scores],
        [scale * (score.std or 0) for score in scores],
        points=True,
    )


def _by_frames(metric: Metric, series: Sequence[Series], of: str, numbers: Sequence[int]) -> Chart:
    title = metric.title[0].upper() + metric.title[1:]
    return Chart(title, series, x_title=of, unit=metric.unit, logarithmic=True, x_ticks=numbers)
