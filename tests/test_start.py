"""CycleGAN that starts from given networks: what is read, what is refused, what is learnt from."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cyclegan.checkpoints import export_reference, load_start
from cyclegan.networks import build_discriminator
from cyclegan.steps import CHECKPOINT
from cyclegan.train import train
from cyclegan.train_paired import train_paired
from cyclegan.weights import discriminator_settings, plain_state
from flows.plan import plan
from flows.prepare import preflight
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig
from pipeline.errors import UserError
from pipeline.run.stage import all_inputs
from pipeline.runtime.checkpoint import load_checkpoint
from tests.helpers import Killed, equal, stopping_after
from tests.reference_networks import (
    Code,
    Resnet,
    State,
    Unet,
    norm_layer,
    randomised,
    weights_equal,
)

NAMES = {
    "source_to_target": "G_A",
    "target_to_source": "G_B",
    "target_discriminator": "D_A",
    "source_discriminator": "D_B",
}


# The reference's discriminators, written down a second time from torch's own layers.


class Patch(nn.Module):
    def __init__(
        self, layers: int = 3, width: int = 4, channels: int = 3, norm: str = "instance"
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for n in range(1, layers + 1):
            before, after = width * min(2 ** (n - 1), 8), width * min(2**n, 8)
            stride = 1 if n == layers else 2
            modules += [nn.Conv2d(before, after, 4, stride, 1, bias=norm != "batch")]
            modules += [norm_layer(norm, after), nn.LeakyReLU(0.2, True)]
        self.model = nn.Sequential(*modules, nn.Conv2d(width * min(2**layers, 8), 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class Pixel(nn.Module):
    def __init__(self, width: int = 4, channels: int = 3, norm: str = "instance") -> None:
        super().__init__()
        bias = norm != "batch"
        self.net = nn.Sequential(
            *[nn.Conv2d(channels, width, 1), nn.LeakyReLU(0.2, True)],
            *[nn.Conv2d(width, 2 * width, 1, bias=bias), norm_layer(norm, 2 * width)],
            *[nn.LeakyReLU(0.2, True), nn.Conv2d(2 * width, 1, 1, bias=bias)],
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def folder_of(folder: Path, epoch: str = "latest", **networks: nn.Module | State) -> Path:
    """A folder as the reference leaves it: `G_A=network` is `latest_net_G_A.pth`."""
    folder.mkdir(exist_ok=True)
    for short, network in networks.items():
        state = randomised(network).state_dict() if isinstance(network, nn.Module) else network
        torch.save(state, folder / f"{epoch}_net_{short}.pth")
    return folder


def official(folder: Path) -> Path:
    """A whole folder that fits the tiny configuration, no two networks alike."""
    networks = {"G_A": Resnet(1), "G_B": Resnet(1), "D_A": Patch(), "D_B": Patch()}
    for i, network in enumerate(networks.values()):
        randomised(network)
        with torch.no_grad():
            for weight in network.parameters():
                weight += i / 100
    return folder_of(folder, **{short: network.state_dict() for short, network in networks.items()})


def states(folder: Path) -> dict[str, State]:
    return {path.stem: torch.load(path, weights_only=True) for path in folder.iterdir()}


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu"])


Recipe = Callable[..., CycleGANConfig]


@pytest.fixture
def recipe(config: Config) -> Recipe:
    """The tiny configuration's settings of CycleGAN with others in their place."""
    return lambda **settings: CycleGANConfig.model_validate(config.cyclegan.model_dump() | settings)


