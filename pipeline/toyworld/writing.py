"""The drawn world as data sets on disk, in the layouts of GTA5 and Cityscapes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.data.images import write_image, write_indices
from pipeline.data.labels import CITYSCAPES_IDS, load_label_space
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.toyworld.drawing import (
    RECORD,
    SIZE,
    TRAIN_CITIES,
    VAL_CITY,
    VERSION,
    render_scene,
)


def _frame_paths(stream: int, index: int) -> tuple[Path, Path]:
    """The picture's and the labels' paths below the world's root (stream 0 is the simulator)."""
    if stream == 0:
        name = f"{index + 1:05d}.png"
        return Path("toy-sim", "images", name), Path("toy-sim", "labels", name)
    # The two cities take turns, so that a frame's name does not depend on how many there are.
    city = VAL_CITY if stream == 2 else TRAIN_CITIES[index % len(TRAIN_CITIES)]
    sequence = index if stream == 2 else index // len(TRAIN_CITIES)
    split = "val" if stream == 2 else "train"
    stem = f"{city}_{sequence:06d}_000019"
    root = Path("toy-real")
    return (
        root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
        root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png",
    )


def _refuse_other_world(root: Path, record: Path, wanted: Mapping[str, object]) -> None:
    found = read_json(record)
    if not isinstance(found, dict):
        raise UserError(f"{record} is no toy world's record: remove {root}")
    differs = [
        f"{key} is {found.get(key)!r} there, {wanted.get(key)!r} asked for"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if differs:
        raise UserError(
            f"{root} holds another toy world ({'; '.join(differs)}): "
            "remove it, choose another directory, or ask for the same arguments"
        )


def write_toy_world(
    root: Path,
    *,
    sim_frames: int = 200,
    real_train_frames: int = 200,
    real_val_frames: int = 60,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> None:
    """Write ``root/toy-sim`` (GTA5's layout) and ``root/toy-real`` (Cityscapes' layout).

    Frame ``i`` depends on ``seed``, its set and ``i`` alone: a larger world starts with the
    smaller one's frames, and the same arguments give the same bytes. ``size`` is (width, height)
    in pixels. A complete world made with the same arguments is left as it is; an interrupted one
    is continued. Raises UserError when ``root`` holds another world.
    """
    counts = {
        "sim_frames": sim_frames,
        "real_train_frames": real_train_frames,
        "real_val_frames": real_val_frames,
    }
    wanted: dict[str, object] = {**counts, "size": list(size), "seed": seed, "version": VERSION}

    record = root / RECORD
    if record.exists():
        _refuse_other_world(root, record, wanted)
        return
    # An unfinished world carries its arguments too, so that two are never mixed.
    unfinished = root / f"{RECORD}.unfinished"
    if unfinished.exists():
        _refuse_other_world(root, unfinished, wanted)
    elif taken := [name for name in ("toy-sim", "toy-real") if (root / name).exists()]:
        raise UserError(f"{root} holds {' and '.join(taken)} but no {RECORD}: remove them first")
    else:
        write_json(unfinished, wanted)

    space = load_label_space("cityscapes19")
    palette = space.palette[[space.index_of(CITYSCAPES_IDS.get(i, "")) for i in range(256)]]
    for stream, count in enumerate(counts.values()):
        for index in range(count):
            picture_path, label_path = (root / path for path in _frame_paths(stream, index))
            if picture_path.exists() and label_path.exists():
                continue
            rng = np.random.default_rng([seed, stream, index])
            picture, ids = render_scene(rng, size, "real" if stream else "sim")
            write_indices(label_path, ids, None if stream else palette)
            write_image(picture_path, picture)
    os.replace(unfinished, record)
