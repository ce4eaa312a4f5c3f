"""Arms: mixtures, starts, rare classes, self-training; and whose labels are read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flows.plan import plan
from flows.prepare import preflight
from pipeline.config.load import load_config
from pipeline.config.segmentation import RareClassConfig, SelfTrainingConfig
from pipeline.config.settings import Config
from pipeline.data.images import read_rgb
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader
from pipeline.errors import UserError
from pipeline.run.stage import all_inputs, run_stage
from pipeline.runtime.checkpoint import load_checkpoint
from segmentation.data import class_counts, labelled_frames, rare_class_chooser, unlabelled_frames
from segmentation.self_training import (
    ClassThresholds,
    class_masks,
    freeze_bn_statistics,
    mask_out,
    mix_batch,
    pseudo_labels,
    recolor,
    weighted_cross_entropy,
)
from segmentation.train import CHECKPOINT, check_start, load_segmenter, train
from tests.helpers import do, equal, killed_in_step

SPACE = load_label_space("cityscapes19")
TAUGHT = (
    "{train: {source: 1, translated: 1}, self_training: {masked_weight: 1, mask_block: 16, "
    "confidence: 0.05, ignore_bottom: 0.2}, segmentation: {rare_class_sampling: {}}}"
)


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu"])


def test_a_teacher_s_labels_and_their_confidence_weight() -> None:
    torch.manual_seed(0)
    logits = 4 * torch.randn(2, 5, 6, 7)
    valid = torch.rand(2, 6, 7) > 0.3
    classes, weight, fraction = pseudo_labels(logits, valid, 0.9)
    above = 0
    for n, i, j in np.ndindex(2, 6, 7):
        odds = np.exp(logits[n, :, i, j].double().numpy())
        assert classes[n, i, j] == odds.argmax()
        above += odds.max() / odds.sum() > 0.9
    assert 0 < above < 84
    assert fraction.item() == pytest.approx(above / 84)
    assert torch.equal(weight > 0, valid)
    assert torch.allclose(weight[valid], fraction)


def test_class_thresholds_keep_a_part_of_each_class() -> None:
    torch.manual_seed(0)
    # Class 0 is frequent and easy, class 1 rare and never sure.
    classes = (torch.rand(2, 40, 50) < 0.1).long()
    probability = torch.where(classes == 0, 0.9 + 0.1 * torch.rand(2, 40, 50), 0.0)
    probability = torch.where(classes == 1, 0.3 + 0.4 * torch.rand(2, 40, 50), probability)
    valid = torch.rand(2, 40, 50) > 0.3
    kept = ClassThresholds(3, 0.5)(probability, classes, valid)
    assert not (kept & ~valid).any()
    for number in (0, 1):
        own = valid & (classes == number)
        assert (kept & own).sum() / own.sum() == pytest.approx(0.5, abs=0.08)
        assert probability[own & kept].min() >= probability[own & ~kept].max() - 0.02


def test_class_thresholds_remember_the_steps_before() -> None:
    thresholds = ClassThresholds(2, 0.4)
    some, valid = torch.zeros(1, 10, 10, dtype=torch.long), torch.ones(1, 10, 10, dtype=torch.bool)
    thresholds(torch.full((1, 10, 10), 0.99), some, valid)
    assert not thresholds(torch.full((1, 10, 10), 0.6), some, valid).any()  # half was surer
    assert thresholds.counts.sum() == pytest.approx(199)
    assert thresholds(torch.full((1, 10, 10), 0.999), some, valid).all()


def test_with_class_thresholds_a_pixel_weighs_nothing_or_all() -> None:
    torch.manual_seed(0)
    logits, valid = torch.randn(1, 3, 20, 20), torch.ones(1, 20, 20, dtype=torch.bool)
    _, weight, fraction = pseudo_labels(logits, valid, ClassThresholds(3, 0.3))
    assert set(weight.unique().tolist()) == {0.0, 1.0}
    assert fraction == weight.mean()


def test_half_of_the_classes_are_pasted_and_never_the_ignored() -> None:
    torch.manual_seed(0)
    label = torch.tensor([0, 1, 2, 3, 4, IGNORE]).repeat(3, 4, 1)
    label[1, :, 2:] = IGNORE  # two classes are left
    label[2] = IGNORE  # none
    seen = set()
    for _ in range(100):
        masks = class_masks(label)
        pasted = [label[n][masks[n]].unique().tolist() for n in range(3)]
        assert [len(classes) for classes in pasted] == [3, 1, 0]
        for n in range(2):  # a class is pasted whole
            assert masks[n].sum() == 4 * len(pasted[n])
            assert IGNORE not in pasted[n]
        seen.add(tuple(pasted[0]))
    assert len(seen) == 10  # all choices of 3 of 5


def test_masks_are_squares_of_the_share() -> None:
    torch.manual_seed(0)
    hidden = mask_out(torch.full((40, 50, 70, 3), 9, dtype=torch.uint8), 16, 0.7)
    assert hidden.dtype == torch.uint8
    corners = hidden[:, ::16, ::16]
    assert torch.equal(
        hidden, corners.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :50, :70]
    )
    assert (corners[..., 0] == 0).float().mean().item() == pytest.approx(0.7, abs=0.05)


def test_masked_frames_leave_no_trace_in_batch_norm() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    norm: Any = network[1]
    with freeze_bn_statistics(network):
        network(torch.randn(2, 3, 5, 5)).sum().backward()
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert torch.equal(norm.running_var, torch.ones(4))
    assert network[0].weight.grad is not None
    network(torch.randn(2, 3, 5, 5))
    assert not torch.equal(norm.running_mean, torch.zeros(4))


def test_weighted_cross_entropy_by_hand() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    label = torch.tensor([[[0, 2], [IGNORE, 1]]])
    weight = torch.tensor([[[1.0, 0.5], [7.0, 0.0]]], dtype=torch.float64)
    log = F.log_softmax(logits, 1)[0]
    expected = -(log[0, 0, 0] + 0.5 * log[2, 0, 1]) / 3
    assert weighted_cross_entropy(logits, label, weight).item() == pytest.approx(expected.item())
    void = torch.full_like(label, IGNORE)
    assert weighted_cross_entropy(logits, void, weight) == 0


def test_recolouring_is_off_when_it_is_off_and_differs_between_pictures() -> None:
    torch.manual_seed(0)
    rgb = torch.randint(0, 255, (1, 20, 30, 3), dtype=torch.uint8).repeat(6, 1, 1, 1)
    assert torch.equal(recolor(rgb, SelfTrainingConfig(color=0, blur=0)), rgb)
    pictures = recolor(rgb, SelfTrainingConfig(color=0.5, blur=1))
    assert pictures.shape == rgb.shape
    assert pictures.dtype == torch.uint8
    assert len({picture.numpy().tobytes() for picture in pictures}) == 6


def test_a_mixed_batch_pastes_labelled_pixels_with_their_labels() -> None:
    torch.manual_seed(0)
    height, width = 12, 20
    batch = {
        "rgb": torch.full((2, height, width, 3), 200, dtype=torch.uint8),
        "label": (torch.arange(width) // 5).repeat(2, height, 1),  # classes 0 to 3 in stripes
    }
    frames = {
        "rgb": torch.full((2, height, width, 3), 10, dtype=torch.uint8),
        "valid": torch.ones(2, height, width, dtype=torch.bool),
    }
    frames["valid"][:, :3] = False

    seen = torch.zeros(2, 9, height, width)
    seen[:, 7, :, :10] = 50  # the teacher is sure of the left half alone
    config = SelfTrainingConfig(color=0, blur=0)
    mixed = mix_batch(seen, batch, frames, config)
    pasted = mixed.rgb[..., 0] == 200
    assert torch.equal(mixed.rgb[..., 0] == 10, ~pasted)
    assert pasted.float().mean() == 0.5  # two stripes of four
    assert torch.equal(mixed.label[pasted], batch["label"][pasted])
    assert mixed.confident_fraction == 0.5
    valid = frames["valid"]
    assert mixed.weight[pasted].unique().tolist() == [1]
    assert mixed.weight[~pasted & valid].unique().tolist() == [0.5]
    assert mixed.weight[~pasted & ~valid].unique().tolist() == [0]
    alone = mix_batch(seen, batch, frames, config.model_copy(update={"class_mix": False}))
    assert torch.equal(alone.rgb, frames["rgb"])
    assert torch.equal(alone.label, alone.pseudo_label)


def test_rare_classes_are_drawn_by_the_published_rule() -> None:
    pixels = np.array([[900, 90, 0, 9, 0], [950, 0, 61, 0, 0], [940, 60, 0, 0, 0]])
    config = RareClassConfig(temperature=0.5)
    choose = rare_class_chooser(pixels, config, enough=55)
    drawn = [choose(np.random.default_rng([0, i])) for i in range(6000)]
    frequency = pixels.sum(0)[:3] / pixels.sum()
    expected = np.exp((1 - frequency) / 0.5) / np.exp((1 - frequency) / 0.5).sum()
    classes = np.array([index for _, index in drawn])
    # Neither the absent class, nor the one that has too few pixels anywhere.
    assert set(classes) == {0, 1, 2}
    for index, share in enumerate(expected):
        assert (classes == index).mean() == pytest.approx(share, abs=0.02)
    assert {frame for frame, index in drawn if index == 1} == {0, 2}
    assert {frame for frame, index in drawn if index == 2} == {1}
    nothing = rare_class_chooser(np.zeros((5, 3), np.int64), config, enough=1)
    assert nothing(np.random.default_rng(0))[1] is None


def test_crops_are_drawn_again_until_they_show_the_class(config: Config, tmp_path: Path) -> None:
    rare = RareClassConfig(temperature=0.01, crop_share=0.02)
    recipe = config.segmentation.model_copy(update={"rare_class_sampling": rare})
    counts = class_counts([(config.source, 1)], SPACE, None, tmp_path)
    draws = labelled_frames([(config.source, 1)], SPACE, recipe, 0, None, counts)
    plain = labelled_frames([(config.source, 1)], SPACE, config.segmentation, 0, None)
    assert draws.pick is not None
    hits = []
    for draw in range(40):
        choice = draws.pick(np.random.default_rng([5, draw]))
        item = draws.read(choice, np.random.default_rng([6, draw]))
        crop = (item["label"] == choice[2]).float().mean().item() >= 0.02
        once = plain.read(choice[1], np.random.default_rng([6, draw]))
        hits.append((crop, (once["label"] == choice[2]).float().mean().item() >= 0.02))
    found, before = np.mean(hits, axis=0)
    assert found > before + 0.1


def test_classes_are_counted_once_in_a_training(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = [(config.source, 1.0), (config.target, 2.0)]
    counts = class_counts(mixture, SPACE, None, tmp_path)
    for (spec, _), found in zip(mixture, counts, strict=True):
        samples = list_samples(spec, labelled=True)
        labels = [LabelReader(spec, SPACE).read(sample) for sample in samples]
        assert found.tolist() == [[(label == k).sum() for k in range(19)] for label in labels]
    reads: list[str] = []

    def read(reader: LabelReader, sample: Any) -> Any:
        reads.append(sample.name)
        return plain(reader, sample)

    plain = LabelReader.read
    monkeypatch.setattr(LabelReader, "read", read)
    again = class_counts(mixture, SPACE, None, tmp_path)
    assert reads == []
    assert [found.tolist() for found in again] == [found.tolist() for found in counts]
    # The parts of a mixture are named in any order.
    turned = class_counts(mixture[::-1], SPACE, None, tmp_path)
    assert [found.tolist() for found in turned[::-1]] == [found.tolist() for found in counts]
    assert len(reads) == 20
    (tmp_path / "class_counts.npz").write_bytes(b"damaged")  # counted anew
    mended = class_counts(mixture, SPACE, None, tmp_path)
    assert [found.tolist() for found in mended] == [found.tolist() for found in counts]


def test_mixtures_have_their_shares_and_continue_anywhere(config: Config) -> None:
    mixture = [(config.source, 3.0), (config.target, 1.0)]
    draws = labelled_frames(mixture, SPACE, config.segmentation, 0, None)
    names = [draws[i]["name"] for i in range(200)]  # type: ignore[index]
    real = [name for name in names if "toy-real" in name]
    assert 30 <= len(real) <= 70  # 50 +- 6
    assert len(set(names)) == 20
    assert draws[77]["name"] == names[77]  # type: ignore[index]


def test_unlabelled_frames_are_not_recoloured_and_rims_not_valid(config: Config) -> None:
    still = config.segmentation.augmentation.model_copy(update={"scale": (1, 1), "flip": False})
    recipe = config.segmentation.model_copy(update={"augmentation": still, "crop": (128, 96)})
    teaching = SelfTrainingConfig(ignore_top=0.25, ignore_bottom=0.125)
    draws = unlabelled_frames(config.target, recipe, teaching, 0, None)
    item: Any = draws[0]
    valid = item["valid"].numpy()
    rows = np.flatnonzero(valid.any(axis=1))
    assert len(rows) == 64 - 16 - 8  # the frame's 64 rows without its rims, and no padding
    assert valid[rows].all()
    frames = [read_rgb(sample.image) for sample in list_samples(config.target, labelled=False)]
    top = rows[0] - 16
    assert any(np.array_equal(item["rgb"][top : top + 64], frame) for frame in frames)


def test_self_training_continues_bit_for_bit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is kept of each class is a state of its own, beside the teacher.
    teaching = SelfTrainingConfig(teacher_average=0.9, masked_weight=1, mask_block=16, keep=0.5)
    recipe = config.segmentation.model_copy(update={"rare_class_sampling": RareClassConfig()})
    unlabelled = config.target.model_copy(update={"labels": None})

    def fit(name: str) -> dict[str, Any]:
        train(
            recipe,
            SPACE,
            [(config.source, 1)],
            3,
            tmp_path / name,
            config.compute,
            self_training=teaching,
            target=unlabelled,
        )
        return load_checkpoint(tmp_path / name / CHECKPOINT)

    whole = fit("whole")
    with killed_in_step(5, monkeypatch):
        fit("parts")
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT)["step"] == 3
    assert equal(whole, fit("parts"))
    assert not equal(whole["teacher"], whole["model"])
    pictures = sorted((tmp_path / "whole" / "samples").iterdir())
    assert [path.name for path in pictures] == [f"step-000000{n}.png" for n in (3, 6, 8)]
    assert read_rgb(pictures[0]).shape == (2 * 48, 4 * 64, 3)


def test_a_teacher_that_is_an_arm_stays_as_it_is(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config.segmentation, SPACE, [(config.source, 1)], 0, tmp_path / "arm", config.compute)
    teacher = load_segmenter(tmp_path / "arm" / CHECKPOINT)
    agreed: list[bool] = []

    def mix(logits: Tensor, *others: Any) -> Any:
        with torch.no_grad():
            agreed.append(torch.allclose(logits, teacher(others[1]["rgb"]), atol=1e-4))
        return mix_batch(logits, *others)

    def fit(name: str) -> dict[str, Any]:
        train(
            config.segmentation,
            SPACE,
            [(config.source, 1)],
            3,
            tmp_path / name,
            config.compute,
            self_training=SelfTrainingConfig(teacher="arm", keep=0.5, class_mix=False),
            teacher_checkpoint=tmp_path / "arm" / CHECKPOINT,
            target=config.target.model_copy(update={"labels": None}),
        )
        return load_checkpoint(tmp_path / name / CHECKPOINT)

    with monkeypatch.context() as patch:
        patch.setattr("segmentation.train.mix_batch", mix)
        whole = fit("whole")
    assert agreed == [True] * config.segmentation.steps
    assert "teacher" not in whole
    with killed_in_step(5, monkeypatch):
        fit("parts")
    assert equal(whole, fit("parts"))


def test_a_teacher_is_an_arm_of_the_same_seed_and_of_the_same_eyes(tiny: Path) -> None:
    """Who learns from a network that saw the target's labels has seen them."""
    taught = "{train: source, self_training: {teacher: %s}}"
    config = load_config(
        tiny,
        [f"arms={{source_only: source, oracle: target, a: {taught % 'oracle'}, "
         f"b: {taught % 'source_only'}, c: {{train: source, start: a}}}}", "seeds=[3, 4]"],
    )  # fmt: skip
    assert [arm for arm in config.arms if config.sees_target_labels(arm)] == ["oracle", "a", "c"]
    stages = {stage.name: stage for stage in plan(config, tiny.parent / "run")}
    assert stages["segmentation/b/seed-4"].reads == ("segmentation/source_only/seed-4",)
    for arms in ("{a: %s, b: source}" % (taught % "b"), "{a: %s}" % (taught % "nobody")):
        with pytest.raises(UserError, match=r"self_training.teacher is .* must be an arm that is"):
            load_config(tiny, [f"arms={arms}"])


