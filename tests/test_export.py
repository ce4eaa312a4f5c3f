"""Trained segmentation networks leave the tool: files, cards, and a function of frames."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from torch.nn import functional as F

from flows import commands
from flows.plan import plan
from flows.segmenters import arm_of_run, export_segmenter, names_segmenter
from pipeline.config.load import load_config
from pipeline.data.images import read_rgb, resize_rgb
from pipeline.data.listing import list_samples
from pipeline.errors import UserError
from pipeline.run.folder import read_run, write_run
from pipeline.runtime.checkpoint import load_checkpoint, save_checkpoint
from pipeline.runtime.onnx_files import check_difference
from segmentation import export as exporting
from segmentation.export import export
from segmentation.predictor import load_predictor
from segmentation.train import check_start
from tests.conftest import TINY
from tests.helpers import do

ARM = "source_only"


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose one arm is trained and scored on frames at half of their width."""
    folder = tmp_path_factory.mktemp("export")
    fields = TINY | {"arms": {ARM: "source"}, "compute": {"accelerator": "cpu"}}
    fields |= {"segmentation": TINY["segmentation"] | {"steps": 2}}
    path = folder / "tiny.yaml"
    text = yaml.safe_dump(fields).replace("${WORLD}", str(world))
    path.write_text(text)
    config = load_config(path, ["source.width=64", "target.width=64", "test.width=64"])
    run = folder / "r"
    write_run(run, config)
    wanted = ("segmentation/", "evaluation/")
    do(run, [stage for stage in plan(config, run) if stage.name.startswith(wanted)])
    return run


def call(*arguments: object) -> None:
    """The command line, in this process."""
    commands.app(args=list(map(str, arguments)), standalone_mode=False)


def first_frame(run: Path) -> np.ndarray:
    return read_rgb(list_samples(read_run(run).test, labelled=False)[0].image)


def test_a_predictor_gives_classes_at_the_frame_s_own_size(run: Path) -> None:
    predictor = load_predictor(str(arm_of_run(run / ARM).checkpoint))  # type: ignore[union-attr]
    frame = first_frame(run)
    assert frame.shape == (64, 128, 3)
    assert predictor.width == 64
    with torch.inference_mode():
        logits = predictor.network(torch.tensor(resize_rgb(frame, (64, 32)))[None])
    expected = F.interpolate(logits, (64, 128), mode="bilinear").argmax(1)[0]
    assert (predictor(frame) == expected.numpy()).all()
    assert predictor.space == arm_of_run(run / ARM).space  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def exported(run: Path) -> tuple[Path, str]:
    """The arm as a folder, and what was said of it."""
    return run.parent / "model", export_segmenter(run / ARM / "seed-0", run.parent / "model", None)