# What is inferred.


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize(
    ("reference", "settings"),
    [
        (Patch(), {"discriminator_layers": 3}),
        (Patch(1, 8), {"discriminator_layers": 1, "discriminator_width": 8}),
        (Patch(5, channels=6), {"discriminator_layers": 5, "paired": True}),
        (Patch(2, norm="tracked"), {"discriminator_layers": 2}),
        (Pixel(), {"discriminator": "pixel"}),
        (Pixel(8, 6), {"discriminator": "pixel", "discriminator_width": 8, "paired": True}),
        (Pixel(norm="tracked"), {"discriminator": "pixel"}),
    ],
)
@torch.no_grad()
def test_the_reference_s_discriminators(
    reference: nn.Module, settings: dict[str, Any], prefix: str, recipe: Recipe, tmp_path: Path
) -> None:
    channels = 6 if settings.get("paired") else 3
    state: State = {prefix + k: v for k, v in randomised(reference).state_dict().items()}
    generator, critic = ("G", "D") if channels == 6 else ("G_A", "D_A")
    folder = folder_of(tmp_path / "in", **{generator: Resnet(1), critic: state})
    ours = recipe(start=folder, **settings)
    given = load_start(ours)
    network = build_discriminator(ours)
    network.load_state_dict(given["discriminator" if channels == 6 else "target_discriminator"])
    # Statistics of instance norms are not to be used: those of the picture are, in training mode.
    x = torch.rand(2, channels, 96, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.testing.assert_close(
        network.double()(x.double()), reference.double().train()(x.double()), atol=1e-10, rtol=0
    )
    reference.float()


def test_every_field_is_told(recipe: Recipe) -> None:
    for settings in (
        {"discriminator": "patch", "discriminator_layers": 2, "discriminator_scales": 3},
        {"discriminator": "pixel", "discriminator_scales": 2, "paired": True},
    ):
        ours = recipe(**settings)
        state = build_discriminator(ours).state_dict()
        found = discriminator_settings(plain_state(state, "here"), "here")
        told = found.model_dump(exclude_unset=True)
        assert settings.items() <= told.items()
        assert all(getattr(ours, field) == value for field, value in told.items())


# What a training takes.


def test_training_begins_with_the_weights_of_a_folder(
    recipe: Recipe, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = official(tmp_path / "official")
    # A step of this rate changes no weight.
    settings = recipe(
        start=folder, learning_rate=1e-30, generator_average=0.9, steps_per_epoch=1, decay_epochs=0
    )
    train(settings, config.source, config.target, tmp_path / "out", config.compute)
    state = load_checkpoint(tmp_path / "out" / CHECKPOINT)
    files = states(folder)
    for name, short in NAMES.items():
        assert weights_equal(state["networks"][name], files[f"latest_net_{short}"]), name
    for name, average in state["averages"].items():
        assert weights_equal(average, state["networks"][name])
    assert capsys.readouterr().err.startswith(
        f"CycleGAN starts from {folder}: latest_net_G_A.pth (source_to_target), latest_net_G_B.pth "
        "(target_to_source), latest_net_D_A.pth (target_discriminator), latest_net_D_B.pth "
        "(source_discriminator)\n"
    )


def test_paired_training_begins_with_the_weights_of_a_folder(
    recipe: Recipe, config: Config, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pix2pix", G=Resnet(1), D=Patch(channels=6))
    settings = recipe(
        start=folder, paired=True, learning_rate=1e-30, steps_per_epoch=1, decay_epochs=0
    )
    train_paired(settings, config.source, config.source, tmp_path / "out", config.compute)
    networks = load_checkpoint(tmp_path / "out" / CHECKPOINT)["networks"]
    files = states(folder)
    assert weights_equal(networks["source_to_target"], files["latest_net_G"])
    assert weights_equal(networks["discriminator"], files["latest_net_D"])


@pytest.mark.parametrize("paired", [False, True])
def test_a_resumed_training_does_not_start_again(
    paired: bool, recipe: Recipe, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = official(tmp_path / "official")
    settings = recipe(start=folder, paired=paired, steps_per_epoch=2, checkpoint_every=1)
    fit, target = (train_paired, config.source) if paired else (train, config.target)
    fit(settings, config.source, target, tmp_path / "whole", config.compute)

    def killed(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("cyclegan.steps.save_checkpoint", stopping_after(2, killed))
        fit(settings, config.source, target, tmp_path / "parts", config.compute)
    shutil.rmtree(folder)
    fit(settings, config.source, target, tmp_path / "parts", config.compute)
    whole = load_checkpoint(tmp_path / "whole" / CHECKPOINT)
    assert whole["step"] == 4
    assert equal(load_checkpoint(tmp_path / "parts" / CHECKPOINT), whole)


@pytest.mark.parametrize("paired", [False, True])
def test_a_checkpoint_and_its_export_are_the_same_start(
    paired: bool, recipe: Recipe, config: Config, tmp_path: Path
) -> None:
    first = recipe(paired=paired, generator_average=0.9, steps_per_epoch=1)
    fit, target = (train_paired, config.source) if paired else (train, config.target)
    fit(first, config.source, target, tmp_path, config.compute)
    export_reference(tmp_path / CHECKPOINT, tmp_path / "exported")
    own = load_start(recipe(start=tmp_path / CHECKPOINT, paired=paired))
    exported = load_start(recipe(start=tmp_path / "exported", paired=paired))
    assert own.keys() == exported.keys()
    assert len(own) == (2 if paired else 4)
    assert all(weights_equal(own[name], exported[name]) for name in own)
    state = load_checkpoint(tmp_path / CHECKPOINT)
    used = state["networks"] | state["averages"]
    assert all(weights_equal(own[name], used[name]) for name in own)
    # Pairs may follow frames without pairs, and the reverse: one generator is what they share.
    assert list(load_start(recipe(start=tmp_path / CHECKPOINT, paired=not paired))) == [
        "source_to_target"
    ]


def test_what_is_missing_starts_anew(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = folder_of(tmp_path / "alone", G=Resnet(1))
    both = folder_of(tmp_path / "both", G_A=Resnet(1), G_B=Resnet(1))
    back = folder_of(tmp_path / "back", G_B=Resnet(1), D_B=Patch())
    for folder, paired, taken, anew in (
        (
            alone,
            False,
            "G.pth (source_to_target)",
            "target_to_source, target_discriminator",
        ),
        (both, False, "G_B.pth (target_to_source)", "target_discriminator, source_discriminator"),
        (back, False, "D_B.pth (source_discriminator)", "source_to_target, target_discriminator"),
        (both, True, "G_A.pth (source_to_target)", "discriminator"),
    ):
        load_start(recipe(start=folder, paired=paired), say=True)
        assert f"latest_net_{taken}; anew: {anew}" in capsys.readouterr().err


def test_of_several_epochs_the_newest_with_a_generator(recipe: Recipe, tmp_path: Path) -> None:
    def taken() -> float:
        return load_start(recipe(start=tmp_path))["source_to_target"]["model.1.bias"][0].item()

    def generator(value: float) -> State:
        return {**Resnet(1).state_dict(), "model.1.bias": torch.full((4,), value)}

    for epoch, value in (("5", 5.0), ("20", 20.0), ("100", 100.0)):
        folder_of(tmp_path, epoch, G_A=generator(value), D_A=Patch())
    folder_of(tmp_path, "105", D_A=Patch())
    folder_of(tmp_path, "latest_best", G_A=Resnet(1))
    assert taken() == 100
    folder_of(tmp_path, "latest", G_A=generator(1.0))
    assert taken() == 1
    # All are of one epoch.
    assert list(load_start(recipe(start=tmp_path))) == ["source_to_target"]


# What is refused.


def test_all_that_differs_is_named_at_once(recipe: Recipe, tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, G_A=Resnet(2, 8, dropout=True), G_B=Resnet(2, 8), D_A=Patch(2), D_B=Pixel()
    )
    with pytest.raises(UserError) as raised:
        load_start(recipe(start=folder))
    assert str(raised.value) == (
        f"cyclegan.start: {folder} does not fit the configuration:\n"
        "  cyclegan.blocks is 1, the file has 2 (source_to_target, target_to_source): "
        "set cyclegan.blocks: 2\n"
        "  cyclegan.generator_width is 4, the file has 8 (source_to_target, target_to_source): "
        "set cyclegan.generator_width: 8\n"
        "  cyclegan.dropout is false, the file has true (source_to_target): "
        "set cyclegan.dropout: true\n"
        "  cyclegan.discriminator_layers is 3, the file has 2 (target_discriminator): "
        "set cyclegan.discriminator_layers: 2\n"
        "  cyclegan.discriminator is patch, the file has pixel (source_discriminator): "
        "set cyclegan.discriminator: pixel"
    )
    unet = folder_of(tmp_path / "unet", G_A=Unet(5))
    with pytest.raises(UserError, match=r"generator is resnet, .* unet .*\n.*downs is 8, .* 5"):
        load_start(recipe(start=unet))
    # A U-Net does not tell whether it has dropout: the configuration does.
    for dropout in (False, True):
        load_start(recipe(start=unet, generator="unet", downs=5, dropout=dropout, crop=(64, 64)))
    folder_of(unet, G_A=Resnet(1), D_A=Patch(channels=6))
    with pytest.raises(UserError, match=r"paired is false, .* true \(target_discriminator\)"):
        load_start(recipe(start=unet))


GOOD = Resnet(1).state_dict()
CRITIC = Patch().state_dict()
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "batch norms": ({"G_A": Resnet(1, norm="batch")}, "has batch norms; .* --norm instance"),
    "affine norms": ({"G_A": Resnet(1, norm="affine")}, "has affine instance norms; .*instance"),
    "batch norms of a PatchGAN": ({"G_A": GOOD, "D_A": Patch(norm="batch")}, "has batch norms"),
    "affine norms of a PixelGAN": ({"G_A": GOOD, "D_B": Pixel(norm="affine")}, "has affine inst"),
    "no norms": (
        {"G_A": GOOD, "D_A": {k: v for k, v in CRITIC.items() if k != "model.2.bias"}},
        r"neither norms with weights nor the biases \(model.2.bias\)",
    ),
    "exchanged": ({"G_A": GOOD, "D_A": GOOD}, "target_discriminator. is no discriminator"),
    "critic as generator": ({"G_A": CRITIC}, r"source_to_target. is no generator"),
    "grey": ({"G_A": GOOD, "D_A": Patch(channels=1)}, "pictures of 1 channels"),
    "grey generator": ({"G_A": Resnet(1, inputs=1)}, "pictures of 1 channels"),
    "missing": (
        {"G_A": GOOD, "D_A": {k: v for k, v in CRITIC.items() if k != "model.8.bias"}},
        "not the PatchDiscriminator .*missing: model.8.bias",
    ),
    "not finite": (
        {"G_A": GOOD, "D_B": {**CRITIC, "model.0.bias": torch.full((4,), torch.inf)}},
        r"latest_net_D_B.pth \(source_discriminator\): weight model.0.bias is not finite",
    ),
    "discriminators alone": ({"D_A": CRITIC, "D_B": CRITIC}, "holds no generator .*found latest_n"),
    "nothing": ({}, "holds no generator .* latest_net_G_A.pth .*found nothing"),
    "the other way of pix2pix": ({"G_B": GOOD, "paired": True}, "holds no generator .*net_G.pth"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, recipe: Recipe, tmp_path: Path) -> None:
    networks, message = REFUSED[name]
    paired = "paired" in networks
    networks = {short: network for short, network in networks.items() if short != "paired"}
    folder = folder_of(tmp_path / "in", **networks)
    with pytest.raises(UserError, match=message) as raised:
        load_start(recipe(start=folder, paired=paired))
    assert str(folder) in str(raised.value)


def test_files_that_are_no_networks(recipe: Recipe, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", G_A=Resnet(1), D_A=Patch())
    damaged = folder / "latest_net_D_A.pth"
    whole = damaged.read_bytes()
    for content, message in (
        (b"<html>", "a web page"),
        (whole[: len(whole) // 2], "damaged or truncated"),
        (b"", "empty file"),
    ):
        damaged.write_bytes(content)
        with pytest.raises(UserError, match=f"latest_net_D_A.pth cannot be read.*{message}"):
            load_start(recipe(start=folder))
    torch.save({"model.0.weight": Code()}, damaged)
    with pytest.raises(UserError, match="pickled Python objects"):
        load_start(recipe(start=folder))
    assert not hasattr(sys, "mark_of_the_checkpoint")
    with pytest.raises(UserError, match=r"G_A.pth is no training checkpoint .*give the folder"):
        load_start(recipe(start=folder / "latest_net_G_A.pth"))
    torch.save({"networks": {"source_discriminator": CRITIC, 1: 2}}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="holds no generator, only: source_discriminator, 1"):
        load_start(recipe(start=tmp_path / "last.pt"))
    torch.save({"networks": {"source_to_target": 3}}, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last.pt \(source_to_target\) holds no weights by name"):
        load_start(recipe(start=tmp_path / "last.pt"))


# What a run makes of it.


def test_found_before_any_work(tiny: Path, tmp_path: Path) -> None:
    folder_of(tmp_path, G_A=Resnet(2))
    settings = [f"cyclegan.start={tmp_path}", "source.split=nowhere"]
    with pytest.raises(UserError, match=r"(?s)nowhere.*cyclegan\.blocks is 1, the file has 2"):
        preflight(load_config(tiny, settings))
    with pytest.raises(UserError, match=r"cyclegan\.start: no file or folder /nowhere\."):
        load_start(load_config(tiny, ["cyclegan.start=/nowhere"]).cyclegan)


def test_the_content_is_a_part_of_the_stage(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inputs(*settings: str) -> Any:
        config = load_config(tiny, list(settings))
        return all_inputs(plan(config, tmp_path / "run"))["cyclegan"]

    # Runs from before there was such a setting stay as they are.
    assert inputs().keys() == {"version", "config", "source", "target", "reads"}
    assert "start" not in inputs()["config"]
    official(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    before = inputs("cyclegan.start=a")
    assert before["start"].keys() == NAMES.keys()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/5_net_G_A.pth").write_bytes(b"an earlier epoch")
    assert inputs("cyclegan.start=b") == before
    folder_of(tmp_path / "b", G_B=Resnet(1))
    assert inputs("cyclegan.start=b") != before
    torch.save(GOOD, tmp_path / "last.pt")
    assert isinstance(inputs("cyclegan.start=last.pt")["start"], str)
    # In the file, a path starts at the file.
    monkeypatch.chdir("/")
    tiny.write_text(tiny.read_text().replace("cyclegan:", "cyclegan:\n  start: a"))
    assert inputs() == before


# Before discriminators were called so.

EARLIER = Path(__file__).parent / "data" / "finished_run" / "run" / "cyclegan"


def test_a_checkpoint_of_an_earlier_version_is_a_start(config: Config) -> None:
    path = EARLIER / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    assert "target_critic" in state["networks"]
    recipe = CycleGANConfig.model_validate(state["config"] | {"start": path})
    given = load_start(recipe)
    assert equal(given["target_discriminator"], state["networks"]["target_critic"])
    assert equal(given["source_discriminator"], state["networks"]["source_critic"])


def test_the_training_of_an_earlier_version_continues(config: Config, tmp_path: Path) -> None:
    before = load_checkpoint(EARLIER / "checkpoints" / "last.pt")
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(EARLIER / "checkpoints" / "last.pt", tmp_path / "checkpoints")
    shutil.copy(EARLIER / "log.jsonl", tmp_path)
    recipe = CycleGANConfig.model_validate(before["config"])
    longer = recipe.model_copy(update={"steps_per_epoch": before["step"], "decay_epochs": 1})
    train(
        longer.model_copy(update={"epochs": 1}),
        config.source,
        config.target,
        tmp_path,
        config.compute,
    )
    after = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert after["step"] == 2 * before["step"]
    assert set(after["optimizers"]) == {"generators", "discriminators"}
    steps = after["optimizers"]["discriminators"]["state"][0]["step"]
    assert steps == 2 * before["step"]  # Adam's, taken over
    assert len(after["pools"]["source"]) >= len(before["pools"]["source"])
