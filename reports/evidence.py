"""What logs and pictures of a run say of its trainings and translations."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median

import numpy as np
from pydantic import BaseModel

from pipeline.config.settings import Config
from pipeline.data.images import UInt8, read_rgb
from pipeline.data.listing import evenly, list_samples
from pipeline.data.reading import read_frame
from pipeline.errors import UserError
from pipeline.files import read_record
from pipeline.run.folder import cyclegan_folder, gate_folder, translated_folder
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.scoring.drift import FILE, Drift
from reports.logs import Log
from reports.pictures import translated_files
from reports.summary import Content, Names, Training

LOOKED_AT = 12
"""Frames of source, translation and target whose contrast and entropy are measured."""
_LEVELS = 64
_KEPT = ("cycle_loss", "pair_loss", "contrastive_loss")
"""How the losses begin that fall as a translator learns; over the others its networks fight."""
_LEAST = 10
"""Entries of a log below which its course is not judged."""


def training(config: Config, log: Log) -> Training:
    """How far a training of a run went."""
    recipe = config.cyclegan_recipe(log.name) if log.translator else config.recipe(log.name)
    steps = int(log.entries[-1]["step"])
    kept = _KEPT if log.translator else ("loss",)
    keys = [key for key in log.entries[0] if key.startswith(kept)]
    sure = [entry["confident_fraction"] for entry in log.entries if "confident_fraction" in entry]
    return Training(
        name=log.name,
        translator=log.translator,
        seed=log.seed,
        steps=steps,
        frames=steps * recipe.batch_size,
        falling=falling([sum(entry.get(key, 0.0) for key in keys) for entry in log.entries]),
        confident=round(max(sure), 4) if sure else None,
    )


def falling(losses: Sequence[float]) -> float | None:
    """The part by which the last fifth of a loss lies below the fifth before; None of too few."""
    fifth = len(losses) // 5
    if len(losses) < _LEAST:
        return None
    before, last = fmean(losses[-2 * fifth : -fifth]), fmean(losses[-fifth:])
    # Rounded: other devices add in another order.
    return round(1 - last / before, 3) if before > 0 and math.isfinite(last) else None


def contents(config: Config, run: Path) -> dict[str, Content]:
    """Translation -> what is left of its frames, where their pictures are still there."""
    found = {}
    for name in config.used_translations:
        with suppress(UserError):
            found[name] = _content(config, run, name)
    return found


def _content(config: Config, run: Path, name: str) -> Content:
    """Raises `UserError` where a picture or table is gone or damaged."""
    files = translated_files(run, translated_folder(name), LOOKED_AT)
    target = evenly(list_samples(config.target, labelled=False), LOOKED_AT)
    looks = {
        "source": [_look(read_rgb(source)) for _, source, _ in files],
        "translated": [_look(read_rgb(made)) for *_, made in files],
        "target": [_look(read_frame(config.target, sample)) for sample in target],
    }

    def middle(which: int) -> Names:
        return {
            kind: median(look[which] for look in found) if found else None
            for kind, found in looks.items()
        }

    return Content(
        frames=len(files),
        contrast=middle(0),
        entropy=middle(1),
        agreement=_agreement(config, run, name),
    )


def _look(rgb: UInt8) -> tuple[float, float]:
    """Contrast and entropy of (H, W, 3) uint8; see `Content`."""
    grey = rgb.mean(axis=2)
    counts = np.bincount((grey * _LEVELS / 256).astype(np.intp).ravel(), minlength=_LEVELS)
    shares = counts[counts > 0] / grey.size
    return float(grey.std()), float(-(shares * np.log2(shares)).sum()) + 0.0


class Counted(BaseModel):
    """What a frozen segmenter sees in the probe frames at one step; see `cyclegan.semantics`."""

    step: int
    classes: list[str]
    before: list[list[int]]
    after: list[list[int]]

    @property
    def matrices(self) -> tuple[ConfusionMatrix, ConfusionMatrix]:
        """Of the frames before and after translation."""
        return ConfusionMatrix.from_counts(self.before), ConfusionMatrix.from_counts(self.after)


class _Watched(BaseModel):
    """The content of the `drift.json` of a translator that a network has watched."""

    features: str
    last: Counted
    best: Counted | None = None


def watched(config: Config, run: Path, name: str) -> tuple[str, Counted] | None:
    """Which features a network compared, and what it saw of a translation at the step that is
    used; None where none watched."""
    stage = cyclegan_folder(name)
    path, anew = run / stage / "drift.json", f"Make it anew with `sim2real run --force {stage}`."
    if not path.is_file():
        return None
    found = read_record(path, _Watched, anew)
    best = config.all_translations[name].checkpoint == "best"
    return found.features, found.best if best and found.best else found.last


def _agreement(config: Config, run: Path, name: str) -> Names | None:
    if (run / gate_folder(name) / FILE).is_file():
        gate = Drift.read(run / gate_folder(name)).overall
        return {"before": gate.before, "after": gate.after, "flipped": gate.flipped}
    if (seen := watched(config, run, name)) is None:
        return None
    before, after = seen[1].matrices
    return {"before": before.pixel_accuracy, "after": after.pixel_accuracy, "flipped": None}
