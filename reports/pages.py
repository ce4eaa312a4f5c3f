"""The templates of all pages and texts, and what they may use."""

import html
import re
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline import text
from pipeline.config.settings import BEFORE
from pipeline.scoring import metrics
from pipeline.scoring.selection import CRITERIA
from reports import budget, selection, sentences, steps
from reports.summary import Difference, Spread, Summary


def environment(*, pages: bool = True) -> Environment:
    """Templates of this folder, with the filters and names that they use.

    Args:
        pages: HTML, in which all text is escaped; else Markdown, in which `cell` does it.
    """
    made = Environment(
        loader=PackageLoader("reports", "."),
        autoescape=pages,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not pages,
    )
    shown = (
        *(text.percent, text.number, text.bounds, text.margins, text.hours, text.duration),
        *(text.count, text.size, spread, class_value, share, cell, scored, closed, moved),
        *(compared, correlation, axis, marked, plain),
    )
    said = (
        *(metrics.tabled, metrics.headline, metrics.in_steps, metrics.ranking),
        *(metrics.class_columns, metrics.further, sentences.trained_on, sentences.left_out),
        *(class_iou, steps.step_sentences, selection.choices, selection.choice_sentences),
        *(budget.budget_sentences, asset),
    )
    made.filters |= {each.__name__: each for each in shown} | {"points": text.difference}
    made.globals |= {each.__name__: each for each in said} | {
        "METRICS": metrics.METRICS,
        "CRITERIA": CRITERIA,
        "BUDGET_NOTE": budget.NOTE,
        "BEFORE": BEFORE,
    }
    return made


_TURNS = re.compile(r"[\u202a-\u202e\u2066-\u2069]|(?<!\\)\\u20(?:2[a-e]|6[6-9])")
"""Characters that turn the direction of what follows them, as they are and as JSON escapes them."""


def readable(page: str) -> str:
    """A page in which no name turns what follows it round; what is no UTF-8 becomes `?`."""
    return _TURNS.sub("", page).encode("utf-8", "replace").decode()


def asset(name: str) -> Markup:
    """A style sheet or script of this folder, as it stands."""
    return Markup((files("reports") / name).read_text(encoding="utf-8"))


def spread(score: Spread, unit: str = "%") -> str:
    """Mean ± standard deviation."""
    return text.spread(score.mean, score.std, unit)


def class_value(value: float | None, unit: str = "%") -> str:
    """A class's value; `absent` when no seed has one."""
    return "absent" if value is None else text.number(value, unit)


def class_iou(report: Summary, arm: str, name: str) -> str:
    """A class's IoU with its interval; `absent` when no seed has one."""
    score = report.class_scores["class_iou"][arm][name]
    return "absent" if score.mean is None else scored(score)


def share(value: float) -> str:
    """A share of the pixels in percent that tells few from none."""
    return "–" if value == 0 else "<0.1%" if value < 0.001 else text.percent(value)


def scored(score: Spread, unit: str = "%") -> str:
    """Mean ± standard deviation, and the interval."""
    return _with(spread(score, unit), text.bounds(score.interval, unit))


def closed(fraction: float | None, interval: tuple[float, float] | None) -> str:
    """The part of the gap that is closed, and its interval."""
    return _with(text.percent(fraction, 0), text.bounds(interval, digits=0))


def moved(found: Difference | None, unit: str = "%") -> str:
    """A difference and its interval."""
    if found is None:
        return "–"
    return _with(text.difference(found.difference, unit), text.margins(found.interval, unit))


def compared(found: Difference | None, unit: str = "%") -> str:
    """A difference, its interval, and the share of the resamplings in which it is better."""
    better = found.better if found else None
    return f"{moved(found, unit)}{'' if better is None else f', {text.percent(better)}'}"


def correlation(value: float | None) -> str:
    """A correlation with its sign; a dash when there is none."""
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def plain(value: float | None) -> str:
    """A number as a page's script reads it; empty for none."""
    return "" if value is None else str(value)


def marked(text: str) -> Markup:
    """Text in which what stands between backticks is code."""
    parts = [str(escape(part)) for part in text.split("`")]
    if len(parts) % 2 == 0:  # a backtick without its other
        return escape(text)
    return Markup("".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts)))


def axis(value: float | None) -> str:
    """A number of a chart; a dash when there is none."""
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def _with(shown: str, addition: str) -> str:
    return f"{shown} ({addition})" if addition else shown


def cell(value: object) -> str:
    """Text that stays text in a markdown table."""
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")
