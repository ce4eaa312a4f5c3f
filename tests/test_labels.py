"""Label spaces and names."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.labels import CITYSCAPES_IDS, IGNORE, VOCABULARY, load_label_space
from pipeline.errors import UserError
from tests.helpers import CITYSCAPES


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
