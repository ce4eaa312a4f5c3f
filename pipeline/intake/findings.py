"""What `sim2real check` can find, and the report of one data set."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.csv_files import write_table
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import read_quarantine
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.files import sweep
from pipeline.intake.facts import FrameFacts
from pipeline.intake.text import printable

Severity = Literal["must fix", "look", "note"]
"""`must fix` stops or spoils a training; `look` may be intended; `note` is worth knowing."""
SEVERITIES: tuple[Severity, ...] = ("must fix", "look", "note")
EXAMPLES = 6
"""Frames shown with a finding."""
MOST_FRAMES = 0.5
"""A fault of a greater share of the frames is one of the spec or of the whole set."""

Table = dict[str, tuple[str, str]]
"""Kind of finding -> its title, and what to do about it."""
_MUST_FIX: Table = {
    "empty-file": ("Files without content", "Copy them again, or quarantine the frames."),
    "unreadable": (
        "Files that cannot be decoded",
        "Copy them again from the original, or quarantine the frames.",
    ),
    "no-label": ("Images without a label", "Add the labels, or quarantine the frames."),
    "two-labels": (
        "Frames with two label files",
        "Remove one, or give the `labels` pattern a file name ending.",
    ),
    "size-differs": (
        "Label of another size than its image",
        "Find out which file belongs to another frame; quarantine what cannot be fixed.",
    ),
    "label-colours": (
        "Labels are colour images, and the spec says ids",
        "Set `encoding` (and `values`) to what the labels hold.",
    ),
    "label-ids": (
        "Labels hold one value a pixel, and the spec says colours or channels",
        "Set `encoding: ids` and name the ids in `values`.",
    ),
    "label-channel": (
        "The channel that is read says nothing",
        "Set `channel` to the one that varies (0 is red).",
    ),
    "label-depth": (
        "Labels of another depth than their ids",
        "Use the files that hold plain ids, or convert these to 8 or 16 bits.",
    ),
    "palette-differs": (
        "Palettes that contradict the ids",
        "A program renumbered the indices: read the colours (`encoding: rgb`, and colours in "
        "`values`), or "
        "quarantine the frames. If the indices are right, save them as grey values.",
    ),
    "label-jpeg": (
        "Labels stored as JPEG",
        "Get the lossless originals: JPEG mixes ids at every border.",
    ),
    "resampled-label": (
        "Labels that were resized smoothly or drawn antialiased",
        "Get the originals, and resize labels with nearest neighbour only.",
    ),
    "train-ids": (
        "Labels look like trainIds, and the spec names ids",
        "Use the `labelIds` files, or name 0..18 in `values` in the order of the trainIds.",
    ),
    "mirrored-labels": ("Labels look mirrored or upside down", "Flip the labels, or the images."),
    "blank-frame": ("Blank frames", "Render them again, or quarantine the frames."),
    "duplicates-disagree": (
        "One picture with different labels",
        "Find out which label is right; quarantine the other frame.",
    ),
    "copied-label": (
        "Labels copied from other frames",
        "Get the right ones, or quarantine the frames.",
    ),
    "shared-frames": (
        "Frames that are also among those scored on",
        "Quarantine them here: a score on frames that were trained on says nothing.",
    ),
    "frame-depth": ("Frames of more than 8 bits", "Convert them to 8 bits a channel."),
    "rotated-frame": (
        "Frames to be turned by their EXIF data",
        "Turn the pixels as the labels are drawn (`mogrify -auto-orient` turns them upright), or "
        "remove the tag.",
    ),
    "small-frame": (
        "Frames smaller than what CycleGAN cuts out of them",
        "Lower `cyclegan.crop`, raise `width` of the data set, or quarantine the frames.",
    ),
    "mask-frames": (
        "Labels among the frames",
        "Give the `images` pattern a file name ending or a folder that labels do not have, "
        "or quarantine them.",
    ),
}
_LOOK: Table = {
    "shared-label": (
        "One label for different pictures",
        "Meant where one view is shown in several weathers; else a file was copied over others.",
    ),
    "labels-apart": (
        "Labels do not follow the edges of their images",
        "Look at the frames: labels of other frames, shifted, or turned?",
    ),
    "unnamed-values": (
        "Label values without a name",
        "Name them in `values`; 'unlabeled' ignores their pixels.",
    ),
    "wrong-ending": (
        "Files whose ending is not their format",
        "Rename them: other programs go by the ending.",
    ),
    "duplicate-frames": ("The same picture twice", "Quarantine all but the first."),
    "ignored-label": (
        "Labels without a pixel of any class",
        "Nothing is learnt from them: quarantine the frames, or look at `values`.",
    ),
    "constant-label": (
        "Labels of one value",
        "Look at these frames: the label may be a placeholder.",
    ),
    "no-image": (
        "Labels without an image",
        "They are not used; add the images if they are missing.",
    ),
    "same-drive": (
        "Drives that are in both parts",
        "Frames of one drive resemble each other; score on drives that no part trains on.",
    ),
    "class-only-scored": (
        "Classes that are scored and never learnt",
        "Expect an IoU of 0 there, or choose a label space that groups them.",
    ),
    "grey-frame": ("Frames without colour", "Look whether colour was lost on the way."),
    "frame-depth-cut": (
        "Frames of 16 bits a channel",
        "Convert them: the lower 8 bits are cut off.",
    ),
    "alpha-frame": (
        "Frames with an alpha channel",
        "It is dropped; see that the colours are as meant.",
    ),
    "frame-mode": (
        "Frames in another colour model",
        "Convert them to RGB, and compare the colours.",
    ),
    "split-unusable": ("Splits that cannot be used", "Fix `splits`, or the list that it names."),
    "listed-absent": ("Listed frames that are not here", "Unpack the rest, or go on with a part."),
    "few-frames": ("Very few frames", "Check `root`, `split` and `limit`."),
    "shared-unscored": (
        "Frames that are also in another part",
        "See whether the two are meant to overlap.",
    ),
}
_NOTE: Table = {
    "sizes-vary": ("Frames of several sizes", "Nothing, where `width` brings them to one."),
    "near-duplicates": (
        "Nearly the same picture twice",
        "Usual in video, for example before a red light; no frame is left out for it.",
    ),
    "upscaled": ("Frames narrower than the working width", "Lower `width`, or accept their blur."),
    "names-unused": ("Named values that never occur", "Nothing, if the names fit the data set."),
    "class-absent": ("Classes that never occur", "Nothing of them is learnt from these frames."),
}


_QUARANTINED = {
    "empty-file",
    "unreadable",
    "no-label",
    "two-labels",
    "size-differs",
    "label-colours",
    "label-ids",
    "label-channel",
    "label-depth",
    "palette-differs",
    "label-jpeg",
    "resampled-label",
    "blank-frame",
    "duplicates-disagree",
    "copied-label",
    "shared-frames",
    "frame-depth",
    "rotated-frame",
    "small-frame",
    "mask-frames",
    "duplicate-frames",
    "ignored-label",
}
"""Kinds for which `check --quarantine` leaves the frames out."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding: a row of the tables above."""

    severity: Severity
    title: str
    advice: str
    quarantines: bool


KINDS: dict[str, Kind] = {
    kind: Kind(severity, title, advice, kind in _QUARANTINED)
    for severity, table in zip(SEVERITIES, (_MUST_FIX, _LOOK, _NOTE), strict=True)
    for kind, (title, advice) in table.items()
}


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

    def as_json(self) -> dict[str, Any]:
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
    known = KINDS[kind]
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
        quarantines=KINDS[kind].quarantines and share is not None and share <= MOST_FRAMES,
        frames=tuple(frames),
        examples=tuple(examples[:EXAMPLES]),
    )


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The most severe first, then as in `KINDS`."""
    kinds = list(KINDS)
    return tuple(
        sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.kind)))
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
