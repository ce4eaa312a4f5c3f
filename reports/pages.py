"""The templates of all pages, and what they may use."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.config.settings import AFTER, BEFORE
from reports import figures, sentences, tables


def environment() -> Environment:
    """Templates of this folder, with the filters and names that they use."""
    made = Environment(
        loader=PackageLoader("reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": tables.percent,
        "points": tables.points,
        "spread": tables.spread,
        "bounds": tables.bounds,
        "margins": tables.margins,
        "hours": tables.hours,
        "class_value": tables.class_value,
        "share": tables.share,
    }
    made.globals |= {
        "METRICS": tables.METRICS,
        "FURTHER": tables.FURTHER,
        "trained_on": sentences.trained_on,
        "METHODS": {"histogram_matching": "histogram matching", "fda": "Fourier domain adaptation"},
        "BEFORE": BEFORE,
        "AFTER": AFTER,
        "FEW": figures.FEW,
        "scored_on": tables.scored_on,
    }
    return made
