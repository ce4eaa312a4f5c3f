"""Class-wise alignment: its arithmetic, its pseudo-labels, its place in a run."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from cyclegan.alignment import (
    align,
    choose,
    pseudo_label,
    statistics,
    thresholds,
    transforms,
)
from flows.plan import plan
from pipeline.config.load import load_config
from pipeline.data.images import UInt8
from pipeline.data.labels import IGNORE
from pipeline.errors import UserError
from tests.helpers import do, label_frames

ARMS = (
    "arms={source_only: source, adapted: translated, second: again, oracle: target}",
    "translation={method: class_alignment, pseudo_labels: source_only}",
    "translations={again: {method: class_alignment, pseudo_labels: adapted, seed: 3}}",
)


def frame(seed: int, size: tuple[int, int] = (48, 64)) -> tuple[UInt8, UInt8]:
    """A smooth picture, and three regions of it of which one has no class."""
    rng = np.random.default_rng(seed)
    rgb = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), np.uint8), (0, 0), 3)
    rgb = cv2.normalize(rgb, None, 60, 190, cv2.NORM_MINMAX)
    classes = np.zeros(size, np.uint8)
    classes[:, 20:40], classes[30:] = 1, IGNORE
    return np.asarray(rgb, np.uint8), classes


def test_statistics_are_those_of_each_region() -> None:
    rgb, classes = frame(0)
    found = statistics(rgb, classes, 3)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(float)
    for row, region in enumerate([classes == 0, classes == 1, None, classes < 999]):
        if region is None:
            assert found.pixels[row] == 0
            continue
        assert found.pixels[row] == region.sum()
        np.testing.assert_allclose(found.means[row], lab[region].mean(axis=0))
        expected = np.cov(lab[region].T, bias=True) + np.eye(3)
        np.testing.assert_allclose(found.covariances[row], expected)


def test_a_map_gives_the_target_s_mean_and_covariance() -> None:
    (one, classes), (other, _) = frame(1), frame(2)
    source, target = statistics(one, classes, 2), statistics(other, classes, 2)
    matrices, offsets = transforms(source, target)
    for row in range(3):
        moved = matrices[row] @ source.covariances[row] @ matrices[row].T
        np.testing.assert_allclose(moved, target.covariances[row], rtol=1e-6)
        mean = matrices[row] @ source.means[row] + offsets[row]
        np.testing.assert_allclose(mean, target.means[row])
        np.testing.assert_allclose(matrices[row], matrices[row].T, atol=1e-9)  # the shortest way


def test_each_region_takes_on_its_class_and_the_rest_the_frame() -> None:
    (one, classes), (other, _) = frame(3), frame(4)
    target = statistics(other, classes, 2)
    found = statistics(align(one, classes, target, 0.0), classes, 2)
    for row in (0, 1):
        np.testing.assert_allclose(found.means[row], target.means[row], atol=2)
    whole = align(one, np.full_like(classes, IGNORE), target, 0.0)
    rest = classes == IGNORE
    np.testing.assert_array_equal(align(one, classes, target, 0.0)[rest], whole[rest])
    # Between regions the maps blend; far from a border nothing changes.
    soft = align(one, classes, target, 1.0)
    hard = align(one, classes, target, 0.0)
    assert np.abs(soft[:20, 26:34].astype(int) - hard[:20, 26:34]).max() <= 1
    assert (soft[:30, 19:21] != hard[:30, 19:21]).any()


def test_a_frame_aligned_with_itself_stays() -> None:
    rgb, classes = frame(5)
    same = align(rgb, classes, statistics(rgb, classes, 2), 2.0)
    shift = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB), cv2.COLOR_LAB2RGB)
    np.testing.assert_array_equal(same, shift)


def test_one_target_frame_gives_the_light_and_others_what_it_does_not_show() -> None:
    pool = [statistics(*frame(seed), 2) for seed in range(3)]
    shown = np.array([[True, False], [True, False], [True, True]])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = choose(pool, shown, rng)
        (light,) = [one for one in pool if (one.means[2] == found.means[2]).all()]
        np.testing.assert_array_equal(found.means[0], light.means[0])
        np.testing.assert_array_equal(found.means[1], pool[2].means[1])
    nowhere = choose(pool, np.zeros((3, 2), bool), np.random.default_rng(0))
    np.testing.assert_array_equal(nowhere.means[0], nowhere.means[2])


def test_of_each_class_the_most_confident_part_is_kept(tiny: Path, tmp_path: Path) -> None:
    target = load_config(tiny).target

    def predict(rgb: UInt8) -> tuple[UInt8, UInt8]:
        rng = np.random.default_rng(int(rgb.sum()))
        label = np.repeat([[0, 1]], rgb.shape[0], 0).repeat(rgb.shape[1] // 2, 1).astype(np.uint8)
        low = rng.integers(0, 100, label.shape).astype(np.uint8)  # a class that is never confident
        return label, np.where(label == 0, low, 255 - low).astype(np.uint8)

    names = label_frames(target, predict, tmp_path)
    limits = thresholds(names, tmp_path, 3, keep=0.25)
    kept = np.stack([pseudo_label(tmp_path, name, limits) for name in names])
    for half in (kept[:, :, : kept.shape[2] // 2], kept[:, :, kept.shape[2] // 2 :]):
        assert (half != IGNORE).mean() == pytest.approx(0.25, abs=0.02)


def test_rounds_by_name_are_a_graph_of_arms_and_translations(tiny: Path) -> None:
    stages = {s.name: set(s.reads) for s in plan(load_config(tiny, [*ARMS]), tiny.parent / "run")}
    assert stages["translated"] == {"pseudo_labels/source_only/seed-0"}
    assert stages["translations/again"] == {"pseudo_labels/adapted/seed-0"}
    assert stages["pseudo_labels/adapted/seed-0"] == {"segmentation/adapted/seed-0"}
    assert stages["segmentation/second/seed-0"] == {"translations/again"}
    order = list(stages)
    assert all(order.index(b) < order.index(name) for name, below in stages.items() for b in below)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{method: class_alignment}", "needs pseudo_labels: the arm"),
        ("{method: class_alignment, pseudo_labels: oracle}", "learns from no label of the target"),
        ("{method: class_alignment, pseudo_labels: nobody}", "learns from no label of the target"),
        (
            "{method: class_alignment, pseudo_labels: adapted}",
            "in a circle: .*by pseudo-labels of adapted",
        ),
        ("{method: fda, pseudo_labels: source_only}", "does not use pseudo_labels"),
    ],
)
def test_pseudo_labels_that_cannot_be(tiny: Path, settings: str, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_config(tiny, [f"translation={settings}"])


def test_a_run_of_two_rounds(tiny: Path, tmp_path: Path) -> None:
    arms = "arms={source_only: source, adapted: translated, second: again}"
    config, run = load_config(tiny, [*ARMS[1:], arms, "segmentation.steps=3"]), tmp_path / "run"
    do(run, plan(config, run))
    first, second = (
        sorted((run / name / "images").rglob("*.png"))
        for name in ("translated", "translations/again")
    )
    assert [path.name for path in first] == [path.name for path in second]
    assert any(a.read_bytes() != b.read_bytes() for a, b in zip(first, second, strict=True))
    page = (run / "report/index.html").read_text()
    assert "by class-wise alignment" in page
