"""The configuration of `run --ablate`, and the stages that it takes over from another run."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from flows.ablate import ablation, take_over
from flows.plan import plan
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.files import write_text
from pipeline.run.folder import locked
from pipeline.run.stage import check, run_stage
from tests.conftest import Cli

ARMS = [
    *["no_augmentation", "source_only", "histogram_matching", "class_alignment", "fda", "adapted"],
    *["semantic_consistency", "self_training", "rare_class_sampling", "masked_consistency"],
    "oracle",
]


def arms_of(tiny: Path, *settings: str) -> Config:
    return ablation(load_config(tiny, list(settings)))


def test_each_arm_adds_one_step(tiny: Path) -> None:
    config = arms_of(tiny)
    assert config.name == "tiny-ablation"
    assert list(config.arms) == ARMS
    assert config.recipe("no_augmentation").augmentation.color == 0
    assert config.recipe("source_only") == load_config(tiny).segmentation
    assert {name: arm.base for name, arm in config.arms.items()} == {
        "no_augmentation": None,
        "source_only": "no_augmentation",
        **dict.fromkeys(["histogram_matching", "class_alignment", "fda", "adapted"], "source_only"),
        "semantic_consistency": "adapted",
        "self_training": "semantic_consistency",
        "rare_class_sampling": "self_training",
        "masked_consistency": "rare_class_sampling",
        "oracle": None,
    }
    methods = {name: t.method for name, t in config.used_translations.items()}
    assert methods == {
        "translated": "cyclegan",
        "semantic_consistency": "cyclegan",
        **{name: name for name in ("histogram_matching", "class_alignment", "fda")},
    }
    assert config.cyclegan_recipe("translated").semantics is None
    semantics = config.cyclegan_recipe("semantic_consistency").semantics
    assert semantics is not None
    assert (semantics.consistency, semantics.arm) == (1, "source_only")
    for name, rare, masked in zip(ARMS[7:10], (False, True, True), (0, 0, 1), strict=True):
        arm = config.arms[name]
        assert arm.train == {"semantic_consistency": 1}
        assert arm.self_training is not None
        assert arm.self_training.masked_weight == masked
        assert (config.recipe(name).rare_class_sampling is not None) == rare


def test_own_settings_are_those_of_the_arms_that_add_them(tiny: Path) -> None:
    mine = (
        "arms={plain: source, adapted: translated, best: {train: {translated: 1, source: 1}, "
        "start: adapted, self_training: {confidence: 0.5, masked_weight: 0.7}}}"
    )
    config = arms_of(
        tiny,
        *[mine, "cyclegan.semantics={consistency: 3, probe_frames: 4}"],
        *["translation.checkpoint=best", "segmentation.rare_class_sampling={temperature: 0.1}"],
    )
    assert "oracle" not in config.arms
    assert config.translation.checkpoint == "last"
    assert config.segmentation.rare_class_sampling is None
    semantics = config.cyclegan_recipe("semantic_consistency").semantics
    assert semantics is not None
    assert (semantics.consistency, semantics.probe_frames) == (3, 4)
    assert config.translations["semantic_consistency"].checkpoint == "best"
    last = config.arms["masked_consistency"]
    assert last.start == "start_adapted"
    assert config.arms["start_adapted"].train == {"semantic_consistency": 1}
    assert last.train == {"semantic_consistency": 1, "source": 1}
    rare = config.recipe("masked_consistency").rare_class_sampling
    assert last.self_training is not None
    assert rare is not None
    assert (last.self_training.confidence, last.self_training.masked_weight) == (0.5, 0.7)
    assert rare.temperature == 0.1
    assert config.recipe("start_adapted").rare_class_sampling is None
    before = config.arms["self_training"].self_training
    assert before is not None
    assert before.masked_weight == 0


def test_a_translation_s_own_settings_are_those_of_both_of_its_steps(tiny: Path) -> None:
    own = "translation.cyclegan={epochs: 3, semantics: {consistency: 2}}"
    config = arms_of(tiny, own)
    plain, watched = (config.cyclegan_recipe(n) for n in ("translated", "semantic_consistency"))
    assert (plain.epochs, plain.semantics) == (3, None)
    assert watched.semantics is not None
    assert (watched.epochs, watched.semantics.consistency) == (3, 2)
    paired = arms_of(tiny, "translation.cyclegan={paired: true}")
    assert "semantic_consistency" not in paired.arms


def test_labels_that_discriminators_are_told_are_those_of_the_plain_network(tiny: Path) -> None:
    own = "{label_discriminators: true}"
    arms = "arms={plain: source, adapted: translated}"
    config = arms_of(tiny, f"translation={{pseudo_labels: plain, cyclegan: {own}}}", arms)
    for name in ("translated", "semantic_consistency"):
        assert config.all_translations[name].pseudo_labels == "source_only"
        assert config.cyclegan_recipe(name).label_discriminators


def test_other_translators_and_translations_of_the_configuration(tiny: Path) -> None:
    aligned = "translation={method: class_alignment, pseudo_labels: source_only}"
    config = arms_of(
        tiny,
        aligned,
        "translations={fog: {method: fda}}",
        "arms={source_only: source, "
        "mine: {train: {fog: 1, source: 2}, self_training: {weight: 0.3}}}",
    )
    assert config.translation.method == "cyclegan"
    arm = config.arms["self_training"]
    assert arm.self_training is not None
    assert (arm.train, arm.self_training.weight) == ({"fog": 1, "source": 2}, 0.3)


def test_a_recipe_of_other_frames_adds_to_the_arm_that_it_builds_on(tiny: Path) -> None:
    once = "once: {method: class_alignment, pseudo_labels: source_only}"
    twice = "twice: {method: class_alignment, pseudo_labels: aligned}"
    arms = "source_only: source, aligned: once, best: {train: twice"
    for own, base in (
        ("start: aligned, self_training: {}", "start_aligned"),
        ("self_training: {teacher: aligned}", "start_aligned"),
        ("start: source_only, self_training: {}", "source_only"),
        ("self_training: {}", "source_only"),
    ):
        settings = [f"translations={{{once}, {twice}}}", f"arms={{{arms}, {own}}}}}"]
        config = arms_of(tiny, *settings)
        assert config.arms["self_training"].train == {"twice": 1}
        assert config.arms["self_training"].base == base
        assert config.arms["rare_class_sampling"].base == "self_training"


def test_only_an_arm_that_sees_no_target_labels_is_a_recipe(tiny: Path) -> None:
    config = arms_of(
        tiny,
        "arms={oracle: target, self_trained: translated, a: {train: source, self_training: {}}, "
        "b: {train: translated, start: oracle, self_training: {}}, "
        "c: {train: {translated: 1, target: 1}, self_training: {}}}",
    )
    arm = config.arms["masked_consistency"]
    assert arm.self_training is not None
    assert (arm.train, arm.start) == ({"semantic_consistency": 1}, None)


def test_given_weights_are_the_translator(tiny: Path, tmp_path: Path) -> None:
    weights = tmp_path / "G.pth"
    config = arms_of(tiny, f"translation.weights={weights}")
    assert config.arms["adapted"].title == "generator G.pth"
    assert "semantic_consistency" not in config.arms
    assert config.arms["self_training"].base == "adapted"
    assert config.arms["self_training"].train == {"translated": 1}
    assert config.translation.weights == weights


@pytest.fixture
def lender(tiny: Path, tmp_path: Path) -> tuple[Config, Path]:
    """A configuration, and a run of it whose stages hold made-up files."""
    config, run = load_config(tiny), tmp_path / "plain"
    stages = plan(config, run)
    inputs = check(run, stages)
    for stage in stages:
        name = stage.name

        def work(folder: Path, name: str = name) -> None:
            write_text(folder / "checkpoints/last.pt", name)

        run_stage(run, replace(stage, work=work), inputs[name])
    return config, run


def test_a_plain_run_lends_its_stages(lender: tuple[Config, Path], tmp_path: Path) -> None:
    config, run = lender
    steps = ablation(config)
    taken = take_over(steps, tmp_path / "steps", run)
    assert set(taken) == {
        *["cyclegan", "translated"],
        *(
            f"{kind}/{arm}/seed-0"
            for kind in ("segmentation", "evaluation")
            for arm in ("source_only", "adapted", "oracle")
        ),
    }
    shared = [top / "cyclegan/checkpoints/last.pt" for top in (run, tmp_path / "steps")]
    assert len({path.stat().st_ino for path in shared}) == 1
    assert take_over(steps, tmp_path / "steps", run) == []
    assert take_over(steps, tmp_path / "other", tmp_path / "absent") == []


def test_only_equal_and_complete_stages_are_taken(
    lender: tuple[Config, Path], tiny: Path, tmp_path: Path
) -> None:
    config, run = lender
    other = ablation(load_config(tiny, ["cyclegan.seed=7"]))
    assert "cyclegan" not in take_over(other, tmp_path / "a", run)
    (run / "cyclegan/stage.json").unlink()
    assert "cyclegan" not in take_over(ablation(config), tmp_path / "b", run)
    # A stage that was begun goes on as it is.
    begun = tmp_path / "c/segmentation/oracle/seed-0"
    begun.mkdir(parents=True)
    shutil.copy(run / "segmentation/oracle/seed-0/inputs.json", begun)
    taken = take_over(ablation(config), tmp_path / "c", run)
    assert "segmentation/oracle/seed-0" not in taken
    assert [path.name for path in begun.iterdir()] == ["inputs.json"]


def test_a_kill_while_files_are_linked(
    lender: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = lender
    links = []

    def killed(source: str, place: str) -> None:
        links.append(place)
        if len(links) > 2:
            raise KeyboardInterrupt
        raise OSError("this file system has no links")

    place = tmp_path / "place"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("flows.ablate.os.link", killed)
        take_over(config, place, run)
    assert not (place / "cyclegan").exists()
    assert list(place.glob(".taken-*"))
    (place / "config.yaml").touch()
    with locked(place):
        assert "cyclegan" in take_over(config, place, run)
    assert not list(place.rglob(".taken-*"))


def test_files_are_copied_where_links_fail(
    lender: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = lender

    def refused(source: str, place: str) -> None:
        raise OSError("this file system has no links")

    monkeypatch.setattr("flows.ablate.os.link", refused)
    take_over(config, tmp_path / "place", run)
    paths = [base / "translated/checkpoints/last.pt" for base in (tmp_path / "place", run)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_ino != paths[1].stat().st_ino


@pytest.mark.slow
def test_the_whole_ablation_and_its_table(tiny: Path, cli: Cli) -> None:
    short = ["segmentation.steps=2", "cyclegan.steps_per_epoch=1", "evaluation.pictures=0"]
    chosen = [item for setting in short for item in ("--set", setting)]
    plain = cli("run", tiny, *chosen)
    assert plain.returncode == 0, plain.stderr
    result = cli("run", tiny, "--ablate", *chosen)
    assert result.returncode == 0, result.stderr
    assert "Taken over from runs/tiny: cyclegan, translated, segmentation/" in result.stderr
    run = tiny.parent / "runs" / "tiny-ablation"
    steps = pd.read_csv(run / "report" / "steps.csv")
    assert list(steps["arm"]) == ARMS
    assert (steps["hours"] > 0).all()
    assert steps["pixel_accuracy_change"].isna().sum() == 2  # the first, and the oracle
    page = (run / "report" / "index.html").read_text()
    assert "+ masked consistency" in page
    assert "What each step brings" in page
