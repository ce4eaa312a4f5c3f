"""The page of `sim2real check`: what is wrong with data sets, shown on their frames."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.data.images import open_image
from pipeline.data.reading import UNNAMED
from pipeline.files import sweep, write_json, write_text
from pipeline.intake.facts import Examiner
from pipeline.intake.findings import SEVERITIES, DatasetReport, Example
from pipeline.intake.text import percent, printable
from reports.pages import environment
from reports.pictures import label_picture, photo

WIDTH = 320
"""Pixels in a row of a picture in the page."""
LISTED = 200
"""Names of frames listed with a finding; check.json has all."""
STRANGE = (0, 255, 255)
"""Colour of label pixels whose value has no name."""
COLORS = ("#d55e00", "#009e73", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9", "#5f6b7a")


def write_check(reports: Mapping[str, DatasetReport], out: Path) -> None:
    """Write `check.json` and `check.html` into `out`, each whole or not at all.

    Args:
        reports: part (`source`, or a split, or the data set's name) -> its report, as
            `pipeline.intake.compare` returns them.
    """
    sweep(out)
    write_json(
        out / "check.json",
        {"sets": {part: report.as_json() for part, report in reports.items()}},
    )
    pages = environment()
    pages.filters |= {"percent": percent}
    page = pages.get_template("check.html.j2").render(
        title="Data check",
        reports=reports,
        colors={part: COLORS[i % len(COLORS)] for i, part in enumerate(reports)},
        groups=_by_space(reports),
        pictures={part: _Pictures(report) for part, report in reports.items()},
        verdicts={part: verdict(report) for part, report in reports.items()},
        SEVERITIES=SEVERITIES,
        LISTED=LISTED,
        strange=STRANGE,
    )
    write_text(out / "check.html", printable(page))


def verdict(report: DatasetReport) -> str:
    """One line on a data set: `ok`, or how many findings must be fixed or looked at."""
    counts = {s: sum(f.severity == s for f in report.findings) for s in SEVERITIES}
    words = [f"{counts['must fix']} to fix"] if counts["must fix"] else []
    words += [f"{counts['look']} to look at"] if counts["look"] else []
    return ", ".join(words) or "ok"


class _Pictures:
    """Draws the frames of one data set and their labels."""

    def __init__(self, report: DatasetReport) -> None:
        self.examiner = Examiner(report.spec, report.space)
        self.palette = report.space.palette.copy()
        self.palette[UNNAMED] = STRANGE
        self._drawn: dict[tuple[str, Path], str | None] = {}

    def frame(self, example: Example) -> str | None:
        """The image as a data URI; None where it cannot be shown."""
        return self._once("frame", example.image)

    def label(self, example: Example) -> str | None:
        """The label as a data URI, in the classes' colours where it can be decoded to them."""
        return self._once("label", example.label)

    def beside(self, example: Example) -> str | None:
        """The frame that this one is like, as a data URI."""
        return self._once("frame", example.beside)

    def _once(self, kind: str, path: Path | None) -> str | None:
        if path is None:
            return None
        if (kind, path) not in self._drawn:
            self._drawn[kind, path] = _file(path) if kind == "frame" else self._classes(path)
        return self._drawn[kind, path]

    def _classes(self, path: Path) -> str | None:
        classes = self.examiner.classes_of(path, WIDTH)
        return _file(path) if classes is None else label_picture(classes, self.palette, WIDTH)


def _file(path: Path) -> str | None:
    try:
        with open_image(path) as opened:
            return photo(np.asarray(opened.image.convert("RGB")), WIDTH)
    except Exception:  # decoders raise all sorts of things on damaged files
        return None


def _by_space(reports: Mapping[str, DatasetReport]) -> list[dict[str, DatasetReport]]:
    """The labelled sets, those of one label space together."""
    groups: dict[str, dict[str, DatasetReport]] = {}
    for part, report in reports.items():
        if report.class_pixels:
            groups.setdefault(report.space.name, {})[part] = report
    return list(groups.values())
