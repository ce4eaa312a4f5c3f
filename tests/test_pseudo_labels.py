"""Pseudo-labels: the stage that writes them, whoever reads them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flows.estimate import estimate
from flows.plan import plan
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.data.images import read_raw
from pipeline.data.listing import list_samples, pseudo_label_paths
from pipeline.data.reading import read_frame
from pipeline.errors import UserError
from pipeline.run.folder import read_stage, write_run
from pipeline.run.stage import all_inputs, check, named, run_stage
from segmentation.models import build_model
from segmentation.pseudo_labels import label_frames
from segmentation.self_training import confidence_level
from segmentation.train import load_segmenter
from tests.conftest import Sim2Real

NETWORK, STAGE = "segmentation/source_only/seed-1", "pseudo_labels/source_only/seed-1"
GAN = "{pseudo_labels: source_only, cyclegan: {matched_crops: 2, steps_per_epoch: 1}}"
SETTINGS = (
    "seeds=[1, 2]",
    "compute.accelerator=cpu",
    "target.limit=5",
    "segmentation.steps=1",
    "segmentation.checkpoint_every=1",
    "translation={method: class_alignment, pseudo_labels: source_only}",
    f"translations={{gan: {GAN}}}",
)


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, [*SETTINGS, "arms={source_only: source, adapted: translated, g: gan}"])


@pytest.fixture
def checkpoint(config: Config, tmp_path: Path) -> Path:
    """A network that nobody trained."""
    torch.manual_seed(0)
    state = {
        "model": build_model(config.segmentation, 19).state_dict(),
        "classes": [str(i) for i in range(19)],
        "config": config.segmentation.model_dump(mode="json"),
    }
    torch.save(state, tmp_path / "network.pt")
    return tmp_path / "network.pt"


def test_a_label_is_the_likeliest_class_of_each_pixel(
    config: Config, checkpoint: Path, tmp_path: Path
) -> None:
    target = config.target.model_copy(update={"labels": None, "width": 64})
    label_frames(target, checkpoint, tmp_path / "made", config.compute)
    network = load_segmenter(checkpoint).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    samples = list_samples(target, labelled=False)
    assert len(list((tmp_path / "made").rglob("*.png"))) == 2 * len(samples) == 10
    for sample in samples:
        rgb = torch.tensor(read_frame(target, sample))[None]
        with torch.inference_mode():
            probability, label = network(rgb).softmax(dim=1)[0].max(dim=0)
        made, confidence = map(read_raw, pseudo_label_paths(tmp_path / "made", sample.name))
        assert (made == label.numpy()).all()
        np.testing.assert_array_equal(confidence, confidence_level(probability).numpy())


def test_it_goes_on_where_it_was_interrupted(
    config: Config, checkpoint: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    label_frames(config.target, checkpoint, made, config.compute)
    whole = {path: path.read_bytes() for path in made.rglob("*.png")}
    times = {path: path.stat().st_mtime_ns for path in whole}
    # Groups of four frames are made whole: of five, the last one stays.
    *_, some, last = [sample.name for sample in list_samples(config.target, labelled=False)]
    label, confidence = pseudo_label_paths(made, some)
    label.write_bytes(b"torn")
    confidence.unlink()
    label_frames(config.target, checkpoint, made, config.compute)
    assert whole == {path: path.read_bytes() for path in made.rglob("*.png")}
    kept = [path for path, time in times.items() if path.stat().st_mtime_ns == time]
    assert sorted(kept) == sorted(pseudo_label_paths(made, last))


def test_a_frame_that_cannot_be_read_is_named(
    config: Config, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/bad.png").write_bytes(b"no picture")
    own = {"root": tmp_path / "frames", "images": "{frame}", "split": None, "labels": None}
    with pytest.raises(UserError, match=r"bad\.png"):
        label_frames(
            config.target.model_copy(update=own), checkpoint, tmp_path / "made", config.compute
        )
    assert not list((tmp_path / "made").rglob("*.png"))


def test_one_stage_labels_the_target_for_all(config: Config, tmp_path: Path) -> None:
    stages = plan(config, tmp_path / "run")
    known = {stage.name: stage for stage in stages}
    assert [name for name in known if name.startswith("pseudo_labels/")] == [STAGE]
    assert (known[STAGE].command, known[STAGE].reads) == ("label-target", (NETWORK,))
    readers = {name for name, stage in known.items() if STAGE in stage.reads}
    assert readers == {"translated", "cyclegans/gan"}
    anew = set(named(stages, [STAGE]))
    assert anew > {STAGE, *readers}
    assert NETWORK not in anew
    # The target's labels are no part of it; its frames and the network are.
    made = all_inputs(stages)[STAGE]
    assert set(made) == {"version", "target", "reads"}
    assert "labels" not in str(made["target"])
    assert next(part.seconds for part in estimate(config) if part.command == "label-target") > 0


def test_the_command_labels_and_what_reads_it_waits(
    config: Config, tmp_path: Path, sim2real: Sim2Real
) -> None:
    run = tmp_path / "run"
    write_run(run, config)

    def refused(command: str) -> str:
        told = sim2real(command, "run")
        assert told.status == 2
        assert "Traceback" not in told.err
        return told.err

    message = refused("label-target")
    assert f"Stage {STAGE} reads {NETWORK}, which is not complete" in message
    assert "Run `sim2real train-segmentation run` first" in message
    stages = plan(config, run)
    network = next(stage for stage in stages if stage.name == NETWORK)
    run_stage(run, network, check(run, stages)[NETWORK])
    assert f"reads {STAGE}, which is not complete" in refused("translate")
    told = sim2real("label-target", "run")
    assert (told.status, f"{STAGE}: done" in told.err) == (0, True)
    results = read_stage(run, STAGE).results
    assert len(results) == 10
    # What has changed since is not taken.
    (run / STAGE / next(iter(results))).write_bytes(b"")
    message = refused("translate")
    assert f"no longer what stage {STAGE} wrote" in message
    assert f"--force {STAGE}" in message


def test_a_run_without_pseudo_labels_says_so(
    tiny: Path, tmp_path: Path, sim2real: Sim2Real
) -> None:
    write_run(tmp_path / "run", load_config(tiny))
    told = sim2real("label-target", "run")
    assert told.status == 2
    assert "has no stage for label-target. Its commands: train-cyclegan, translate" in told.err


def test_training_by_command_labels_first(tiny: Path, sim2real: Sim2Real) -> None:
    settings = [*SETTINGS, "arms={source_only: source, g: gan}"]
    sets = [part for one in settings for part in ("--set", one)]
    told = sim2real("train-cyclegan", "run", "--config", tiny, *sets)
    assert told.status == 0, told.err
    done = [line for line in told.err.splitlines() if line.endswith(": done")]
    assert done == [f"{name}: done" for name in (NETWORK, STAGE, "cyclegans/gan")]
