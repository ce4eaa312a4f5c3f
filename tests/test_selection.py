"""The choice without labels: criteria by hand, networks made to be wrong, and what is not read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.selection import networks as read_networks
from flows.plan import plan
from pipeline.config.load import load_config
from pipeline.config.segmentation import SelectionConfig
from pipeline.config.settings import Config
from pipeline.data.images import write_indices
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.errors import UserError
from pipeline.run.stage import all_inputs
from pipeline.scoring.metrics import in_steps
from pipeline.scoring.selection import (
    CRITERIA,
    LEAST,
    agreements,
    entropy,
    picture,
    rank_correlation,
)
from reports.selection import Network, choice_sentences, choices, write_networks
from segmentation.models import pad
from segmentation.selection import (
    class_features,
    criteria,
    feature_distance,
    measure,
    see_source,
    see_target,
)
from segmentation.train import CHECKPOINT
from tests.helpers import Killed, dying_at

SPACE = load_label_space("cityscapes19")
ON = "selection={frames: 4}"


class Made(nn.Module):
    """Stands in for a trained network: logits by a rule, features are colours."""

    multiple = 32

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits = rule
        self.weight = nn.Parameter(torch.zeros(1))  # on the network's device

    def feature_map(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(pad(x, "replicate"), 32)


def by_brightness(x: Tensor) -> Tensor:
    """Classes 0 and 1 of 19, sure and by what a pixel shows."""
    bright = 40 * (x.mean(dim=1, keepdim=True) - 0.5)
    nothing = torch.full((1, 17, *x.shape[2:]), -60.0)
    return torch.cat([bright, -bright, nothing], dim=1)


def by_place(seed: int) -> Callable[[Tensor], Tensor]:
    """Any class, unsure, whatever a pixel shows: wrong by construction."""

    def rule(x: Tensor) -> Tensor:
        return torch.randn(1, 19, *x.shape[2:], generator=torch.Generator().manual_seed(seed))

    return rule


def always_road(x: Tensor) -> Tensor:
    """One class, quite sure: wrong by construction, too."""
    return torch.tensor([60.0] + [0.0] * 18).view(1, -1, 1, 1).expand(1, 19, *x.shape[2:])


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu", ON])


def test_criteria_by_hand() -> None:
    # Of 32x64 pixels the left half has probabilities 1/4 and 3/4, the right half 1 and 0.
    logits = torch.tensor([0.25, 0.75]).log().view(1, 2, 1, 1).repeat(1, 1, 32, 64)
    logits[..., 32:] = torch.tensor([90.0, -90.0]).view(2, 1, 1)
    network: Any = Made(lambda x: logits)
    features = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).view(1, 2, 1, 2)  # (1, 0) and (1, 1)
    network.feature_map = lambda x: features
    image = torch.zeros(1, 3, 32, 64)
    classes, sums = see_target(network, image)
    assert (classes[:, :32] == 1).all()
    assert (classes[:, 32:] == 0).all()
    # On the source the left half is class 0, the rest has no label: there is no class 1.
    label = np.full((32, 64), IGNORE, np.uint8)
    label[:, :32] = 0
    sums |= see_source(network, image, label, 2)
    found = criteria(sums)
    quarter = (0.25 * np.log2(4) + 0.75 * np.log2(4 / 3)) / 2
    marginal = -(0.625 * np.log2(0.625) + 0.375 * np.log2(0.375))
    assert found["entropy"] == pytest.approx(quarter)
    assert found["mutual_information"] == pytest.approx(marginal - quarter)
    assert found["mirror_agreement"] == 0  # it looks at the place of a pixel alone
    assert found["feature_distance"] == pytest.approx(1 - 1 / 2**0.5)  # (1, 1) and (1, 0)
    assert set(found) | {"seed_agreement", "base_agreement"} == set(CRITERIA)


def test_what_is_mirrored_is_turned_back() -> None:
    image = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    network: Any = Made(by_brightness)
    classes, sums = see_target(network, image)
    assert sums["agreeing"] == sums["pixels"] == 600
    assert set(classes.ravel()) == {0, 1}


def test_a_pixel_has_the_features_of_its_part_of_the_padded_frame() -> None:
    draw = np.random.default_rng(0)
    label = draw.choice([0, 1, 2, IGNORE], (40, 70)).astype(np.uint8)  # padded to 64x96
    features = torch.from_numpy(draw.random((1, 5, 4, 6)))
    expected = np.zeros((4, 5))
    for i, j in np.ndindex(*label.shape):
        if label[i, j] != IGNORE:
            expected[label[i, j]] += features[0, :, i // 16, j // 16].numpy() / 16**2
    found = class_features(features, torch.from_numpy(label), 4, multiple=32)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_features_of_no_common_class_have_no_distance() -> None:
    one, other = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])
    assert feature_distance(one, other) is None
    assert feature_distance(one, 5 * one) == pytest.approx(0)
    assert entropy(np.array([0.5, 0.5, 0.0, 0.0])) == pytest.approx(0.5)


def test_agreement_is_the_share_of_equal_pixels(tmp_path: Path) -> None:
    pictures = {"a": [[0, 1], [2, 3]], "b": [[0, 1], [2, 2]], "c": [[9, 1], [9, 9]]}
    for name, classes in pictures.items():
        indices = np.array(classes, np.uint8)
        write_indices(picture(tmp_path / name, "x/1"), indices, SPACE.palette)
        write_indices(picture(tmp_path / name, "x/2"), np.full((2, 2), 7, np.uint8), None)
    found = agreements([tmp_path / name for name in pictures], ["x/1", "x/2"])
    expected = [[1, 7 / 8, 5 / 8], [7 / 8, 1, 5 / 8], [5 / 8, 5 / 8, 1]]
    np.testing.assert_allclose(found, expected)
    picture(tmp_path / "b", "x/2").write_bytes(b"half a picture")
    with pytest.raises(UserError, match=r"b/predictions/x/2\.png cannot be read"):
        agreements([tmp_path / name for name in pictures], ["x/1", "x/2"])


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 30, 20, 99]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # Ranks 1.5, 1.5, 3, 4: covariance 4.5 / 3, variances 4.5 / 3 and 5 / 3.
    assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx((4.5 / 5) ** 0.5)
    assert rank_correlation([1, None, 2, 3, 4], [4, 0, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, None], [1, 2, 3, 4]) is None
    assert rank_correlation([1, 2, 3, 4], [5, 5, 5, 5]) is None


def looked_at(
    rule: Callable[[Tensor], Tensor],
    folder: Path,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """The content of `criteria.json` of a made network on the toy frames."""
    checkpoint = folder / "made.pt"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.touch()
    monkeypatch.setattr("segmentation.selection.load_segmenter", lambda *_: Made(rule))
    measure(
        *(SelectionConfig(frames=3), SPACE, config.target, config.source, checkpoint, folder),
        config.compute,
        title="made",
    )
    found: dict[str, Any] = json.loads((folder / "criteria.json").read_text())
    return found


def test_networks_that_are_wrong_by_construction(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {
        "right": (by_brightness, by_brightness),
        "noise": (by_place(0), by_place(1)),
        "road": (always_road, always_road),
    }
    made = []
    for arm, of_seeds in rules.items():
        folders = [tmp_path / arm / str(seed) for seed in range(2)]
        looks = [
            looked_at(*pair, config, monkeypatch) for pair in zip(of_seeds, folders, strict=True)
        ]
        assert [len(look["frames"]) for look in looks] == [3, 3]
        shares = agreements(folders, looks[0]["frames"])
        made += [
            Network(
                arm,
                seed,
                {**look["criteria"], "seed_agreement": shares[0, 1], "base_agreement": None},
                {m.key: float(arm == "right") for m in in_steps()},
            )
            for seed, look in enumerate(looks)
        ]
    without_road = {c.criterion.key: c for c in choices(made[:4])}
    for key in ("entropy", "mutual_information", "mirror_agreement", "seed_agreement"):
        assert without_road[key].arm == "right", key
        assert without_road[key].behind == {m.key: 0 for m in in_steps()}
    with_road = {c.criterion.key: c for c in choices(made)}
    assert with_road["entropy"].arm == "road"  # sure of what is wrong: entropy is taken in
    assert with_road["entropy"].behind["mean_iou"] == 1
    assert with_road["mutual_information"].arm == "right"
    assert with_road["base_agreement"].arm is None


def test_an_interrupted_look_goes_on_with_the_next_frame(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        paths = [p for p in folder.rglob("*") if p.suffix in {".png", ".json", ".npz"}]
        return {
            p.relative_to(folder).as_posix(): p.read_bytes()
            for p in paths
            if p.name != "progress.json"
        }

    looked_at(by_place(0), tmp_path / "whole", config, monkeypatch)
    # Three frames of the target and three of the source, with a kill in the midst of each.
    for kind in (see_target, see_source):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(f"segmentation.selection.{kind.__name__}", dying_at(3, kind))
            looked_at(by_place(0), tmp_path / "parts", config, monkeypatch)
    with monkeypatch.context() as patch:
        seen = Mock(side_effect=see_source)
        patch.setattr("segmentation.selection.see_source", seen)
        looked_at(by_place(0), tmp_path / "parts", config, monkeypatch)
    assert seen.call_count == 1
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert not (tmp_path / "parts/sums.npz").exists()


def test_no_label_of_the_target_is_read(
    tiny: Path, tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare/toy-real/gtFine/train")
    monkeypatch.setenv("WORLD", str(tmp_path / "bare"))
    run = tmp_path / "run"
    stages = {s.name: s for s in plan(load_config(tiny, ["compute.accelerator=cpu", ON]), run)}
    stage = stages["selection/source_only/seed-0"]
    assert stage.inputs()["target"] == plan_inputs(tiny, world, run, monkeypatch)["target"]
    checkpoint = run / "segmentation/source_only/seed-0" / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    monkeypatch.setattr("segmentation.selection.load_segmenter", lambda *_: Made(by_brightness))
    stage.work(run / stage.name)
    assert (run / stage.name / "criteria.json").is_file()


def plan_inputs(tiny: Path, world: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the same stage is made from where the labels are there."""
    with monkeypatch.context() as patch:
        patch.setenv("WORLD", str(world))
        stages = plan(load_config(tiny, [ON]), run)
        return next(s for s in stages if s.name.startswith("selection")).inputs()


