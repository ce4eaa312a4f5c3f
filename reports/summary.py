"""What a report says, as typed values: the content of `report.json`. No metric is computed here."""

# ruff: noqa: RUF012 - pydantic copies defaults, which ruff does not see through another module

from pathlib import Path
from typing import Literal

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


class Training(Value):
    """How far a training went, by its log."""

    name: str
    """Of the arm, or of the translation whose translator it is."""
    translator: bool
    seed: int
    steps: int
    frames: int
    """Frames that it was shown; one that came twice counts twice."""
    falling: float | None
    """The part of its loss by which the last fifth of its log lies below the fifth before; None
    where the log has fewer than ten entries."""
    confident: float | None = None
    """The largest share of pixels in its log of which the teacher of a self-training was sure."""


class Content(Value):
    """What is left of frames in their translations, on a few that are evenly spaced."""

    frames: int
    contrast: Names
    """`source`, `translated`, `target` -> standard deviation of grey levels (0 to 255), median."""
    entropy: Names
    """The same -> Shannon entropy of 64 grey levels in bits (0 to 6), median."""
    agreement: Names | None = None
    """`before` and `after` translation, the share of pixels in which a frozen network that learnt
    from the source agrees with the labels; `flipped`, the part of those in which it agrees before
    that are lost, where a gate has counted it. None where no network looked."""


class Confusion(Value):
    """Pixels of a class that are taken for another one, and what that costs."""

    truth: str
    seen: str
    """`void` where the network named no class."""
    share: float
    """Of the pixels of `truth`."""
    cost: float
    """What mean IoU would gain if they were right."""
    text: str


class SourcePoint(Value):
    """An arm by its number of synthetic frames."""

    arm: str
    frames: int
    kind: str
    """What else it learns from, or which frames these are; points of a kind make a curve."""


class Data(Value):
    """What the data sets hold, to say whether more synthetic data would help."""

    shares: dict[str, Names | None]
    """`source`, `target`, `test` -> class -> its share of the pixels that have a class. Of source
    and target by a sample of labels; None where they cannot or may not be read."""
    test_frames: dict[str, int]
    """Class -> test frames that show it."""
    source_points: list[SourcePoint] = []
    """Arms that differ in the number of synthetic frames alone; none where a run has no such."""
    sentences: list[str] = []
    """Should one buy more synthetic data?"""


class Published(Value):
    """A result that others have published of the same data sets and protocol."""

    method: str
    network: str
    metric: str
    source_only: float
    adapted: float
    oracle: float
    source: str
    """The paper, and where the numbers were seen."""


class Finding(Value):
    """A rule of `reports.honesty` that holds for a report."""

    rule: str
    severity: Literal["void", "doubt", "caution"]
    """`void`: a share of the gap is not given. `doubt`: the headline is not to be relied on.
    `caution`: it holds with this restriction."""
    words: str
    """As a part of the headline."""
    text: str
    """As a sentence of its own."""
    advice: str
    """What to do about it; RUN stands for the folder of the run."""
    metrics: list[str] = []
    """Of which no share of the gap is given."""
    arms: list[str] = []


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
    resamplings: int
    absent_classes: list[str]
    breakdowns: dict[str, dict[str, Names] | None]
    """Key in `BREAKDOWNS` -> arm -> class or category -> mean; None where it is not known."""
    scores: dict[str, dict[str, Spread] | None]
    """Means of breakdowns that are not among the metrics of `arms`: key -> arm -> values."""
    void_predictions: dict[str, int]
    class_scores: dict[str, dict[str, dict[str, Spread]]] = {}
    """Key of a column of the table of classes -> arm -> class -> its values."""
    classes_worse: dict[str, list[str]] = {}
    """Arm -> classes whose IoU is below that of `source_only` beyond chance."""
    lost_iou: dict[str, Names] = {}
    """Arm -> class -> its part of what mean IoU lacks to 1."""
    confusion: dict[str, list[list[int]]] = {}
    """Arm -> (K, K + 1) pixels of all seeds: rows truth, columns prediction, the last one void."""
    confusions: dict[str, list[Confusion]] = {}
    """Arm -> its costliest confusions, the first costs most."""
    floors: dict[str, Score] = {}
    """Metric -> its value where the test set's largest class is predicted everywhere."""
    resemblance: float | None = None
    """How far the scores of neighbouring test frames go together, a correlation: of the
    differences of two arms, or of one arm's scores. None for fewer than ten frames."""
    data: Data = Data(shares={}, test_frames={})
    trainings: list[Training] = []
    translations: dict[str, Content] = {}
    """Translation -> what is left of its frames; without those whose pictures are gone."""
    missing: list[str] = []
    """What was not measured, in sentences."""
    published: list[Published] = []
    warnings: list[Finding] = []
    """What `reports.honesty` finds, the gravest first."""
    no_share: dict[str, str] = {}
    """Metric -> why no share of its gap is given."""
    headline: str = ""
    sentences: list[str] = []
    """What follows the headline."""
    advice: str = ""
    """The next sensible command; RUN stands for the folder of the run."""

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

    def score(self, arm: str, metric: str) -> Score:
        """A metric of an arm, mean over its seeds; None where there is no such arm."""
        return self.arms[arm][metric].mean if arm in self.arms else None

    def mean(self, metric: str, arm: str) -> Spread:
        """A metric of an arm, from wherever it stands."""
        if metric in self.arms[arm]:
            return self.arms[arm][metric]
        means = self.scores[metric]
        assert means is not None, metric
        return means[arm]


class Headline(BaseModel):
    """What commands show of a `report.json`, whichever version wrote it."""

    arms: dict[str, dict[str, Spread]]
    gap_closed_by_arm: dict[str, dict[str, float | None]] = {}
    no_share: dict[str, str] = {}
    headline: str = ""
    warnings: list[Finding] = []
    advice: str = ""
    class_iou: dict[str, Names] = {}


def read_headline(path: Path) -> Headline:
    """The scores in a `report.json`; `UserError` when it is damaged."""
    return read_record(path, Headline, f"Write it anew: `sim2real report {path.parent.parent}`.")
