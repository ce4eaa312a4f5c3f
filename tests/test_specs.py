"""Built-in specs and label spaces, against tables written out here: read label by label."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.data.labels import (
    CITYSCAPES_IDS,
    CITYSCAPES_TRAIN_IDS,
    IGNORE,
    SKY_AT_TOP,
    VOCABULARY,
    LabelSpace,
    load_label_space,
)
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader, read_frame
from pipeline.data.spec import DatasetSpec, built_in_specs, spec_fields
from pipeline.errors import UserError
from pipeline.intake.headers import check_headers
from pipeline.schema import parse
from tests.helpers import CITYSCAPES
from tests.layouts import CAMVID32, LAYOUTS, VIRTUAL_KITTI_2, Layout

Value = int | tuple[int, int, int]


def by_train_id(*values: Value | list[Any]) -> dict[Any, int]:
    """Value -> training id, from the values (none, one, or a list) of each training id in turn."""
    return {
        value: train_id
        for train_id, given in enumerate(values)
        for value in (given if isinstance(given, list) else [given])
    }


# Each set's values -> training ids of Cityscapes; a value that is not listed must be ignored.
# fmt: off
IDS = by_train_id(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TRAIN_ID_OF: dict[str, dict[Any, int]] = {
    **dict.fromkeys(["gta5", "cityscapes", "cityscapes_extra", "synscapes", "kitti", "acdc"], IDS),
    "synthia": by_train_id(3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11),
    "urbansyn": by_train_id(*range(19)),
    "bdd100k": by_train_id(*range(19)),
    "carla_new": by_train_id([1, 24], *range(2, 20)),
    "carla_old": by_train_id([6, 7], 8, 1, 11, 2, 5, 18, 12, 9, 22, 13, 4, [], 10),
    "virtual_kitti_2": by_train_id(
        (100, 60, 100), [], (140, 140, 140), [], [], (255, 130, 0), (200, 200, 0), (255, 255, 0),
        [(0, 199, 0), (90, 240, 0)], (210, 0, 200), (90, 200, 255), [], [],
        [(255, 127, 80), (0, 139, 139)], (160, 60, 60),
    ),
    "camvid": by_train_id(3, 4, 1, [], 7, 2, [], 6, 5, [], 0, 9),
    "camvid32": by_train_id(
        [(128, 64, 128), (128, 0, 192), (192, 0, 64)], (0, 0, 192), (128, 0, 0), (64, 192, 0),
        (64, 64, 128), (192, 192, 128), (0, 64, 64), (192, 128, 128),
        [(128, 128, 0), (192, 192, 0)], [], (128, 128, 128), [(64, 64, 0), (192, 128, 64)], [],
        (64, 0, 128), [], [], (192, 64, 128), (192, 0, 192),
    ),
    "mapillary": by_train_id(
        [8, 13, 14, 23, 24, 43], [9, 11, 15], 17, 6, 3, [45, 47], 48, 50, 30, [26, 29], 27, 19,
        [20, 21, 22], 55, 61, 54, 58, 57, 52,
    ),
    # The column csTrainId of the authors' table.
    "idd": by_train_id(0, 3, 29, 20, 21, 26, 25, 24, 32, 5, 33, 6, 8, 12, 13, 14, 17, 9, 10),
    # Of the first level of that table only the sky is one class.
    "idd_lite": {6: 10},
}
# fmt: on

CATEGORIES = {
    "flat": ["road", "sidewalk"],
    "construction": ["building", "wall", "fence"],
    "object": ["pole", "traffic light", "traffic sign"],
    "nature": ["vegetation", "terrain"],
    "sky": ["sky"],
    "human": ["person", "rider"],
    "vehicle": ["car", "truck", "bus", "train", "motorcycle", "bicycle"],
}


def spec(name: str, root: Path, **fields: Any) -> DatasetSpec:
    """A built-in spec at a root, which raises on a value without a name."""
    return parse(
        DatasetSpec, {**spec_fields(name, root), "root": root, "strict": True, **fields}, name
    )


def values_of(label: npt.NDArray[Any]) -> set[Value]:
    """The distinct values of a generated label: ids, or (R, G, B)."""
    if label.ndim == 2:
        return {int(value) for value in np.unique(label)}
    return {(int(r), int(g), int(b)) for r, g, b in label.reshape(-1, 3)}


def expected(label: npt.NDArray[Any], table: Mapping[Any, int]) -> npt.NDArray[np.uint8]:
    """A generated label's class indices by a table, `IGNORE` for what it does not list."""
    classes = np.full(label.shape[:2], IGNORE, np.uint8)
    for value in values_of(label):
        mask = label == value if label.ndim == 2 else (label == value).all(axis=2)
        classes[mask] = table.get(value, IGNORE)
    return classes


