"""Reading a configuration: one YAML file, with data sets and recipes that it names."""

from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.fields import FILES, overlay
from pipeline.config.segmentation import SegmentationConfig
from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig
from pipeline.data.spec import layered
from pipeline.errors import UserError, short
from pipeline.schema import located, near, parse
from pipeline.yaml_files import SUFFIXES, escape, expand, parse_yaml, read_settings, read_yaml

_RECIPES = Path(__file__).parent / "recipes"
_DATASETS = ("source", "target", "test", "validation")
Fields = dict[str, object]


def is_configuration(path: Path) -> bool:
    """Whether a file is a YAML file that names data sets of a run, as no data set's file does."""
    fields = read_yaml(path) if path.suffix in SUFFIXES else None
    return isinstance(fields, dict) and not fields.keys().isdisjoint(_DATASETS)


def load_config(path: Path, settings: list[str] | None = None) -> Config:
    """Read a configuration.

    Each data set is written as `dataset: NAME_OR_FILE` plus the fields that differ, and settings of
    segmentation may be, as `recipe: NAME_OR_FILE`. `${NAME}` or `$NAME` in any text is the
    environment variable, `$$` a `$`. A relative path starts at the file that says it.

    Args:
        settings: `a.b=value` texts that win over the file; values are read as YAML.

    Raises:
        UserError: names every wrong field at once.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected the settings of a run, found {short(data)}")
    for setting in settings or []:
        _apply(data, setting)
    problems: list[str] = []
    data = {key: expand(value, str(key), problems) for key, value in data.items()}
    for place, holder, key, fields, resolve in _layers(data):
        try:
            holder[key] = resolve(fields, path.parent)
        except UserError as error:
            problems.append(f"  {place}: {error}")
            fields.pop("recipe", None)
            if fields.pop("dataset", None):  # what its file would say is not asked for besides
                holder[key] = {"name": "unread", "images": "{frame}", **fields}
    data = located(Config, data, path.parent)
    try:
        config = parse(Config, data, str(path))
    except UserError as error:
        if not problems:
            raise
        raise UserError("\n".join([str(error), *problems])) from error
    if problems:
        raise UserError("\n".join([f"{path}:", *problems]))
    return config


Resolve = Callable[[Fields, Path], Fields]


def _layers(data: Fields) -> Iterator[tuple[str, Fields, str, Fields, Resolve]]:
    """The mappings in a configuration that have a way of their own to be read.

    Yields:
        What it is called in messages, the mapping that holds it, its key there, the mapping itself,
        and a function of it and the folder of the file that gives its fields.
    """
    found: list[tuple[str, object, str, Resolve]] = [
        *((key, data, key, layered) for key in _DATASETS),
        ("segmentation.recipe", data, "segmentation", _resolve_recipe),
        *(
            (f"arms.{name}.segmentation.recipe", arm, "segmentation", _resolve_recipe)
            for name, arm in _mapping(data.get("arms"))
        ),
        *(
            (f"translations.{name}.cyclegan", own, "cyclegan", partial(located, CycleGANConfig))
            for name, own in _mapping(data.get("translations"))
        ),
        (
            "translation.cyclegan",
            data.get("translation"),
            "cyclegan",
            partial(located, CycleGANConfig),
        ),
    ]
    for place, holder, key, resolve in found:
        if isinstance(holder, dict) and isinstance(fields := holder.get(key), dict):
            yield place, holder, key, fields, resolve


def _mapping(value: object) -> list[tuple[str, object]]:
    return list(value.items()) if isinstance(value, dict) else []


def _apply(data: Fields, setting: str) -> None:
    """Put one `a.b=value` into `data`."""
    name, equals, text = setting.partition("=")
    if not equals or not name:
        raise UserError(f"--set {setting!r}: expected KEY=VALUE, e.g. cyclegan.epochs=5")
    try:
        value = parse_yaml(text, "--set")
    except yaml.YAMLError as error:
        raise UserError(f"--set {setting!r}: the value is not YAML: {error}") from error
    problems: list[str] = []
    value = expand(value, f"--set {name}", problems)
    if problems:
        raise UserError("\n".join(problems).strip())
    keys = name.split(".")
    # On the command line a relative path starts where the user stands.
    nested: Any = reduce(lambda below, key: {key: below}, reversed(keys), value)
    nested = located(Config, nested, Path())
    value = reduce(lambda above, key: above[key], keys, nested)
    if isinstance(value, str) and value.endswith(FILES):  # of `dataset` and `recipe`
        value = str(Path(value).absolute())
    *parents, last = keys
    for parent in parents:
        below = data.setdefault(parent, {})
        if not isinstance(below, dict):
            raise UserError(f"--set {setting!r}: {parent!r} is a value and has no keys below it")
        data = below
    data[last] = escape(value)  # the rest of the file is still to be expanded


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe of segmentation that is known without being told."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


def _resolve_recipe(given: Fields, base: Path) -> Fields:
    """Merge the settings of `recipe` under those given beside it."""
    given = located(SegmentationConfig, given, base)
    if (name := given.pop("recipe", None)) is None:
        return given
    known = recipes()
    named = str(name)
    path = base / named if named.endswith(SUFFIXES) else known.get(named)
    if path is None:
        raise UserError(
            f"no recipe {named!r}.{near(named, known)} Known: {', '.join(known)}; or give the path "
            "of a .yaml file."
        )
    # A mapping is merged with the recipe's, but for `options`: see `overlay`.
    said = {key for key, value in given.items() if key == "options" or not isinstance(value, dict)}
    fields = read_settings(path, "settings of segmentation", said)
    return overlay(located(SegmentationConfig, fields, path.parent), given)
