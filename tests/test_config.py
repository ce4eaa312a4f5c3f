"""Configurations: shipped ones load, wrong ones say all that is wrong."""

import copy
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from flows.ablate import ablation
from flows.budget import with_budget
from flows.plan import plan
from pipeline.config.load import load_config, recipes
from pipeline.config.settings import Config
from pipeline.data.labels import load_label_space
from pipeline.data.spec import DatasetSpec, built_in_specs, spec_fields
from pipeline.errors import UserError
from pipeline.run.folder import read_run, write_run
from pipeline.schema import parse
from pipeline.yaml_files import write_yaml
from tests.layouts import load_spec

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
        assert len(covered) >= min(10, len(space.classes))
    else:
        parse(DatasetSpec, {**spec_fields(path.name, path.parent), "root": "/data"}, path.name)


@pytest.mark.parametrize("path", [p for p in RUNS if "_to_" in p.stem or p.stem == "demo"])
@pytest.mark.parametrize("derive", [ablation, partial(with_budget, numbers=[2])])
def test_every_shipped_run_has_its_steps_and_budgets(
    path: Path, derive: Callable[[Config], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SIM2REAL_DATA", "GTA5_ROOT", "CITYSCAPES_ROOT"):
        monkeypatch.setenv(name, "/data")
    config = load_config(path)
    derived = derive(config)
    assert derived.seeds == config.seeds
    assert len(plan(derived, path)) > len(plan(config, path))


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
        ("arms={a: nowhere}", "Known: target, source, translated"),
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


def test_a_data_set_that_is_not_known_is_one_error_beside_those_of_its_fields(tiny: Path) -> None:
    with pytest.raises(UserError) as raised:
        load_config(tiny, ["source.dataset=gone.yaml", "target.dataset=city", "target.width=0"])
    lines = str(raised.value).split("\n")
    assert len(lines) == 4
    assert re.match(r"  target.width: ", lines[1])
    assert re.match(r"  source: No file .*gone.yaml. Give the path of a YAML file", lines[2])
    assert re.match(r"  target: .*'city'", lines[3])


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


# Variables, and folders whose names look like them.


def test_a_dollar_is_read_back_from_the_run_s_own_copy(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "w$HOME ${x}"
    here.mkdir()
    monkeypatch.setenv("WORLD", str(here))
    moved = here / "tiny.yaml"
    moved.write_text(tiny.read_text())
    monkeypatch.chdir(here)
    config = load_config(
        Path("tiny.yaml"),
        ["source.name=5$$", "test.root=here", "target.label_root=$WORLD/x", "compute.cache=c$$"],
    )
    assert config.source.root == here / "toy-sim"
    assert config.source.name == "5$"
    assert config.test.root == here / "here"
    assert config.target.label_root == here / "x"
    assert config.compute.cache == here / "c$"
    write_run(tmp_path / "run", config)
    assert read_run(tmp_path / "run") == config


def test_a_setting_names_a_variable_that_is_not_set(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"^--set source.root: environment variable NO_SUCH is not"):
        load_config(tiny, ["source.root=$NO_SUCH"])
    with pytest.raises(UserError, match=r"^--set name: `\$` names no variable"):
        load_config(tiny, ["name=5$"])


def test_a_variable_of_a_recipe(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.yaml").write_text("encoder_weights: ${WEIGHTS}/a.pth\nsteps: 7\n")
    text = yaml.safe_load(tiny.read_text())
    text["segmentation"] = {"recipe": "r.yaml"}
    tiny.write_text(yaml.safe_dump(text))
    with pytest.raises(
        UserError, match=r"segmentation\.recipe: .*r\.yaml:\n  encoder_weights: env"
    ):
        load_config(tiny)
    assert load_config(tiny, ["segmentation.encoder_weights=none"]).segmentation.steps == 7
    monkeypatch.setenv("WEIGHTS", "/w$")
    assert load_config(tiny).segmentation.encoder_weights == "/w$/a.pth"


# Whatever is written, it is accepted or a message.


def places(
    model: type[BaseModel], at: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Where a text or a number can be written: keys and indices, and which of the two."""
    for name, field in model.model_fields.items():
        yield from _inside(field.annotation, (*at, name))


def _inside(annotation: Any, at: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        yield from _inside(inner[0], at)
    elif kind in (Union, UnionType):
        for choice in inner:
            yield from _inside(choice, at)
    elif kind is Literal:
        yield at, "text"
    elif kind is tuple:
        yield from _inside(inner[0], (*at, -1 if inner[1:] == (inner[0],) else 0))
    elif kind is dict:
        key = {"arms": "source_only", "values": "7", "train": "source"}.get(at[-1], "road")
        yield from _inside(inner[1], (*at, key))
    elif annotation in (int, float):
        yield at, "number" if annotation is int else "fraction"
    elif annotation in (str, Path):
        yield at, "text"
    elif annotation is object:
        yield at, "text"
        yield at, "number"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from places(annotation, at)


def put(data: Any, at: tuple[Any, ...], value: Any) -> None:
    """Write `value` into nested mappings and lists; -1 stands for both items of a pair."""
    *parents, last = at
    for i, key in enumerate(parents):
        if not isinstance(data.get(key), dict):
            data[key] = {}
        if isinstance(at[i + 1], int):
            data[key] = [value] * (2 if at[i + 1] == -1 else 1)
            return
        data = data[key]
    data[last] = value


OWN: dict[str, Any] = {
    "name": "own",
    "root": "here",
    "images": "i/{frame}",
    "labels": "l/{frame}",
    "values": {7: "road", 8: "sky"},
    "splits": {"a": "*"},
    "about": {
        "kind": "real",
        "size": "various",
        "licence": "none",
        "url": "none",
        "table": "own",
    },
}
BASE: dict[str, Any] = {
    "name": "odd",
    "arms": {"source_only": {"train": {"source": 1}}},
    "source": OWN,
    "target": OWN,
    "test": OWN,
}
PLACES = [(at, kind) for at, kind in places(Config) if at[0] not in ("target", "test")]
CONTROL = ["a\0b", "a\ud800b", "a\nb", "a\x1b[2Jb", "\x85", "\udcff", "\u2028"]
TEXTS = ["", " ", "é", "x" * 5000, "*", "[a]", "{", "}{", "..", "/", "$$", "a:b", "~", "\ufeff"]
LARGE = [2**31, 2**32, 2**63, 10**30, 10**90, -(2**31), -(10**30), -(2**63)]
NOT_FINITE = [float("inf"), float("-inf"), float("nan")]
NUMBERS = [-1, 0, 2**31 - 1, 1e300, -1e-300, 0.5]


def test_every_kind_of_place_is_walked() -> None:
    names = {".".join(map(str, at)) for at, _ in PLACES}
    assert {"source.width", "seeds.0", "segmentation.crop.-1", "source.values.7"} <= names
    assert {"arms.source_only.self_training.mask_block", "source.about.frames"} <= names
    assert {"cyclegan.semantics.probe_frames", "segmentation.options.road"} <= names
    assert len(PLACES) > 100


@pytest.mark.parametrize(
    ("at", "kind"), PLACES, ids=lambda v: v if isinstance(v, str) else ".".join(map(str, v))
)
def test_odd_values_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[Any, ...], kind: str
) -> None:
    data: Any = None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.config.load.read_yaml", lambda _: data)
    refused, others = {
        "text": (CONTROL, TEXTS),
        "number": ([*LARGE, *NOT_FINITE], NUMBERS),
        "fraction": (NOT_FINITE, [*LARGE, *NUMBERS]),
    }[kind]
    for value in [*refused, *others]:
        data = copy.deepcopy(BASE)
        put(data, at, value)
        message = ""
        try:
            load_config(Path("odd.yaml"))
        except UserError as error:
            message = str(error)
        assert value in others or at[0] in message, (value, message)


@pytest.mark.parametrize("key", ["a\0b", "a\ud800b", "x" * 5000, "$HOME", "é"])
def test_odd_keys_anywhere(tmp_path: Path, key: str) -> None:
    path = tmp_path / "odd.yaml"
    for at in (
        (key,),
        ("source", key),
        ("source", "splits", key),
        ("source", "values", key),
        (
            *("arms", key),
            *("segmentation", "options", key),
        ),
    ):
        data = copy.deepcopy(BASE)
        put(data, at, "road")
        path.write_text(yaml.safe_dump(data))
        try:
            config = load_config(path)
        except UserError:
            continue
        assert not {"\0", "\ud800"} & set(key)
        write_run(tmp_path / "run", config)
        assert read_run(tmp_path / "run") == config


ODD: list[Any] = [
    *[
        None,
        True,
        False,
        -1,
        0,
        7,
        2**40,
        1.5,
        1e300,
        float("nan"),
        "",
        "x",
        "$HOME",
        "$",
        "${",
        "a.b",
    ],
    *[[], {}, [[]], {"": None}, {"x": {"y": [1, {"z": "w"}]}}, {1: 2}, {None: 1}, [None, {}]],
    *["gta5", "../up.yaml", "self.yaml", "translated", "a:b", "a.py:b", "*", "{", "}", "[", "ids"],
]


def spoilt(data: Any, draw: random.Random) -> Any:
    """`data` with something in it replaced, left out, doubled, wrapped or renamed."""
    spot: Any = data
    holder: Any = None
    key: Any = None
    while isinstance(spot, dict | list) and spot and (holder is None or draw.random() < 0.7):
        holder = spot
        key = draw.choice(list(spot)) if isinstance(spot, dict) else draw.randrange(len(spot))
        spot = spot[key]
    change = draw.randrange(5)
    if change == 0:
        holder[key] = copy.deepcopy(draw.choice(ODD))
    elif change == 1:
        del holder[key]
    elif change == 2:
        for _ in range(draw.choice([1, 3, 40])):
            holder[key] = draw.choice([lambda x: [x], lambda x: {"x": x}])(holder[key])
    elif isinstance(holder, dict):
        names = [item for item in ODD if not isinstance(item, list | dict)]
        renamed = draw.choice(names if change == 3 else list(data))
        holder[renamed] = holder[key]
    else:
        holder.append(copy.deepcopy(draw.choice(ODD)))
    return data


SPOILT = 20
FILES = [*RUNS, *built_in_specs().values(), *recipes().values()]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_spoilt_files_are_messages(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SIM2REAL_DATA", "GTA5_ROOT", "CITYSCAPES_ROOT"):
        monkeypatch.setenv(name, "/data")
    draw = random.Random(path.stem)
    for spec in (ROOT / "configs").glob("*sim.yaml"):
        (tmp_path / spec.name).write_text(spec.read_text())
    text, spoilt_path = path.read_text(), tmp_path / "self.yaml"
    fine = 0
    for number in range(SPOILT):
        if number % 4 == 0:  # characters of the text; otherwise what it says
            at = draw.randrange(len(text))
            piece = draw.choice(
                ["", "\t", "'", "\n", ": ", "- ", "&a ", "*a", "!!set ", "0", "\0", "}"]
            )
            changed = text[:at] + piece + text[at + draw.randrange(9) :]
        else:
            data = yaml.safe_load(text)
            for _ in range(draw.randrange(1, 4)):
                data = spoilt(data, draw) if data else data
            changed = yaml.safe_dump(data)
        spoilt_path.write_text(changed)
        try:
            if "source:" in text:
                config = load_config(spoilt_path)
                write_yaml(tmp_path / "copy.yaml", config.model_dump(mode="json"))
                assert load_config(tmp_path / "copy.yaml") == config
            elif path.parent.name == "recipes":
                base = BASE | {"segmentation": {"recipe": "self.yaml"}}
                (tmp_path / "run.yaml").write_text(yaml.safe_dump(base))
                load_config(tmp_path / "run.yaml")
            else:
                load_spec(spoilt_path)
            fine += 1
        except UserError:
            continue
    assert fine < SPOILT
