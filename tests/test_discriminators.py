"""Discriminators on frozen features: what they see, what is trained, how runs name them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.checkpoints import export_reference, load_start
from cyclegan.discriminators import (
    FeatureDiscriminator,
    FrozenEncoder,
    JointDiscriminator,
    domain_discriminator,
)
from cyclegan.losses import discriminator_loss, gan_loss
from cyclegan.networks import PatchDiscriminator
from cyclegan.steps import CHECKPOINT
from cyclegan.train import train
from cyclegan.train_contrastive import train_contrastive
from flows.estimate import estimate
from flows.networks import frozen_encoder
from flows.plan import plan
from flows.prepare import preflight
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig
from pipeline.errors import UserError
from pipeline.run.stage import all_inputs, check
from pipeline.runtime.checkpoint import load_checkpoint
from tests.helpers import Given, Killed, equal, stopping_after


class TwoLevels(nn.Module):
    """A frozen stand-in for an encoder: two strided convolutions with fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 10, 2, 2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(x)
        return [first, self.second(first.relu())]


def frozen(device: torch.device | None = None) -> FrozenEncoder:
    return FrozenEncoder(TwoLevels().to(device), [6, 10])


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu"])


def recipe(config: Config, **settings: Any) -> CycleGANConfig:
    short = {"steps_per_epoch": 1, "checkpoint_every": 1, "feature_encoder": "stand-in"}
    return CycleGANConfig.model_validate(config.cyclegan.model_dump() | short | settings)


def test_each_level_has_logits_of_its_scaled_features() -> None:
    encoder, x = frozen(), torch.randn(2, 3, 16, 24)
    discriminator = FeatureDiscriminator(encoder, 5)
    logits = discriminator(x)
    assert [tuple(level.shape) for level in logits] == [(2, 1, 4, 6), (2, 1, 2, 3)]
    level = encoder.features(x)[1]
    scaled = F.normalize(level, dim=1) * 10**0.5
    torch.testing.assert_close(logits[1], discriminator.heads[1](scaled), rtol=1e-4, atol=1e-5)


def test_the_encoder_is_not_trained_and_passes_gradients_on() -> None:
    network = TwoLevels()
    discriminator = FeatureDiscriminator(FrozenEncoder(network, [6, 10]), 5)
    assert {key.split(".")[0] for key in discriminator.state_dict()} == {"heads"}
    discriminator.requires_grad_(True)  # as a loop thaws it
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    gan_loss(discriminator(x), real=True).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in discriminator.parameters())
    assert all(p.grad is None for p in network.parameters())


def test_losses_of_a_joint_discriminator_are_means_of_means() -> None:
    def both(real: float, fake: float) -> Tensor:
        return torch.tensor([real, fake]).view(2, 1, 1, 1)

    joint = JointDiscriminator([Given(both(3, 0)), Given([both(1, 2), both(1, 4)])])
    loss = discriminator_loss(joint, torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1))
    # Real: (4 + (0 + 0) / 2) / 2. Translated: (0 + (4 + 16) / 2) / 2.
    assert loss.item() == 0.5 * (2 + 5)


