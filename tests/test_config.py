"""Configurations: shipped ones load, wrong ones say all that is wrong."""

from pathlib import Path

import pytest
import yaml

from pipeline.config import Config, load_config
from pipeline.datasets import DatasetSpec, built_in_specs, spec_fields
from pipeline.errors import UserError
from pipeline.labels import load_label_space
from pipeline.runs import read_run, write_run
from pipeline.schema import parse

ROOT = Path(__file__).parent.parent
RUNS = sorted(p for p in [*(ROOT / "configs").glob("*.yaml"), ROOT / "flows" / "demo.yaml"])


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_shipped_file_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIM2REAL_DATA", "GTA5_ROOT", "CITYSCAPES_ROOT"):
        monkeypatch.setenv(name, "/data")
    if "source" in yaml.safe_load(path.read_text()):
        config = load_config(path)
        space = load_label_space(config.label_space)
        covered = [c for c in space.classes if config.source.names() & set(c.names)]
        assert len(covered) >= 10
    else:
        parse(DatasetSpec, {**spec_fields(path.name, path.parent), "root": "/data"}, path.name)


@pytest.mark.parametrize("name", list(built_in_specs()))
def test_every_built_in_spec_loads(name: str) -> None:
    parse(DatasetSpec, {**spec_fields(name, ROOT), "root": "/data", "split": "train"}, name)


def test_defaults_are_the_reference_implementation_s(tiny: Path) -> None:
    text = yaml.safe_load(tiny.read_text())
    del text["cyclegan"]
    tiny.write_text(yaml.safe_dump(text))
    gan = load_config(tiny).cyclegan
    assert (gan.blocks, gan.generator_width, gan.discriminator_width) == (9, 64, 64)
    assert (gan.cycle_weight, gan.identity_weight, gan.pool_size) == (10, 0.5, 50)
    assert (gan.learning_rate, gan.batch_size, gan.crop) == (2e-4, 1, (256, 256))
    assert (gan.epochs, gan.decay_epochs, gan.steps_per_epoch) == (100, 100, None)


def test_all_errors_at_once(tiny: Path) -> None:
    text = yaml.safe_load(tiny.read_text())
    text["cyclegan"]["bloks"] = 3
    text["cyclegan"]["epochs"] = "many"
    text["segmentation"]["batch_size"] = -1
    text["segmentation"]["class_weights"] = {"car": -2}
    text["source"]["dataset"] = "gta"
    tiny.write_text(yaml.safe_dump(text))
    with pytest.raises(UserError) as error:
        load_config(tiny)
    message = str(error.value)
    assert "cyclegan.bloks: unknown key. Did you mean 'blocks'" in message
    assert "cyclegan.epochs: Input should be a valid integer" in message
    assert "'many'" in message
    assert "segmentation.batch_size: Input should be greater than or equal to 1 (got -1)" in message
    assert "segmentation.class_weights.car: Input should be greater than or equal to 0" in message
    assert "No data set 'gta'. Did you mean 'gta5'" in message


def test_unset_variable(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD")
    with pytest.raises(UserError, match=r"source\.root: environment variable WORLD is not set"):
        load_config(tiny)


def test_settings_win(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    config = load_config(
        tiny, ["cyclegan.epochs=7", "seeds=[3, 4]", "source.root=here", "compute.precision=32-true"]
    )
    assert config.cyclegan.epochs == 7
    assert config.seeds == (3, 4)
    assert config.source.root == tiny.parent / "here"
    assert config.compute.precision == "32-true"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cyclegan.epochs", "expected KEY=VALUE"),
        ("name.x=1", "has no keys below it"),
        ("seeds=[1, 1]", "hold one twice"),
        ("seeds=[]", "at least 1 item"),
        ("cyclegan.crop=[30, 64]", "multiples of 4 for the resnet generator; take [32, 64]"),
        ("cyclegan={generator: unet, crop: [360, 256]}", "for the unet generator; take [256, 256]"),
        ("cyclegan.generator=unet_256", "'resnet', 'unet' or 'encoder_decoder'"),
        ("cyclegan={generator: encoder_decoder, upsampling: resize}", "pictures without content"),
        ("cyclegan.generator_average=1", "less than 1"),
        ("cyclegan.learning_rate=.nan", "finite number"),
        ("arms={a: nowhere}", "'source', 'translated' or 'target'"),
        ("name=../up", "String should match pattern"),
        ("seeds=[1", "not YAML"),
    ],
)
def test_bad_settings(tiny: Path, setting: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(tiny, [setting])
    assert message in str(error.value)


def test_relative_roots_start_at_their_file(tmp_path: Path, tiny: Path) -> None:
    spec = {"name": "mine", "root": "frames", "images": "{frame}", "labels": None}
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/mine.yaml").write_text(yaml.safe_dump(spec))
    text = yaml.safe_load(tiny.read_text())
    text["target"] = {"dataset": "sub/mine.yaml"}
    tiny.write_text(yaml.safe_dump(text))
    assert load_config(tiny).target.root == tmp_path / "sub" / "frames"


def test_the_run_s_own_copy_is_equal(tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny)
    write_run(tmp_path / "run", config)
    assert read_run(tmp_path / "run") == config
    assert isinstance(read_run(tmp_path / "run"), Config)


def test_not_a_file_and_too_large(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No file"):
        load_config(tmp_path / "none.yaml")
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="1,073,741,824 bytes"):
        load_config(huge)
    huge.write_text("[1, 2]")
    with pytest.raises(UserError, match="expected the settings of a run"):
        load_config(huge)
