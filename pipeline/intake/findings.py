"""What `sim2real check` can find, and the report of one data set."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from pipeline.csv_files import write_table
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import read_quarantine
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.files import sweep
from pipeline.intake.facts import FrameFacts
from pipeline.intake.text import printable
from pipeline.schema import Schema, parse
from pipeline.yaml_files import read_settings

Severity = Literal["must fix", "look", "note"]
"""`must fix` stops or spoils a training; `look` may be intended; `note` is worth knowing."""
SEVERITIES: tuple[Severity, ...] = ("must fix", "look", "note")
EXAMPLES = 6
"""Frames shown with a finding."""
MOST_FRAMES = 0.5
"""A fault of a greater share of the frames is one of the spec or of the whole set."""


class Kind(Schema):
    """A kind of finding: an entry of `findings.yaml`."""

    severity: Severity
    title: str
    advice: str
    """What to do about it."""
    quarantines: bool = False
    """Whether `check --quarantine` leaves the frames out."""


@cache
def kinds() -> dict[str, Kind]:
    """Every kind of finding by its name, the most severe first."""
    path = Path(__file__).with_name("findings.yaml")
    table = read_settings(path, "kinds of findings")
    return {name: parse(Kind, fields, f"{path}: {name}") for name, fields in table.items()}


@dataclass(frozen=True)
class Example:
    """A frame shown with a finding: its files, what was seen, and the image that it is like."""

    frame: str
    image: Path | None
    label: Path | None
    detail: str = ""
    beside: Path | None = None

    @classmethod
    def of(cls, facts: FrameFacts, detail: str = "", beside: Path | None = None) -> "Example":
        """An examined frame as an example."""
        return cls(facts.name, facts.sample.image, facts.sample.label, detail, beside)


@dataclass(frozen=True)
class Finding:
    """One kind of fault of a data set.

    `count` and `share` are of frames; for a finding about the whole set `count` is of what the
    title names, and `share` None. With `quarantines`, `write_quarantine` leaves out the `frames`.
    """

    kind: str
    severity: Severity
    title: str
    detail: str
    advice: str
    count: int
    share: float | None = None
    quarantines: bool = False
    frames: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class ValueUse:
    """How often a raw label value occurs; `name` is None where the spec has none."""

    value: str
    name: str | None
    pixels: int
    share: float
    frames: int
    example: str | None


@dataclass(frozen=True)
class DatasetReport:
    """All that was found in one data set."""

    spec: DatasetSpec
    space: LabelSpace
    frames: int
    labelled: int
    sizes: dict[str, int]
    """`WIDTHxHEIGHT` -> frames, most frequent first."""
    image_bytes: int
    label_bytes: int
    decoded_bytes: int
    """What the frames take as RGB at the working width."""
    class_pixels: dict[str, int]
    """Class -> pixels, in the order of the label space; empty without labels."""
    ignored_pixels: int
    values: tuple[ValueUse, ...]
    findings: tuple[Finding, ...]
    shown: tuple[Example, ...]
    """Evenly spaced frames."""
    facts: tuple[FrameFacts, ...]
    """What was measured of each frame, for comparing sets."""

    @property
    def must_fix(self) -> int:
        """How many findings must be fixed before a training."""
        return sum(finding.severity == "must fix" for finding in self.findings)

    @property
    def class_shares(self) -> dict[str, float]:
        """Class -> its share of the pixels that belong to any."""
        total = sum(self.class_pixels.values())
        return {name: n / total if total else 0.0 for name, n in self.class_pixels.items()}

    def quarantined(self) -> dict[str, str]:
        """Frame -> the reasons why it is of no use, in the order of the findings."""
        reasons: dict[str, list[str]] = defaultdict(list)
        for finding in self.findings:
            if finding.quarantines:
                for frame in finding.frames:
                    reasons[frame].append(finding.kind)
        return {frame: "; ".join(reasons[frame]) for frame in sorted(reasons)}

    def as_json(self) -> dict[str, object]:
        """What `check.json` holds of the data set."""
        same = ("frames", "labelled", "sizes", "image_bytes", "label_bytes", "decoded_bytes")
        return {
            "name": self.spec.name,
            "split": self.spec.split,
            "label_space": self.space.name,
            **{key: getattr(self, key) for key in same},
            "must_fix": self.must_fix,
            "class_pixels": self.class_pixels,
            "ignored_pixels": self.ignored_pixels,
            "values": [vars(value) for value in self.values],
            "findings": [
                vars(finding) | {"examples": [_plain(example) for example in finding.examples]}
                for finding in self.findings
            ],
            "quarantined": self.quarantined(),
        }


def _plain(example: Example) -> dict[str, str | None]:
    files = {"image": example.image, "label": example.label}
    shown = {key: str(path) if path else None for key, path in files.items()}
    return {"frame": example.frame, **shown, "detail": example.detail}


def finding(kind: str, count: int, detail: str) -> Finding:
    """A finding about a whole data set."""
    known = kinds()[kind]
    return Finding(kind, known.severity, known.title, detail, known.advice, count)


def frames_finding(
    kind: str, total: int, frames: Sequence[str], examples: Sequence[Example], detail: str = ""
) -> Finding:
    """A finding about some frames; they are not quarantined where most frames have the fault.

    Args:
        total: how many frames were examined; 0 where the finding is of other files.
    """
    share = len(frames) / total if total else None
    return replace(
        finding(kind, len(frames), detail),
        share=share,
        quarantines=kinds()[kind].quarantines and share is not None and share <= MOST_FRAMES,
        frames=tuple(frames),
        examples=tuple(examples[:EXAMPLES]),
    )


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The most severe first, then as in `findings.yaml`."""
    order = list(kinds())
    return tuple(
        sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), order.index(f.kind)))
    )


def write_quarantine(reasons: Mapping[str, str], path: Path) -> int:
    """Write frame -> reason to a CSV file `name,reason`, whole or not at all.

    Frames that the file already lists stay in it, with their reasons.

    Returns:
        How many frames were added.

    Raises:
        UserError: the file is there and is no such list, or a name is no UTF-8.
    """
    if odd := [name for name in reasons if name != printable(name)]:
        raise UserError(
            f"The name of frame {printable(odd[0])!r} is no UTF-8 (what is not is shown as ?), "
            "which no list can hold. Rename its file."
        )
    known = read_quarantine(path) if path.is_file() else {}
    all_of_them = {**reasons, **known}
    if all_of_them != known or not path.is_file():
        sweep(path.parent)
        rows = [{"name": name, "reason": why} for name, why in sorted(all_of_them.items())]
        write_table(path, ["name", "reason"], rows)
    return len(all_of_them) - len(known)
