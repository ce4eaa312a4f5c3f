"""A small network that learns another translation: plan, identity, training, unlabelled frames."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flows.ablate import ablation
from flows.estimate import estimate
from flows.frames import translate_any
from flows.plan import generator_file, plan
from flows.prepare import preflight
from flows.show import status_rows
from pipeline.config.load import load_config
from pipeline.config.settings import ComputeConfig, Config
from pipeline.config.translation import TranslationConfig
from pipeline.config.translators import STUDENT, TRANSLATORS, TranslationInputs, Translator
from pipeline.data.images import UInt8, read_rgb
from pipeline.errors import UserError
from pipeline.run.folder import fingerprint, write_run
from pipeline.run.stage import all_inputs, check, is_done, named
from reports.report import write_comparison
from tests.conftest import TINY, Sim2Real
from tests.helpers import do, read_log

ALIGNED = {"method": "class_alignment", "pseudo_labels": "source_only"}
ARMS = {"source_only": "source", "adapted": "student"}


def configured(tiny: Path, *settings: str, arms: Any = ARMS, **translations: Any) -> Config:
    """The tiny configuration with a student and other settings, as the file `tiny`."""
    student = {"method": "student", "teacher": "aligned"}
    known = {"student": student, "aligned": ALIGNED} | translations
    tiny.write_text(yaml.safe_dump(TINY | {"arms": arms, "translations": known}))
    return load_config(tiny, list(settings))


def test_the_teacher_comes_first_and_its_settings_are_the_student_s(tiny: Path) -> None:
    def made(*settings: str) -> dict[str, str]:
        stages = plan(configured(tiny, *settings), tiny.parent / "run")
        return {name: fingerprint(inputs) for name, inputs in all_inputs(stages).items()}

    stages = {stage.name: stage for stage in plan(configured(tiny), tiny.parent / "run")}
    arm, labels = "segmentation/source_only/seed-0", "pseudo_labels/source_only/seed-0"
    teacher, training = "translations/aligned", "cyclegans/student"
    translated = "translations/student"
    assert list(stages)[:5] == [arm, labels, teacher, training, translated]
    assert stages[training].reads == (teacher,)
    assert stages[translated].reads == (training,)
    assert "target" not in {**stages[training].inputs(), **stages[translated].inputs()}
    before, softer = made(), made("translations.aligned.softness=3")
    adapted = {"segmentation/adapted/seed-0", "evaluation/adapted/seed-0", "report"}
    taught = {teacher, training, translated} | adapted
    assert {name for name in before if before[name] != softer[name]} == taught
    assert set(named(list(stages.values()), [teacher])) == taught
    shifted = made("translations.student.shifts=4")
    assert {name for name in before if before[name] != shifted[name]} == {translated} | adapted


def test_a_student_of_a_stack_reads_its_source_and_its_teacher(tiny: Path) -> None:
    student = {"method": "student", "source": "aligned", "teacher": "gan"}
    config = configured(tiny, gan={"source": "aligned"}, student=student)
    reads = {stage.name: stage.reads for stage in plan(config, tiny.parent / "run")}
    assert reads["cyclegans/student"] == ("translations/aligned", "translations/gan")
    assert reads["translations/student"] == ("cyclegans/student", "translations/aligned")


def test_a_student_is_small_unless_it_says_otherwise(tiny: Path) -> None:
    big = ["cyclegan.semantics={}", "cyclegan.start=/gone", "cyclegan.generator=resnet"]
    big += ["cyclegan.discriminator=none", "cyclegan.feature_encoder=resnet18"]
    recipe = configured(tiny, *big).cyclegan_recipe("student")
    # What is no part of a student is the run's.
    for key, value in {**STUDENT, "crop": (64, 48), "steps_per_epoch": 6}.items():
        assert getattr(recipe, key) == value
    own = "translations.student.cyclegan={blocks: 2, generator: resnet, start: /mine.pt}"
    recipe = configured(tiny, *big, own).cyclegan_recipe("student")
    assert (recipe.generator, recipe.blocks, recipe.paired) == ("resnet", 2, True)
    assert recipe.start == Path("/mine.pt")


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"method": "student"}, r"teacher is None; method 'student' needs .* than 'source'"),
        ({"method": "student", "teacher": "aligned", "source": "aligned"}, r"teacher is 'aligned'"),
        (
            {"method": "student", "teacher": "alined"},
            r"student\.teacher: no translation 'alined'\. Did you mean 'aligned'\? Known: "
            r"translated, aligned, student\. Translations: .*; student from source as alined makes",
        ),
        ({"method": "student", "teacher": "source", "source": "aligned"}, "no translation 'source"),
        ({"method": "student", "teacher": "student"}, "in a circle: student <- student"),
        ({"teacher": "aligned"}, "'cyclegan' does not use teacher; .* set method to 'student'"),
        (
            {"method": "student", "teacher": "aligned", "cyclegan": {"paired": False}},
            r"translations\.student\.cyclegan\.paired is false, and a student learns from pairs",
        ),
        (
            {"method": "student", "teacher": "aligned", "cyclegan": {"semantics": {}}},
            r"translations\.student\.cyclegan: (?s:.)*semantics is for unpaired training",
        ),
        (
            {"method": "student", "teacher": "aligned", "cyclegan": {"crop": [60, 60]}},
            r"translations\.student\.cyclegan: (?s:.)*must be multiples of 16 for the unet",
        ),
    ],
)
def test_students_that_cannot_work(tiny: Path, student: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured(tiny, student=student)


def test_a_teacher_that_learns_from_its_student_is_a_circle(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"in a circle: .*student from source as aligned makes it"):
        configured(tiny, aligned=ALIGNED | {"pseudo_labels": "adapted"})


def test_what_is_looked_at_before_a_start(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.prepare._networks", lambda config: None)
    with pytest.raises(UserError) as told:
        preflight(configured(tiny, "translations.student.cyclegan.crop=[256, 256]"))
    # Not that target frames are small, or that none is called as one of the source.
    (line,) = str(told.value).splitlines()
    assert re.search(r"toy-sim.*128x64.*256", line)


def test_ablation_s_cyclegan_is_none_of_a_student(tiny: Path) -> None:
    own = "translation={method: student, teacher: aligned, cyclegan: {epochs: 7}}"
    steps = ablation(configured(tiny, own, arms={"source_only": "source", "a": "translated"}))
    assert steps.cyclegan_recipe("translated") == steps.cyclegan
    assert "semantic_consistency" in steps.arms


def tint(
    config: TranslationConfig, given: TranslationInputs, folder: Path, compute: ComputeConfig
) -> None:
    """A map of colours: darker, with red and blue exchanged."""
    from cyclegan.translate import translate_frames

    def each(_: int, frame: UInt8) -> UInt8:
        return np.ascontiguousarray(frame[..., ::-1] // 2)

    translate_frames(given.source, folder, compute, each=each)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Iterator[tuple[Config, Path]]:
    """A configuration with a student of a map of colours, and a run of it up to its frames."""
    folder = tmp_path_factory.mktemp("taught")
    run = folder / "run"
    recipe = {"steps_per_epoch": 30, "epochs": 1, "decay_epochs": 0, "learning_rate": 2e-3}
    student = {"method": "student", "teacher": "tinted", "cyclegan": {**recipe, "log_every": 1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD", str(world))
        entry = Translator("tint", frozenset(), f"{__name__}:tint", reads_target=False)
        patch.setitem(TRANSLATORS, "tint", entry)
        config = configured(folder / "tiny.yaml", student=student, tinted={"method": "tint"})
        write_run(run, config)
        stages = plan(config, run)
        do(run, [stage for stage in stages if stage.name.endswith(("tinted", "student"))])
        yield config, run


def difference(one: Path, other: Path) -> float:
    """Mean absolute difference of two pictures, in grey levels."""
    return float(np.abs(read_rgb(one).astype(float) - read_rgb(other)).mean())


def test_a_student_learns_and_translates_frames_without_labels(
    taught: tuple[Config, Path], world: Path, tmp_path: Path
) -> None:
    config, run = taught
    losses = [entry["pair_loss"] for entry in read_log(run / "cyclegans/student")]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    states = {name: state for name, state, *_ in status_rows(run, plan(config, run))}
    assert states["cyclegans/student"] == states["translations/student"] == "done"
    frame, student, teacher = (
        folder / "images/00004.png"
        for folder in (world / "toy-sim", run / "translations/student", run / "translations/tinted")
    )
    assert difference(student, teacher) < 0.5 * difference(frame, teacher)

    # Frames without labels, as the run translates them: by the run, and by a copy of its weights.
    (tmp_path / "drive").mkdir()
    shutil.copy(frame, tmp_path / "drive" / "new.png")
    shutil.copy(generator_file(config, run, "student"), tmp_path / "G.pt")
    for source in (run, tmp_path / "G.pt"):
        out = tmp_path / f"by {source.name}"
        translate_any(source, tmp_path / "drive", translation="student", out=out)
        assert np.array_equal(read_rgb(out / "images/new.png"), read_rgb(student))


def test_translations_of_other_frames_are_never_mixed(
    taught: tuple[Config, Path], world: Path, tmp_path: Path
) -> None:
    _, run = taught
    frames, out = world / "toy-sim/images", tmp_path / "out"
    translate_any(run, frames, translation="student", out=out)
    whole = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    assert len(whole) == 10
    (out / "images/00003.png").unlink()  # as a kill may leave it
    translate_any(run, frames, translation="student", out=out)
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == whole
    few = tmp_path / "few.yaml"
    few.write_text(
        yaml.safe_dump({"name": "few", "root": str(frames), "images": "{n}", "limit": 2})
    )
    with pytest.raises(UserError, match="out holds translations by another generator or of other"):
        translate_any(run, few, translation="student", out=out)
    translate_any(run, few, translation="student", out=tmp_path / "few")
    assert len(list((tmp_path / "few/images").iterdir())) == 2
    with pytest.raises(UserError, match="toy-sim holds images, and not of this command"):
        copied = shutil.copytree(world / "toy-sim", tmp_path / "toy-sim")
        translate_any(run, frames, translation="student", out=copied)
    with pytest.raises(UserError, match=r"'tint', which has no generator\. Name .* or 'student'"):
        translate_any(run, frames, translation="tinted", out=tmp_path / "new")
    with pytest.raises(UserError, match=r"has no translation 'gan'\. It has: tinted, student"):
        translate_any(run, frames, translation="gan", out=tmp_path / "new")
    with pytest.raises(UserError, match=r"No generator .*nothing"):
        translate_any(tmp_path / "nothing", frames, translation="student", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_line_needs_frames_and_a_folder(sim2real: Sim2Real, tmp_path: Path) -> None:
    told = sim2real("translate", "run", "--input", tmp_path)
    assert told.status == 2
    assert "--input FRAMES and --out DIR go together" in told.err


@pytest.mark.slow
def test_a_run_with_a_student_is_reported_and_compared(
    taught: tuple[Config, Path], tmp_path: Path
) -> None:
    config, run = taught
    stages = plan(config, run)
    do(run, stages)
    assert all(is_done(run, stage.name) for stage in stages)
    page = (run / "report/index.html").read_text()
    assert "by student of tinted" in page
    assert "Columns: source, translated, what it learns to make." in page
    write_comparison({"one": (config, run), "other": (config, run)}, tmp_path / "compared")
    assert "train-cyclegan" in {part.command for part in estimate(config)}
    with pytest.raises(UserError, match=r"cyclegans/student was made .*\n  .*learning_rate"):
        other = load_config(
            run.parent / "tiny.yaml", ["translations.student.cyclegan.learning_rate=1e-3"]
        )
        check(run, plan(other, run))
