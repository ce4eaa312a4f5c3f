"""Label spaces and names."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.labels import CITYSCAPES_IDS, IGNORE, VOCABULARY, load_label_space
from pipeline.errors import UserError

# id, trainId, colour of the official table.
CITYSCAPES = {
    "road": (7, 0, (128, 64, 128)),
    "sidewalk": (8, 1, (244, 35, 232)),
    "building": (11, 2, (70, 70, 70)),
    "wall": (12, 3, (102, 102, 156)),
    "fence": (13, 4, (190, 153, 153)),
    "pole": (17, 5, (153, 153, 153)),
    "traffic light": (19, 6, (250, 170, 30)),
    "traffic sign": (20, 7, (220, 220, 0)),
    "vegetation": (21, 8, (107, 142, 35)),
    "terrain": (22, 9, (152, 251, 152)),
    "sky": (23, 10, (70, 130, 180)),
    "person": (24, 11, (220, 20, 60)),
    "rider": (25, 12, (255, 0, 0)),
    "car": (26, 13, (0, 0, 142)),
    "truck": (27, 14, (0, 0, 70)),
    "bus": (28, 15, (0, 60, 100)),
    "train": (31, 16, (0, 80, 100)),
    "motorcycle": (32, 17, (0, 0, 230)),
    "bicycle": (33, 18, (119, 11, 32)),
}


def test_cityscapes19_is_the_official_table() -> None:
    space = load_label_space("cityscapes19")
    assert len(space.classes) == 19
    for raw, name in CITYSCAPES_IDS.items():
        expected = CITYSCAPES.get(name, (raw, IGNORE, None))
        assert (raw, space.index_of(name)) == expected[:2]
        if expected[2]:
            assert tuple(space.palette[expected[1]]) == expected[2]
    assert space.class_names == list(CITYSCAPES)


def test_camvid11_groups_names() -> None:
    space = load_label_space("camvid11")
    assert space.class_names == [
        *["sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car"],
        *["pedestrian", "bicyclist"],
    ]
    for name in ("rider", "bicycle", "bicyclist"):
        assert space.index_of(name) == 10
    for name in ("car", "truck", "bus", "vehicle"):
        assert space.index_of(name) == 8
    assert space.index_of("dynamic") == IGNORE
    assert len(np.unique(space.palette[:11], axis=0)) == 11


def test_unknown_space_suggests_near_names() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'cityscapes19'.*Built in: camvid11"):
        load_label_space("cityscape19")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: x\nclasses: [{name: a, names: [road], color: [0, 0, 0]},"
            " {name: b, names: [road], color: [1, 1, 1]}]",
            "belongs to both class 'a' and class 'b'",
        ),
        (
            "name: x\nclasses: [{name: a, names: [raod], color: [0, 0, 0]},"
            " {name: b, names: [sky], color: [1, 1, 1]}]",
            "unknown label name 'raod'. Did you mean 'road'",
        ),
        (
            "name: x\nclasses: [{name: a, names: [road], color: [0, 0, 256]},"
            " {name: b, names: [sky], color: [1, 1, 1]}]",
            "outside 0..255",
        ),
        ("name: x\nname: y\n", "key 'name' is given twice"),
        ("name: &a x\nclasses: *a", "alias"),
    ],
)
def test_own_space_is_checked(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_label_space(str(path))
    assert message in str(error.value)


def test_vocabulary_holds_every_cityscapes_name() -> None:
    assert set(CITYSCAPES_IDS.values()) <= VOCABULARY
