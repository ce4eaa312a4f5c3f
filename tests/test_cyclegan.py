"""CycleGAN: shapes and counts of the reference, the pool's rule, exact resume, exact sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cyclegan.data import crop_reader
from cyclegan.networks import (
    InstanceNorm,
    PatchDiscriminator,
    ResnetGenerator,
    initialise,
    minimum_side,
    to_network,
    to_rgb,
)
from cyclegan.pool import ImagePool
from cyclegan.train import decay, gan_loss, train
from cyclegan.translate import SHIFTS, translate, translate_frame, translate_group
from pipeline.config import Config, CycleGANConfig, load_config
from pipeline.datasets import list_samples, load_spec
from pipeline.errors import UserError
from pipeline.images import read_rgb
from pipeline.training import Draws, load_checkpoint, seed_step


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu"])


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (ResnetGenerator(9), 11_378_179),
        (ResnetGenerator(6), 7_837_699),
        (PatchDiscriminator(), 2_764_737),
    ],
)
def test_parameter_counts(network: nn.Module, count: int) -> None:
    assert parameters(network) == count


@pytest.mark.parametrize(("blocks", "tail"), [(9, (19, 22, 26)), (6, (16, 19, 23))])
def test_generator_keys_are_the_reference_s(blocks: int, tail: tuple[int, int, int]) -> None:
    shapes = {k: tuple(v.shape) for k, v in ResnetGenerator(blocks).state_dict().items()}
    expected = {
        "model.1": (64, 3, 7, 7),
        "model.4": (128, 64, 3, 3),
        "model.7": (256, 128, 3, 3),
        f"model.{tail[0]}": (256, 128, 3, 3),
        f"model.{tail[1]}": (128, 64, 3, 3),
        f"model.{tail[2]}": (3, 64, 7, 7),
    }
    for block in range(10, 10 + blocks):
        expected[f"model.{block}.conv_block.1"] = (256, 256, 3, 3)
        expected[f"model.{block}.conv_block.5"] = (256, 256, 3, 3)
    assert {k for k in shapes if k.endswith("weight")} == {f"{k}.weight" for k in expected}
    assert {k for k in shapes if k.endswith("bias")} == {f"{k}.bias" for k in expected}
    for key, shape in expected.items():
        assert shapes[f"{key}.weight"] == shape


def test_discriminator_layers() -> None:
    network = PatchDiscriminator()
    weights = [k for k in network.state_dict() if k.endswith("weight")]
    assert weights == [f"model.{i}.weight" for i in (0, 2, 5, 8, 11)]
    assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    smallest = minimum_side(3)
    assert network(torch.zeros(1, 3, smallest, smallest)).shape[2:] == (1, 1)
    with pytest.raises((RuntimeError, ValueError)):
        network(torch.zeros(1, 3, smallest - 1, smallest - 1))


def test_initialisation() -> None:
    torch.manual_seed(0)
    network = ResnetGenerator(2, 32)
    initialise(network)
    for key, value in network.state_dict().items():
        if key.endswith("bias"):
            assert (value == 0).all()
        elif value.numel() > 5000:
            assert value.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 3])
def test_instance_norm_value_and_gradient(layout: torch.memory_format, batch: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, 5, 6, 7).contiguous(memory_format=layout).requires_grad_()
    upstream = torch.randn(batch, 5, 6, 7).contiguous(memory_format=layout)
    out = InstanceNorm()(x)
    out.backward(upstream)
    exact = x.detach().double().requires_grad_()
    mean = exact.mean((2, 3), keepdim=True)
    variance = exact.var((2, 3), keepdim=True, unbiased=False)
    expected = (exact - mean) / torch.sqrt(variance + 1e-5)
    expected.backward(upstream.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_generator_equals_one_of_torch_s_own_layers() -> None:
    ours = ResnetGenerator(2, 8).double()
    initialise(ours)
    x = torch.rand(2, 3, 32, 24, dtype=torch.float64) * 2 - 1

    def norm(y: torch.Tensor) -> torch.Tensor:
        return F.instance_norm(y)

    layers = dict(ours.model.named_children())
    y = norm(layers["1"](F.pad(x, (3,) * 4, "reflect"))).relu()
    y = norm(layers["4"](y)).relu()
    y = norm(layers["7"](y)).relu()
    for name in ("10", "11"):
        block = layers[name].conv_block
        z = norm(block[1](F.pad(y, (1,) * 4, "reflect"))).relu()
        y = y + norm(block[5](F.pad(z, (1,) * 4, "reflect")))
    y = norm(layers["12"](y)).relu()
    y = norm(layers["15"](y)).relu()
    y = torch.tanh(layers["19"](F.pad(y, (3,) * 4, "reflect")))
    torch.testing.assert_close(ours(x), y)


def test_passes_of_both_domains_may_be_merged() -> None:
    network = ResnetGenerator(1, 8)
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    merged = network(torch.cat([a, b])).chunk(2)
    torch.testing.assert_close(merged[0], network(a))
    torch.testing.assert_close(merged[1], network(b))


def test_pool_rule() -> None:
    pool, rng = ImagePool(50), np.random.default_rng(0)
    for i in range(50):
        image = torch.full((1, 1, 1, 1), float(i))
        assert pool.query(image, rng).item() == i
    older = kept = 0
    last_pool = [image.item() for image in pool.images]
    for i in range(50, 4050):
        out = pool.query(torch.full((1, 1, 1, 1), float(i)), rng).item()
        now = [image.item() for image in pool.images]
        if out == i:
            assert now == last_pool
        else:
            older += 1
            position = last_pool.index(out)
            kept += position
            assert now[position] == i
            assert [v for j, v in enumerate(now) if j != position] == [
                v for j, v in enumerate(last_pool) if j != position
            ]
        last_pool = now
    # Binomial(4000, 1/2) has standard deviation 32; a uniform position's mean is 24.5 +- 0.33.
    assert abs(older - 2000) < 5 * 32
    assert abs(kept / older - 24.5) < 5 * 0.33


def test_pool_of_size_zero_passes_through_without_gradient() -> None:
    image = torch.ones(2, 3, 4, 4, requires_grad=True)
    out = ImagePool(0).query(image, np.random.default_rng(0))
    assert not out.requires_grad
    assert (out == image).all()


def test_schedule_corners() -> None:
    config = CycleGANConfig(epochs=100, decay_epochs=100)
    factors = [decay(epoch * 7, 7, config) for epoch in range(200)]
    assert factors[:100] == [1.0] * 100
    assert factors[100] == pytest.approx(1 - 1 / 101)
    assert factors[199] == pytest.approx(1 - 100 / 101)
    assert decay(6, 7, CycleGANConfig(epochs=1, decay_epochs=0)) == 1


def test_gan_loss() -> None:
    logits = torch.tensor([0.0, 1.0, 3.0])
    assert gan_loss(logits, real=True).item() == pytest.approx((1 + 0 + 4) / 3)
    assert gan_loss(logits, real=False).item() == pytest.approx((0 + 1 + 9) / 3)


def test_pixels_survive_the_way_in_and_out() -> None:
    rgb = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    x = to_network(rgb)
    assert (x.min().item(), x.max().item()) == (-1, 1)
    assert (to_rgb(x) == rgb).all()


@pytest.mark.parametrize("size", [(61, 83), (64, 64), (7, 5)])
def test_translation_keeps_any_size(size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    assert translate_frame(ResnetGenerator(1, 4), rgb).shape == rgb.shape


def test_shifted_translations_cancel_a_grid() -> None:
    class Grid(nn.Module):
        """Keeps the picture and adds a pattern that is fixed to the grid of 4 pixels."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.pattern = nn.Parameter(torch.rand(1, 3, 4, 4) * 0.4 - 0.2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            height, width = x.shape[2:]
            assert height % 4 == width % 4 == 0
            return x * 0.5 + self.pattern.repeat(1, 1, height // 4, width // 4)

    rgb = np.full((21, 30, 3), 128, np.uint8)
    spread = {
        shifts: translate_group(Grid(), [rgb], shifts)[0].reshape(-1, 3).std(0).mean()
        for shifts in (1, 4, 8, 16)
    }
    assert spread[1] > 10
    assert spread[4] < 0.6 * spread[1]
    assert spread[16] < 0.5


def test_shifts_are_the_whole_grid() -> None:
    assert sorted(SHIFTS) == [(down, right) for down in range(4) for right in range(4)]
    for axis in (0, 1):
        assert sorted(shift[axis] for shift in SHIFTS[:4]) == [0, 1, 2, 3]


def equal(one: object, other: object) -> bool:
    """Bit-for-bit equality of nested checkpoints."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


TERMS = {
    "adversarial": ("fool_target_critic", "fool_source_critic"),
    "cycle": ("cycle_source", "cycle_target"),
    "identity": ("identity",),
    "critics": ("target_critic", "source_critic"),
}


def test_two_steps_equal_the_paper_s_written_out_plainly(config: Config, tmp_path: Path) -> None:
    """Separate passes, torch's own layers and optimisers, frozen critics by `detach`."""
    recipe = config.cyclegan.model_copy(
        update={"steps_per_epoch": 2, "decay_epochs": 0, "pool_size": 0, "log_every": 1}
    )
    train(recipe, config.source, config.target, tmp_path, config.compute)
    trained = load_checkpoint(tmp_path / "checkpoints/last.pt")["networks"]

    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]

    seed_step(recipe.seed, 0)
    g, f = ResnetGenerator(1, 4), ResnetGenerator(1, 4)  # source -> target, target -> source
    d_x, d_y = PatchDiscriminator(3, 4), PatchDiscriminator(3, 4)  # on source, on target
    for network in (g, f, d_x, d_y):
        initialise(network)
    betas = {"lr": 2e-4, "betas": (0.5, 0.999), "foreach": False}
    generators = torch.optim.Adam([*g.parameters(), *f.parameters()], **betas)  # type: ignore[arg-type]
    critics = torch.optim.Adam([*d_x.parameters(), *d_y.parameters()], **betas)  # type: ignore[arg-type]
    readers = [
        Draws(crop_reader(spec, samples, recipe.crop, None), len(samples), seed=0, stream=stream)
        for stream, spec in ((1, config.source), (2, config.target))
        for samples in [list_samples(spec, labelled=False)]
    ]
    for draw in range(2):
        x, y = (to_network(reader[draw]["rgb"][None]) for reader in readers)  # type: ignore[index]
        fake_y, fake_x = g(x), f(y)
        adversarial = (d_y(fake_y) - 1).pow(2).mean() + (d_x(fake_x) - 1).pow(2).mean()
        cycle = (f(fake_y) - x).abs().mean() + (g(fake_x) - y).abs().mean()
        identity = (g(y) - y).abs().mean() + (f(x) - x).abs().mean()
        generators.zero_grad()
        terms = {"adversarial": adversarial, "cycle": 10 * cycle, "identity": 5 * identity}
        torch.stack(list(terms.values())).sum().backward()
        generators.step()
        loss = torch.zeros(())
        for critic, real, fake in ((d_y, y, fake_y.detach()), (d_x, x, fake_x.detach())):
            loss = loss + 0.5 * ((critic(real) - 1).pow(2).mean() + critic(fake).pow(2).mean())
        critics.zero_grad()
        loss.backward()
        critics.step()
        terms["critics"] = loss
        for term, keys in TERMS.items():
            logged = sum(log[draw][key] for key in keys)
            assert logged == pytest.approx(terms[term].item(), rel=(1e-5, 1e-4)[draw]), term
    names = ("source_to_target", "target_to_source", "source_critic", "target_critic")
    for name, network in zip(names, (g, f, d_x, d_y), strict=True):
        for key, value in network.state_dict().items():
            if key.endswith("weight"):  # biases before a norm have gradients of rounding errors
                # Adam's first steps are as large as its rate, 2e-4, whatever the gradient.
                difference = (trained[name][key] - value).abs()
                assert difference.mean() < 1e-6, (name, key)
                assert difference.max() < 4e-5, (name, key)


