"""Vision transformers as encoders: any size of frame, published weights, what of them learns."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.config.load import load_config
from pipeline.config.segmentation import SegmentationConfig, SelfTrainingConfig
from pipeline.config.settings import Config
from pipeline.data.labels import load_label_space
from pipeline.errors import UserError
from pipeline.runtime.checkpoint import load_checkpoint
from pipeline.runtime.device import Pass
from pipeline.runtime.step import seed_step
from segmentation.cost import step_cost
from segmentation.models import Segmenter, build_model, load_encoder
from segmentation.train import CHECKPOINT, check_start, load_segmenter, train
from tests.helpers import equal, killed_in_step

SPACE = load_label_space("cityscapes19")
VIT, EVA = "tu-vit_tiny_patch16_224", "tu-eva02_tiny_patch14_224"
DINOV3, MINI = "tu-vit_tiny_patch16_dinov3_qkvb", "tu-eva02_mini_patch14"
SMALL = {"decoder_intermediate_channels": [8, 8, 8, 8], "decoder_fusion_channels": 8}


@timm.models.register_model
def eva02_mini_patch14(**arguments: Any) -> torch.nn.Module:
    """Four narrow blocks."""
    network: torch.nn.Module = timm.create_model(
        EVA.removeprefix("tu-"), embed_dim=32, depth=4, num_heads=2, **arguments
    )
    return network


def recipe(**fields: Any) -> SegmentationConfig:
    given = {"architecture": "linear", "encoder": VIT, "encoder_weights": "none"}
    return SegmentationConfig.model_validate({**given, **fields})


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu"])


@pytest.mark.parametrize(
    ("fields", "padded"),
    [
        ({"encoder": EVA}, (70, 84)),
        ({"encoder": DINOV3}, (64, 96)),
        ({"architecture": "dpt", "encoder": VIT, "options": SMALL}, (64, 96)),
        (
            {"architecture": "dpt", "encoder": EVA, "options": {**SMALL, "patch_size": 16}},
            (64, 96),
        ),
    ],
)
def test_any_size(fields: dict[str, Any], padded: tuple[int, int]) -> None:
    model = build_model(recipe(**fields), 5).eval()
    rgb = torch.randint(0, 256, (1, 61, 83, 3), dtype=torch.uint8)
    rows, columns = (
        torch.arange(n).clamp(max=m - 1) for n, m in zip(padded, (61, 83), strict=True)
    )
    with torch.inference_mode():
        logits = model(rgb)
        whole = model(rgb[:, rows][:, :, columns])
        features = model.feature_map(rgb.permute(0, 3, 1, 2) / 255)
    assert logits.shape == (1, 5, 61, 83)
    assert torch.equal(logits, whole[:, :, :61, :83])
    patch = model.network.encoder.output_stride
    assert features.shape == (1, 192, *(side // patch for side in padded))
    assert all(side % model.multiple == 0 for side in padded)
    published = timm.get_pretrained_cfg(model.network.encoder.name)
    assert model.mean.flatten().tolist() == pytest.approx(published.mean)
    assert model.std.flatten().tolist() == pytest.approx(published.std)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "base", "large"])
@pytest.mark.parametrize(
    "encoder", ["vit_{}_patch14_dinov2", "vit_{}_patch16_dinov3", "eva02_{}_patch14_224"]
)
def test_published_sizes(encoder: str, size: str) -> None:
    with torch.device("meta"):
        for architecture in ("linear", "dpt"):
            name = f"tu-{encoder.format(size)}"
            config = recipe(architecture=architecture, encoder=name, options={"patch_size": 16})
            with torch.inference_mode():
                logits = build_model(config, 5).eval()(torch.zeros(1, 70, 97, 3))
            assert logits.shape == (1, 5, 70, 97)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": "resnet18"}, "linear takes a vision transformer of timm, not 'resnet18'"),
        ({"encoder": "vit_tiny_patch16_224"}, "no encoder 'vit_tiny_patch16_224'"),
        ({"architecture": "dpt", "encoder": EVA}, r"patches of 14 .* one of \(8, 16, 32\)"),
        ({"options": {"patch_size": "x"}}, "does not work on patches of 'x' pixels"),
        ({"options": {"patchsize": 16}}, "Did you mean 'patch_size'"),
        ({"encoder": f"{VIT}.nowhere"}, "cannot be built: Invalid pretrained tag"),
        (
            {"architecture": "unet", "encoder": "resnet18", "encoder_tuning": "lora"},
            "encoder 'resnet18': lora is for encoders with attention",
        ),
        ({"encoder_tuning": "lora", "lora_rank": 192}, "rank 192 .* below 192"),
    ],
)
def test_what_does_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(recipe(**fields), 5)


def test_published_weights_that_are_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"published weights of .* are neither cached nor to be"):
        build_model(recipe(encoder_weights="imagenet"), 5)


@cache
def published() -> dict[str, torch.Tensor]:
    """Weights as timm publishes them."""
    state: dict[str, torch.Tensor] = timm.create_model(MINI[3:], num_classes=0).state_dict()
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"eva02{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(published(), path)
    segmenter = build_model(recipe(encoder=MINI, encoder_weights=str(path)), 5)
    assert equal(dict(segmenter.network.encoder.model.state_dict()), dict(published()))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is damaged, or something else than expected"):
        load_encoder(segmenter.network.encoder, path)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="Give the state_dict of this very encoder"):
        load_encoder(segmenter.network.encoder, tmp_path / "other.pth")


def test_patches_are_resampled_as_timm_does(tmp_path: Path) -> None:
    path, state = tmp_path / "eva02.pth", timm.create_model(EVA[3:], num_classes=0).state_dict()
    torch.save(state, path)
    theirs = timm.create_model(
        EVA[3:],
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
        num_classes=0,
        patch_size=16,
        img_size=256,
    ).state_dict()
    fields = {"encoder_weights": str(path), "options": {"patch_size": 16}}
    ours = build_model(recipe(encoder=EVA, **fields), 5).network.encoder.model.state_dict()
    assert equal(dict(ours), dict(theirs))
    assert ours["patch_embed.proj.weight"].shape == (192, 3, 16, 16)
    assert torch.equal(ours["pos_embed"], state["pos_embed"])  # the grid is as it was


def untrained(config: SegmentationConfig, seed: int) -> Segmenter:
    seed_step(seed, 0)
    return build_model(config, len(SPACE.classes))


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_what_learns(tuning: str, config: Config, tmp_path: Path) -> None:
    learning = {"encoder_tuning": tuning, "lora_rank": 3, "learning_rate": 0.1}
    own = recipe(**learning, encoder=MINI, crop=(64, 48), batch_size=2, steps=2)
    train(own, SPACE, [(config.source, 1)], 0, tmp_path, config.compute)
    state = load_checkpoint(tmp_path / CHECKPOINT)
    before = untrained(own, 0).state_dict()
    assert state["model"].keys() == before.keys()
    changed = {key for key, value in before.items() if not torch.equal(value, state["model"][key])}
    matrices = {key for key in before if key.endswith((".weight.0.a", ".weight.0.b"))}
    # Of queries, keys and values, and of the projection, in four blocks.
    assert len(matrices) == (4 * 2 * 2 if tuning == "lora" else 0)
    assert changed == matrices | {key for key in before if key.startswith("network.decoder.")}
    assert len(state["optimizer"]["state"]) == len(changed)


def test_training_begins_with_the_encoder_s_own_weights() -> None:
    rgb = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    full, lora = (
        untrained(recipe(encoder=MINI, encoder_tuning=tuning), 0) for tuning in ("full", "lora")
    )
    assert torch.equal(lora(rgb), full(rgb))
    for layer in (
        lora.network.encoder.model.blocks[2].attn.qkv.parametrizations.weight[0].parameters()
    ):
        layer.data.fill_(1)
    assert not torch.equal(lora(rgb), full(rgb))


def test_a_frozen_encoder_keeps_its_statistics() -> None:
    fields = {"architecture": "unet", "encoder": "resnet18", "encoder_tuning": "frozen"}
    model = build_model(recipe(**fields), 5).train()
    encoder = model.network.encoder
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    model(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    assert equal(dict(encoder.state_dict()), before)
    assert not encoder.training
    assert model.network.decoder.training


def test_low_rank_training_continues_bit_for_bit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SMALL, "drop_path_rate": 0.5, "patch_size": 16}
    own = recipe(architecture="dpt", encoder=MINI, options=options, encoder_tuning="lora")
    own = own.model_copy(
        update={"crop": (64, 48), "batch_size": 2, "steps": 2, "checkpoint_every": 1}
    )

    def fit(name: str) -> dict[str, Any]:
        train(
            own,
            SPACE,
            [(config.source, 1)],
            0,
            tmp_path / name,
            config.compute,
            self_training=SelfTrainingConfig(teacher_average=0.5),
            target=config.target,
        )
        return load_checkpoint(tmp_path / name / CHECKPOINT)

    whole = fit("whole")
    with killed_in_step(2, monkeypatch):
        fit("parts")
    assert equal(fit("parts"), whole)
    averaged = [key for key in whole["model"] if key.endswith(".weight.0.b")]
    assert averaged
    assert all((whole["teacher"][key] != whole["model"][key]).any() for key in averaged)
    assert equal(dict(load_segmenter(tmp_path / "whole" / CHECKPOINT).state_dict()), whole["model"])
    with pytest.raises(UserError, match=r"encoder_tuning 'lora of rank 16', the arm .* 'lora of"):
        check_start(tmp_path / "whole" / CHECKPOINT, own.model_copy(update={"lora_rank": 4}), SPACE)


def test_arms_that_start_from_one_another(tiny: Path) -> None:
    def load(first: str, second: str) -> None:
        settings = f"segmentation: {{encoder_tuning: {second}}}"
        arms = f"a: {{train: source, segmentation: {{encoder_tuning: {first}}}}}"
        load_config(tiny, [f"arms={{{arms}, b: {{train: source, start: a, {settings}}}}}"])

    load("frozen", "full")  # a linear probe, then all of it
    load("lora", "lora")
    with pytest.raises(UserError, match=r"whose network is another one; .* encoder_tuning"):
        load("frozen", "lora")


def test_what_does_not_learn_costs_no_more_than_its_weights(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmentation.cost.measure_pass", lambda *_, **__: Pass(1.0, 0))
    own = recipe(encoder=MINI, encoder_tuning="frozen")
    model = build_model(own, 5)
    head = 2 * 32 + 5 * 32 + 5
    weights = sum(p.numel() for p in model.parameters())
    cost = step_cost(model, own, None, config.compute)
    assert cost.memory == 4 * (weights + 3 * head)
    assert cost.stored == 4 * (weights + 2 * head)
