"""What an evaluation found, as one value: the content of `evaluation.json` and `per_image.npz`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    computed_field,
    model_serializer,
    model_validator,
)

from pipeline.data.labels import LabelSpace
from pipeline.errors import UserError
from pipeline.files import explain_damage, open_regular, read_record, write_json
from pipeline.scoring.bootstrap import Interval
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.scoring.metrics import BREAKDOWNS, METRICS, Counts, Score, flat_scores

FILE, FRAMES_FILE = "evaluation.json", "per_image.npz"
Setting = str | int | float | bool | list[float] | None


@dataclass(frozen=True)
class Frames:
    """The counts of single frames."""

    names: list[str]
    counts: Counts
    """(N, K, K + 1): rows truth, columns prediction, the last one void."""


class Flat(BaseModel):
    """A value whose scores and breakdowns stand, in JSON, under their keys beside its fields."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: object) -> object:
        if not isinstance(data, dict) or "scores" in data:
            return data
        return data | {
            "scores": {key: data[key] for key in METRICS if key in data},
            "breakdowns": {key: data[key] for key in BREAKDOWNS if key in data},
        }

    @model_serializer(mode="wrap")
    def _spread_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        fields = handler(self)
        scores, breakdowns = fields.pop("scores"), fields.pop("breakdowns")
        return {**fields, **scores, **breakdowns}


class Evaluation(Flat):
    """The scores of a network, or of predictions in files, on a test set."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    protocol: dict[str, Setting]
    """How it was scored."""
    dataset: str
    split: str | None
    images: int
    arm: str | None = None
    seed: int | None
    pictures: dict[str, str]
    """Frame -> its prediction as a picture, below the folder of the scores."""
    classes: list[str]
    confusion: list[list[int]]
    """(K, K) pixels: rows truth, columns prediction."""
    void_predictions: list[int]
    """(K,) pixels predicted void."""
    scores: dict[str, Score]
    """Key in `METRICS` -> value."""
    breakdowns: dict[str, dict[str, Score]]
    """Key in `BREAKDOWNS` -> class or category -> value."""
    intervals: dict[str, Interval | None] = {}
    """Key -> ends of the 95% interval over the frames."""
    frames: Frames = Field(default=Frames([], np.zeros((0, 0, 0), np.int64)), exclude=True)
    """Of `per_image.npz`; they are not in `evaluation.json`."""

    @model_validator(mode="after")
    def _of_these_classes(self) -> Self:
        sides = {len(self.confusion), *map(len, self.confusion)}
        by_class = [
            values.keys() for key, values in self.breakdowns.items() if not BREAKDOWNS[key].about
        ]
        if sides != {len(self.classes)} or any(keys != set(self.classes) for keys in by_class):
            raise ValueError("counts and scores are not those of `classes`")
        if len(self.void_predictions) != len(self.classes):
            raise ValueError("void_predictions are not those of `classes`")
        if "label_space" not in self.protocol:
            raise ValueError("protocol has no label_space")
        return self

    @property
    def table(self) -> Counts:
        """(K, K + 1) counts, the last column void."""
        return ConfusionMatrix.from_counts(self.confusion, self.void_predictions).table

    @computed_field  # type: ignore[prop-decorator]
    @property
    def absent_classes(self) -> list[str]:
        """The classes without a pixel of the ground truth."""
        pixels = self.table.sum(axis=1)
        return [name for name, count in zip(self.classes, pixels, strict=True) if not count]

    @property
    def scored_on(self) -> str:
        """The name of the test set, with its split."""
        return f"{self.dataset} ({self.split})" if self.split else self.dataset

    def write(self, folder: Path) -> None:
        """Write `evaluation.json`."""
        write_json(folder / FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path, space: LabelSpace) -> Self:
        """From the files of a folder.

        Args:
            space: the classes, with those that are averaged: metrics that the version which wrote
                the files did not know are computed from its counts.

        Raises:
            UserError: a file is damaged or not there.
        """
        way_out = "Score the network anew with `sim2real run --force evaluation`."
        found = read_record(folder / FILE, cls, way_out)
        update: dict[str, object] = {}
        if found.classes == space.class_names:
            known = flat_scores(found.table, space)
            update["scores"] = {k: v for k, v in known.items() if k in METRICS} | found.scores
            update["breakdowns"] = {
                k: v for k, v in known.items() if k in BREAKDOWNS
            } | found.breakdowns
        path = folder / FRAMES_FILE
        if not path.is_file():
            raise UserError(f"No file {path}. {way_out}")
        with explain_damage(path, way_out), open_regular(path) as file, np.load(file) as arrays:
            frames = Frames(arrays["names"].tolist(), arrays["counts"])
            shape = len(frames.names), len(found.classes), len(found.classes) + 1
            if frames.counts.shape != shape or frames.counts.dtype.kind != "i":
                raise ValueError("it does not hold a count of each pair of classes for frames")
        update["frames"] = frames
        return found.model_copy(update=update)
