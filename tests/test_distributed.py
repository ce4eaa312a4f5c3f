"""Training on several devices: the same function as on one, one writer, nobody left over.

Processes on the CPU stand in for GPUs. Most are forked, which is quick and takes patches along.
"""

import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cyclegan.networks import build_discriminator, build_generator, to_network
from cyclegan.pool import ImagePool
from cyclegan.semantics import semantic_loss
from cyclegan.steps import CHECKPOINT, save_last
from cyclegan.train_paired import train_paired
from flows.prepare import preflight
from pipeline.config.load import load_config
from pipeline.config.settings import ComputeConfig, Config
from pipeline.config.translation import CycleGANConfig
from pipeline.data.labels import IGNORE
from pipeline.errors import UserError
from pipeline.runtime.checkpoint import load_checkpoint
from pipeline.runtime.device import check_devices
from pipeline.runtime.distributed import ONE_RANK, Ranks, process_group
from tests.helpers import assert_close, by_brightness, equal, fit, read_log
from tests.ranks import in_ranks

RECIPE = {"batch_size": 2, "steps_per_epoch": 2, "checkpoint_every": 2, "log_every": 1}


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu", "cyclegan.batch_size=2"])


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in 64 bits: Adam makes whole steps of what rounding leaves of gradients of 0."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for name, build in (
        ("train.build_generator", build_generator),
        ("discriminators.build_discriminator", build_discriminator),
    ):
        monkeypatch.setattr(f"cyclegan.{name}", lambda *given, build=build: build(*given).double())


def recipe(config: Config, **settings: Any) -> CycleGANConfig:
    return CycleGANConfig.model_validate(config.cyclegan.model_dump() | RECIPE | settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"generator_average": 0.9},
        {
            "batch_size": 4,
            "discriminator_scales": 2,
            "discriminator_layers": 2,
            "semantics": {"consistency": 1.0, "target_consistency": 0.5, "probe_frames": 2},
        },
    ],
    ids=["average", "judged"],
)
def test_two_devices_learn_what_one_learns(
    config: Config, tmp_path: Path, exact: None, settings: dict[str, Any]
) -> None:
    one = fit(config, recipe(config, **settings), tmp_path / "one", 1)
    two = fit(config, recipe(config, **settings), tmp_path / "two", 2)
    assert one["step"] == 4
    assert len(one["pools"]["source"]) == 3
    for part in ("networks", "averages", "optimizers", "pools", "leaderboard"):
        assert_close(two[part], one[part], 1e-8)
    for entry, other in zip(read_log(tmp_path / "two"), read_log(tmp_path / "one"), strict=True):
        assert entry == pytest.approx(other, rel=1e-8)
    names = {path.name for path in (tmp_path / "one").rglob("*") if "tfevents" not in path.name}
    assert {p.name for p in (tmp_path / "two").rglob("*") if "tfevents" not in p.name} == names
    assert len(list((tmp_path / "two/tensorboard").iterdir())) == 1


def test_two_devices_learn_from_pairs_what_one_learns(
    config: Config, tmp_path: Path, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, build in (("generator", build_generator), ("discriminator", build_discriminator)):
        monkeypatch.setattr(
            f"cyclegan.train_paired.build_{name}",
            lambda config, build=build: build(config).double(),
        )
    settings = recipe(config, paired=True, generator_average=0.9)
    for name, devices in (("one", 1), ("two", 2)):
        # Any two sets of one size and of equal names are pairs to the loop.
        frames = (config.source, config.source)
        in_ranks(devices, train_paired, settings, *frames, tmp_path / name, config.compute)
    one, two = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("one", "two"))
    assert one["step"] == 4
    assert not equal(one["averages"]["source_to_target"], one["networks"]["source_to_target"])
    for part in ("networks", "averages", "optimizers"):
        assert_close(two[part], one[part], 1e-8)
    for entry, other in zip(read_log(tmp_path / "two"), read_log(tmp_path / "one"), strict=True):
        assert entry == pytest.approx(other, rel=1e-8)


def test_two_devices_learn_what_one_learns_in_32_bits(config: Config, tmp_path: Path) -> None:
    settings = recipe(config)
    fit(config, settings, tmp_path / "one", 1)
    fit(config, settings, tmp_path / "two", 2)
    logs = zip(read_log(tmp_path / "two"), read_log(tmp_path / "one"), strict=True)
    for step, (entry, other) in enumerate(logs):
        assert entry == pytest.approx(other, rel=1e-6 if step == 0 else 1e-3)


