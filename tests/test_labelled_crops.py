"""Discriminators that are told classes, and crops that are chosen by them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cyclegan.checkpoints import load_start
from cyclegan.data import DomainLabels, crop_reader, match_reader, unpaired
from cyclegan.discriminators import (
    FeatureDiscriminator,
    FrozenEncoder,
    LabelDiscriminator,
    domain_discriminator,
    with_classes,
)
from cyclegan.layouts import GRID, label_map, layout, similarity
from cyclegan.losses import gan_loss
from cyclegan.networks import PyramidDiscriminator, build_discriminator, build_generator
from cyclegan.pool import ImagePool
from cyclegan.steps import CHECKPOINT
from cyclegan.train import train
from cyclegan.train_contrastive import train_contrastive
from flows.estimate import estimate
from flows.plan import plan
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig
from pipeline.data.images import UInt8
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.data.listing import Sample, list_samples
from pipeline.data.reading import read_frame
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.runtime.checkpoint import load_checkpoint
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.runtime.loader import random_crop
from tests.helpers import (
    SPACE,
    Given,
    Killed,
    assert_close,
    do,
    equal,
    label_frames,
    stopping_after,
)
from tests.ranks import in_ranks


def by_brightness(rgb: UInt8) -> tuple[UInt8, UInt8]:
    """Pseudo-labels that need no network: bright pixels are of class 1."""
    label = (rgb.mean(axis=2) > 110).astype(np.uint8)
    return label, np.full(label.shape, 255, np.uint8)


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu"])


def recipe(config: Config, **settings: Any) -> CycleGANConfig:
    short = {"steps_per_epoch": 1, "checkpoint_every": 1}
    return CycleGANConfig.model_validate(config.cyclegan.model_dump() | short | settings)


# Discriminators.


def test_a_place_has_the_logits_of_the_classes_that_are_shown_there() -> None:
    logits = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    classes = torch.tensor([[0, 0, 1, IGNORE], [0, 1, IGNORE, IGNORE]], dtype=torch.uint8)[None]
    shown = torch.cat([torch.zeros(1, 3, 2, 4), classes[:, None].float()], dim=1)
    out = LabelDiscriminator(Given([logits, [logits]]), 2)(shown)
    expected = [1 + 0.75 * 10 + 0.25 * 100, 1 + 0.25 * 100]
    assert out[0].flatten().tolist() == out[1][0].flatten().tolist() == expected


def test_labels_change_what_a_discriminator_says(config: Config) -> None:
    torch.manual_seed(0)
    encoder = FrozenEncoder(lambda x: [x[:, :, ::4, ::4]], [3])
    settings = {"label_discriminators": True, "feature_encoder": "a", "discriminator_scales": 2}
    told = recipe(config, **settings, discriminator_layers=1)
    network = domain_discriminator(told, encoder, SPACE)
    frames = torch.randn(1, 3, 32, 32)
    dark, bright, unknown = (torch.full((1, 32, 32), c, dtype=torch.uint8) for c in (0, 1, IGNORE))
    said = [network(with_classes(told, frames, {"classes": c})) for c in (dark, bright, unknown)]
    assert isinstance(network.discriminator.parts[0], PyramidDiscriminator)
    assert isinstance(network.discriminator.parts[1], FeatureDiscriminator)
    for one, other, third in zip(*(([*s[0], *s[1]]) for s in said), strict=True):
        assert not torch.equal(one, other)
        assert not torch.equal(one, third)
    # What is learned of one class is no affair of the other's.
    gan_loss(said[0], real=True).backward()
    last = network.discriminator.parts[1].heads[0][-1]
    assert [bool(row.abs().sum() > 0) for row in last.weight.grad] == [True, True, False]


def test_labels_stay_with_their_images_in_the_pool(config: Config) -> None:
    told = recipe(config, label_discriminators=True)
    pool, rng, seen = ImagePool(3), np.random.default_rng(0), set()
    for i in range(40):
        frame = torch.full((1, 3, 2, 2), i / 100)
        batch = {"classes": torch.full((1, 2, 2), i, dtype=torch.uint8)}
        out = pool.query(with_classes(told, frame, batch), rng)
        assert out.shape == (1, 4, 2, 2)
        assert (out[0, 3] == (100 * out[0, 0]).round()).all()
        seen.add(int(out[0, 3, 0, 0]) == i)
    assert seen == {True, False}
    assert with_classes(recipe(config), frame, {}) is frame


# Layouts.


def test_layouts_by_hand() -> None:
    top = np.full((8, 8), 1, np.uint8)
    top[4:] = 0
    found = layout(top)
    assert found.sum() == 1
    assert found[0, 1] == found[15, 0] == 1 / GRID**2
    assert similarity(found, found) == 1
    assert similarity(found, layout(top[::-1])) == 0
    shifted = np.roll(top, 1, axis=0)  # an eighth of the pixels is otherwise, twice
    assert similarity(found, layout(shifted)) == 0.75
    top[:4] = IGNORE
    assert similarity(layout(top), found) == 0.5


def test_a_label_map_s_crop_is_where_the_frame_s_is() -> None:
    classes = np.zeros((64, 80), np.uint8)
    classes[:, 40:] = 1
    kept = label_map(classes)
    assert kept.size == (80, 64)
    assert kept.cut(slice(0, 16), slice(24, 56)).tolist() == [[0, 0, 1, 1]] * 2


def domains(config: Config, folder: Path) -> list[tuple[DatasetSpec, list[Sample], Path]]:
    found = []
    for name, spec in (("source", config.source), ("target", config.target)):
        samples = list_samples(spec, labelled=False)
        label_frames(spec, by_brightness, folder / name)
        found.append((spec, samples, folder / name))
    return found


def test_the_crop_of_the_nearest_layout_is_taken(config: Config, tmp_path: Path) -> None:
    (source, frames, folder), target = domains(config, tmp_path)
    settings = recipe(config, matched_crops=20)
    plain = crop_reader(source, frames, settings.crop, None, folder)
    places = set()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        wanted = plain(0, rng)
        best: tuple[float, UInt8, int] = (-1.0, np.zeros(0, np.uint8), 0)
        for _ in range(20):
            number = int(rng.integers(len(target[1])))
            frame = read_frame(target[0], target[1][number])
            rows, columns = random_crop(rng, (frame.shape[1], frame.shape[0]), settings.crop, "")
            way = -1 if rng.random() < 0.5 else 1
            seen = label_map(by_brightness(frame)[0]).cut(rows, columns)[:, ::way]
            alike = similarity(layout(wanted["classes"].numpy()[::8, ::8]), layout(seen))
            if alike > best[0]:
                best = alike, frame[rows, columns][:, ::way], number
        item = match_reader(settings, plain, target, None)(0, np.random.default_rng(seed))
        np.testing.assert_array_equal(item["target"]["rgb"].numpy(), best[1])
        assert torch.equal(item["source"]["rgb"], wanted["rgb"])
        # Labels are those of the very pixels.
        np.testing.assert_array_equal(
            item["target"]["classes"].numpy(), by_brightness(item["target"]["rgb"].numpy())[0]
        )
        places.add(best[2])
    assert len(places) > 1


def test_choices_are_a_function_of_seed_and_step(config: Config, tmp_path: Path) -> None:
    both = domains(config, tmp_path)

    def drawn(first: int, seed: int = 0) -> list[Any]:
        settings = recipe(config, matched_crops=5, seed=seed, batch_size=2)
        crops = unpaired(settings, both, config.compute, ONE_RANK, first=first, last=4, pin=False)
        return list(crops)

    whole = drawn(0)
    assert len(whole) == 4
    for step, other in zip(whole[2:], drawn(2), strict=True):
        for one, two in zip(step, other, strict=True):
            assert one["name"] == two["name"]
            assert torch.equal(one["rgb"], two["rgb"])
    other = drawn(0, seed=1)
    assert [step[1]["name"] for step in other] != [step[1]["name"] for step in whole]


# Trainings.


def fit(config: Config, settings: CycleGANConfig, folder: Path, ranks: Ranks) -> None:
    loop: Any = train_contrastive if settings.contrastive else train
    labels = DomainLabels(load_label_space("cityscapes19"), folder.parent / "pseudo_labels")
    with ranks.rank_zero_first():
        label_frames(config.target, by_brightness, labels.pseudo_labels)
    frames = (config.source, config.target, folder, config.compute)
    loop(settings, *frames, ranks=ranks, labels=labels)


@pytest.mark.parametrize("method", ["cyclegan", "cut"])
def test_resume_is_bit_for_bit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    own = {"contrastive": {"patches": 16} if method == "cut" else None}
    settings = recipe(config, label_discriminators=True, matched_crops=3, **own)

    def killed(*arguments: Any) -> None:
        raise Killed

    fit(config, settings, tmp_path / "whole", ONE_RANK)
    whole = load_checkpoint(tmp_path / "whole" / CHECKPOINT)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("cyclegan.steps.save_checkpoint", stopping_after(1, killed))
        fit(config, settings, tmp_path / "parts", ONE_RANK)
    fit(config, settings, tmp_path / "parts", ONE_RANK)
    assert equal(load_checkpoint(tmp_path / "parts" / CHECKPOINT), whole)
    if method == "cyclegan":
        assert [image.shape[0] for image in whole["pools"]["target"]] == [4, 4]
    last = next(v for k, v in whole["networks"].items() if "discriminator" in k)
    assert last["discriminator.model.11.weight"].shape[0] == 1 + 19
    # They have no counterpart elsewhere: another training starts without them, told or not.
    start = {"start": tmp_path / "whole" / CHECKPOINT, **own}
    for told in (True, False):
        begun = load_start(recipe(config, **start, label_discriminators=told))
        assert set(begun) == {name for name in whole["networks"] if "_to_" in name}


def test_two_devices_learn_what_one_learns(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for name, build in (
        ("train.build_generator", build_generator),
        ("discriminators.build_discriminator", build_discriminator),
    ):
        monkeypatch.setattr(f"cyclegan.{name}", lambda *given, build=build: build(*given).double())
    settings = recipe(config, label_discriminators=True, matched_crops=3, batch_size=2)
    for devices in (1, 2):
        in_ranks(devices, fit, config, settings, tmp_path / str(devices))
    one, two = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("1", "2"))
    for part in ("networks", "optimizers", "pools"):
        assert_close(two[part], one[part], 1e-8)


# In a run.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{cyclegan: {label_discriminators: true}}", "pseudo_labels is None.*name the arm"),
        ("{method: cut, cyclegan: {matched_crops: 8}}", "matched_crops 8; name the arm"),
        ("{pseudo_labels: source_only}", "label_discriminators False .*leave all of them out"),
        (
            "{pseudo_labels: oracle, cyclegan: {matched_crops: 8}}",
            "learns from no label of the target",
        ),
        ("{pseudo_labels: adapted, cyclegan: {matched_crops: 8}}", "in a circle"),
        ("{cyclegan: {paired: true, matched_crops: 8}}", "matched_crops is for unpaired"),
    ],
)
def test_settings_that_cannot_work(tiny: Path, settings: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(tiny, [f"translation={settings}"])


def test_the_arm_s_network_labels_the_target_first(tiny: Path, tmp_path: Path) -> None:
    own = "{label_discriminators: true, matched_crops: 2, steps_per_epoch: 1}"
    config = load_config(
        tiny, [f"translation={{method: cut, pseudo_labels: source_only, cyclegan: {own}}}"]
    )
    run = tmp_path / "run"
    stages = plan(config, run)
    reads = {stage.name: stage.reads for stage in stages}
    assert reads["cyclegan"] == ("pseudo_labels/source_only/seed-0",)
    assert reads["translated"] == ("cyclegan",)
    assert any(part.command == "train-cyclegan" for part in estimate(config))
    do(run, stages[:4])
    assert len(list((run / "translated/images").rglob("*.png"))) == 10


def test_a_student_is_told_no_classes(tiny: Path) -> None:
    config = load_config(
        tiny,
        [
            "cyclegan={label_discriminators: true, matched_crops: 8}",
            "translation.pseudo_labels=source_only",
            "translations={student: {method: student, teacher: translated}}",
            "arms={source_only: source, fast: student}",
        ],
    )
    assert config.cyclegan_recipe("translated").reads_labels
    assert not config.cyclegan_recipe("student").reads_labels
