"""Several processes that train one segmentation network learn what one alone learns."""

import copy
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from pipeline.config.load import load_config
from pipeline.config.segmentation import SelfTrainingConfig
from pipeline.config.settings import Config
from pipeline.data.labels import load_label_space
from pipeline.runtime.checkpoint import load_checkpoint, save_checkpoint
from pipeline.runtime.distributed import Ranks
from segmentation.losses import balanced_weights
from segmentation.models import build_model, sync_batch_norms
from segmentation.train import CHECKPOINT, load_segmenter, train
from tests.helpers import assert_close, equal, in_a_child, read_log
from tests.ranks import in_ranks

SPACE = load_label_space("cityscapes19")


@pytest.fixture
def config(tiny: Path) -> Config:
    recipe = ["segmentation.steps=3", "segmentation.checkpoint_every=2", "segmentation.log_every=1"]
    return load_config(tiny, ["compute.accelerator=cpu", *recipe])


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in 64 bits: Adam makes whole steps of what rounding leaves of gradients of 0."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(
        "segmentation.train.build_model", lambda *a, **k: build_model(*a, **k).double()
    )
    monkeypatch.setattr(
        "segmentation.train.balanced_weights", lambda *a: balanced_weights(*a).double()
    )


def fit(
    config: Config, folder: Path, devices: int, teaching: SelfTrainingConfig | None = None, **s: Any
) -> dict[str, Any]:
    """The last checkpoint of a training."""
    recipe = config.segmentation.model_copy(update=s)
    target = config.target if teaching else None
    frames = [(config.source, 1.0)]
    work = partial(train, recipe, SPACE, frames, 3, folder, config.compute)
    in_ranks(devices, partial(work, self_training=teaching, target=target))
    return load_checkpoint(folder / CHECKPOINT)