def test_a_program_of_torch_is_the_network(run: Path, exported: tuple[Path, str]) -> None:
    out, said = exported
    assert re.match(rf"{out}: .*model.pt2 differs from the network by \S+ at most", said)
    found: dict[str, Any] = {exporting.DESCRIPTION: ""}
    network = torch.export.load(out / "model.pt2", extra_files=found).module()
    about = json.loads(found[exporting.DESCRIPTION])
    space = arm_of_run(run / ARM).space  # type: ignore[union-attr]
    assert about["classes"] == space.class_names
    assert about["colors"] == [list(c.color) for c in space.classes]
    assert (about["width"], about["height"]) == (64, 32)  # the test frames', as they are shown
    predictor = load_predictor(run / f"segmentation/{ARM}/seed-0/checkpoints/last.pt")
    frames = torch.randint(0, 256, (3, 32, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(network(frames), predictor.network(frames), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_onnx_is_the_network(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "model.onnx"
    checkpoint = run / f"segmentation/{ARM}/seed-0/checkpoints/last.pt"
    export(checkpoint, out, (50, 40))  # no multiples of anything: it pads by itself
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    predictor = load_predictor(checkpoint)
    assert json.loads(texts["classes"]) == predictor.space.class_names
    assert texts["normalisation"].startswith("inside")
    frames = torch.randint(0, 256, (3, 40, 50, 3), dtype=torch.uint8)
    (found,) = session.run(["logits"], {"image": frames.numpy()})
    with torch.inference_mode():
        expected = predictor.network(frames)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-4)


def test_a_folder_has_a_card_whose_lines_work(
    run: Path, exported: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = exported
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.pt", "model.pt2"]
    card = (out / "README.md").read_text()
    scores = json.loads((run / f"evaluation/{ARM}/seed-0/evaluation.json").read_text())
    assert f"| mean IoU | {100 * scores['mean_iou']:.1f}% |" in card
    assert re.search(r"\| 0 \| road \| #804080 \| [\d.]+% \| [\d.]+% \|", card)
    monkeypatch.chdir(out)
    frame = first_frame(run)
    predictor = load_predictor(run / f"segmentation/{ARM}/seed-0/checkpoints/last.pt")
    small = torch.tensor(resize_rgb(frame, (64, 32)))[None]
    expected = [predictor(frame), predictor.network(small).argmax(1).numpy()]
    for code, classes in zip(re.findall(r"```python\n(.*?)```", card, re.S), expected, strict=True):
        names = {"frame": frame, "frames": small}
        exec(code, names)
        assert (np.asarray(names["classes"]) == classes).all()
    # Enough to go on from, and without what only its own training could use.
    check_start(out / "model.pt", read_run(run).segmentation, predictor.space)
    assert load_checkpoint(out / "model.pt").keys() == {*exporting.KEPT, "label_space", "width"}
    assert names_segmenter(out / "model.pt")


def test_the_three_lines_of_the_docs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs/weights.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(run.parent)
    names = {"frame": first_frame(run)}
    exec(code.replace("runs/NAME", "r").replace("ARM", ARM), names)
    assert names["classes"].shape == (64, 128)


@pytest.mark.slow
def test_a_card_of_a_network_without_scores_says_so(run: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone.pt"
    state = load_checkpoint(run / f"segmentation/{ARM}/seed-0/checkpoints/last.pt")
    save_checkpoint(lone, state)
    assert names_segmenter(lone)
    call("export", lone, "--to", tmp_path / "model", "--size", "32x48")
    card = (tmp_path / "model/README.md").read_text()
    assert "Not scored." in card
    assert "(batch, 48, 32, 3)" in card


def test_checkpoints_of_earlier_versions(run: Path, tmp_path: Path) -> None:
    state = load_checkpoint(run / f"segmentation/{ARM}/seed-0/checkpoints/last.pt")
    del state["label_space"], state["width"]
    old = tmp_path / "old.pt"
    save_checkpoint(old, state)
    assert load_predictor(old).space.class_names == state["classes"]
    assert load_predictor(old).width is None
    state["classes"] = [f"c{i}" for i in range(19)]
    save_checkpoint(old, state)
    with pytest.raises(UserError, match=r"does not say the colours.*c18.*RUN/ARM"):
        load_predictor(old)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["r/nobody", "--to", "x.onnx"], r"has no network 'nobody'.*arms: source_only; seeds"),
        ([f"r/{ARM}/seed-7", "--to", "x.onnx"], r"has no network 'source_only/seed-7'"),
        (["r/segmentation", "--to", "x.onnx"], "has no network ''"),
        ([f"r/{ARM}", "--to", "x.pth"], r"x\.pth: give a file \*\.onnx or \*\.pt2, or a folder"),
        ([f"r/{ARM}", "--to", "x.pt2", "--size", "big"], r"'big': give WIDTHxHEIGHT"),
        ([f"r/{ARM}", "--to", "x.pt2", "--backwards"], "--backwards is for generators"),
        (["none.pt", "--to", "x.pth", "--size", "32x32"], "--size is for segmentation networks"),
        (["none.pt", "--to", "x.onnx"], r"No file none\.pt"),
    ],
)
def test_refused(
    arguments: list[str], message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    before = sorted(run.parent.iterdir())
    with pytest.raises((UserError, typer.BadParameter), match=message):
        call("export", *arguments)
    assert sorted(run.parent.iterdir()) == before


@pytest.mark.parametrize("difference", [0.2, math.nan, math.inf])
def test_what_differs_is_refused(difference: float) -> None:
    with pytest.raises(UserError, match=r"differs from the network by .*not kept: x\.onnx"):
        check_difference(Path("x.onnx"), difference, 0.1, "onnx")
    check_difference(Path("x.onnx"), 0.1, 0.1, "onnx")


@pytest.mark.slow
def test_what_differs_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    for name in ("model.pt2", "model.onnx", "model"):
        with pytest.raises(UserError, match=r"differs from the network by .*not kept"):
            call("export", run / ARM, "--to", tmp_path / name)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_arm_that_is_not_trained(run: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "new", read_run(run))
    with pytest.raises(UserError, match=r"seed 0, is not trained yet\. Run `sim2real train-seg"):
        call("export", tmp_path / "new" / ARM, "--to", tmp_path / "x.pt2")


def test_generators_need_no_library_of_segmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("segmentation_models_pytorch", "albumentations"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith(("segmentation.", "flows."))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="No file"):
        call("export", "none.pt", "--to", "x.pth")