def test_the_plan_with_and_without(tiny: Path, tmp_path: Path) -> None:
    arms = "arms={source_only: source, oracle: target, late: {train: source, start: oracle}}"
    plans = [plan(load_config(tiny, [arms, *on]), tmp_path) for on in ([], [ON])]
    without, with_it = ({stage.name: stage for stage in stages} for stages in plans)
    # Neither of an arm that learns from labels of the target, nor of one that starts from it.
    assert with_it.keys() - without.keys() == {"selection/source_only/seed-0"}
    stage = with_it["selection/source_only/seed-0"]
    assert (stage.command, stage.reads) == ("select", ("segmentation/source_only/seed-0",))
    assert stage.name in with_it["report"].reads
    before, now = map(all_inputs, plans)
    assert {name for name in before if before[name] != now[name]} == {"report"}
    of_config = {"config": {"frames": 4}, "version": 1}
    assert {key: now[stage.name][key] for key in of_config} == of_config


def test_the_arm_that_an_arm_builds_on(tiny: Path) -> None:
    config = load_config(
        tiny,
        [
            "translations={one: {method: class_alignment, pseudo_labels: source_only}}",
            "arms={source_only: source, first: {train: one, base: plain}, plain: source, longer: "
            "{train: source, start: first, base: plain}, step: {train: source, base: plain}}",
        ],
    )
    found = {arm: config.builds_on(arm) for arm in config.arms}
    assert found == {
        "source_only": None,
        "first": "source_only",
        "plain": None,
        "longer": "first",
        "step": "plain",
    }


