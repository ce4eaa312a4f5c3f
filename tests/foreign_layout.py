"""Rewrites a data set of GTA5's layout as a simulator's of its own: other folders, other ids.

    python -m tests.foreign_layout SOURCE TARGET [--frames N] [--table carla_new]

The result has `TOWN/rgb/FRAME.png` and `TOWN/semantic/FRAME.png`; the class is in the red channel
of the label, in the numbers of a built-in table. `TOWN/depth/` holds what labels are not.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.datasets import DatasetSpec, list_samples, spec_fields
from pipeline.images import read_raw, read_rgb
from pipeline.labels import CITYSCAPES_IDS
from pipeline.schema import parse

TOWNS = ("Town01", "Town03", "Town10HD")
# What a table does not name goes to something that it does.
_NEXT_BEST = {
    "car": "any vehicle",
    "truck": "any vehicle",
    "bus": "any vehicle",
    "train": "any vehicle",
    "motorcycle": "any vehicle",
    "bicycle": "any vehicle",
    "rider": "person",
}


def table_of(name: str) -> dict[str, int]:
    """Name -> raw value of a built-in data set; the first value where several have the name."""
    values = parse(DatasetSpec, {**spec_fields(name, Path()), "root": "."}, name).values
    return {label: int(raw) for raw, label in reversed(list(values.items()))}


def translation(name: str) -> np.ndarray:
    """(256,) uint8: Cityscapes label id -> raw value of a built-in data set."""
    table = table_of(name)
    result = np.full(256, table["unlabeled"], np.uint8)
    for raw, label in CITYSCAPES_IDS.items():
        result[raw] = table.get(label, table.get(_NEXT_BEST.get(label, ""), table["unlabeled"]))
    return result


def write_foreign(
    source: Path,
    target: Path,
    *,
    frames: int = 30,
    table: str = "carla_new",
    towns: Sequence[str] = TOWNS,
) -> int:
    """Write evenly spaced frames of `source` (GTA5's layout) to `target`; returns how many."""
    fields = {**spec_fields("gta5", source), "root": source, "limit": frames}
    samples = list_samples(parse(DatasetSpec, fields, "gta5"), labelled=True)
    tags = translation(table)
    for i, sample in enumerate(samples):
        assert sample.label is not None
        town = target / towns[i % len(towns)]
        for kind in ("rgb", "semantic", "depth"):
            (town / kind).mkdir(parents=True, exist_ok=True)
        name = f"{i // len(towns):06d}.png"
        Image.fromarray(read_rgb(sample.image)).save(town / "rgb" / name)
        ids = read_raw(sample.label)
        label = np.zeros((*ids.shape, 3), np.uint8)
        label[:, :, 0] = tags[ids]
        Image.fromarray(label).save(town / "semantic" / name)
        ramp = np.linspace(65535, 600, ids.shape[0])[:, None] + 3.0 * ids
        Image.fromarray(np.clip(ramp, 0, 65535).astype(np.uint16)).save(town / "depth" / name)
    return len(samples)


def main() -> None:
    """Convert from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--table", default="carla_new")
    given = parser.parse_args()
    count = write_foreign(given.source, given.target, frames=given.frames, table=given.table)
    print(f"{count} frames in {given.target}")


if __name__ == "__main__":
    main()
