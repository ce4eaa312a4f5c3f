"""The semantic evaluator: its loss, its drift matrix, its distance, its score."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.checkpoints import export, load_generator
from cyclegan.semantics import (
    Probe,
    SemanticEvaluator,
    kernel_distance,
    pseudo_labels,
    semantic_loss,
)
from cyclegan.steps import save_last
from cyclegan.train import train
from cyclegan.translate import FrameTranslator
from flows.estimate import estimate
from flows.networks import semantic_evaluator
from flows.plan import plan
from flows.prepare import preflight, prepare
from pipeline.config.load import load_config
from pipeline.data.images import read_rgb
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import read_frame
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.run.stage import all_inputs, run_stage
from pipeline.runtime.checkpoint import load_checkpoint, save_checkpoint
from segmentation.models import build_model
from tests.conftest import TINY, Cli
from tests.helpers import SPACE, by_brightness, mean_color

JUDGE = SemanticEvaluator(by_brightness, mean_color, "mean colour", SPACE)


class Scale(nn.Module):
    """A translator that multiplies; -1 turns bright into dark."""

    multiple = 4

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def halves(top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame of two grey levels, and its true classes."""
    frame = np.full((8, 8, 3), top, np.uint8)
    frame[4:] = bottom
    return frame, (frame[..., 0] > 127).astype(np.uint8)


def test_loss_is_the_mean_over_labelled_pixels_of_the_batch() -> None:
    torch.manual_seed(0)
    frames = torch.randn(3, 3, 4, 5)
    classes = torch.randint(0, 2, (3, 4, 5))
    classes[0] = IGNORE  # a whole frame without labels must not weigh
    classes[1, 0] = IGNORE
    logits = by_brightness(frames)
    pixels = [
        F.cross_entropy(logits[n, :, y, x][None], classes[n, y, x][None])
        for n, y, x in (classes != IGNORE).nonzero().tolist()
    ]
    assert semantic_loss(by_brightness, frames, classes) == pytest.approx(
        float(torch.stack(pixels).mean()), rel=1e-5
    )


def test_loss_without_labels_is_zero_and_has_a_gradient() -> None:
    frames = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = semantic_loss(by_brightness, frames, torch.full((2, 4, 4), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert frames.grad is not None
    assert (frames.grad == 0).all()


def test_loss_punishes_swapped_classes() -> None:
    frame, truth = halves(250, 5)
    x = torch.tensor(frame).permute(2, 0, 1)[None] / 127.5 - 1
    classes = torch.tensor(truth)[None]
    kept = semantic_loss(by_brightness, x, classes)
    swapped = semantic_loss(by_brightness, -x, classes)
    assert float(kept) < 0.1 < 5 < float(swapped)
    assert (pseudo_labels(by_brightness, x) == classes).all()


def test_kernel_distance_against_sums() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 3, generator=rng), torch.randn(5, 3, generator=rng) + 1

    def k(x: Tensor, y: Tensor) -> float:
        return float((x.double() @ y.double() / 3 + 1) ** 3)

    within = sum(k(a[i], a[j]) for i in range(4) for j in range(4) if i != j) / 12
    within += sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(k(x, y) for x in a for y in b) / 20
    assert kernel_distance(a, b) == pytest.approx(within - 2 * across, rel=1e-9)


def test_kernel_distance_is_near_zero_for_one_distribution_only() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(200, 8, generator=rng) for _ in range(3))
    assert abs(kernel_distance(a, b)) < 0.2
    assert kernel_distance(a, c + 1) > 1