LOW_RANK = {
    "architecture": "linear",
    "encoder": "tu-eva02_tiny_patch14_224",
    "options": {},
    "encoder_tuning": "lora",
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"batch_size": 4, "class_weights": "balanced", "hard_pixels": 0.5, "dice_weight": 0.5},
        pytest.param({"encoder_tuning": "frozen"}, marks=pytest.mark.slow),
        pytest.param(LOW_RANK, marks=pytest.mark.slow),
    ],
    ids=["plain", "all losses", "frozen", "low rank"],
)
def test_two_devices_learn_what_one_learns(
    config: Config, tmp_path: Path, exact: None, settings: dict[str, Any]
) -> None:
    one = fit(config, tmp_path / "one", 1, **settings)
    two = fit(config, tmp_path / "two", 2, **settings)
    assert one["step"] == 3
    # Weights, and the batch norms' running statistics among them.
    assert_close(two["model"], one["model"], 1e-8)
    assert_close(two["optimizer"], one["optimizer"], 1e-8)
    for entry, other in zip(read_log(tmp_path / "two"), read_log(tmp_path / "one"), strict=True):
        assert entry == pytest.approx(other, rel=1e-8)
    names = {path.name for path in (tmp_path / "one").rglob("*") if "tfevents" not in path.name}
    assert {p.name for p in (tmp_path / "two").rglob("*") if "tfevents" not in p.name} == names
    assert len(list((tmp_path / "two/tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_continues_bit_for_bit_after_a_kill_and_with_another_number(
    config: Config, tmp_path: Path, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, state: dict[str, Any]) -> None:
        save_checkpoint(path, state)
        if state["step"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    whole = fit(config, tmp_path / "whole", 2)
    with (
        monkeypatch.context() as patch,
        pytest.raises(ChildProcessError, match="rank 0 ended with -9"),
    ):
        patch.setattr("segmentation.train.save_checkpoint", killed)
        fit(config, tmp_path / "two", 2)
    assert load_checkpoint(tmp_path / "two" / CHECKPOINT)["step"] == 2
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    assert equal(fit(config, tmp_path / "two", 2), whole)
    assert_close(fit(config, tmp_path / "one", 1)["model"], whole["model"], 1e-8)


# Which classes are pasted, and recolouring, are drawn by each process for itself.
SAME = {"class_mix": False, "color": 0, "blur": 0, "confidence": 0.057, "teacher_average": 0.5}


def test_self_training_on_two_devices(config: Config, tmp_path: Path, exact: None) -> None:
    teaching = SelfTrainingConfig.model_validate(SAME)
    one = fit(config, tmp_path / "one", 1, teaching)
    two = fit(config, tmp_path / "two", 2, teaching)
    for part in ("model", "teacher", "optimizer"):
        assert_close(two[part], one[part], 1e-8)
    log = read_log(tmp_path / "two")
    assert any(0 < entry["confident_fraction"] < 1 for entry in log)
    for entry, other in zip(log, read_log(tmp_path / "one"), strict=True):
        assert entry == pytest.approx(other, rel=1e-8)


@pytest.mark.slow
def test_two_devices_that_draw_for_themselves(config: Config, tmp_path: Path) -> None:
    state = fit(config, tmp_path, 2, SelfTrainingConfig(masked_weight=1.0))
    assert state["step"] == 3
    assert all(entry["masked_loss"] >= 0 for entry in read_log(tmp_path))


def normed(folder: Path, ranks: Ranks) -> None:
    torch.manual_seed(0)
    x, aims = 3 + torch.randn(2, 4, 6, 5, 7).double()
    part, whole = ranks.shard(x).clone().requires_grad_(), x.clone().requires_grad_()
    alone = nn.Sequential(nn.BatchNorm2d(6), BatchNormAct2d(6), nn.BatchNorm2d(6, momentum=0.3))
    for norm in alone:
        nn.init.uniform_(norm.weight)
    alone.double()
    together = sync_batch_norms(copy.deepcopy(alone), ranks)
    out, expected = together(part), alone(whole)
    (out * ranks.shard(aims)).sum().backward()
    (expected * aims).sum().backward()
    torch.testing.assert_close(ranks.all_gather(out), expected.detach())
    assert part.grad is not None
    torch.testing.assert_close(ranks.all_gather(part.grad), whole.grad)
    for one, other in zip(together.parameters(), alone.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(ranks.all_reduce_sum(one.grad), other.grad)
    torch.testing.assert_close(together.state_dict(), alone.state_dict())
    alone.load_state_dict(together.state_dict())
    assert torch.equal(together.eval()(x), alone.eval()(x))
    (folder / str(ranks.rank)).touch()


def test_batch_norms_see_the_whole_batch(config: Config, tmp_path: Path, exact: None) -> None:
    in_ranks(2, normed, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1"}


@pytest.mark.slow
@in_a_child
def test_a_compiled_network_learns_alike(config: Config, tmp_path: Path) -> None:
    plain = fit(config, tmp_path / "plain", 1)
    compute = config.compute.model_copy(update={"compile": True})
    compiled = fit(config.model_copy(update={"compute": compute}), tmp_path / "compiled", 1)
    assert compiled["model"].keys() == plain["model"].keys()
    logs = zip(read_log(tmp_path / "compiled"), read_log(tmp_path / "plain"), strict=True)
    for step, (entry, other) in enumerate(logs):
        # Adam makes whole steps of gradients near 0, whose signs are rounding.
        assert entry == pytest.approx(other, rel=1e-4 if step == 0 else 2e-2)
    load_segmenter(tmp_path / "compiled" / CHECKPOINT)


def traced(folder: Path, ranks: Ranks) -> None:
    torch.manual_seed(0)
    plain: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.BatchNorm2d(4))
    inside = sync_batch_norms(copy.deepcopy(plain), ranks)
    sync_batch_norms(plain, ranks)
    # As `fused` compiles, but for the code: that takes minutes.
    compiled = torch.compile(inside, dynamic=False, backend="aot_eager")
    part = ranks.shard(torch.randn(4, 3, 8, 8))
    for network in (plain, compiled):
        network(part).square().sum().backward()
    for one, other in zip(inside.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert equal(inside.state_dict(), plain.state_dict())
    (folder / str(ranks.rank)).touch()


@pytest.mark.slow
@in_a_child
def test_shared_batch_norms_can_be_compiled(config: Config, tmp_path: Path) -> None:
    in_ranks(2, traced, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1"}
