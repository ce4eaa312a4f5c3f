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
from pipeline.run.folder import cyclegan_folder, translated_folder
from pipeline.scoring.confusion import ConfusionMatrix
from reports.logs import entries
from reports.pictures import translated_files
from reports.settings import ordered_arms
from reports.summary import Content, Names, Training

LOOKED_AT = 12
"""Frames of source, translation and target whose contrast and entropy are measured."""
_LEVELS = 64
_KEPT = ("cycle_loss", "pair_loss", "contrastive_loss")
"""How the losses begin that fall as a translator learns; over the others its networks fight."""
_LEAST = 10
"""Entries of a log below which its course is not judged."""


def trainings(config: Config, run: Path) -> list[Training]:
    """How far each training of a run went, those that left a log: translators first."""
    found = []
    for name, settings in config.used_translations.items():
        log = list(entries(run / cyclegan_folder(name) / "log.jsonl"))
        if settings.trains and log:
            recipe = config.cyclegan_recipe(name)
            keys = [k for k in log[0] if k.startswith(_KEPT)]
            found.append(_training(name, recipe.seed, recipe.batch_size, log, keys, True))
    for arm in ordered_arms(config):
        for seed in config.seeds:
            log = list(entries(run / "segmentation" / arm / f"seed-{seed}" / "log.jsonl"))
            if log:
                batch = config.recipe(arm).batch_size
                found.append(_training(arm, seed, batch, log, ["loss"], False))
    return found


def _training(
    name: str,
    seed: int,
    batch: int,
    log: Sequence[dict[str, float]],
    keys: Sequence[str],
    translator: bool,
) -> Training:
    steps = int(log[-1].get("step", 0))
    sure = [entry["confident_fraction"] for entry in log if "confident_fraction" in entry]
    return Training(
        name=name,
        translator=translator,
        seed=seed,
        steps=steps,
        frames=steps * batch,
        falling=falling([sum(entry.get(key, 0.0) for key in keys) for entry in log]),
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


class _Overall(BaseModel):
    before: float | None
    after: float | None
    flipped: float | None = None


class _Gate(BaseModel):
    """What is read here of the `drift.json` of a gate, which has looked at every frame."""

    overall: _Overall


class _Counted(BaseModel):
    before: list[list[int]]
    after: list[list[int]]


class _Watched(BaseModel):
    """What is read here of the `drift.json` of a translator that a network has watched."""

    last: _Counted
    best: _Counted | None = None


def _agreement(config: Config, run: Path, name: str) -> Names | None:
    gate, watched = (run / f / "drift.json" for f in (f"gates/{name}", cyclegan_folder(name)))
    if gate.is_file():
        found = read_record(gate, _Gate, f"Look anew with `sim2real run --force gates/{name}`.")
        return found.overall.model_dump()
    if not watched.is_file():
        return None
    seen = read_record(watched, _Watched, f"Make it anew: `--force {cyclegan_folder(name)}`.")
    best = config.all_translations[name].checkpoint == "best"
    counted = seen.best if best and seen.best else seen.last
    before, after = (ConfusionMatrix.from_counts(c) for c in (counted.before, counted.after))
    return {"before": before.pixel_accuracy, "after": after.pixel_accuracy, "flipped": None}