def test_score_sees_a_swap_and_ranks_translators() -> None:
    frames = [halves(250, 30), halves(240, 20), halves(30, 200)]
    target = [frame // 2 for frame, _ in frames]
    probe = Probe(JUDGE, frames, target, torch.device("cpu"))
    nothing = probe.score(Scale(1.0))
    assert nothing.before.pixel_accuracy == 1
    assert nothing.after.counts.tolist() == nothing.before.counts.tolist()
    assert nothing.score == pytest.approx(1, abs=1e-3)
    swapped = probe.score(Scale(-1.0))
    assert swapped.after.pixel_accuracy == 0
    assert swapped.after.counts[0, 1] == swapped.before.counts[0, 0]  # dark became bright
    assert swapped.score > nothing.score
    drift = swapped.drift(SPACE)
    assert drift["classes"] == ["dark", "bright"]
    assert np.sum(drift["after"]) == 3 * 64
    assert set(nothing.row()) == {
        *["agreement_before", "agreement_after", "distance_before", "distance", "score"]
    }


def test_probe_leaves_the_generator_as_it_is() -> None:
    generator = Scale(1.0).train()
    probe = Probe(JUDGE, [halves(250, 30)] * 2, [halves(9, 9)[0]] * 2, torch.device("cpu"))
    probe.score(generator)
    assert generator.training
    assert generator.factor.grad is None
    assert generator.factor == 1


# In a run: the source's network is trained first and evaluates every checkpoint.

JUDGED = {
    "cyclegan.semantics": "{consistency: 1.0, target_consistency: 0.5, probe_frames: 4}",
    "cyclegan.generator_average": "0.9",
    "translation.checkpoint": "best",
    "arms": "{source_only: source, adapted: translated}",
}
SETTINGS = [f"{key}={value}" for key, value in JUDGED.items()]


def test_the_judge_is_trained_first(tiny: Path) -> None:
    stages = plan(load_config(tiny, SETTINGS), tiny.parent)
    assert [s.name for s in stages] == [
        "segmentation/source_only/seed-0",
        "cyclegan",
        "translated",
        "evaluation/source_only/seed-0",
        "segmentation/adapted/seed-0",
        "evaluation/adapted/seed-0",
        "report",
    ]
    assert stages[1].reads == ("segmentation/source_only/seed-0",)


def test_the_judge_has_the_recipe_of_its_arm(tiny: Path, tmp_path: Path) -> None:
    arms = "{source_only: {train: source, segmentation: {encoder: resnet34}}, adapted: translated}"
    config = load_config(tiny, [SETTINGS[0], f"arms={arms}"])
    space = load_label_space(config.label_space)
    recipe = config.recipe("source_only")
    state = {
        "config": recipe.model_dump(mode="json"),
        "classes": space.class_names,
        "model": build_model(recipe, len(space.classes)).state_dict(),
    }
    save_checkpoint(tmp_path / "source_only/seed-0/checkpoints/last.pt", state)
    evaluator = semantic_evaluator(
        config, space, tmp_path / "source_only/seed-0", torch.device("cpu")
    )
    assert evaluator.features_name == "resnet34, trained in source_only"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """A run with a judge, as far as its translated frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD", str(world))
        home = tmp_path_factory.mktemp("judged")
        (home / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        run = home / "run"
        stages = prepare(load_config(home / "tiny.yaml", SETTINGS), run, [])
        inputs = all_inputs(stages)
        for stage in stages[:3]:
            run_stage(run, stage, inputs[stage.name])
    return run


def test_every_checkpoint_is_judged_and_the_best_translates(judged: Path) -> None:
    rows = pd.read_csv(judged / "cyclegan/leaderboard.csv")
    assert sorted(rows["step"]) == [3, 6, 9, 12]
    assert list(rows["score"]) == sorted(rows["score"])
    best = load_checkpoint(judged / "cyclegan/checkpoints/best.pt")
    assert best["step"] == rows["step"][0]
    drift = read_json(judged / "cyclegan/drift.json")
    assert drift["best"]["step"] == rows["step"][0]
    assert drift["last"]["step"] == 12
    assert drift["features"] == "tu-test_resnet, trained in source_only"
    # The same pixels are judged before and after.
    for row in zip(drift["last"]["before"], drift["last"]["after"], strict=True):
        assert sum(row[0]) == sum(row[1])
    lines = (judged / "cyclegan/log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert all(entry["semantic_loss_source"] > 0 for entry in entries)
    assert all(entry["semantic_loss_target"] > 0 for entry in entries)
    assert sum("score" in entry for entry in entries) == 4
    spec = load_config(judged / "config.yaml").source
    frame = list_samples(spec, labelled=False)[0]
    generator = load_generator(judged / "cyclegan/checkpoints/best.pt")
    picture = read_rgb(judged / "translated/images" / frame.image.name)
    assert (FrameTranslator(generator)(read_frame(spec, frame)) == picture).mean() > 0.99


def test_a_judged_training_continues_exactly(judged: Path, world: Path) -> None:
    config = load_config(judged / "config.yaml")
    space = load_label_space(config.label_space)
    evaluator_on = partial(
        semantic_evaluator, config, space, judged / "segmentation/source_only/seed-0"
    )
    folder = judged.parent / "continued"
    saved = 0

    def stop_after_two(*arguments: Any) -> None:
        nonlocal saved
        save_last(*arguments)
        saved += 1
        if saved == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cyclegan.train.save_last", stop_after_two)
        train(config.cyclegan, config.source, config.target, folder, config.compute, evaluator_on)
    train(config.cyclegan, config.source, config.target, folder, config.compute, evaluator_on)
    for name in ("leaderboard.csv", "drift.json", "log.jsonl"):
        assert (folder / name).read_bytes() == (judged / "cyclegan" / name).read_bytes(), name
    one, other = (
        load_checkpoint(path / "checkpoints/last.pt")["networks"]["source_to_target"]
        for path in (folder, judged / "cyclegan")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    best, same = (
        load_checkpoint(path / "checkpoints/best.pt") for path in (folder, judged / "cyclegan")
    )
    assert best["step"] == same["step"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["translation.checkpoint=best"], "is 'best', and no segmentation network scores the"),
        ([SETTINGS[0], "arms={adapted: translated}"], "needs a network that was trained on the s"),
        ([SETTINGS[0], "cyclegan.paired=true"], "semantics is for unpaired training"),
        (["cyclegan.semantics={probe_frames: 1}"], "probe_frames"),
        (["translation.weights=nothing.pth"], "translation.weights: no file"),
        (["evaluation.classes=[caar]"], "label space cityscapes19 has no class 'caar'"),
        (["cyclegan.crop=[16,16]"], "cyclegan.crop [16, 16] is smaller than the"),
        (["cyclegan.paired=true"], "needs frames of equal name in source and target"),
    ],
)
def test_settings_that_cannot_work(tiny: Path, settings: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        preflight(load_config(tiny, settings))
    assert message in str(error.value)


def test_translation_with_a_generator_from_elsewhere(judged: Path, tiny: Path) -> None:
    weights = judged.parent / "latest_net_G_A.pth"
    export(judged / "cyclegan/checkpoints/best.pt", weights)
    run = tiny.parent / "r"
    stages = prepare(load_config(tiny, [f"translation.weights={weights}"]), run, [])
    assert [s.name for s in stages][:2] == ["translated", "segmentation/source_only/seed-0"]
    run_stage(run, stages[0], all_inputs(stages)["translated"])
    for path in (run / "translated/images").iterdir():
        assert (read_rgb(path) == read_rgb(judged / "translated/images" / path.name)).mean() > 0.99


def test_the_average_is_judged(judged: Path) -> None:
    state = load_checkpoint(judged / "cyclegan/checkpoints/last.pt")
    assert state["leaderboard"]["rows"][-1]["step"] == 12
    best = load_checkpoint(judged / "cyclegan/checkpoints/best.pt")
    if best["step"] == 12:
        averages = state["averages"]["source_to_target"]
        assert all(
            torch.equal(averages[k], v) for k, v in best["networks"]["source_to_target"].items()
        )
    for key, value in state["networks"]["source_to_target"].items():
        assert not torch.equal(value, state["averages"]["source_to_target"][key]), key


def test_a_kill_between_the_two_files_leaves_the_best_true(judged: Path, tmp_path: Path) -> None:
    """`last.pt` says what is best; continuing writes `best.pt` anew from it."""
    shutil.copytree(judged / "cyclegan", tmp_path / "cyclegan")
    path = tmp_path / "cyclegan/checkpoints/best.pt"
    truth = load_checkpoint(path)
    save_checkpoint(path, {**truth, "step": 99})
    config = load_config(judged / "config.yaml")
    space = load_label_space(config.label_space)
    evaluator_on = partial(
        semantic_evaluator, config, space, judged / "segmentation/source_only/seed-0"
    )
    folder = tmp_path / "cyclegan"
    train(config.cyclegan, config.source, config.target, folder, config.compute, evaluator_on)
    assert load_checkpoint(path)["step"] == truth["step"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("target.limit=1", "has 1 frame(s), and cyclegan.semantics needs two or more"),
        ("source.values={7: any vehicle}", "has a class of label space cityscapes19"),
    ],
)
def test_frames_that_cannot_judge(judged: Path, tiny: Path, setting: str, message: str) -> None:
    config = load_config(tiny, [*SETTINGS, setting])
    space = load_label_space(config.label_space)
    evaluator_on = partial(
        semantic_evaluator, config, space, judged / "segmentation/source_only/seed-0"
    )
    with pytest.raises(UserError) as error:
        train(
            config.cyclegan, config.source, config.target, tiny.parent, config.compute, evaluator_on
        )
    assert message in str(error.value)


def test_sets_that_are_alike_cannot_be_judged() -> None:
    frames = [halves(250, 30)] * 3
    probe = Probe(JUDGE, frames, [frame for frame, _ in frames], torch.device("cpu"))
    assert probe.distance_before <= 0


def test_an_estimate_of_every_stage(tiny: Path, judged: Path) -> None:
    parts = {part.command: part for part in estimate(load_config(tiny))}
    assert list(parts) == ["train-cyclegan", "translate", "train-segmentation", "evaluate"]
    assert all(part.seconds > 0 for part in parts.values())
    weights = judged / "cyclegan/checkpoints/best.pt"
    fewer = estimate(load_config(tiny, [f"translation.weights={weights}"]))
    assert next(part.command for part in fewer) == "translate"
    last = judged / "segmentation/source_only/seed-0/checkpoints/last.pt"
    # Adam keeps nothing for the layers that a shallow encoder leaves out: at most a third.
    assert 0.9 < parts["train-segmentation"].bytes / (3 * last.stat().st_size) < 3.1


@pytest.mark.slow
def test_training_a_translator_trains_the_network_that_watches_it(
    cli: Cli, tiny: Path, world: Path
) -> None:
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    result = cli("train-cyclegan", "r", "--config", tiny, *sets)
    assert result.returncode == 0, result.stderr
    assert "segmentation/source_only/seed-0: done" in result.stderr
    assert "cyclegan: done" in result.stderr
    result = cli("train-segmentation", "r")
    assert result.returncode == 2
    assert "segmentation/adapted/seed-0 reads translated, which is not complete" in result.stderr
    assert cli("export", "r", "--to", "G.pth").returncode == 0
    best = load_generator(tiny.parent / "r/cyclegan/checkpoints/best.pt").state_dict()
    exported = torch.load(tiny.parent / "G.pth", weights_only=True)
    assert all(torch.equal(best[key], value) for key, value in exported.items())
