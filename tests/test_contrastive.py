"""CUT and FastCUT: their loss, their settings, exact resume, several ranks, a run of one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cyclegan.checkpoints import export, load_generator, load_start
from cyclegan.contrastive import EncodingGenerator, PatchHeads, draw_places
from cyclegan.losses import contrastive_loss
from cyclegan.networks import ResnetGenerator, build_discriminator, build_generator
from cyclegan.steps import CHECKPOINT
from cyclegan.train_contrastive import train_contrastive
from flows.ablate import ablation
from flows.estimate import estimate
from flows.plan import plan
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig
from pipeline.errors import UserError
from pipeline.run.stage import check
from pipeline.runtime.checkpoint import load_checkpoint
from tests.helpers import Killed, assert_close, do, equal, read_log, stopping_after
from tests.ranks import in_ranks


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu", "translation.method=fastcut"])


def recipe(config: Config, **settings: Any) -> CycleGANConfig:
    """Four steps of the translation's own recipe."""
    short = {"steps_per_epoch": 2, "checkpoint_every": 1, "log_every": 1}
    fields = config.cyclegan_recipe("translated").model_dump() | short | settings
    return CycleGANConfig.model_validate(fields)


def test_loss_of_vectors_that_agree_by_hand() -> None:
    # Two patches: each query is its key, and at a right angle to the other: log(1 + exp(-1 / T)).
    right = torch.eye(2)[None]
    assert contrastive_loss([right], [right], 0.5).item() == pytest.approx(np.log1p(np.exp(-2)))
    wrong = contrastive_loss([right], [right.flip(1)], 0.5).item()
    assert wrong == pytest.approx(2 + np.log1p(np.exp(-2)))
    # Layers are averaged, images kept apart.
    both = contrastive_loss(
        [right.repeat(2, 1, 1)] * 2, [torch.cat([right, right.flip(1)])] * 2, 0.5
    )
    assert both.tolist() == pytest.approx([wrong - 2, wrong])


def test_keys_get_no_gradient_and_queries_do() -> None:
    query, key = (torch.randn(1, 4, 3, requires_grad=True) for _ in range(2))
    contrastive_loss([query], [key], 0.07).sum().backward()
    assert key.grad is None
    assert query.grad is not None
    assert query.grad.abs().sum() > 0


@pytest.mark.parametrize(("blocks", "layers"), [(1, 4), (6, 5)])
def test_layers_that_are_compared(blocks: int, layers: int) -> None:
    generator = ResnetGenerator(blocks, 4).eval()
    encoding, x = EncodingGenerator(generator), torch.randn(2, 3, 16, 24)
    *features, out = encoding(x)
    assert torch.equal(out, generator(x))
    assert (
        [layer.shape[1] for layer in features] == encoding.channels == [3, 8, 16, 16, 16][:layers]
    )
    assert torch.equal(features[0][:, :, 3:-3, 3:-3], x)
    assert all(map(torch.equal, encoding(x, translate=False), features))
    if blocks == 6:  # the first block and the fifth
        assert torch.equal(features[3], generator.model[:11](x))
        assert torch.equal(features[4], generator.model[:15](x))


