"""What YAML cannot say: a simulator that writes labels as run lengths in text files.

Each line of `labels/N.rle` is one row of the picture: `value*length` separated by spaces.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.spec import DatasetSpec


def dataset() -> DatasetSpec:
    """The data set `hexsim`; a configuration says where it is (`root`)."""
    return DatasetSpec(
        name="hexsim",
        root=Path("/data/hexsim"),
        images="images/{frame}.png",
        labels="labels/{frame}.rle",
        decoder="hexsim:decode",
        values={"1": "road", "2": "sidewalk", "3": "building", "4": "sky", "5": "car"},
    )


def decode(path: Path) -> npt.NDArray[np.uint16]:
    """Raw values (H, W) of one label file."""
    rows = []
    for line in path.read_text().splitlines():
        runs = [run.split("*") for run in line.split()]
        values, lengths = zip(*runs, strict=True)
        rows.append(np.repeat(np.array(values, np.uint16), np.array(lengths, int)))
    return np.stack(rows)
