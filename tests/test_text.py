"""Numbers as text."""

import pytest

from pipeline import text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "–"),
        (0, "0 s"),
        (0.354, "0.35 s"),
        (41.6, "42 s"),
        (59.6, "1 min 00 s"),
        (725, "12 min 05 s"),
        (3599.7, "1 h 00 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 days 4 h"),
    ],
)
def test_duration(seconds: float | None, expected: str) -> None:
    assert text.duration(seconds) == expected


@pytest.mark.parametrize(
    ("octets", "expected"),
    [(812, "812 B"), (999.7, "1 kB"), (3210, "3.21 kB"), (145e6, "145 MB"), (5e15, "5e+03 TB")],
)
def test_size(octets: float, expected: str) -> None:
    assert text.size(octets) == expected


def test_scores_in_their_unit() -> None:
    assert text.percent(None) == "–"
    assert text.percent(-0.005, 0) == "−0%"
    assert text.number(0.1234) == "12.3%"
    assert text.number(-1234.5, "px") == "−1,234 px"
    assert text.difference(-0.0001) == "0.0"
    assert text.difference(0.15) == "+15.0"
    assert text.difference(-3, "px") == "−3 px"
    assert text.spread(0.6, 0.07) == "60.0 ± 7.0%"
    assert text.spread(12, 3, "px") == "12 ± 3 px"
    assert text.bounds((0.1, 0.25)) == "10.0 to 25.0%"
    assert text.bounds((1, 2), "px") == "1 to 2 px"
    assert text.margins((-0.1, 0.2)) == "−10.0 to +20.0"
    assert text.bounds(None) == text.margins(None) == ""


def test_counts_and_lists() -> None:
    assert text.count(1, "frame") == "1 frame"
    assert text.count(2975, "frame") == "2,975 frames"
    assert text.count(0, "class", "classes") == "0 classes"
    assert text.count(1003) == "1,003"
    assert text.listed([1, 2, 3]) == "1, 2, 3"
    assert text.listed(["a", "b", "c"], 2) == "a, b and 1 more"
