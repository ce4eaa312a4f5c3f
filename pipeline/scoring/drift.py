"""Whether labels still fit translated frames: what a frozen segmenter sees in them, as files.

The segmenter was trained on the source. It reads each source frame and its translation, and both
are compared with the label. A pixel has flipped where it was right before and is wrong after.
Pixels are compared in pairs, so what the segmenter never could read says nothing of a translation,
and what it reads better hides no flip.

What a frame has lost is the flipped part of the class of which most has flipped. So a class that
has become another one is seen whatever its area; of all pixels it may be a small part, less than
flips at borders and by a paler light. Classes of less than `LEAST` of the pixels that were right do
not count, because a part of a few pixels says little.

A stage `gates/NAME` of a run holds:

- `drift.json`: a `Drift`.
- `drift.csv`: a row a frame: `name`, `quarantined` (0 or 1), `lost`, `lost_class`, and `pixels`,
  `before`, `after`, `flipped` of an `Agreement`, of all pixels and of each class (`road before`).
- `drift.npz`: `names` (N,) and `tables` (N, 3, K, K): of each frame what `Drift` has of all.
- `quarantine.csv`: the frames to leave out, as a data set's `quarantine`.
- `worst.png` and `worst/*.png`: the contact sheet, and its rows.
- `labels/NAME.png`, where flipped pixels are ignored: (H, W) class indices, `IGNORE` where flipped.
"""

from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel

from pipeline.data.labels import LabelSpace
from pipeline.data.spec import DatasetSpec, pattern_fields
from pipeline.errors import UserError
from pipeline.files import read_record, write_json
from pipeline.scoring.metrics import Counts, Float, Score, ratio

FILE, TABLE, FRAMES = "drift.json", "drift.csv", "drift.npz"
QUARANTINE, LABELS = "quarantine.csv", "labels"
SHEET, WORST = "worst.png", "worst"
LEAST = 0.05
"""Of the pixels that were right in a source frame: the part that a class must have to count."""


class Agreement(BaseModel):
    """How the classes that a segmenter sees agree with labels; fractions in [0, 1].

    None where there is no pixel to count.
    """

    pixels: int
    """With a label."""
    before: Score
    """The part of these in which it agrees on the source frame."""
    after: Score
    """The part in which it agrees on the translation."""
    flipped: Score
    """Of the pixels in which it agrees before, the part in which it does not after."""


class FrameAgreement(Agreement):
    """The same of one frame."""

    name: str
    lost: float
    """The flipped part of the class of which most has flipped; 0 where no class counts."""
    lost_class: str | None
    """That class."""
    picture: str | None = None
    """A strip of three, below the run's folder: source frame, translation, and this with flipped
    pixels marked. None: only the worst frames have one."""


class Drift(BaseModel):
    """The content of a `drift.json`: all frames of a translation, before any is left out."""

    translation: str
    arm: str
    """The arm whose network, of the first seed, is the segmenter."""
    frames: int
    threshold: float
    """Frames are quarantined whose `lost` is larger."""
    classes: list[str]
    """The K classes of the tables, in order."""
    before: list[list[int]]
    """Confusion matrix of the source frames, (K, K) pixels: rows labels, columns what is seen."""
    after: list[list[int]]
    """The same of their translations."""
    flips: list[list[int]]
    """Flipped pixels, (K, K): rows labels, columns what is seen in the translation. Its diagonal
    is 0."""
    overall: Agreement
    by_class: dict[str, Agreement]
    """Class -> agreement in the pixels that have its label."""
    quarantined: list[FrameAgreement]
    """The frames that are left out of training, worst first."""
    worst: list[FrameAgreement]
    """At most 20 frames with the largest `lost` above 0, worst first, quarantined or not."""
    sheet: str | None
    """The contact sheet of `worst`, below the run's folder; None where there is none."""
    ignored: Score
    """The part of the labelled pixels that are ignored in training because they flipped, of the
    frames that are left; None where the gate does not ignore pixels."""

    def write(self, folder: Path) -> None:
        """Write `drift.json`."""
        write_json(folder / FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From the file of a folder `gates/NAME`; `UserError` when it is damaged."""
        stage = "/".join(folder.parts[-2:])
        way_out = f"Look at the frames anew with `sim2real run --force {stage}`."
        return read_record(folder / FILE, cls, way_out)


def agreements(tables: Counts) -> dict[str, Counts | Float]:
    """Field of `Agreement` -> its values in each class and, last, in all pixels: (..., K + 1).

    Args:
        tables: (..., 3, K, K) of frames or of all: `before`, `after` and `flips` of a `Drift`.
    """

    def and_all(classes: Counts) -> Counts:
        return np.concatenate([classes, classes.sum(axis=-1, keepdims=True)], axis=-1)

    rows = and_all(tables.sum(axis=-1))
    right = and_all(np.diagonal(tables, axis1=-2, axis2=-1))
    pixels, flipped = rows[..., 0, :], rows[..., 2, :]
    before, after = right[..., 0, :], right[..., 1, :]
    return {
        "pixels": pixels,
        "before": ratio(before, pixels),
        "after": ratio(after, pixels),
        "flipped": ratio(flipped, before),
    }


def losses(tables: Counts) -> tuple[Counts, Float]:
    """The class of which most has flipped in each frame, and what part of it has: (N,) both.

    Args:
        tables: (N, 3, K, K), as of `agreements`.
    """
    right = np.diagonal(tables[:, 0], axis1=-2, axis2=-1)
    large = right >= LEAST * np.maximum(right.sum(axis=1, keepdims=True), 1)
    parts = ratio(tables[:, 2].sum(axis=-1) * large, right)
    return np.nan_to_num(parts).argmax(axis=1), np.nan_to_num(parts).max(axis=1)


def gated_spec(spec: DatasetSpec, folder: Path, relabelled: LabelSpace | None) -> DatasetSpec:
    """The spec of a translation without the frames that a gate has quarantined.

    Args:
        spec: of the translation.
        folder: that of the gate.
        relabelled: the classes of the gate's labels, where it ignores flipped pixels.

    Raises:
        UserError: no frame is left.
    """
    found = Drift.read(folder)
    if len(found.quarantined) == found.frames:
        stage = f"gates/{folder.name}"
        raise UserError(
            f"{stage}: all {found.frames:,} frames are quarantined, and none is left to train on: "
            f"of a class of each, more than {found.threshold:.0%} has flipped for the network of "
            f"arm {found.arm}. Look at {folder / SHEET}. Then mend the translation; or raise the "
            f"gate's threshold, take another arm, or leave the gate out, with --force {stage}."
        )
    changed: dict[str, object] = {"quarantine": folder / QUARANTINE}
    if relabelled:
        fields = "/".join(f"{{{field}}}" for field in pattern_fields(spec.images))
        changed |= {
            "label_root": folder,
            "labels": f"{LABELS}/{fields}.png",
            "encoding": "ids",
            "divide": 1,
            "label_scale": 1.0,
            "decoder": None,
            "values": {str(i): c.names[0] for i, c in enumerate(relabelled.classes)},
            "strict": False,
        }
    return spec.model_copy(update=changed)