def test_every_process_keeps_the_same_networks_and_pools(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kept(ImagePool):
        def query(self, batch: torch.Tensor, rng: Any) -> torch.Tensor:
            out = super().query(batch, rng)
            path = tmp_path / f"{os.getpid()}.pt"
            seen = torch.load(path) if path.is_file() else []
            torch.save([*seen, [image.clone() for image in self.images]], path)
            return out

    monkeypatch.setattr("cyclegan.train.ImagePool", Kept)
    fit(config, recipe(config, dropout=True), tmp_path / "two", 2)
    one, other = (torch.load(path) for path in tmp_path.glob("*.pt"))
    assert len(one) == 8
    assert equal(one, other)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_continues_bit_for_bit_after_a_kill(
    config: Config,
    tmp_path: Path,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    def killed(folder: Path, state: dict[str, Any]) -> None:
        save_last(folder, state)
        if state["step"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    whole = fit(config, recipe(config), tmp_path / "whole", 2, workers=workers)
    with (
        monkeypatch.context() as patch,
        pytest.raises(ChildProcessError, match="rank 0 ended with -9"),
    ):
        patch.setattr("cyclegan.train.save_last", killed)
        fit(config, recipe(config), tmp_path / "two", 2, workers=workers)
    assert load_checkpoint(tmp_path / "two/checkpoints/last.pt")["step"] == 2
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    assert equal(fit(config, recipe(config), tmp_path / "two", 2, workers=workers), whole)
    assert read_log(tmp_path / "two") == read_log(tmp_path / "whole")
    # The other process may be one less.
    assert_close(fit(config, recipe(config), tmp_path / "one", 1, workers=workers), whole, 1e-8)


def test_a_step_is_skipped_by_all_or_none(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    calls = 0

    def blank(rgb: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        x = to_network(rgb)
        # The source batch of the third step, in the one process that holds this part of it.
        return x * float("nan") if calls == 5 and torch.distributed.get_rank() == 1 else x

    monkeypatch.setattr("cyclegan.train.to_network", blank)
    state = fit(config, recipe(config), tmp_path / "two", 2)
    assert state["skips"] == {"total": 1, "row": 0}
    message = capfd.readouterr().err
    assert message.count("step 3 skipped") == 1
    assert message.count("toy-sim") == message.count("toy-real") == 2  # the whole batch


def test_alone_nothing_is_exchanged() -> None:
    batch = torch.rand(2, 3)
    assert ONE_RANK.shard(batch) is batch
    assert torch.equal(ONE_RANK.all_gather(batch), batch)
    ONE_RANK.all_reduce_mean([batch])
    assert ONE_RANK.all_gather_objects(["a"]) == ["a"]
    with process_group(ComputeConfig()) as ranks:
        assert ranks == ONE_RANK


def test_shards_are_in_order() -> None:
    batch = torch.arange(6)
    shards = [Ranks(rank, 3).shard(batch).tolist() for rank in range(3)]
    assert shards == [[0, 1], [2, 3], [4, 5]]


def semantic_shards(folder: Path, ranks: Ranks) -> None:
    torch.manual_seed(0)
    frames, classes = torch.randn(2, 3, 4, 5), torch.randint(0, 2, (2, 4, 5))
    classes[0] = IGNORE
    classes[1, 0] = IGNORE
    loss = semantic_loss(by_brightness, ranks.shard(frames), ranks.shard(classes), ranks)
    losses = ranks.all_gather(loss[None])
    assert losses[0] == 0
    whole = semantic_loss(by_brightness, frames, classes)
    torch.testing.assert_close(losses.mean(), whole)
    (folder / str(ranks.rank)).touch()


def test_labelled_pixels_count_alike_wherever_they_are(tmp_path: Path) -> None:
    in_ranks(2, semantic_shards, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1"}


def test_settings_that_cannot_work(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cyclegan.batch_size 3 .* multiple of compute.devices, 2"):
        load_config(tiny, ["compute.devices=2", "cyclegan.batch_size=3"])
    for place in ("segmentation", "arms.source_only.segmentation"):
        arms = ["arms={source_only: {train: source}}"]  # no CycleGAN
        with pytest.raises(UserError, match=rf"{place}.batch_size 3 .* one of \[1, 3\], or"):
            load_config(tiny, [*arms, "compute.devices=2", f"{place}.batch_size=3"])
        load_config(tiny, [*arms, "compute.devices=2", f"{place}.batch_size=4"])
    fours = ["compute.devices=4", "cyclegan.batch_size=4", "segmentation.batch_size=4"]
    config = load_config(tiny, fours)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for look in (partial(check_devices, config.compute), partial(preflight, config)):
        with pytest.raises(UserError, match=r"compute.devices is 4, but torch sees 2 GPU\(s\)"):
            look()
