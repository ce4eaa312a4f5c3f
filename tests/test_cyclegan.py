"""CycleGAN: shapes and counts of the reference, the pool's rule, exact resume, exact sizes."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from cyclegan.data import pair_reader, pairs
from cyclegan.losses import gan_loss
from cyclegan.networks import (
    InstanceNorm,
    ResnetGenerator,
    UnetGenerator,
    to_network,
    to_rgb,
)
from cyclegan.pool import ImagePool
from cyclegan.steps import decay, is_finite
from cyclegan.train import train
from cyclegan.train_paired import train_paired
from cyclegan.translate import (
    SHIFTS,
    FrameTranslator,
    load_generator,
    reflect,
    translate,
)
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig
from pipeline.config.translators import TranslationInputs
from pipeline.data.images import read_rgb
from pipeline.data.listing import list_samples
from pipeline.errors import UserError
from pipeline.files import sweep
from pipeline.run.folder import locked
from pipeline.runtime.checkpoint import load_checkpoint
from pipeline.runtime.step import ema_update, seed_step
from tests.helpers import (
    Killed,
    equal,
    in_a_child,
    killed_at_any_moment,
    killed_in_step,
    stopping_after,
)
from tests.layouts import load_spec


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu"])


def test_pool_rule() -> None:
    pool, rng = ImagePool(50), np.random.default_rng(0)
    for i in range(50):
        image = torch.full((1, 1, 1, 1), float(i))
        assert pool.query(image, rng).item() == i
    replaced = np.zeros(50)
    last_pool = [image.item() for image in pool.images]
    for i in range(50, 4050):
        out = pool.query(torch.full((1, 1, 1, 1), float(i)), rng).item()
        now = [image.item() for image in pool.images]
        changed = [j for j in range(50) if now[j] != last_pool[j]]
        if out == i:
            assert changed == []
        else:
            (position,) = changed
            assert (last_pool[position], now[position]) == (out, i)
            replaced[position] += 1
        last_pool = now
    # Binomial(4000, 1/2) has standard deviation 32; chi squared with 49 degrees of freedom has mean
    # 49 and standard deviation 10.
    assert abs(replaced.sum() - 2000) < 5 * 32
    expected = replaced.sum() / 50
    assert abs(((replaced - expected) ** 2 / expected).sum() - 49) < 5 * 10


def test_pool_takes_the_images_of_a_batch_one_by_one() -> None:
    pool = ImagePool(3)
    batch = torch.arange(2.0).view(2, 1, 1, 1)
    assert (pool.query(batch, np.random.default_rng(0)) == batch).all()
    assert (pool.query(batch + 2, np.random.default_rng(0))[0] == 2).all()
    assert [image.item() for image in pool.images][:2] in ([0, 1], [3, 1], [0, 3])
    assert len(pool.images) == 3


def test_pool_of_size_zero_passes_through_without_gradient() -> None:
    image = torch.ones(2, 3, 4, 4, requires_grad=True)
    out = ImagePool(0).query(image, np.random.default_rng(0))
    assert not out.requires_grad
    assert (out == image).all()


def test_schedule_corners() -> None:
    config = CycleGANConfig(epochs=100, decay_epochs=100)
    factors = [decay(step, 7, config) for step in range(1400)]
    assert all(factors[step] == factors[step - step % 7] for step in range(1400))
    epochs = factors[::7]
    # The reference: 1 - max(0, epoch + 1 - n_epochs) / (n_epochs_decay + 1), epochs from 0.
    assert epochs[:100] == [1.0] * 100
    assert epochs[100] == pytest.approx(1 - 1 / 101)
    assert epochs[199] == pytest.approx(1 - 100 / 101)
    constant = CycleGANConfig(epochs=2, decay_epochs=0)
    assert [decay(step, 7, constant) for step in range(14)] == [1] * 14


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
@pytest.mark.parametrize("network", [ResnetGenerator(1, 4), UnetGenerator(6, 4)])
def test_translation_keeps_any_size(network: nn.Module, size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    for shifts in (1, 4):
        assert FrameTranslator(network, shifts)(rgb).shape == rgb.shape


def test_reflection_may_be_wider_than_the_picture() -> None:
    x = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 2, 4)
    out = reflect(x, (1, 9, 0, 5))
    assert out[0, 0, 0].tolist() == [1, 0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    assert out.shape == (1, 1, 7, 14)


def test_shifted_translations_cancel_a_grid() -> None:
    class Grid(nn.Module):
        """Keeps the picture and adds a pattern that is fixed to the grid of 4 pixels."""

        multiple = 4

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
        shifts: FrameTranslator(Grid(), shifts)(rgb).reshape(-1, 3).std(0).mean()
        for shifts in (1, 4, 8, 16)
    }
    assert spread[1] > 10
    assert spread[4] < 0.6 * spread[1]
    assert spread[16] < 0.5


def test_shifts_are_the_whole_grid() -> None:
    assert sorted(SHIFTS) == [(down, right) for down in range(4) for right in range(4)]
    for axis in (0, 1):
        assert sorted(shift[axis] for shift in SHIFTS[:4]) == [0, 1, 2, 3]


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

    # In the 8th step of two optimisers, two after a checkpoint.
    with killed_in_step(15, monkeypatch, torch.optim.Adam):
        fit("parts")
    assert load_checkpoint(tmp_path / "parts/checkpoints/last.pt")["step"] == 6
    assert equal(load_checkpoint(fit("parts")), whole)
    logged = [
        json.loads(x)["step"] for x in (tmp_path / "parts/log.jsonl").read_text().split("\n") if x
    ]
    assert logged == sorted(set(logged))
    assert logged[-1] == 12
    assert (tmp_path / "parts/samples/step-0000012.png").is_file()


def test_kills_at_any_moment_change_nothing(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = config.cyclegan.model_copy(
        update={"steps_per_epoch": 5, "checkpoint_every": 1, "generator_average": 0.9}
    )

    def fit(name: str) -> None:
        with locked(tmp_path / name):  # which removes what kills left
            train(recipe, config.source, config.target, tmp_path / name, config.compute)

    fit("whole")
    checkpoint = tmp_path / "parts/checkpoints/last.pt"
    moments = np.random.default_rng(0).uniform(0.05, 0.5, 3)
    halves = {1: None, 6: 5}  # the first checkpoint, and one that replaces another
    killed_at_any_moment(lambda: fit("parts"), checkpoint, halves, moments, monkeypatch)
    fit("parts")
    whole = load_checkpoint(tmp_path / "whole/checkpoints/last.pt")
    assert whole["step"] == 10
    assert equal(load_checkpoint(checkpoint), whole)
    # As whoever locks a run does.
    sweep(checkpoint.parent)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.pt"]


def test_training_changes_every_network_and_lowers_the_cycle_loss(
    config: Config, tmp_path: Path
) -> None:
    short = config.cyclegan.model_copy(
        update={"steps_per_epoch": 1, "decay_epochs": 0, "checkpoint_every": 1}
    )
    train(short, config.source, config.target, tmp_path / "short", config.compute)
    longer = config.cyclegan.model_copy(update={"steps_per_epoch": 15})
    train(longer, config.source, config.target, tmp_path, config.compute)
    before = load_checkpoint(tmp_path / "short/checkpoints/last.pt")["networks"]
    after = load_checkpoint(tmp_path / "checkpoints/last.pt")["networks"]
    assert len(after) == 4
    for name, network in after.items():
        assert all((network[k] != before[name][k]).any() for k in network if k.endswith("weight"))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first, last = log[0], log[-1]
    assert (
        last["cycle_loss_source"] + last["cycle_loss_target"]
        < first["cycle_loss_source"] + first["cycle_loss_target"]
    )
    assert set(log[0]) == {
        *["step", "identity_loss", "cycle_loss_source", "cycle_loss_target", "gan_loss_G"],
        *["gan_loss_F", "discriminator_loss_target", "discriminator_loss_source"],
        *["learning_rate", "skipped"],
    }
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bool]], None]:
    """A function that makes the adversarial losses of the chosen steps NaN."""

    def choose(bad: Callable[[int], bool]) -> None:
        step = 0

        def seed(seed: int, number: int, *share: int) -> None:
            nonlocal step
            step = number
            seed_step(seed, number, *share)

        def loss(*arguments: Any, **named: Any) -> torch.Tensor:
            return gan_loss(*arguments, **named) * (float("nan") if bad(step) else 1)

        monkeypatch.setattr("cyclegan.steps.seed_step", seed)
        for module in ("cyclegan.train", "cyclegan.train_paired"):
            monkeypatch.setattr(f"{module}.gan_loss", loss)

    return choose


def test_steps_that_are_not_finite_are_skipped(
    config: Config, tmp_path: Path, poison: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(lambda step: step in (1, 5, 6, 12))
    train(config.cyclegan, config.source, config.target, tmp_path, config.compute)
    state = load_checkpoint(tmp_path / "checkpoints/last.pt")
    assert state["skips"] == {"total": 4, "row": 1}
    assert state["step"] == 12
    assert state["optimizers"]["discriminators"]["state"][0]["step"] == 8
    assert all(image.isfinite().all() for images in state["pools"].values() for image in images)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["skipped"] >= 3
    assert "step 5 skipped, gan_loss_G, gan_loss_F" in capsys.readouterr().err


def test_a_skipped_step_leaves_no_trace(config: Config, tmp_path: Path, poison: Any) -> None:
    recipe = config.cyclegan.model_copy(
        update={"steps_per_epoch": 4, "checkpoint_every": 4, "generator_average": 0.9}
    )
    poison(lambda step: step > 4)
    train(recipe, config.source, config.target, tmp_path, config.compute)
    after = load_checkpoint(tmp_path / "checkpoints/last.pt")
    assert after["skips"] == {"total": 4, "row": 4}
    before = recipe.model_copy(update={"decay_epochs": 0})
    train(before, config.source, config.target, tmp_path / "before", config.compute)
    expected = load_checkpoint(tmp_path / "before/checkpoints/last.pt")
    for part in ("networks", "averages", "pools"):
        assert equal(after[part], expected[part])


def test_too_many_skipped_steps_stop_and_keep_the_checkpoint(
    config: Config, tmp_path: Path, poison: Any
) -> None:
    recipe = config.cyclegan.model_copy(update={"steps_per_epoch": 20})
    poison(lambda step: step > 4)
    with pytest.raises(UserError, match=r"10 steps in a row .* step 14: .*toy-sim.*toy-real"):
        train(recipe, config.source, config.target, tmp_path, config.compute)
    state = load_checkpoint(tmp_path / "checkpoints/last.pt")
    assert state["step"] == 12
    assert state["skips"] == {"total": 8, "row": 8}
    assert all(v.isfinite().all() for n in state["networks"].values() for v in n.values())
    # The count of steps in a row goes on where it was.
    with pytest.raises(UserError, match=r"10 steps in a row .* step 14"):
        train(recipe, config.source, config.target, tmp_path, config.compute)


def test_a_gradient_that_is_not_finite_counts() -> None:
    network = nn.Linear(1, 1)
    network.bias.grad = torch.tensor([float("inf")])
    assert not is_finite({"loss": torch.zeros(())}, [network])
    network.zero_grad()
    network.weight.grad = torch.ones(1, 1)
    assert is_finite({"loss": torch.zeros(())}, [network])


def test_average_of_the_weights() -> None:
    network, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(average.weight)
    nn.init.ones_(network.weight)
    ema_update(average, network, 0.999, 1)
    assert average.weight.item() == pytest.approx(1 - 2 / 11)
    ema_update(average, network, 0.5, 1000)
    assert average.weight.item() == pytest.approx(1 - 0.5 * 2 / 11)


@pytest.mark.parametrize("paired", [False, True])
def test_losses_are_32_bits_under_autocast(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paired: bool
) -> None:
    dtypes, layouts = set(), set()

    def judged(losses: dict[str, torch.Tensor], networks: Any) -> bool:
        dtypes.update(loss.dtype for loss in losses.values())
        return is_finite(losses, networks)

    def normed(module: nn.Module, arguments: Any, out: Any) -> None:
        if isinstance(module, InstanceNorm):
            layouts.add((out.dtype, out.is_contiguous(memory_format=torch.channels_last)))

    recipe = config.cyclegan.model_copy(
        update={"steps_per_epoch": 1, "decay_epochs": 0, "paired": paired}
    )
    compute = config.compute.model_copy(update={"precision": "bf16-mixed"})
    fit, target = (train_paired, config.source) if paired else (train, config.target)
    monkeypatch.setattr("cyclegan.steps.is_finite", judged)
    hook = register_module_forward_hook(normed)
    fit(recipe, config.source, target, tmp_path, compute)
    hook.remove()
    assert dtypes == {torch.float32}
    assert (torch.bfloat16, True) in layouts
    assert all(channels_last for _, channels_last in layouts)
    state = load_checkpoint(tmp_path / "checkpoints/last.pt")
    assert {v.dtype for n in state["networks"].values() for v in n.values()} == {torch.float32}


@pytest.mark.slow
@in_a_child
def test_memory_stays_flat(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[int] = []

    @contextmanager
    def measured(*arguments: Any, **named: Any) -> Iterator[Callable[[int], None]]:
        statm = Path("/proc/self/statm")
        yield lambda count: pages.append(int(statm.read_text().split()[1]))

    monkeypatch.setattr("pipeline.runtime.log.progress", measured)
    recipe = config.cyclegan.model_copy(
        update={"steps_per_epoch": 125, "checkpoint_every": 25, "sample_every": 25}
    )
    train(recipe, config.source, config.target, tmp_path, config.compute)
    # After the first fifty steps all buffers are there: pools, optimisers, cached kernels.
    assert len(pages) == 250
    grown = (max(pages[200:]) - max(pages[:50])) * os.sysconf("SC_PAGE_SIZE")
    assert grown < 16 * 2**20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, while it traces
@pytest.mark.parametrize("paired", [False, True])
@in_a_child
def test_compiled_networks_learn_alike(config: Config, tmp_path: Path, paired: bool) -> None:
    recipe = config.cyclegan.model_copy(
        update={"steps_per_epoch": 2, "decay_epochs": 0, "log_every": 1, "paired": paired}
    )
    fit, target = (train_paired, config.source) if paired else (train, config.target)
    logs = []
    for fusing in (False, True):
        folder = tmp_path / str(fusing)
        compute = config.compute.model_copy(update={"compile": fusing})
        fit(recipe, config.source, target, folder, compute)
        lines = (folder / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    assert logs[1][0] == pytest.approx(logs[0][0], rel=1e-4)
    # Adam makes whole steps of gradients near 0, whose signs are rounding.
    assert logs[1][1] == pytest.approx(logs[0][1], rel=2e-2)
    given = inputs(config, tmp_path / "True/checkpoints/last.pt")
    translate(config.translation, given, tmp_path / "out", config.compute)


def inputs(config: Config, checkpoint: Path) -> TranslationInputs:
    return TranslationInputs(config.source, config.target, checkpoint)


VARIANTS: list[dict[str, Any]] = [
    {"generator": "unet", "downs": 4, "dropout": True, "generator_average": 0.9},
    {"generator": "encoder_decoder", "downs": 4, "upsampling": "resize", "identity_weight": 0},
    {"discriminator": "pixel", "adversarial_loss": "vanilla", "upsampling": "resize"},
    {"residual": True, "discriminator_layers": 2},
    {"discriminator_layers": 2, "discriminator_scales": 2, "dropout": True, "batch_size": 2},
    {"paired": True, "generator": "unet", "downs": 4, "dropout": True, "generator_average": 0.9},
    {"paired": True, "discriminator_scales": 2, "discriminator_layers": 2},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant))
def test_variants_train_resume_and_translate(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: dict[str, Any]
) -> None:
    recipe = CycleGANConfig.model_validate(
        config.cyclegan.model_dump() | {"steps_per_epoch": 2, "checkpoint_every": 1} | variant
    )
    # Frames are of equal name only within one set.
    target = config.source if recipe.paired else config.target
    fit = train_paired if recipe.paired else train
    fit(recipe, config.source, target, tmp_path / "whole", config.compute)
    whole = load_checkpoint(tmp_path / "whole/checkpoints/last.pt")
    assert whole["step"] == 4

    def killed(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("cyclegan.steps.save_checkpoint", stopping_after(2, killed))
        fit(recipe, config.source, target, tmp_path / "parts", config.compute)
    checkpoint = tmp_path / "parts/checkpoints/last.pt"
    assert load_checkpoint(checkpoint)["step"] == 2
    fit(recipe, config.source, target, tmp_path / "parts", config.compute)
    assert equal(load_checkpoint(checkpoint), whole)

    generator = load_generator(checkpoint)
    weights = whole["averages"] if recipe.generator_average else whole["networks"]
    assert equal(dict(generator.state_dict()), dict(weights["source_to_target"]))
    assert recipe.generator_average == 0 or not equal(
        weights["source_to_target"], whole["networks"]["source_to_target"]
    )
    translate(config.translation, inputs(config, checkpoint), tmp_path / "out", config.compute)
    frame = read_rgb(list_samples(load_spec(tmp_path / "out/dataset.yaml"), labelled=True)[0].image)
    assert frame.shape == (64, 128, 3)


def test_pairs_need_equal_names_and_sizes(config: Config, tmp_path: Path) -> None:
    paired = config.cyclegan.model_copy(update={"paired": True})
    with pytest.raises(UserError, match=r"there are none: source begins with '.*', target with"):
        train_paired(paired, config.source, config.target, tmp_path, config.compute)
    smaller = config.source.model_copy(update={"width": 96})
    with pytest.raises(UserError, match=r"is 96x48, its pair .* 128x64"):
        train_paired(paired, config.source, smaller, tmp_path, config.compute)


def test_pairs_are_cropped_and_mirrored_alike(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = config.source.model_copy(update={"limit": 4})
    samples = pairs(config.source, fewer)
    assert "4 pairs; 6 source and 0 target frames have none" in capsys.readouterr().err
    read = pair_reader(config.source, samples[0], fewer, samples[1], (64, 48), None)
    crops = [read(1, np.random.default_rng(seed)) for seed in range(20)]
    assert all(torch.equal(crop["source"], crop["target"]) for crop in crops)
    assert crops[0]["source"].shape == (48, 64, 3)
    assert not torch.equal(crops[0]["source"], crops[1]["source"])


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
    translate(config.translation, inputs(config, checkpoint), out, config.compute)
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
    translate(config.translation, inputs(config, checkpoint), out, config.compute)
    assert translated[0].image.stat().st_mtime_ns == untouched
    for sample, pixels in zip(translated, before, strict=True):
        assert (read_rgb(sample.image) == pixels).all()


def test_damaged_checkpoint(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(UserError, match="No checkpoint"):
        translate(config.translation, inputs(config, path), tmp_path, config.compute)
    path.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(UserError, match="found a damaged or truncated file"):
        translate(config.translation, inputs(config, path), tmp_path, config.compute)


@pytest.mark.parametrize("kind", ["least_squares", "vanilla"])
def test_losses_of_several_scales_are_averaged(kind: Any) -> None:
    fine, coarse = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 3, 3)
    apart = [gan_loss(scale, real=True, kind=kind) for scale in (fine, coarse)]
    together = gan_loss([fine, coarse], real=True, kind=kind)
    torch.testing.assert_close(together, (apart[0] + apart[1]) / 2)
