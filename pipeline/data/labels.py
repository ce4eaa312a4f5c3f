"""Labels in two steps: raw value -> name (a data set's spec), name -> class (a label space).

Names come from one vocabulary, so any data set meets any label space.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pipeline.errors import UserError
from pipeline.schema import Schema, near, parse
from pipeline.yaml_files import SUFFIXES, read_yaml

IGNORE = 255
"""Class index of pixels that are neither trained on nor scored."""

CITYSCAPES_IDS: dict[int, str] = dict(
    enumerate(
        [
            *["unlabeled", "ego vehicle", "rectification border", "out of roi", "static"],
            *["dynamic", "ground", "road", "sidewalk", "parking", "rail track", "building"],
            *["wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup"],
            *["traffic light", "traffic sign", "vegetation", "terrain", "sky", "person"],
            *["rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle"],
            *["bicycle", "license plate"],
        ]
    )
)
"""The Cityscapes label ids 0..33 and their names; GTA5 adds 34 (Cityscapes itself has it as -1)."""

CITYSCAPES_TRAIN_IDS: dict[int, str] = dict(
    enumerate(
        [
            *["road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"],
            *["traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck"],
            *["bus", "train", "motorcycle", "bicycle"],
        ]
    )
) | {255: "unlabeled"}
"""The Cityscapes training ids 0..18, and 255 for all else."""

TABLES = {"cityscapes_ids": CITYSCAPES_IDS, "cityscapes_train_ids": CITYSCAPES_TRAIN_IDS}
"""Tables of raw values that a spec may name instead of writing them out."""

SKY_AT_TOP = "sky at the top"
"""Sky where a region of the value touches the upper border of the frame, and nothing elsewhere: for
sets in which the sky has the value of what has no class."""

VOCABULARY: frozenset[str] = frozenset(
    {
        *CITYSCAPES_IDS.values(),
        "road line",  # painted markings, where a simulator tells them from road
        "vehicle",  # car, truck or bus, where they are not told apart
        "any vehicle",  # a vehicle of whatever kind: cycles and trains too, or a kind of its own
        "bicyclist",  # rider together with the bicycle
        SKY_AT_TOP,
    }
)
"""Every name that a data set may decode to and a label space may group."""
ASKED = "?"
"""The end of a name that was guessed: a person is to remove it, or to write another name."""
_BUILT_IN = Path(__file__).parent / "label_spaces"
_OWN_NAME = re.compile(r"[a-z0-9_-]+/[a-z0-9 _-]+")


class LabelClass(Schema):
    """One class that a network predicts."""

    name: str = Field(min_length=1)
    """The class's name in tables and pictures."""
    names: tuple[str, ...] = Field(min_length=1)
    """The vocabulary names that belong to it."""
    color: tuple[int, int, int]
    """RGB in 0..255, for pictures."""
    averaged: bool = True
    """Whether mean class accuracy and mean IoU count it. A class that is predicted but not
    averaged: the 16 classes of SYNTHIA scored on 13."""
    category: str | None = None
    """The group of classes that this one belongs to, where scores of groups are wanted, too."""

    @model_validator(mode="after")
    def _legal(self) -> Self:
        for name in self.names:
            check_name(name)
        if not all(0 <= channel <= 255 for channel in self.color):
            raise ValueError(f"color {self.color} has a channel outside 0..255")
        return self


class LabelSpace(Schema):
    """The classes of a run, in order; the position of a class is its index."""

    name: str
    classes: tuple[LabelClass, ...] = Field(min_length=2, max_length=254)

    @model_validator(mode="after")
    def _one_class_a_name(self) -> Self:
        owner: dict[str, str] = {}
        for label_class in self.classes:
            for name in label_class.names:
                if name in owner:
                    raise ValueError(
                        f"name {name!r} belongs to both class {owner[name]!r} and class "
                        f"{label_class.name!r}; keep it in one"
                    )
                owner[name] = label_class.name
        if len({c.name for c in self.classes}) != len(self.classes):
            raise ValueError("two classes share a name")
        return self

    @property
    def class_names(self) -> list[str]:
        """Class names by index."""
        return [c.name for c in self.classes]

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """(256, 3) uint8 RGB by class index; indices without a class are black."""
        table = np.zeros((256, 3), np.uint8)
        for index, label_class in enumerate(self.classes):
            table[index] = label_class.color
        return table

    def averaging(self, classes: Sequence[str] | None) -> "LabelSpace":
        """This space with these classes averaged and no others; None: as it says itself.

        Raises:
            UserError: a name that no class has.
        """
        if classes is None:
            return self
        if unknown := [name for name in classes if name not in self.class_names]:
            raise UserError(
                f"evaluation.classes: label space {self.name} has no class {unknown[0]!r}."
                f"{near(unknown[0], self.class_names)} Classes: {', '.join(self.class_names)}."
            )
        return self.model_copy(
            update={
                "classes": tuple(
                    c.model_copy(update={"averaged": c.name in classes}) for c in self.classes
                )
            }
        )

    @property
    def categories(self) -> dict[str, list[int]]:
        """Category -> the indices of its classes, in order of appearance."""
        members: dict[str, list[int]] = {}
        for index, label_class in enumerate(self.classes):
            if label_class.category is not None:
                members.setdefault(label_class.category, []).append(index)
        return members

    def index_of(self, name: str) -> int:
        """The class index of a vocabulary name, or `IGNORE` when no class holds it."""
        for index, label_class in enumerate(self.classes):
            if meaning(name) in label_class.names:
                return index
        return IGNORE


def meaning(name: str) -> str:
    """What a name of a data set's `values` stands for: `sky` for `sky at the top?`."""
    plain = name.removesuffix(ASKED)
    return "sky" if plain == SKY_AT_TOP else plain


def check_name(name: str) -> None:
    """Raise `ValueError` unless `name` is in the vocabulary or one's own, like `mysim/forklift`."""
    if name not in VOCABULARY and not _OWN_NAME.fullmatch(name):
        raise ValueError(
            f"unknown label name {name!r}.{near(name, VOCABULARY)} "
            f"Names: {', '.join(sorted(VOCABULARY))}; or one of your own, with a slash, like "
            "'mysim/forklift'"
        )


def label_space_names() -> list[str]:
    """The built-in label spaces."""
    return sorted(path.stem for path in _BUILT_IN.glob("*.yaml"))


def load_label_space(name_or_path: str) -> LabelSpace:
    """A built-in label space by name, or one's own from a `.yaml` file."""
    path = Path(name_or_path)
    if path.suffix not in SUFFIXES:
        path = _BUILT_IN / f"{name_or_path}.yaml"
        if not path.is_file():
            names = label_space_names()
            raise UserError(
                f"No label space {name_or_path!r}.{near(name_or_path, names)} "
                f"Built in: {', '.join(names)}; or give the path of a .yaml file."
            )
    return parse(LabelSpace, read_yaml(path), str(path))
