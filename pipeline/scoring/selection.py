"""Criteria by which a network can be chosen where the target has no labels, and how far to trust
them where it has."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from pydantic import BaseModel

from pipeline.data.images import read_raw
from pipeline.files import explain_damage, read_record, write_json
from pipeline.scoring.metrics import Float, Score

FILE, PICTURES = "criteria.json", "predictions"
LEAST = 4
"""Networks without which no rank correlation is given."""
_ANEW = "Look at the networks anew with `sim2real run --force selection`."


@dataclass(frozen=True)
class Criterion:
    """A number of a network that no label of the target is needed for."""

    key: str
    """Its name in `criteria.json` and `selection.csv`."""
    title: str
    about: str
    """What it is, with its paper."""
    unit: str = ""
    """`%`: a fraction in [0, 1] that is shown in percent."""
    higher_is_better: bool = True


CRITERIA = {
    criterion.key: criterion
    for criterion in (
        Criterion(
            "entropy",
            "entropy",
            "mean entropy of the pixels' class probabilities, 1 for uniform ones "
            "(Morerio et al., ICLR 2018)",
            higher_is_better=False,
        ),
        Criterion(
            "mutual_information",
            "mutual information",
            "entropy of the mean class probabilities less the mean entropy (Shi and Sha, ICML "
            "2012)",
        ),
        Criterion(
            "mirror_agreement",
            "agreement with mirrored frames",
            "share of the pixels that keep their class when the frame is mirrored",
            "%",
        ),
        Criterion(
            "seed_agreement",
            "agreement of seeds",
            "share of the pixels on which the arm's networks of two seeds agree, mean over the "
            "other seeds (Jiang et al., ICLR 2022)",
            "%",
        ),
        Criterion(
            "base_agreement",
            "agreement with the arm built on",
            "the same with the network of the same seed of the arm that gave the pseudo-labels, "
            "the start or the base",
            "%",
        ),
        Criterion(
            "feature_distance",
            "feature distance",
            "cosine distance of the encoder's mean features of a class, by prediction on the "
            "target and by label on the source, mean over classes (class centroids as of Xie et "
            "al., ICML 2018)",
            higher_is_better=False,
        ),
    )
}
"""Key -> criterion, in the order in which they are shown."""


class Unlabelled(BaseModel):
    """What a network says of itself: the content of a `criteria.json`."""

    frames: list[str]
    """Of the target; `predictions/NAME.png` beside the file is the prediction of each."""
    criteria: dict[str, Score]
    """Key in `CRITERIA` -> value, of those that take one network."""

    def write(self, folder: Path) -> None:
        """Write `criteria.json`."""
        write_json(folder / FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From the file of a folder; `UserError` when it is damaged."""
        return read_record(folder / FILE, cls, _ANEW)


def picture(folder: Path, frame: str) -> Path:
    """Where the prediction of a frame is: class indices as a palette picture."""
    return folder / PICTURES / f"{frame}.png"


def agreements(folders: Sequence[Path], frames: Sequence[str]) -> Float:
    """The shares of the pixels of all frames on which networks agree, (N, N), each with each.

    Args:
        folders: of the N networks' predictions, of the same sizes.

    Raises:
        UserError: a prediction is missing or damaged.
    """
    agreeing, pixels = np.zeros((len(folders), len(folders))), 0
    for frame in frames:
        with explain_damage(picture(folders[0], frame), _ANEW):
            seen = np.stack([read_raw(picture(folder, frame)).ravel() for folder in folders])
        agreeing += [(seen == own).sum(axis=1) for own in seen]
        pixels += seen.shape[1]
    return np.asarray(agreeing / pixels)


def rank_correlation(one: Sequence[Score], other: Sequence[Score]) -> Score:
    """Spearman's, equal values sharing their mean rank, of the pairs in which both have a value.

    None for fewer than `LEAST` pairs, and where all values of one are equal.
    """
    pairs = pd.DataFrame({"one": one, "other": other}, dtype=float).dropna()
    if len(pairs) < LEAST or (pairs.nunique() == 1).any():
        return None
    return float(np.corrcoef(pairs.rank().to_numpy().T)[0, 1])


def entropy(probabilities: Float) -> float:
    """Of one distribution over K classes, as a part of the greatest, log K."""
    p = probabilities[probabilities > 0]
    return float(-(p * np.log(p)).sum()) / math.log(max(2, len(probabilities)))