def read_all(written: Layout, name: str, space: LabelSpace) -> dict[str, npt.NDArray[np.uint8]]:
    """Every labelled frame's classes, read with the built-in spec."""
    classes = {}
    for split, names in written.splits.items():
        if set(names) <= set(written.labels):
            given = spec(name, written.root, split=split)
            reader = LabelReader(given, space)
            for sample in list_samples(given, labelled=True):
                classes[sample.name] = reader.read(sample)
    return classes


def decode(name: str, space: str) -> dict[Value, str | None]:
    """A spec's raw values -> class names of a label space, without files."""
    given = spec(name, Path("/"))
    classes = load_label_space(space)
    names = [*classes.class_names, *[None] * 256]
    return {
        int(raw) if "," not in raw else tuple(map(int, raw.split(","))): names[classes.index_of(n)]  # type: ignore[misc]
        for raw, n in given.values.items()
    }


def test_every_spec_has_a_layout_and_a_table_here() -> None:
    assert set(built_in_specs()) == set(LAYOUTS) == set(TRAIN_ID_OF)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_value_decodes_to_its_class(name: str, tmp_path: Path) -> None:
    written = LAYOUTS[name](tmp_path)
    read = read_all(written, name, load_label_space("cityscapes19"))
    assert set(read) == set(written.labels)
    for frame, label in written.labels.items():
        classes = expected(label, TRAIN_ID_OF[name])
        if name == "carla_old":  # 0 is sky where it touches the top
            classes[:2][label[:2] == 0] = 10
        assert (read[frame] == classes).all(), frame


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_holds_the_whole_table(name: str, tmp_path: Path) -> None:
    written = LAYOUTS[name](tmp_path)
    for label in written.labels.values():
        missing = set(decode(name, "cityscapes19")) - values_of(label)
        # Cityscapes' table serves GTA5 too, where alone 34 occurs.
        assert missing <= {34}, missing
        assert name != "gta5" or not missing


@pytest.mark.parametrize("name", LAYOUTS)
def test_splits_select_their_frames(name: str, tmp_path: Path) -> None:
    written = LAYOUTS[name](tmp_path)
    for split, names in written.splits.items():
        given = spec(name, tmp_path, split=split)
        samples = list_samples(given, labelled=False)
        assert [s.name for s in samples] == names, split
        if set(names) <= set(written.labels):
            check_headers(given, list_samples(given, labelled=True))
        assert read_frame(given, samples[0]).ndim == 3
    assert set(spec(name, tmp_path).splits) <= set(written.splits)


