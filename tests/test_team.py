"""Training on several devices: the same function as on one, one writer, nobody left over.

Processes on the CPU stand in for GPUs. Most are forked, which is quick and takes patches along.
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cyclegan.networks import build_discriminator, build_generator, to_network
from cyclegan.pool import ImagePool
from cyclegan.semantics import Judge, semantic_loss
from cyclegan.steps import save_last
from cyclegan.train import train
from flows.plan import _judge
from flows.prepare import preflight
from pipeline.config.load import load_config
from pipeline.config.settings import ComputeConfig, Config, CycleGANConfig
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.errors import UserError
from pipeline.runtime.checkpoint import load_checkpoint
from pipeline.runtime.device import check_devices
from pipeline.runtime.team import ALONE, Team, run_team
from tests.conftest import Cli, cli_command
from tests.test_cyclegan import equal
from tests.test_semantics import SPACE, by_brightness, mean_color

RECIPE = {"batch_size": 2, "steps_per_epoch": 2, "checkpoint_every": 2, "log_every": 1}


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu", "cyclegan.batch_size=2"])


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.team.START", "fork")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in 64 bits: Adam makes whole steps of what rounding leaves of gradients of 0."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for name, build in (("generator", build_generator), ("discriminator", build_discriminator)):
        monkeypatch.setattr(
            f"cyclegan.train.build_{name}", lambda config, build=build: build(config).double()
        )


def recipe(config: Config, **settings: Any) -> CycleGANConfig:
    return CycleGANConfig.model_validate(config.cyclegan.model_dump() | RECIPE | settings)


def judge_on(device: torch.device) -> Judge:
    return Judge(by_brightness, mean_color, "mean colour", SPACE)


def fit(
    config: Config, settings: CycleGANConfig, folder: Path, devices: int, **compute: Any
) -> dict[str, Any]:
    """The last checkpoint of a training."""
    how = config.compute.model_copy(update={"devices": devices, **compute})
    judge = judge_on if settings.semantics else None
    run_team(how, train, settings, config.source, config.target, folder, how, judge)
    return load_checkpoint(folder / "checkpoints/last.pt")


def read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_close(one: Any, other: Any, relative: float) -> None:
    """Equality of nested checkpoints but for rounding, each tensor against its largest value.

    Biases before a norm have gradients of 0 but for rounding, and stay as near to 0.
    """
    if isinstance(one, torch.Tensor):
        assert (one - other).abs().max() <= relative * other.abs().max() + 1e-9
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key], relative)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_close(a, b, relative)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=relative)
    else:
        assert one == other


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
    config: Config, tmp_path: Path, forked: None, exact: None, settings: dict[str, Any]
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


def test_two_devices_learn_what_one_learns_in_32_bits(
    config: Config, tmp_path: Path, forked: None
) -> None:
    settings = recipe(config)
    fit(config, settings, tmp_path / "one", 1)
    fit(config, settings, tmp_path / "two", 2)
    logs = zip(read_log(tmp_path / "two"), read_log(tmp_path / "one"), strict=True)
    for step, (entry, other) in enumerate(logs):
        assert entry == pytest.approx(other, rel=1e-6 if step == 0 else 1e-3)


def test_every_process_keeps_the_same_networks_and_pools(
    config: Config, tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch
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
    forked: None,
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    def killed(folder: Path, state: dict[str, Any]) -> None:
        save_last(folder, state)
        if state["step"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    whole = fit(config, recipe(config), tmp_path / "whole", 2, workers=workers)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="device 0 ended by SIGK"):
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
    forked: None,
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


def work(what: str, folder: Path, team: Team) -> None:
    """What a process does until one of them fails."""
    (folder / str(team.rank)).write_text(str(os.getpid()))
    team.gather(torch.zeros(1))
    if team.rank == 1 and what == "mistake":
        raise UserError("frame 7 cannot be read. Mend it.")
    if team.rank == 1 and what == "bug":
        raise KeyError("no such thing")
    if what == "bug in all":
        raise KeyError("no such thing")
    if team.rank == 1 and what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    team.gather(torch.zeros(1))


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("mistake", UserError, r"^frame 7 cannot be read. Mend it."),
        ("bug", RuntimeError, "(?s)Traceback.*no such thing"),
        ("bug in all", RuntimeError, "(?s)Traceback.*no such thing"),
        ("killed", UserError, "process of device 1 ended by SIGKILL .* Run again to continue"),
    ],
)
def test_one_that_fails_ends_all(
    tmp_path: Path, forked: None, what: str, kind: Any, message: str
) -> None:
    with pytest.raises(kind, match=message):
        run_team(ComputeConfig(accelerator="cpu", devices=2), work, what, tmp_path)
    assert_gone(int((tmp_path / str(rank)).read_text()) for rank in (0, 1))


def assert_gone(processes: Any) -> None:
    for process in processes:
        for _ in range(100):
            if not Path(f"/proc/{process}").exists():
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"process {process} still runs")


def test_alone_nothing_is_exchanged() -> None:
    batch = torch.rand(2, 3)
    assert ALONE.share(batch) is batch
    assert torch.equal(ALONE.gather(batch), batch)
    ALONE.average([batch])
    assert ALONE.gather_names(["a"]) == ["a"]
    calls: list[Any] = []
    run_team(ComputeConfig(), lambda *arguments: calls.append(arguments), 1)
    assert calls == [(1, ALONE)]


def test_shares_are_in_order() -> None:
    batch = torch.arange(6)
    shares = [Team(rank, 3).share(batch).tolist() for rank in range(3)]
    assert shares == [[0, 1], [2, 3], [4, 5]]


def semantic_shares(folder: Path, team: Team) -> None:
    torch.manual_seed(0)
    frames, classes = torch.randn(2, 3, 4, 5), torch.randint(0, 2, (2, 4, 5))
    classes[0] = IGNORE
    classes[1, 0] = IGNORE
    loss = semantic_loss(by_brightness, team.share(frames), team.share(classes), team)
    losses = team.gather(loss[None])
    assert losses[0] == 0
    whole = semantic_loss(by_brightness, frames, classes)
    torch.testing.assert_close(losses.mean(), whole)
    (folder / str(team.rank)).touch()


def test_labelled_pixels_count_alike_wherever_they_are(tmp_path: Path, forked: None) -> None:
    run_team(ComputeConfig(accelerator="cpu", devices=2), semantic_shares, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1"}


def test_settings_that_cannot_work(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cyclegan.batch_size 3 .* multiple of compute.devices, 2"):
        load_config(tiny, ["compute.devices=2", "cyclegan.batch_size=3"])
    with pytest.raises(UserError, match=r"compute.devices is 2, and paired training"):
        load_config(tiny, ["compute.devices=2", "cyclegan.batch_size=2", "cyclegan.paired=true"])
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


def test_what_other_processes_get_can_be_sent(config: Config, tmp_path: Path) -> None:
    judge = _judge(config, load_label_space(config.label_space), tmp_path)
    arguments = (train, config.cyclegan, config.source, config.target, tmp_path, judge)
    assert pickle.loads(pickle.dumps(arguments))[1:4] == arguments[1:4]


# As a user starts it: processes that begin anew, and take seconds for that.

START = ["--set", "compute.devices=2", "--set", "cyclegan.batch_size=2"]


@pytest.mark.slow
def test_a_frame_that_cannot_be_read_is_one_message(
    cli: Cli, tiny: Path, world: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "world"
    shutil.copytree(world, broken)
    path = broken / "toy-sim/images/00007.png"
    path.write_bytes(path.read_bytes()[:100])
    result = cli("train-cyclegan", "r", "--config", tiny, *START, env={"WORLD": str(broken)})
    assert result.returncode == 2, result.stderr
    assert result.stderr.count(f"{path} cannot be read as an image") == 1
    assert "Traceback" not in result.stderr


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_stopping_ends_all_and_the_same_command_continues(
    tiny: Path, tmp_path: Path, forked: None, stop: signal.Signals, status: int
) -> None:
    settings = [*START[1::2], "cyclegan.steps_per_epoch=20"]

    def start() -> Any:
        command = cli_command("train-cyclegan", "parts", "--config", tiny)
        return subprocess.Popen(
            [*command, *(word for setting in settings for word in ("--set", setting))],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    process = start()
    checkpoint = tmp_path / "parts/cyclegan/checkpoints/last.pt"
    for _ in range(6000):
        if checkpoint.is_file():
            break
        time.sleep(0.05)
    started = children(process.pid)
    assert len(started) >= 2
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)  # as a terminal does
    else:
        process.send_signal(stop)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert "Traceback" not in message
    assert_gone(started)
    assert 0 < load_checkpoint(checkpoint)["step"] < 40
    process = start()
    assert process.communicate(timeout=200)[1].endswith("cyclegan: done\n")
    config = load_config(tiny, [*settings, "compute.accelerator=cpu"])
    whole = fit(config, config.cyclegan, tmp_path / "whole", 2)
    assert whole["step"] == 40
    assert equal(load_checkpoint(checkpoint), whole)


@pytest.mark.slow
def test_a_judged_run_on_two_devices(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    judged = ["--set", "cyclegan.semantics={consistency: 1.0, probe_frames: 4}"]
    settings = [*START, *judged, "--set", "translation.checkpoint=best"]
    result = cli("run", tiny, "--run", "r", *settings)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "r/cyclegan/leaderboard.csv").is_file()
    assert (tmp_path / "r/report/report.json").is_file()