@pytest.mark.parametrize("frames", ["0", "-1", "many"])
def test_frames_that_cannot_be_shown(tiny: Path, frames: str) -> None:
    with pytest.raises(UserError, match=r"selection\.frames"):
        load_config(tiny, [f"selection.frames={frames}"])


def networks(*rows: tuple[str, int, float | None, float]) -> list[Network]:
    """Networks of (arm, seed, entropy, mean IoU); per-pixel accuracy is twice that."""
    nothing = dict.fromkeys(CRITERIA)
    return [
        Network(arm, seed, {**nothing, "entropy": h}, {"pixel_accuracy": 2 * iou, "mean_iou": iou})
        for arm, seed, h, iou in rows
    ]


def test_choices_and_sentences_by_hand() -> None:
    # Means of entropy: 0.35, 0.25, 0.5; of mean IoU: 0.2, 0.25, 0.3.
    made = networks(
        *[("a", 0, 0.4, 0.1), ("a", 1, 0.3, 0.3), ("b", 0, 0.2, 0.2), ("b", 1, 0.3, 0.3)],
        *[("c", 0, 0.5, 0.3), ("c", 1, 0.5, 0.3)],
    )
    chosen, *others = choices(made)
    assert (chosen.arm, chosen.networks) == ("b", 6)
    assert chosen.behind == {
        "mean_iou": pytest.approx(0.05),
        "pixel_accuracy": pytest.approx(0.1),
    }
    # The lower the better: a higher entropy is a lower rank.
    values = [-0.4, -0.3, -0.2, -0.3, -0.5, -0.5]
    expected = rank_correlation(values, [0.1, 0.3, 0.2, 0.3, 0.3, 0.3])
    assert chosen.correlation["mean_iou"] == chosen.correlation["pixel_accuracy"] == expected
    assert expected is not None
    assert expected < 0
    assert all(other.arm is None and other.networks == 0 for other in others)
    assert choice_sentences(made) == [
        "By entropy one would choose b; the best in mean IoU is c, 5.0 points better."
    ]
    three = networks(("a", 0, 0.1, 0.3), ("a", 1, 0.1, 0.3), ("b", 0, 0.2, 0.1))
    assert choice_sentences(three) == [
        "By entropy one would choose a, the best in mean IoU.",
        "3 networks of arms without target labels: no rank correlation is given for fewer than 4.",
    ]
    assert LEAST == 4
    assert set(choices(three)[0].correlation.values()) == {None}


def test_an_arm_of_which_a_seed_has_no_value_is_not_chosen() -> None:
    made = networks(("a", 0, 0.1, 0.3), ("a", 1, None, 0.3), ("b", 0, 0.3, 0.1), ("c", 0, 0.2, 0.2))
    assert choices(made)[0].arm == "c"
    assert choices(made)[0].networks == 3
    assert choices(made[:3])[0].arm is None  # of one arm there is nothing to choose
    assert choices([]) == []


def test_the_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = networks(("a", 0, None, 0.25), ("=b", 1, 1 / 3, 0.5))
    write_networks(tmp_path / "selection.csv", made)
    assert read_networks(tmp_path / "selection.csv") == made
    (tmp_path / "selection.csv").write_text("arm,seed\na,0\n")
    with pytest.raises(UserError, match="no column 'entropy'"):
        read_networks(tmp_path / "selection.csv")
