"""Rewrites a data set of GTA5's layout as a simulator's of its own: other folders, other ids.

    python -m tests.foreign_layout SOURCE TARGET [--frames N] [--table carla_new]

The result has `TOWN/rgb/FRAME.png` and `TOWN/semantic/FRAME.png`; the class is in the red channel
of the label, in the numbers of a built-in table. `TOWN/depth/` holds what labels are not.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.images import read_raw, read_rgb
from pipeline.data.labels import CITYSCAPES_IDS
from pipeline.data.listing import list_samples
from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.schema import parse

TOWNS = ("Town01", "Town03", "Town10HD")
# What a table does not name goes to something that it does.
_ANY = ("vehicle", "any vehicle", "car")
_NEXT_BEST = {
    **dict.fromkeys(("car", "truck", "bus", "train", "motorcycle", "bicycle"), _ANY),
    "rider": ("bicyclist", "person"),
    "terrain": ("vegetation",),
    "wall": ("building",),
}


def table_of(name: str) -> dict[str, tuple[int, ...]]:
    """Name -> raw value of a built-in data set, (id,) or (R, G, B); the first of several."""
    values = parse(DatasetSpec, {**spec_fields(name, Path()), "root": "."}, name).values
    return {
        label: tuple(int(part) for part in raw.split(","))
        for raw, label in reversed(list(values.items()))
    }


def translation(name: str) -> npt.NDArray[np.uint8]:
    """Cityscapes label id -> raw value of a built-in data set: (256, 1) ids or (256, 3) colours."""
    table = table_of(name)
    void = table.get("unlabeled", (255,))
    result = np.tile(np.array(void, np.uint8), (256, 1))
    for raw, label in CITYSCAPES_IDS.items():
        result[raw] = next(
            (table[n] for n in (label, *_NEXT_BEST.get(label, ())) if n in table), void
        )
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
    tags = translation(table)[:, 0]
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
