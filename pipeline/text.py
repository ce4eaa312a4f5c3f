"""Numbers as text, for reports, tables and messages."""

from collections.abc import Iterable


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent; a dash when there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}%".replace("-", "−")


def number(value: float | None, unit: str = "%", digits: int = 1) -> str:
    """A score in its unit, see `pipeline.scoring.metrics.Metric`; a dash when there is none."""
    if value is None or unit == "%":
        return percent(value, digits)
    return f"{value:,.4g} {unit}".replace("-", "−").strip()


def difference(value: float, unit: str = "%") -> str:
    """A difference of scores with its sign, of fractions in percentage points."""
    text = f"{100 * value:+.1f}" if unit == "%" else f"{value:+,.4g} {unit}".strip()
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def spread(mean: float | None, std: float | None, unit: str = "%") -> str:
    """Mean ± standard deviation."""
    text = number(mean, unit)
    if std is None:
        return text
    if unit == "%":
        return f"{text[:-1]} ± {100 * std:.1f}%"
    return f"{text.removesuffix(unit).strip()} ± {number(std, unit)}"


def bounds(interval: tuple[float, float] | None, unit: str = "%", digits: int = 1) -> str:
    """The ends of an interval of scores; empty for none."""
    if interval is None:
        return ""
    low, high = (number(end, unit, digits) for end in interval)
    return f"{low.removesuffix(unit).strip()} to {high}"


def margins(interval: tuple[float, float] | None, unit: str = "%") -> str:
    """The ends of an interval of a difference; empty for none."""
    if interval is None:
        return ""
    return " to ".join(difference(end, unit) for end in interval)


def duration(seconds: float | None) -> str:
    """A time: `0.35 s`, `42 s`, `12 min 05 s`, `3 h 20 min`, `2 days 4 h`; a dash for none."""
    if seconds is None:
        return "–"
    if round(seconds) < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {rest:02d} min"
    days, rest = divmod(round(seconds / 3600), 24)
    return f"{days} days {rest} h"


def hours(seconds: float | None) -> str:
    """Seconds as hours of two digits or more; a dash when there are none."""
    if seconds is None:
        return "–"
    return f"{seconds / 3600:.3f}" if seconds < 360 else f"{seconds / 3600:.2f}"


def count(number: int, noun: str = "", plural: str = "") -> str:
    """`1 frame`, `2,975 frames`; without a noun the number alone.

    Args:
        plural: where it is not the noun with an s.
    """
    word = noun if number == 1 else plural or f"{noun}s"
    return f"{number:,} {word}" if noun else f"{number:,}"


def size(octets: float) -> str:
    """A number of bytes: `812 B`, `3.21 kB`, `145 MB`."""
    unit = "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if octets < 999.5 or unit == "TB":
            break
        octets /= 1000
    return f"{octets:.3g} {unit}"


def listed(items: Iterable[object], most: int = 5) -> str:
    """The first items, and how many more there are."""
    texts = list(map(str, items))
    more = f" and {count(len(texts) - most)} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