class Killed(BaseException):
    """Stands in for a signal."""


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_bit_for_bit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def fit(name: str) -> Path:
        compute = config.compute.model_copy(update={"workers": workers})
        train(config.cyclegan, config.source, config.target, tmp_path / name, compute)
        return tmp_path / name / "checkpoints" / "last.pt"

    whole = load_checkpoint(fit("whole"))
    assert whole["step"] == 12
    assert len(whole["pools"]["source"]) == 3

    steps = 0
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam) -> None:  # dies in the 8th step, two after a checkpoint
        nonlocal steps
        steps += 1
        if steps == 15:
            raise Killed
        original(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(torch.optim.Adam, "step", step)
        fit("parts")
    assert load_checkpoint(tmp_path / "parts/checkpoints/last.pt")["step"] == 6
    assert equal(load_checkpoint(fit("parts")), whole)
    logged = [
        json.loads(x)["step"] for x in (tmp_path / "parts/log.jsonl").read_text().split("\n") if x
    ]
    assert logged == sorted(set(logged))
    assert logged[-1] == 12
    assert (tmp_path / "parts/samples/step-0000012.png").is_file()


def test_training_changes_every_network_and_lowers_the_cycle_loss(
    config: Config, tmp_path: Path
) -> None:
    short = config.cyclegan.model_copy(
        update={"steps_per_epoch": 1, "decay_epochs": 0, "checkpoint_every": 1}
    )
    train(short, config.source, config.target, tmp_path / "short", config.compute)
    longer = config.cyclegan.model_copy(update={"steps_per_epoch": 30})
    train(longer, config.source, config.target, tmp_path, config.compute)
    before = load_checkpoint(tmp_path / "short/checkpoints/last.pt")["networks"]
    after = load_checkpoint(tmp_path / "checkpoints/last.pt")["networks"]
    assert len(after) == 4
    for name, network in after.items():
        assert all((network[k] != before[name][k]).any() for k in network if k.endswith("weight"))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first, last = log[0], log[-1]
    assert (
        last["cycle_source"] + last["cycle_target"] < first["cycle_source"] + first["cycle_target"]
    )
    assert set(log[0]) == {
        *["step", "identity", "cycle_source", "cycle_target", "fool_target_critic"],
        *["fool_source_critic", "target_critic", "source_critic", "learning_rate"],
    }
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def poisoned(logits: torch.Tensor, *, real: bool) -> torch.Tensor:
        nonlocal calls
        calls += 1  # six calls a step: the fifth step is poisoned
        return gan_loss(logits, real=real) * (float("nan") if calls > 24 else 1)

    monkeypatch.setattr("cyclegan.train.gan_loss", poisoned)
    with pytest.raises(UserError, match=r"is not finite at step 5, on .*toy-sim.*toy-real"):
        train(config.cyclegan, config.source, config.target, tmp_path, config.compute)
    state = load_checkpoint(tmp_path / "checkpoints/last.pt")
    assert state["step"] == 3
    assert all(v.isfinite().all() for n in state["networks"].values() for v in n.values())


def test_crop_larger_than_a_frame(config: Config, tmp_path: Path) -> None:
    large = config.cyclegan.model_copy(update={"crop": (256, 64)})
    with pytest.raises(UserError, match=r"is 128x64, smaller than the crop 256x64"):
        train(large, config.source, config.target, tmp_path, config.compute)


def test_crop_smaller_than_the_discriminator(config: Config, tmp_path: Path) -> None:
    small = config.cyclegan.model_copy(update={"crop": (16, 16)})
    with pytest.raises(UserError, match="smaller than the 24 pixels"):
        train(small, config.source, config.target, tmp_path, config.compute)


def test_translate_all_frames_and_restart(config: Config, tmp_path: Path) -> None:
    short = config.cyclegan.model_copy(update={"steps_per_epoch": 1, "checkpoint_every": 1})
    train(short, config.source, config.target, tmp_path, config.compute)
    checkpoint, out = tmp_path / "checkpoints/last.pt", tmp_path / "translated"
    translate(config.translation, checkpoint, config.source, out, config.compute)
    source = list_samples(config.source, labelled=True)
    translated = list_samples(load_spec(out / "dataset.yaml"), labelled=True)
    assert [s.image.name for s in translated] == [s.image.name for s in source]
    assert [s.label for s in translated] == [s.label for s in source]
    before = [read_rgb(s.image) for s in translated]
    assert all(
        b.shape == read_rgb(s.image).shape and (b != read_rgb(s.image)).any()
        for b, s in zip(before, source, strict=True)
    )
    assert len((out / "manifest.csv").read_text().splitlines()) == 1 + len(source)
    # Some frames are lost; the second call makes these again, the same to the last bit.
    untouched = translated[0].image.stat().st_mtime_ns
    for sample in translated[5:7]:
        sample.image.unlink()
    translate(config.translation, checkpoint, config.source, out, config.compute)
    assert translated[0].image.stat().st_mtime_ns == untouched
    for sample, pixels in zip(translated, before, strict=True):
        assert (read_rgb(sample.image) == pixels).all()


def test_damaged_checkpoint(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(UserError, match="No checkpoint"):
        translate(config.translation, path, config.source, tmp_path, config.compute)
    path.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        translate(config.translation, path, config.source, tmp_path, config.compute)