def test_heads_learn_what_the_features_tell() -> None:
    torch.manual_seed(0)
    discriminator = FeatureDiscriminator(frozen(), 8)
    adam = torch.optim.Adam(discriminator.parameters(), 5e-3)
    for _ in range(80):
        real, fake = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16) + 1
        loss = discriminator_loss(discriminator, real, fake)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss.item() < 0.1  # 0.25 where it cannot tell


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"feature_encoder": None}, PatchDiscriminator),
        ({}, JointDiscriminator),
        ({"discriminator": "none"}, FeatureDiscriminator),
    ],
)
def test_which_discriminators_there_are(
    config: Config, settings: dict[str, Any], kinds: type[nn.Module]
) -> None:
    assert type(domain_discriminator(recipe(config, **settings), frozen())) is kinds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{discriminator: none}", "no feature_encoder takes its place; name one"),
        ("{feature_encoder: resnet18, feature_encoder_weights: none}", "random features know not"),
        ("{feature_encoder: resnet18, paired: true}", "feature_encoder is for unpaired training"),
    ],
)
def test_settings_that_cannot_work(tiny: Path, settings: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(tiny, [f"translation.cyclegan={settings}"])


Fit = Callable[[CycleGANConfig, Path], None]


@pytest.mark.parametrize("method", ["beside", "instead", "cut"])
def test_they_are_trained_and_resume_bit_for_bit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    own: dict[str, Any] = {"discriminator": "none"} if method == "instead" else {}
    own |= {"contrastive": {"patches": 16}} if method == "cut" else {}
    loop: Any = train_contrastive if method == "cut" else train

    def fit(name: str) -> dict[str, Any]:
        frames = (config.source, config.target, tmp_path / name, config.compute)
        loop(recipe(config, **own), *frames, encoder_on=frozen)
        return load_checkpoint(tmp_path / name / CHECKPOINT)

    def killed(*arguments: Any) -> None:
        raise Killed

    whole = fit("whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("cyclegan.steps.save_checkpoint", stopping_after(1, killed))
        fit("parts")
    assert equal(fit("parts"), whole)
    name = "discriminator" if method == "cut" else "target_discriminator"
    heads = [key for key in whole["networks"][name] if "heads." in key]
    assert len(heads) == 2 * 3 * 2
    assert (len(heads) == len(whole["networks"][name])) == (method == "instead")
    # They have no counterpart elsewhere: not exported, and another training starts without them.
    written = export_reference(tmp_path / "whole" / CHECKPOINT, tmp_path / "exported")
    assert not any("_D" in path.name for path in written)
    start = {"start": tmp_path / "whole" / CHECKPOINT, "contrastive": own.get("contrastive")}
    for anew in ({}, {"feature_encoder": None}):
        assert set(load_start(recipe(config, **start, **anew))) == {
            name for name in ("source_to_target", "target_to_source") if name in whole["networks"]
        }


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A state_dict of an encoder."""
    torch.manual_seed(0)
    path = tmp_path / "resnet18.pth"
    torch.save(smp.encoders.get_encoder("resnet18", weights=None).state_dict(), path)
    return path


def test_an_encoder_by_name(tiny: Path, weights: Path, tmp_path: Path) -> None:
    settings = [f"cyclegan={{feature_encoder: resnet18, feature_encoder_weights: {weights}}}"]
    short = ["cyclegan.blocks=1", "cyclegan.generator_width=4", "cyclegan.crop=[64, 48]"]
    config = load_config(tiny, [*settings, *short])
    encoder = frozen_encoder(config.cyclegan, "cpu")
    assert list(encoder.channels) == [64, 128, 256, 512]
    x = torch.randn(1, 3, 48, 64).clamp(-1, 1)
    levels = encoder.features(x)
    assert [tuple(level.shape) for level in levels] == [
        *[(1, 64, 16, 16), (1, 128, 8, 8)],
        *[(1, 256, 4, 4), (1, 512, 2, 2)],
    ]
    # Sides are multiples of 32, colours as ImageNet's networks take them.
    network = smp.encoders.get_encoder("resnet18", weights=None)
    network.load_state_dict(torch.load(weights))
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    padded = F.pad(((x + 1) / 2 - mean) / std, (0, 0, 0, 16), mode="replicate")
    torch.testing.assert_close(levels[3], network.eval()(padded)[-1])
    assert any(part.command == "train-cyclegan" for part in estimate(config))
    # A stage's identity is the content of the weights, not their place.
    run = tmp_path / "run"
    recorded = all_inputs(plan(config, run))["cyclegan"]["config"]
    moved = weights.rename(tmp_path / "moved.pth")
    other = load_config(tiny, [*settings, *short, f"cyclegan.feature_encoder_weights={moved}"])
    assert all_inputs(plan(other, run))["cyclegan"]["config"] == recorded
    assert "resnet18.pth" not in str(recorded)


def test_an_encoder_that_is_not_there(tiny: Path) -> None:
    with pytest.raises(UserError) as raised:
        preflight(
            load_config(
                tiny,
                ["cyclegan.feature_encoder=resnet19", "cyclegan.feature_encoder_weights=a.pth"],
            )
        )
    message = str(raised.value)
    assert "cyclegan.feature_encoder: no encoder 'resnet19'. Did you mean 'resnet18'" in message
    assert "cyclegan.feature_encoder_weights: no file" in message


def test_a_plain_run_is_recorded_as_ever(tiny: Path, tmp_path: Path) -> None:
    inputs = check(tmp_path / "run", plan(load_config(tiny), tmp_path / "run"))
    recorded = inputs["cyclegan"]["config"]
    assert isinstance(recorded, dict)
    assert not {"feature_encoder", "feature_encoder_weights", "contrastive"} & set(recorded)