@pytest.mark.slow
def test_no_label_of_the_target_is_read_but_by_the_oracle(
    tiny: Path, own_world: Path, tmp_path: Path
) -> None:
    labels = sorted((own_world / "toy-real/gtFine/train").rglob("*"))
    files = [path for path in labels if path.is_file()]
    assert len(files) >= 10
    for path in files:
        path.write_bytes(b"not to be read")
    settings = [
        f"arms={{source_only: source, adapted: translated, self_trained: {TAUGHT}, "
        "again: {train: source, start: adapted, self_training: {}}}",
        "cyclegan.semantics={consistency: 1, target_consistency: 1, probe_frames: 2}",
        "translation.checkpoint=best",
        "compute.accelerator=cpu",
        f"compute.cache={tmp_path / 'cache'}",
    ]
    config = load_config(tiny, settings)
    preflight(config)
    run = tmp_path / "run"
    stages = plan(config, run)
    assert sum(stage.command == "evaluate" for stage in stages) == 4
    do(run, stages)
    # The oracle finds them out.
    oracle = load_config(tiny, ["arms={oracle: target}", "compute.accelerator=cpu"])
    training = plan(oracle, tmp_path / "oracle")[0]
    with pytest.raises(UserError, match="gtFine"):
        run_stage(tmp_path / "oracle", training, all_inputs([training])[training.name])


