"""What a report says, as typed values: the content of `report.json`. No metric is computed here."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.files import read_record
from pipeline.scoring.bootstrap import Interval
from pipeline.scoring.evaluation import Flat, Setting
from pipeline.scoring.metrics import Score

Names = dict[str, Score]
"""Class or category -> value."""


class Value(BaseModel):
    """A value that is never changed."""

    model_config = ConfigDict(frozen=True)


class Spread(Value):
    """A metric of an arm over its seeds."""

    mean: Score
    std: float | None = None
    seeds: dict[str, Score] = {}
    interval: Interval | None = None
    """Ends of the 95% interval over the test frames."""


class Difference(Value):
    """How far one arm is above another on the same frames."""

    difference: float
    interval: Interval | None
    better: float | None
    """The share of the resamplings in which it is better."""


class Comparison(Flat):
    """How far an arm is above another in each metric, and in each class."""

    scores: dict[str, Difference | None]
    breakdowns: dict[str, dict[str, Difference | None]]


class Recipe(Value):
    """How the network of an arm was trained."""

    train: dict[str, float]
    """Kind of frames -> its share of the draws."""
    frames: dict[str, int] = {}
    """Kind of frames -> how many of them, where that is not all."""
    start: str | None
    """An arm, or the name of a file."""
    self_training: bool = False
    settings: dict[str, str] = {}
    """Those in which the arms are not alike."""


class Summary(Flat):
    """The content of a `report.json`: equal for equal runs, wherever and whenever they ran."""

    name: str
    label_space: str
    dataset: str
    split: str | None
    images: int
    protocol: dict[str, Setting]
    recipes: dict[str, Recipe]
    arms: dict[str, dict[str, Spread]]
    """Arm -> metric -> its values."""
    gap_closed: dict[str, float | None]
    """Metric -> the part of the gap that `adapted` closes."""
    gap_closed_by_arm: dict[str, dict[str, float | None]]
    gap_closed_intervals: dict[str, dict[str, Interval | None]]
    comparisons: dict[str, dict[str, Comparison]]
    """Arm -> the arm that it is compared with -> how far it is above it."""
    resamplings: int | None
    absent_classes: list[str]
    breakdowns: dict[str, dict[str, Names] | None]
    """Key in `BREAKDOWNS` -> arm -> class or category -> mean; None where it is not known."""
    scores: dict[str, dict[str, Spread] | None]
    """Means of breakdowns that are not among the metrics of `arms`: key -> arm -> values."""
    void_predictions: dict[str, int]

    @property
    def classes(self) -> list[str]:
        """The classes, in order."""
        (first, *_) = (values for values in self.breakdowns.values() if values)
        return list(next(iter(first.values())))

    @property
    def scored_on(self) -> str:
        """The name of the test set, with its split."""
        return f"{self.dataset} ({self.split})" if self.split else self.dataset

    @property
    def settings_by_arm(self) -> dict[str, dict[str, str]]:
        """Setting -> arm -> value, for those in which the arms' recipes are not alike."""
        keys = next(iter(self.recipes.values())).settings
        return {
            key: {arm: recipe.settings[key] for arm, recipe in self.recipes.items()} for key in keys
        }

    def mean(self, metric: str, arm: str) -> Spread:
        """A metric of an arm, from wherever it stands."""
        if metric in self.arms[arm]:
            return self.arms[arm][metric]
        means = self.scores[metric]
        assert means is not None, metric
        return means[arm]

    def as_json(self) -> dict[str, object]:
        """The content of the file."""
        return self.model_dump(mode="json")


class Headline(BaseModel):
    """What commands show of a `report.json`, whichever version wrote it."""

    arms: dict[str, dict[str, Spread]]
    gap_closed_by_arm: dict[str, dict[str, float | None]] = {}


def read_headline(path: Path) -> Headline:
    """The scores in a `report.json`; `UserError` when it is damaged."""
    return read_record(path, Headline, f"Write it anew: `sim2real report {path.parent.parent}`.")
