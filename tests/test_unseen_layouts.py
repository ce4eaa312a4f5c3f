"""What becomes of layouts that were written down before the code: questions and outcome."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.labels import load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader, below_top
from pipeline.errors import UserError
from pipeline.intake.discover import discover
from pipeline.intake.first_spec import describe, write_first_spec
from pipeline.intake.lost import lost_classes
from pipeline.toyworld.drawing import render_scene
from tests.layouts import load_spec
from tests.unseen_layouts import LAYOUTS, Scenes

SPACE = load_label_space("cityscapes19")
# Layout -> questions; a text where labels are not read, and what is said then.
OUTCOMES: dict[str, int | str] = {
    "carla_08": 2,
    "carla_08_colours": 2,
    "instance_ids": 0,
    "kitti_instances": 0,
    "viper": 1,
    "rugd": 2,
    "a2d2": "no image and label have the same name",
    "cvat_voc": 0,
    "camvid_class_dict": 0,
    "unity_perception": 1,
    "npy_labels": 0,
    "half_size_labels": 0,
    "labelme": "8 JSON files of labelme polygons",
    "cityscapes_polygons": "8 JSON files of Cityscapes polygons",
    "coco_panoptic": "COCO panoptic labels",
}
CLASSES = {7: "road", 11: "building", 21: "vegetation", 23: "sky", 26: "car"}


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """Toy frames and their Cityscapes ids."""
    return [render_scene(np.random.default_rng(i), (128, 64), "sim") for i in range(8)]


def test_every_layout_has_an_outcome() -> None:
    assert OUTCOMES.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, scenes: Scenes, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path / name, scenes)
    expected, out = OUTCOMES[name], tmp_path / "first.yaml"
    if name == "a2d2":
        with pytest.raises(UserError, match=str(expected)):
            discover(tmp_path / name)
        return
    found = discover(tmp_path / name)
    write_first_spec(found, out)
    said = "\n".join(describe(found, out))
    if isinstance(expected, str):
        assert expected in said
        assert "a `target` to adapt to" in said
        assert load_spec(out).labels is None
        return
    assert len(found.questions()) == expected, said
    text = out.read_text()
    answered = re.sub(r"\?(?= +# )", "", text)
    edited = sum(a != b for a, b in zip(text.split("\n"), answered.split("\n"), strict=True))
    assert edited == expected
    refused = [one for one in lost_classes({name: load_spec(out)}, SPACE, out) if one.refused]
    assert len(refused) == expected
    out.write_text(answered)
    spec = load_spec(out)
    samples = list_samples(spec, labelled=True)
    assert len(samples) == (6 if name == "camvid_class_dict" else len(scenes))  # its split `train`
    reader = LabelReader(spec, SPACE)
    for sample in samples:
        number = int(re.findall(r"\d+", sample.name.removesuffix("_10"))[-1])
        if name == "unity_perception":
            number = int(re.findall(r"\d+", sample.name)[0])
        ids = scenes[number][1]
        classes = reader.read(sample)
        assert classes.shape == ids.shape
        for raw, called in CLASSES.items():
            where = ids == raw
            where[-4:] = False
            if called == "sky" and "carla" in name:
                where &= ~below_top(ids == raw)
            right = classes[where] == SPACE.class_names.index(called)
            assert not where.any() or right.mean() > (0.85 if "half" in name else 0.99), called
