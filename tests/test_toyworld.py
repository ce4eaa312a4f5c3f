"""The toy world: true layouts, agreeing labels, the same bytes every time, and a style gap."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.toyworld import drawing, writing
from pipeline.toyworld.drawing import SIZE, render_scene
from pipeline.toyworld.writing import write_toy_world
from tests.helpers import CITYSCAPES, Killed, dying_at

FRAMES = 60
SMALL: Mapping[str, Any] = {
    "sim_frames": 3, "real_train_frames": 3, "real_val_frames": 2, "size": (64, 32), "seed": 5
}  # fmt: skip
COLOURS = {raw: colour for raw, _, colour in CITYSCAPES.values()}
COLOURS |= {drawing.UNLABELED: (0, 0, 0), drawing.EGO: (0, 0, 0)}
CLASSES = sorted(set(COLOURS) - {drawing.UNLABELED, drawing.EGO})
Frames = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def _draw(stream: int, style: drawing.StyleName) -> Frames:
    drawn = [
        render_scene(np.random.default_rng([0, stream, index]), SIZE, style)
        for index in range(FRAMES)
    ]
    return np.stack([picture for picture, _ in drawn]), np.stack([ids for _, ids in drawn])


@pytest.fixture(scope="module")
def sim() -> Frames:
    return _draw(0, "sim")


@pytest.fixture(scope="module")
def real() -> Frames:
    return _draw(1, "real")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_toy_world(root, **SMALL)
    return root


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _shares(ids: NDArray[np.uint8]) -> NDArray[np.float64]:
    counts = np.bincount(ids.ravel(), minlength=256)[CLASSES]
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def test_layouts_are_those_of_gta5_and_cityscapes(world: Path) -> None:
    left, fine = "toy-real/leftImg8bit", "toy-real/gtFine"
    a, b = drawing.TRAIN_CITIES
    stems = [f"train/{a}/{a}_000000_000019", f"train/{b}/{b}_000000_000019"]
    stems += [f"train/{a}/{a}_000001_000019"]
    stems += [f"val/{drawing.VAL_CITY}/{drawing.VAL_CITY}_{i:06d}_000019" for i in range(2)]
    expected = {f"toy-sim/{kind}/0000{i}.png" for kind in ("images", "labels") for i in (1, 2, 3)}
    expected |= {f"{left}/{stem}_leftImg8bit.png" for stem in stems}
    expected |= {f"{fine}/{stem}_gtFine_labelIds.png" for stem in stems}
    assert set(_contents(world)) == expected | {drawing.RECORD}


def test_files_have_the_right_modes_sizes_and_palette(world: Path) -> None:
    for path in world.rglob("*.png"):
        with Image.open(path) as image:
            assert image.size == (64, 32)
            name = str(path.relative_to(world))
            if "/labels/" in name:
                assert image.mode == "P"
                palette = image.getpalette() or []
                assert len(palette) == 3 * 256
                for label, colour in COLOURS.items():
                    assert tuple(palette[3 * label : 3 * label + 3]) == colour
            else:
                assert image.mode == ("L" if "gtFine" in name else "RGB")


def test_files_hold_what_render_scene_draws(world: Path) -> None:
    picture, ids = render_scene(np.random.default_rng([5, 0, 1]), (64, 32), "sim")
    with Image.open(world / "toy-sim/images/00002.png") as image:
        assert np.array_equal(np.asarray(image), picture)
    with Image.open(world / "toy-sim/labels/00002.png") as image:
        assert np.array_equal(np.asarray(image), ids)


def test_shapes_and_types() -> None:
    picture, ids = render_scene(np.random.default_rng(0), (96, 40), "real")
    assert picture.shape == (40, 96, 3)
    assert ids.shape == (40, 96)
    assert picture.dtype == ids.dtype == np.dtype(np.uint8)


def test_ids_are_legal_and_the_same_but_for_the_ego_vehicle(sim: Frames, real: Frames) -> None:
    seen_sim, seen_real = set(np.unique(sim[1]).tolist()), set(np.unique(real[1]).tolist())
    assert seen_real - seen_sim == {drawing.EGO}
    assert seen_sim <= seen_real
    assert seen_real <= set(COLOURS)
    assert len(seen_sim & set(CLASSES)) >= 15
    assert np.all(real[1][:, -1] == drawing.EGO)


@pytest.mark.parametrize("style", ["sim", "real"])
def test_classes_are_where_a_street_has_them(style: str, request: pytest.FixtureRequest) -> None:
    _, ids = request.getfixturevalue(style)
    height, width = SIZE[1], SIZE[0]

    def mean_row(label: int) -> float:
        return float(np.nonzero(ids == label)[1].mean()) / height

    assert mean_row(drawing.SKY) < mean_row(drawing.BUILDING) < mean_row(drawing.ROAD)
    assert mean_row(drawing.VEGETATION) < mean_row(drawing.SIDEWALK)
    assert not np.any(ids[:, height // 2 :] == drawing.SKY)
    assert not np.any(ids[:, : height // 3] == drawing.ROAD)
    middle = ids[:, :, 3 * width // 8 : 5 * width // 8]
    assert np.mean(middle[:, : height // 4] == drawing.SKY) > 0.5
    assert np.mean(middle[:, -height // 5 : -height // 10] == drawing.ROAD) > 0.8
    sides = np.concatenate([ids[:, : height // 3, :8], ids[:, : height // 3, -8:]], axis=2)
    assert np.mean(np.isin(sides, (drawing.BUILDING, drawing.VEGETATION))) > 0.6


def test_labels_agree_with_the_picture() -> None:
    # The simulator's sky has one flat colour and cloud: every other class's interior differs.
    for seed in range(10):
        picture, ids = render_scene(np.random.default_rng(seed), SIZE, "sim")
        blue = (picture[..., 0] < 110) & (picture[..., 1] > 180) & (picture[..., 2] > 225)
        sky = ids == drawing.SKY
        assert np.mean(sky[blue]) > 0.97


def test_class_shares_are_similar(sim: Frames, real: Frames) -> None:
    distance = np.abs(_shares(sim[1]) - _shares(real[1])).sum() / 2
    assert distance < 0.15


def test_styles_differ(sim: Frames, real: Frames) -> None:
    for label in (drawing.ROAD, drawing.BUILDING, drawing.VEGETATION, drawing.SKY):
        means = [frames[0][frames[1] == label].mean(axis=0) for frames in (sim, real)]
        assert np.abs(means[0] - means[1]).max() > 25
    saturation = [np.ptp(frames[0].astype(int), axis=-1).mean() for frames in (sim, real)]
    assert saturation[0] > 2 * saturation[1]


def test_same_arguments_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    write_toy_world(tmp_path, **SMALL)
    assert _contents(tmp_path) == _contents(world)


def test_a_larger_world_starts_with_the_smaller_ones_frames(world: Path, tmp_path: Path) -> None:
    counts = {"sim_frames": 5, "real_train_frames": 6, "real_val_frames": 3}
    write_toy_world(tmp_path, **{**SMALL, **counts})
    larger, smaller = _contents(tmp_path), _contents(world)
    del smaller[drawing.RECORD]
    assert {name: larger[name] for name in smaller} == smaller


def test_frames_and_seeds_differ(world: Path, tmp_path: Path) -> None:
    write_toy_world(tmp_path, **{**SMALL, "seed": 6})
    pictures = [
        content
        for contents in (_contents(world), _contents(tmp_path))
        for name, content in contents.items()
        if "/images/" in name or "leftImg8bit" in name
    ]
    assert len(set(pictures)) == len(pictures)


def test_a_complete_world_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_world(tmp_path, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(writing, "render_scene", None)  # drawing anything would fail
    write_toy_world(tmp_path, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_interrupted_world_is_continued(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(writing, "render_scene", dying_at(4, render_scene))
        write_toy_world(tmp_path, **SMALL)
    assert not (tmp_path / drawing.RECORD).exists()
    with pytest.raises(ValueError, match="seed is 5 there, 9 asked for"):
        write_toy_world(tmp_path, **{**SMALL, "seed": 9})
    write_toy_world(tmp_path, **SMALL)
    assert _contents(tmp_path) == _contents(world)


def test_another_world_is_refused(world: Path) -> None:
    before = _contents(world)
    with pytest.raises(ValueError, match=r"sim_frames is 3 there, 4 asked for.*remove it, choose"):
        write_toy_world(world, **{**SMALL, "sim_frames": 4})
    assert _contents(world) == before


@pytest.mark.parametrize("record", ["[]", "no json", json.dumps({"seed": 5})])
def test_a_foreign_record_is_refused(tmp_path: Path, record: str) -> None:
    (tmp_path / drawing.RECORD).write_text(record)
    with pytest.raises(ValueError, match=r"toy ?world"):
        write_toy_world(tmp_path, **SMALL)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "toy-sim").mkdir()
    with pytest.raises(ValueError, match=r"holds toy-sim but no toyworld\.json"):
        write_toy_world(tmp_path, **SMALL)
