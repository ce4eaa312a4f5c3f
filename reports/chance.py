"""Whether one arm is above another by more than chance, as far as a report can tell."""

from collections.abc import Mapping

from pipeline.scoring.metrics import Metric
from reports.summary import Difference, Spread, Summary


def change(report: Summary, arm: str, base: str) -> dict[str, Difference | None]:
    """Metric -> how far an arm is above another that it is compared with, on the same frames."""
    return report.comparisons[arm][base].scores


def columns(key: str, score: Spread, found: Difference | None) -> dict[str, float | None]:
    """The cells of a score and of its change in a table's row, fractions as they are."""
    low, high = score.interval or (None, None)
    return {
        key: score.mean,
        f"{key}_std": score.std,
        f"{key}_low": low,
        f"{key}_high": high,
        f"{key}_change": found.difference if found else None,
    }


def sign(report: Summary, metric: Metric, arm: str, than: str) -> int | None:
    """1 where an arm is better than another beyond chance, -1 where it is worse, else 0.

    None where one of them has no score. See `sign_of`.
    """
    found = change(report, arm, than)[metric.key]
    spreads = {name: report.arms[name][metric.key] for name in (arm, than)}
    return None if found is None else sign_of(metric, found, spreads)


def sign_of(metric: Metric, found: Difference, spreads: Mapping[str, Spread]) -> int:
    """The sign of a gain, 0 where it may be chance.

    Beyond chance: by more than the spread of the seeds, and with an interval over the test frames
    that is clear of 0; as far as these are known.

    Args:
        spreads: the two scores that the difference is of.
    """
    noise = max(spread.std or 0 for spread in spreads.values())
    low, high = found.interval or (found.difference, found.difference)
    if abs(found.difference) <= noise or low <= 0 <= high:
        return 0
    return 1 if metric.gain(found.difference, 0.0) > 0 else -1
