"""Whether labels still fit translated frames, as a frozen network of the source sees it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import GateConfig
from pipeline.csv_files import write_table
from pipeline.data.images import UInt8, grid, write_image, write_indices
from pipeline.data.labels import IGNORE, LabelSpace
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader, read_frame
from pipeline.data.spec import DatasetSpec
from pipeline.files import replacing
from pipeline.progress import progress
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.scoring.drift import (
    FRAMES,
    LABELS,
    QUARANTINE,
    SHEET,
    TABLE,
    WORST,
    Drift,
    agreements,
    losses,
)
from pipeline.scoring.metrics import Counts, Float, plain
from segmentation.contact_sheet import strip
from segmentation.predict import predict
from segmentation.tally import Tally
from segmentation.train import load_segmenter

SHOWN = 20
"""At most so many frames are on the contact sheet."""
Look = tuple[UInt8, UInt8, UInt8, UInt8, UInt8]
"""A source frame and its translation, (H, W, 3); its label and what is seen in both, (H, W)."""


def look_at_translation(
    config: GateConfig,
    space: LabelSpace,
    source: DatasetSpec,
    translated: DatasetSpec,
    checkpoint: Path,
    folder: Path,
    compute: ComputeConfig,
    *,
    stage: str,
    translation: str,
    arm: str,
) -> None:
    """Compare what a network sees in source frames and in their translations, at the working size.

    Goes on with the next frame where an earlier call was interrupted. Writes the files that
    `pipeline.scoring.drift` names into `folder`.

    Args:
        source: whose labels are read.
        translated: with a frame of equal name and size for each frame of `source`.
        checkpoint: of the frozen network.
        stage: where `folder` is below the run's.
        translation, arm: what they are called.

    Raises:
        UserError: no checkpoint, or a frame or label cannot be read.
    """
    network = load_segmenter(checkpoint, compute)
    samples = list_samples(source, labelled=True)
    names = [sample.name for sample in samples]
    translations = {sample.name: sample for sample in list_samples(translated, labelled=False)}
    labels = LabelReader(source, space)

    def look(number: int) -> Look:
        sample = samples[number]
        label = labels.read(sample)
        one, other = read_frame(source, sample), read_frame(translated, translations[sample.name])
        before, after = (predict(network, rgb, label.shape) for rgb in (one, other))
        return one, other, label, before, after

    tally = Tally(folder, names)
    done = len(tally.frames)
    with progress(folder, f"gate {translation}", len(names), done=done, unit="images") as advance:
        for number in range(done, len(names)):
            *_, label, before, after = look(number)
            if config.ignore_flipped:
                left = np.where(flipped(label, before, after), IGNORE, label).astype(np.uint8)
                write_indices(folder / LABELS / f"{names[number]}.png", left, space.palette)
            counted = count(label, before, after, len(space.classes))
            tally.add(torch.from_numpy(counted), None)
            advance(1)
    tables = np.stack([frame.table for frame in tally.frames])
    quarantined = _write_tables(config, space, names, tables, folder)
    _write_worst(config, space, names, tables, folder, look, stage, translation, arm)
    print(
        f"{stage}: {quarantined:,} of {len(names):,} frames quarantined",
        file=sys.stderr,
        flush=True,
    )
    tally.remove()


def flipped(label: UInt8, before: UInt8, after: UInt8) -> npt.NDArray[np.bool_]:
    """Where pixels are seen as their label says before, and not after: (H, W), as all three are."""
    return np.asarray((before == label) & (after != label))


def count(label: UInt8, before: UInt8, after: UInt8, classes: int) -> Counts:
    """(3, K, K) pixels of one frame: `before`, `after` and `flips` of a `Drift`.

    Args:
        label: (H, W) uint8 class indices, `IGNORE` where there is none.
        before: (H, W) uint8 class indices that are seen in the source frame.
        after: the same in its translation.
    """
    changed = np.where(flipped(label, before, after), label, IGNORE).astype(np.uint8)
    tables = []
    for truth, seen in ((label, before), (label, after), (changed, after)):
        matrix = ConfusionMatrix(classes)
        matrix.add(truth, seen)
        tables.append(matrix.counts)
    return np.stack(tables)


def _write_tables(
    config: GateConfig, space: LabelSpace, names: Sequence[str], tables: Counts, folder: Path
) -> int:
    """Write the tables of all frames, and which are quarantined; how many these are.

    Args:
        tables: (N, 3, K, K).
    """
    classes, lost = losses(tables)
    lost_class = [
        space.class_names[k] if part else "" for k, part in zip(classes, lost, strict=True)
    ]
    out = lost > config.threshold
    columns: dict[str, Sequence[object]] = {
        "name": names,
        "quarantined": out.astype(int).tolist(),
        "lost": lost.tolist(),
        "lost_class": lost_class,
    }
    found = agreements(tables)
    for k, name in enumerate(["", *(f"{name} " for name in space.class_names)]):
        columns |= {f"{name}{key}": values[:, k - 1].tolist() for key, values in found.items()}
    rows = zip(*columns.values(), strict=True)
    write_table(
        folder / TABLE, list(columns), [dict(zip(columns, row, strict=True)) for row in rows]
    )
    with replacing(folder / FRAMES) as part:
        np.savez_compressed(part, names=np.array(names), tables=tables)
    quarantined = [
        {"name": names[i], "reason": f"{lost[i]:.1%} of {lost_class[i]} has flipped"}
        for i in map(int, np.flatnonzero(out))
    ]
    write_table(folder / QUARANTINE, ["name", "reason"], quarantined)
    return len(quarantined)


def _write_worst(
    config: GateConfig,
    space: LabelSpace,
    names: Sequence[str],
    tables: Counts,
    folder: Path,
    look: Callable[[int], Look],
    stage: str,
    translation: str,
    arm: str,
) -> None:
    """Write `drift.json`, the pictures of the worst frames, and the contact sheet of these."""
    classes, lost = losses(tables)
    order = [int(i) for i in np.argsort(-lost, kind="stable") if lost[i] > 0]
    shown, strips = order[:SHOWN], []
    for place, i in enumerate(shown, start=1):
        one, other, *seen = look(i)
        label, instead = classes[i], int(tables[i, 2, classes[i]].argmax())
        caption = (
            f"{place}. {names[i]}: {lost[i]:.0%} of {space.class_names[label]} has flipped, most "
            f"to {space.class_names[instead]}"
        )
        strips.append(strip(one, other, flipped(*seen), caption))
        write_image(folder / WORST / f"{place:02}.png", strips[-1])
    if strips:
        write_image(folder / SHEET, grid([strips[i : i + 2] for i in range(0, len(strips), 2)]))
    by_frame, whole = agreements(tables), agreements(tables.sum(axis=0))

    def frame(i: int) -> dict[str, object]:
        picture = f"{stage}/{WORST}/{shown.index(i) + 1:02}.png" if i in shown else None
        of_class = {"lost": float(lost[i]), "lost_class": space.class_names[classes[i]]}
        return {"name": names[i], **of_class, **_agreement(by_frame, i, -1), "picture": picture}

    out = [i for i in order if lost[i] > config.threshold]
    kept = np.delete(tables, out, axis=0).sum(axis=(0, 2, 3))
    Drift.model_validate(
        {
            "translation": translation,
            "arm": arm,
            "frames": len(names),
            "threshold": config.threshold,
            "classes": space.class_names,
            **dict(zip(("before", "after", "flips"), tables.sum(axis=0).tolist(), strict=True)),
            "overall": _agreement(whole, -1),
            "by_class": {name: _agreement(whole, k) for k, name in enumerate(space.class_names)},
            "quarantined": [frame(i) for i in out],
            "worst": [frame(i) for i in shown],
            "sheet": f"{stage}/{SHEET}" if shown else None,
            "ignored": kept[2] / kept[0] if config.ignore_flipped and kept[0] else None,
        }
    ).write(folder)


def _agreement(found: Mapping[str, Counts | Float], *place: int) -> dict[str, object]:
    """The fields of an `Agreement` at a place of arrays as `agreements` gives them."""
    return {
        key: int(values[place]) if key == "pixels" else plain(values[place])
        for key, values in found.items()
    }