@pytest.mark.parametrize("name", LAYOUTS)
def test_spec_files(name: str) -> None:
    text = built_in_specs()[name].read_text()
    assert text.startswith("# ")
    assert "terms: " in text.lower()
    given = spec(name, Path("/"))
    assert given.name == name
    own = {n for n in given.names() if n.startswith(f"{name}/")}
    assert given.names() - own <= VOCABULARY
    assert given.about is not None
    synthetic = {"gta5", "synthia", "synscapes", "urbansyn", "virtual_kitti_2"}
    assert (given.about.kind == "synthetic") == (name in synthetic or name.startswith("carla"))
    assert (given.about.frames is None) == name.startswith("carla")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("bdd100k", "test"),
        ("mapillary", "testing"),
        ("idd", "test"),
        ("idd_lite", "test"),
        ("acdc", "test"),
    ],
)
def test_splits_without_labels_serve_as_targets_only(name: str, split: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    given = spec(name, tmp_path, split=split)
    assert len(list_samples(given, labelled=False)) == 1
    with pytest.raises(UserError, match="1 of 1 images have no label"):
        list_samples(given, labelled=True)


def test_cityscapes_extra_needs_no_labels(tmp_path: Path) -> None:
    LAYOUTS["cityscapes_extra"](tmp_path)
    shutil.rmtree(tmp_path / "gtCoarse")
    samples = list_samples(spec("cityscapes_extra", tmp_path), labelled=False)
    assert [s.name for s in samples] == [
        "augsburg/augsburg_000000_000000",
        "bayreuth/bayreuth_000000_000001",
    ]


@pytest.mark.parametrize("name", ["gta5", "mapillary"])
def test_palette_labels_are_read_as_indices(name: str, tmp_path: Path) -> None:
    written = LAYOUTS[name](tmp_path)
    split = None if name == "gta5" else "training"
    sample = list_samples(spec(name, tmp_path, split=split), labelled=True)[0]
    assert sample.label is not None
    with Image.open(sample.label) as image:
        assert image.mode == "P"
        assert (np.asarray(image) == written.labels[sample.name]).all()
        assert (np.asarray(image.convert("RGB"))[:, :, 0] != np.asarray(image)).any()


def test_synthia_keeps_16_bits(tmp_path: Path) -> None:
    written = LAYOUTS["synthia"](tmp_path)
    given = spec("synthia", tmp_path)
    sample = list_samples(given, labelled=True)[0]
    stored = np.asarray(cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED))
    assert stored.dtype == np.uint16
    assert stored[:, :, 1].max() > 255  # instances, in green
    assert sample.label is not None
    raw = LabelReader(given, load_label_space("synthia16")).raw(sample.label)
    assert (raw == written.labels[sample.name]).all()


# The two tables of CARLA, and what each word means where classes are fewer.


def test_the_tables_of_carla_are_not_interchangeable() -> None:
    old, new = decode("carla_old", "cityscapes19"), decode("carla_new", "cityscapes19")
    # Tags that are trained on and mean the same in both: vegetation alone.
    assert [tag for tag in range(29) if old.get(tag) is not None and old[tag] == new[tag]] == [9]
    with pytest.raises(UserError, match=r"No data set 'carla'\..*carla_"):
        spec("carla", Path("/"))


def test_words_for_vehicles_of_any_kind() -> None:
    for name, value in (("idd", 11), ("idd", 18), ("mapillary", 59)):
        assert decode(name, "cityscapes19")[value] is None
        assert decode(name, "camvid11")[value] is None
        assert decode(name, "cityscapes7")[value] == "vehicle"
    suv, truck_or_bus = (64, 128, 192), (192, 128, 192)
    four_wheeled: list[tuple[str, Value]]
    four_wheeled = [("camvid", 8), ("camvid32", suv), ("camvid32", truck_or_bus)]
    for name, raw in four_wheeled:
        assert decode(name, "cityscapes19")[raw] is None
        assert decode(name, "camvid11")[raw] == "car"
        assert decode(name, "cityscapes7")[raw] == "vehicle"


def test_camvid_meets_its_own_classes(tmp_path: Path) -> None:
    written = LAYOUTS["camvid"](tmp_path)
    read = read_all(written, "camvid", load_label_space("camvid11"))
    for frame, label in written.labels.items():
        assert (read[frame] == expected(label, {i: i for i in range(11)})).all()


def test_camvid32_in_eleven_classes() -> None:
    by_class: dict[str | None, set[Value]] = {}
    for colour, label_class in decode("camvid32", "camvid11").items():
        by_class.setdefault(label_class, set()).add(colour)
    assert len(by_class.pop(None)) == 10
    assert by_class == {
        "sky": {(128, 128, 128)},
        "building": {(128, 0, 0), (64, 192, 0), (0, 128, 64), (192, 0, 128), (64, 0, 64)},
        "pole": {(192, 192, 128)},
        "road": {(128, 64, 128), (128, 0, 192), (192, 0, 64)},
        "sidewalk": {(0, 0, 192)},
        "tree": {(128, 128, 0), (192, 192, 0)},
        "sign": {(192, 128, 128), (0, 64, 64)},
        "fence": {(64, 64, 128)},
        "car": {(64, 0, 128), (64, 128, 192), (192, 128, 192)},
        "pedestrian": {(64, 64, 0), (192, 128, 64)},
        "bicyclist": {(0, 128, 192)},
    }
    assert set(decode("camvid32", "camvid11")) == set(CAMVID32)
    assert len(set(CAMVID32)) == 32