def test_heads_give_unit_vectors_of_the_places_drawn() -> None:
    features = [torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 2)]
    places = draw_places(features, 7, np.random.default_rng(0))
    assert [len(set(drawn.tolist())) for drawn in places] == [7, 4]
    heads = PatchHeads([3, 6])
    vectors = heads(features, places)
    assert [tuple(layer.shape) for layer in vectors] == [(2, 7, 256), (2, 4, 256)]
    torch.testing.assert_close(vectors[0].norm(dim=2), torch.ones(2, 7))
    row, column = divmod(int(places[0][2]), 5)
    alone = heads.heads[0](features[0][1, :, row, column])
    torch.testing.assert_close(vectors[0][1, 2], alone / alone.norm())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["cyclegan.contrastive={}"], "contrastive is what the methods cut and fastcut set"),
        (["translation.cyclegan.contrastive={}"], "contrastive is what the methods cut and"),
        (["translation={method: cut, cyclegan: {paired: true}}"], "paired is True; .* false"),
        (["translation={method: cut, cyclegan: {residual: true}}"], "residual is True; .* false"),
        (["translation={method: cut, cyclegan: {generator: unet, crop: [256, 256]}}"], "be resnet"),
        (["translation.method=cut", "cyclegan.semantics={}"], "semantics is .* must be null"),
        (["translation={method: cut, weights: a.pth}"], "'cut' does not use weights"),
        (["translation={method: cut, checkpoint: best}"], "'cut' does not use checkpoint"),
    ],
)
def test_settings_that_cannot_work(tiny: Path, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_config(tiny, settings)


def test_methods_set_what_the_paper_says_and_a_translation_changes_it(tiny: Path) -> None:
    own = "translations={few: {method: fastcut, cyclegan: {contrastive: {patches: 64}}}}"
    arms = "arms={source_only: source, adapted: translated, few: few}"
    config = load_config(tiny, ["translation.method=cut", own, arms])
    found = {
        name: recipe.model_dump()
        for name in ("translated", "few")
        if (recipe := config.cyclegan_recipe(name).contrastive)
    }
    common = {"temperature": 0.07}
    assert found == {
        "translated": {"weight": 1, "identity": True, "flip_equivariance": False, "patches": 256}
        | common,
        "few": {"weight": 10, "identity": False, "flip_equivariance": True, "patches": 64} | common,
    }
    assert config.cyclegan.contrastive is None
    steps = ablation(config)
    assert (steps.translation.method, steps.arms["adapted"].title) == ("cut", "CUT")
    assert "semantic_consistency" not in steps.arms


@pytest.mark.parametrize("method", ["cut", "fastcut"])
def test_resume_is_bit_for_bit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = load_config(tiny, ["compute.accelerator=cpu", f"translation.method={method}"])
    settings = recipe(config, generator_average=0.9)

    def fit(name: str) -> dict[str, Any]:
        train_contrastive(settings, config.source, config.target, tmp_path / name, config.compute)
        return load_checkpoint(tmp_path / name / CHECKPOINT)

    def killed(*arguments: Any) -> None:
        raise Killed

    whole = fit("whole")
    assert whole["step"] == 4
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("cyclegan.steps.save_checkpoint", stopping_after(2, killed))
        fit("parts")
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT)["step"] == 2
    assert equal(fit("parts"), whole)
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    assert (tmp_path / "parts/samples/step-0000004.png").is_file()
    generator = load_generator(tmp_path / "parts" / CHECKPOINT)
    assert equal(dict(generator.state_dict()), whole["averages"]["source_to_target"])


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in 64 bits: Adam makes whole steps of what rounding leaves of gradients of 0."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for name, build in (
        ("train_contrastive.build_generator", build_generator),
        ("discriminators.build_discriminator", build_discriminator),
        ("train_contrastive.PatchHeads", PatchHeads),
    ):
        monkeypatch.setattr(
            f"cyclegan.{name}",
            lambda *given, build=build: build(*given).double(),  # type: ignore[operator]
        )


def test_two_devices_learn_what_one_learns(config: Config, tmp_path: Path, exact: None) -> None:
    settings = recipe(config, batch_size=2)
    for devices in (1, 2):
        frames = (config.source, config.target, tmp_path / str(devices))
        in_ranks(devices, train_contrastive, settings, *frames, config.compute)
    one, two = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("1", "2"))
    for part in ("networks", "optimizers"):
        assert_close(two[part], one[part], 1e-8)
    for entry, other in zip(read_log(tmp_path / "2"), read_log(tmp_path / "1"), strict=True):
        assert entry == pytest.approx(other, rel=1e-8)


def test_losses_that_are_not_finite_are_skipped(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = 0

    def loss(*arguments: Any) -> torch.Tensor:
        nonlocal step
        step += 1
        return contrastive_loss(*arguments) * (float("nan") if step == 2 else 1)

    monkeypatch.setattr("cyclegan.train_contrastive.contrastive_loss", loss)
    train_contrastive(recipe(config), config.source, config.target, tmp_path, config.compute)
    state = load_checkpoint(tmp_path / CHECKPOINT)
    assert state["skips"] == {"total": 1, "row": 0}
    assert state["optimizers"]["generators"]["state"][0]["step"] == 3


def test_a_run_translates_exports_and_refuses_another_method(tiny: Path, tmp_path: Path) -> None:
    short = ["cyclegan.steps_per_epoch=1", "compute.accelerator=cpu"]
    config, run = load_config(tiny, [*short, "translation.method=fastcut"]), tmp_path / "run"
    stages = plan(config, run)
    do(run, stages[:2])
    assert [stage.name for stage in stages[:2]] == ["cyclegan", "translated"]
    assert len(list((run / "translated/images").rglob("*.png"))) == 10
    assert {part.command for part in estimate(config)} >= {"train-cyclegan", "translate"}
    other = load_config(tiny, [*short, "translation.method=cut"])
    with pytest.raises(UserError, match=r"config\.contrastive\.weight: 10\.0 -> 1"):
        check(run, plan(other, run))
    # Its generator and discriminator are files, which another training starts from.
    export(run / "cyclegan" / CHECKPOINT, tmp_path / "exported")
    names = {path.name for path in (tmp_path / "exported").iterdir()}
    assert names == {"latest_net_G.pth", "latest_net_D.pth"}
    for start in (tmp_path / "exported", run / "cyclegan" / CHECKPOINT):
        given = load_start(recipe(config, start=start))
        assert list(given) == ["source_to_target", "discriminator"]
        plain = CycleGANConfig.model_validate(config.cyclegan.model_dump() | {"start": start})
        assert list(load_start(plain)) == ["source_to_target"]
    settings = recipe(config, start=tmp_path / "exported", learning_rate=1e-12)
    train_contrastive(settings, config.source, config.target, tmp_path / "on", config.compute)
    found = load_checkpoint(tmp_path / "on" / CHECKPOINT)["networks"]
    assert_close(found["discriminator"], dict(given["discriminator"]), 1e-6)
    shutil.rmtree(run)