def test_a_start_hands_weights_on(config: Config, tmp_path: Path) -> None:
    mixture = [(config.source, 1.0)]
    train(config.segmentation, SPACE, mixture, 0, tmp_path / "a", config.compute)
    still = config.segmentation.model_copy(
        update={"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    )
    start = tmp_path / "a" / CHECKPOINT
    train(still, SPACE, mixture, 1, tmp_path / "b", config.compute, start=start)
    first, second = (load_checkpoint(tmp_path / name / CHECKPOINT)["model"] for name in "ab")
    weights = [key for key in first if "running" not in key and "num_batches" not in key]
    assert all(torch.allclose(first[key], second[key], atol=1e-9) for key in weights)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("{a: {train: {source: 1, nowhere: 1}}}", "no frames 'nowhere'. Known: target, source,"),
        ("{a: {train: {source: 0}}}", "greater than 0"),
        ("{a: {train: {}}}", "at least 1 item"),
        ("{a: {start: b}}", "train: required"),
        ("{a: {train: source, start: b}, b: source}", "an arm that is listed before it (there is"),
        ("{a: {train: source, start: a}}", "listed before it"),
        ("{a: {train: source, segmentation: {stepps: 3}}}", "Did you mean 'steps'"),
        ("{a: {train: source, segmentation: {crop: [3, 3]}}}", "greater than or equal to 16"),
        (
            "{b: source, a: {train: source, start: b, segmentation: {encoder: resnet34}}}",
            "whose network is another one",
        ),
        (
            "{a: {train: source, segmentation: {recipe: smal}}}",
            "arms.a.segmentation.recipe: no rec",
        ),
        ("{a: {train: source, self_training: {confidence: 2}}}", "less than or equal to 1"),
        (
            "{a: {train: source, self_training: {ignore_top: .6, ignore_bottom: .5}}}",
            "leave nothing of a frame",
        ),
    ],
)
def test_arms_that_cannot_be(tiny: Path, arms: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(tiny, [f"arms={arms}"])
    assert message in str(error.value)


def test_an_arm_s_own_settings_win(tiny: Path) -> None:
    own = "{steps: 3, augmentation: {color: 0}, options: {encoder_depth: 4}}"
    config = load_config(tiny, [f"arms={{a: source, b: {{train: source, segmentation: {own}}}}}"])
    assert config.recipe("a") == config.segmentation
    recipe = config.recipe("b")
    assert (recipe.steps, recipe.augmentation.color) == (3, 0)
    assert recipe.augmentation.blur == config.segmentation.augmentation.blur
    assert recipe.batch_size == config.segmentation.batch_size
    assert recipe.options == {"encoder_depth": 4}  # of one network, not of two


def test_a_start_that_does_not_fit_is_found_before_work(
    tiny: Path, tmp_path: Path, config: Config
) -> None:
    torch.save({"weights": 1}, tmp_path / "other.pt")
    (tmp_path / "empty.pt").touch()
    recipe = config.segmentation.model_copy(update={"steps": 1})
    train(recipe, load_label_space("camvid11"), [(config.source, 1)], 0, tmp_path, config.compute)
    state = load_checkpoint(tmp_path / CHECKPOINT) | {"classes": SPACE.class_names}
    torch.save(state, tmp_path / "half.pt")
    with pytest.raises(UserError, match=r"half\.pt is damaged, or something else"):
        train(
            recipe,
            SPACE,
            [(config.source, 1)],
            0,
            tmp_path / "new",
            config.compute,
            start=tmp_path / "half.pt",
        )
    for file, message in (
        ("missing.pt", "No checkpoint"),
        ("empty.pt", "is damaged"),
        ("other.pt", "no checkpoint of a segmentation training"),
        (str(CHECKPOINT), "knows the classes"),
    ):
        arms = f"arms={{a: {{train: source, start: {tmp_path / file}}}}}"
        with pytest.raises(UserError, match=message):
            preflight(load_config(tiny, [arms]))


def test_a_start_may_know_settings_that_are_gone(config: Config, tmp_path: Path) -> None:
    settings = config.segmentation.model_dump(mode="json") | {"gone": 1}
    torch.save({"config": settings, "classes": SPACE.class_names, "model": {}}, tmp_path / "old.pt")
    check_start(tmp_path / "old.pt", config.segmentation, SPACE)


def test_what_an_arm_depends_on(tiny: Path, tmp_path: Path) -> None:
    arms = f"arms={{adapted: translated, b: {TAUGHT}, c: {{train: target, start: b}}}}"

    def inputs(*settings: str) -> dict[str, Any]:
        return all_inputs(plan(load_config(tiny, [arms, *settings]), tmp_path))

    before, name = inputs(), "segmentation/b/seed-0"
    assert set(before[name]["reads"]) == {"translated"}
    assert set(before["segmentation/c/seed-0"]["reads"]) == {name}
    changed = inputs("arms.b.self_training.weight=2")
    differing = [key for key in before if before[key] != changed[key]]
    assert differing == [
        name,
        "evaluation/b/seed-0",
        "segmentation/c/seed-0",
        "evaluation/c/seed-0",
        "report",
    ]