def test_virtual_kitti_has_few_classes() -> None:
    named = set(decode("virtual_kitti_2", "cityscapes19").values())
    assert {"sidewalk", "person", "rider", "wall", "fence"}.isdisjoint(named)
    assert len(VIRTUAL_KITTI_2) == 15


# Label spaces.


def test_the_cityscapes_tables_in_both_directions() -> None:
    space = load_label_space("cityscapes19")
    for name, (raw, train_id, colour) in CITYSCAPES.items():
        assert CITYSCAPES_IDS[raw] == CITYSCAPES_TRAIN_IDS[train_id] == name
        assert [i for i, n in CITYSCAPES_IDS.items() if n == name] == [raw]
        assert [i for i, n in CITYSCAPES_TRAIN_IDS.items() if n == name] == [train_id]
        assert space.classes[train_id].color == colour
        assert [i for i, c in enumerate(space.classes) if c.color == colour] == [train_id]
        assert IDS[raw] == train_id
    assert len(CITYSCAPES_TRAIN_IDS) == 20
    assert CITYSCAPES_TRAIN_IDS[255] == "unlabeled"
    assert len(CITYSCAPES_IDS) == 35


def test_cityscapes7_is_the_official_grouping() -> None:
    space = load_label_space("cityscapes7")
    assert space.class_names == list(CATEGORIES)
    for category, names in CATEGORIES.items():
        for name in names:
            assert space.class_names[space.index_of(name)] == category
    # Category scores leave out what class scores leave out.
    for name in set(CITYSCAPES_IDS.values()) - set(CITYSCAPES):
        assert space.index_of(name) == IGNORE, name
    assert space.class_names[space.index_of("road line")] == "flat"
    assert space.index_of("bicyclist") == IGNORE  # a human on a vehicle


def test_categories_of_cityscapes19() -> None:
    space = load_label_space("cityscapes19")
    members = {c: [space.class_names[i] for i in m] for c, m in space.categories.items()}
    assert members == {c: [n for n in names if n in CITYSCAPES] for c, names in CATEGORIES.items()}


def test_synthia16_and_synthia13() -> None:
    full = load_label_space("cityscapes19")
    sixteen, thirteen = load_label_space("synthia16"), load_label_space("synthia13")
    left = [c for c in full.classes if c.name not in {"terrain", "truck", "train"}]
    # Scores of categories would be of other categories than Cityscapes' own.
    assert sixteen.classes == tuple(c.model_copy(update={"category": None}) for c in left)
    assert thirteen.class_names == sixteen.class_names
    assert [c.name for c in thirteen.classes if not c.averaged] == ["wall", "fence", "pole"]
    assert all(c.averaged for c in sixteen.classes)
    assert (thirteen.palette == sixteen.palette).all()
    for removed in ("terrain", "truck", "train"):
        assert sixteen.index_of(removed) == IGNORE


SPACES = sorted(
    p.stem for p in (Path(__file__).parent.parent / "pipeline/data/label_spaces").glob("*.yaml")
)


@pytest.mark.parametrize("name", SPACES)
def test_label_spaces(name: str) -> None:
    space = load_label_space(name)
    assert space.name == name
    names = [n for c in space.classes for n in c.names]
    assert len(names) == len(set(names))
    assert {n for n in names if "/" not in n} <= VOCABULARY
    # A coarse data set has classes that no finer name stands for.
    own = {n for spec_name in built_in_specs() for n in spec(spec_name, Path("/")).names()}
    assert {n for n in names if "/" in n} <= own
    official = {colour for _, _, colour in CITYSCAPES.values()}
    colours = [c.color for c in space.classes]
    assert set(colours) <= official
    assert len(set(colours)) == len(colours)


def test_every_word_is_used() -> None:
    used = {name for spec_name in built_in_specs() for name in spec(spec_name, Path("/")).names()}
    assert {name for name in used if "/" not in name} == VOCABULARY - {SKY_AT_TOP}
