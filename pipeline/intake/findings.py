"""What the data doctor can find, how grave it is and what to do; the report of one data set."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.csv_files import write_table
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import read_quarantine
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.files import sweep
from pipeline.intake.common import Files, printable

Severity = Literal["must fix", "look", "note"]
"""`must fix` stops or spoils a training; `look` may be meant; `note` is a fact worth knowing."""
SEVERITIES: tuple[Severity, ...] = ("must fix", "look", "note")


EXAMPLES = 6
"""Frames shown with a finding."""
MOST_FRAMES = 0.5
"""A fault of a greater share of the frames is one of the spec or of the whole set."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault: how grave, what it is called, what to do, whether frames are left out."""

    severity: Severity
    title: str
    advice: str
    quarantines: bool = False


KINDS: dict[str, Kind] = {
    "empty-file": Kind(
        "must fix", "Files without content", "Copy them again, or quarantine the frames.", True
    ),
    "unreadable": Kind(
        "must fix",
        "Files that cannot be decoded",
        "Copy them again from the original, or quarantine the frames.",
        True,
    ),
    "no-label": Kind(
        "must fix", "Images without a label", "Add the labels, or quarantine the frames.", True
    ),
    "two-labels": Kind(
        "must fix",
        "Frames with two label files",
        "Remove one, or give the `labels` pattern a file name ending.",
        True,
    ),
    "size-differs": Kind(
        "must fix",
        "Label of another size than its image",
        "Find out which file belongs to another frame; quarantine what cannot be mended.",
        True,
    ),
    "label-colours": Kind(
        "must fix",
        "Labels are colour images, and the spec says ids",
        "Set `encoding` (and `values`) to what the labels hold.",
        True,
    ),
    "label-ids": Kind(
        "must fix",
        "Labels hold one value a pixel, and the spec says colours or channels",
        "Set `encoding: ids` and name the ids in `values`.",
        True,
    ),
    "label-channel": Kind(
        "must fix",
        "The channel that is read says nothing",
        "Set `channel` to the one that varies (0 is red).",
        True,
    ),
    "label-depth": Kind(
        "must fix",
        "Labels of another depth than their ids",
        "Use the files that hold plain ids, or convert these to 8 or 16 bits.",
        True,
    ),
    "palette-differs": Kind(
        "must fix",
        "Palettes that contradict the ids",
        "A program renumbered the indices: read the colours (`encoding: rgb`, and colours in "
        "`values`), or quarantine the frames. If the indices are right, save them as grey values.",
        True,
    ),
    "label-jpeg": Kind(
        "must fix",
        "Labels stored as JPEG",
        "Get the lossless originals: JPEG mixes ids at every border.",
        True,
    ),
    "resampled-label": Kind(
        "must fix",
        "Labels that were resized smoothly or drawn antialiased",
        "Get the originals, and resize labels with nearest neighbour only.",
        True,
    ),
    "train-ids": Kind(
        "must fix",
        "Labels look like trainIds, and the spec names ids",
        "Use the `labelIds` files, or name 0..18 in `values` in the order of the trainIds.",
    ),
    "mirrored-labels": Kind(
        "must fix",
        "Labels look mirrored or upside down",
        "Flip the labels, or the images.",
    ),
    "blank-frame": Kind(
        "must fix", "Blank frames", "Render them again, or quarantine the frames.", True
    ),
    "duplicates-disagree": Kind(
        "must fix",
        "One picture with different labels",
        "Find out which label is right; quarantine the other frame.",
        True,
    ),
    "copied-label": Kind(
        "must fix",
        "Labels copied from other frames",
        "Get the right ones, or quarantine the frames.",
        True,
    ),
    "shared-label": Kind(
        "look",
        "One label for different pictures",
        "Meant where one view is shown in several weathers; else a file was copied over others.",
    ),
    "shared-frames": Kind(
        "must fix",
        "Frames that are also among those scored on",
        "Quarantine them here: a score on frames that were trained on says nothing.",
        True,
    ),
    "frame-depth": Kind(
        "must fix", "Frames of more than 8 bits", "Convert them to 8 bits a channel.", True
    ),
    "rotated-frame": Kind(
        "must fix",
        "Frames to be turned by their EXIF data",
        "Turn the pixels as the labels are drawn (`mogrify -auto-orient` turns them upright), or "
        "remove the tag.",
        True,
    ),
    "small-frame": Kind(
        "must fix",
        "Frames smaller than what CycleGAN cuts out of them",
        "Lower `cyclegan.crop`, raise `width` of the data set, or quarantine the frames.",
        True,
    ),
    "mask-frames": Kind(
        "must fix",
        "Labels among the frames",
        "Give the `images` pattern a file name ending or a folder that labels do not have, or "
        "quarantine them.",
        True,
    ),
    "labels-apart": Kind(
        "look",
        "Labels do not follow the edges of their images",
        "Look at the frames: labels of other frames, shifted, or turned?",
    ),
    "unnamed-values": Kind(
        "look",
        "Label values without a name",
        "Name them in `values`; 'unlabeled' ignores their pixels.",
    ),
    "wrong-ending": Kind(
        "look",
        "Files whose ending is not their format",
        "Rename them: other programs go by the ending.",
    ),
    "duplicate-frames": Kind(
        "look", "The same picture twice", "Quarantine all but the first.", True
    ),
    "ignored-label": Kind(
        "look",
        "Labels without a pixel of any class",
        "Nothing is learnt from them: quarantine the frames, or look at `values`.",
        True,
    ),
    "constant-label": Kind(
        "look", "Labels of one value", "Look at these frames: the label may be a placeholder."
    ),
    "no-image": Kind(
        "look", "Labels without an image", "They are not used; add the images if they are missing."
    ),
    "same-drive": Kind(
        "look",
        "Drives that are in both parts",
        "Frames of one drive resemble each other; score on drives that no part trains on.",
    ),
    "class-only-scored": Kind(
        "look",
        "Classes that are scored and never learnt",
        "Expect an IoU of 0 there, or choose a label space that groups them.",
    ),
    "grey-frame": Kind(
        "look", "Frames without colour", "Look whether colour was lost on the way."
    ),
    "frame-depth-cut": Kind(
        "look", "Frames of 16 bits a channel", "Convert them: the lower 8 bits are cut off."
    ),
    "alpha-frame": Kind(
        "look", "Frames with an alpha channel", "It is dropped; see that the colours are as meant."
    ),
    "frame-mode": Kind(
        "look", "Frames in another colour model", "Convert them to RGB, and compare the colours."
    ),
    "split-unusable": Kind(
        "look", "Splits that cannot be used", "Mend `splits`, or the list that it names."
    ),
    "listed-absent": Kind(
        "look", "Listed frames that are not here", "Unpack the rest, or go on with a part."
    ),
    "few-frames": Kind("look", "Very few frames", "Check `root`, `split` and `limit`."),
    "shared-unscored": Kind(
        "look", "Frames that are also in another part", "See whether the two are meant to overlap."
    ),
    "sizes-vary": Kind(
        "note", "Frames of several sizes", "Nothing, where `width` brings them to one."
    ),
    "near-duplicates": Kind(
        "note",
        "Nearly the same picture twice",
        "Usual in video, for example before a red light; no frame is left out for it.",
    ),
    "upscaled": Kind(
        "note", "Frames narrower than the working width", "Lower `width`, or accept their blur."
    ),
    "names-unused": Kind(
        "note", "Named values that never occur", "Nothing, if the names fit the data set."
    ),
    "class-absent": Kind(
        "note", "Classes that never occur", "Nothing of them is learnt from these frames."
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A frame shown with a finding: its files, what was seen, and the image that it is like."""

    frame: str
    image: Path | None
    label: Path | None
    detail: str
    beside: Path | None = None


@dataclass(frozen=True)
class Finding:
    """One kind of fault of a data set.

    `count` and `share` are of frames, or for faults of the whole set, of what the title names;
    `share` is then None. With `quarantines`, `write_quarantine` leaves out the `frames`.
    """

    kind: str
    severity: Severity
    title: str
    detail: str
    advice: str
    count: int
    share: float | None
    quarantines: bool
    frames: tuple[str, ...]
    examples: tuple[Example, ...]


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
class FrameTable:
    """What is kept of each frame to compare it with others.

    `files` (N), `hashes` (N) of the image files, b"" where unreadable, and `signatures` (N, 256)
    uint8 grey thumbnails, with `signed` (N) bool: there is one.
    """

    files: tuple[Files, ...]
    hashes: tuple[bytes, ...]
    signatures: npt.NDArray[np.uint8]
    signed: npt.NDArray[np.bool_]


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
    table: FrameTable

    @property
    def must_fix(self) -> int:
        """How many findings must be mended before a training."""
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
        return {
            "name": self.spec.name,
            "split": self.spec.split,
            "label_space": self.space.name,
            "frames": self.frames,
            "labelled": self.labelled,
            "sizes": self.sizes,
            "image_bytes": self.image_bytes,
            "label_bytes": self.label_bytes,
            "decoded_bytes": self.decoded_bytes,
            "must_fix": self.must_fix,
            "class_pixels": self.class_pixels,
            "ignored_pixels": self.ignored_pixels,
            "values": [vars(value) for value in self.values],
            "findings": [
                vars(finding)
                | {"frames": list(finding.frames)}
                | {
                    "examples": [
                        {
                            "frame": example.frame,
                            "image": str(example.image) if example.image else None,
                            "label": str(example.label) if example.label else None,
                            "detail": example.detail,
                        }
                        for example in finding.examples
                    ]
                }
                for finding in self.findings
            ],
            "quarantined": self.quarantined(),
        }


def finding(kind: str, total: int, frames: list[str], examples: list[Example]) -> Finding:
    """A finding of frames; where most frames have it, it is none of single frames' fault."""
    known = KINDS[kind]
    share = len(frames) / total if total else None
    return Finding(
        kind=kind,
        severity=known.severity,
        title=known.title,
        detail="",
        advice=known.advice,
        count=len(frames),
        share=share,
        quarantines=known.quarantines and share is not None and share <= MOST_FRAMES,
        frames=tuple(frames),
        examples=tuple(examples),
    )


def fact(kind: str, count: int, detail: str) -> Finding:
    """A finding of the whole set."""
    known = KINDS[kind]
    return Finding(
        kind, known.severity, known.title, detail, known.advice, count, None, False, (), ()
    )


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
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
