"""The counts of frames, kept in files while an evaluation lasts, so that a restart goes on."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.files import explain_damage, open_regular, remove_tree, replacing
from pipeline.scoring.metrics import Counts
from segmentation.scores import FrameCounts

FOLDER = "counts"
"""Where the files are, below the folder of the scores."""
FRAMES, SECONDS = 64, 30.0
"""A file is written after so many frames or so much time, whatever comes first."""


class Tally:
    """What was counted on the first frames of a test set."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Read what an interrupted evaluation left in `folder`.

        Args:
            names: of all frames that are scored, in order.

        Raises:
            UserError: a file is damaged, or counts other frames.
        """
        self.folder = folder / FOLDER
        self.names = list(names)
        self.frames: list[FrameCounts] = []
        self._pending: list[tuple[Tensor, Counts | None]] = []
        self._last = time.monotonic()
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            way_out = f"Remove {self.folder}: its frames are then scored again."
            with explain_damage(path, way_out):
                self._read(path)

    def _read(self, path: Path) -> None:
        start = int(path.stem)
        with open_regular(path) as file, np.load(file) as arrays:
            tables, names = arrays["tables"], arrays["names"].tolist()
            hits: list[Counts | None] = [None] * len(names)
            if "hits" in arrays:
                hits = [*np.split(arrays["hits"], np.cumsum(arrays["instances"])[:-1])]
        if start > len(self.frames) or names != self.names[start : start + len(names)]:
            raise ValueError("it counts other frames")
        # After a picture was lost, files overlap; what they have in common is equal.
        self.frames[start:] = [FrameCounts(*each) for each in zip(tables, hits, strict=True)]

    def add(self, table: Tensor, hits: Counts | None) -> None:
        """Add the counts of the next frame, as `FrameCounts` has them; `table` on any device."""
        self._pending.append((table, hits))
        everything = len(self.frames) + len(self._pending) == len(self.names)
        enough = len(self._pending) >= FRAMES or time.monotonic() - self._last > SECONDS
        if everything or enough:
            self._keep()

    def _keep(self) -> None:
        # The one moment at which a GPU's counts are waited for.
        tables = torch.stack([table for table, _ in self._pending]).cpu().numpy()
        hits = [found for _, found in self._pending if found is not None]
        start = len(self.frames)
        names = self.names[start : start + len(tables)]
        of_instances: dict[str, Counts] = {}
        if hits:
            lengths = np.array([len(each) for each in hits])
            of_instances = {"hits": np.concatenate(hits), "instances": lengths}
        with replacing(self.folder / f"{start:08}.npz") as part:
            np.savez_compressed(
                part, allow_pickle=False, tables=tables, names=names, **of_instances
            )
        self.frames += [
            FrameCounts(table, found)
            for table, (_, found) in zip(tables, self._pending, strict=True)
        ]
        self._pending, self._last = [], time.monotonic()

    def remove(self) -> None:
        """Remove the files: the scores are written."""
        remove_tree(self.folder)
