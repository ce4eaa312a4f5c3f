"""Reading a configuration: one YAML file, with data sets and recipes that it names."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.config.settings import FILES, Config, overlay
from pipeline.data.spec import DatasetSpec, layered
from pipeline.errors import UserError, short
from pipeline.schema import located, near, parse
from pipeline.yaml_files import escape, expand, parse_yaml, read_settings, read_yaml

_RECIPES = Path(__file__).parent / "recipes"

_DATASETS = ("source", "target", "test")

_PATHS = ("compute.cache", "translation.weights", "cyclegan.start")


def load_config(path: Path, settings: list[str] | None = None) -> Config:
    """Read a configuration.

    Each data set is written as `dataset: NAME_OR_FILE` plus the fields that differ, and settings of
    segmentation may be, as `recipe: NAME_OR_FILE`. `${NAME}` or `$NAME` in any text is the
    environment variable, `$$` a `$`. A relative `root` starts at the file that says it.

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
    data = expand(data, "", problems)
    for key in _DATASETS:
        if isinstance(data.get(key), dict):
            try:
                data[key] = layered(data[key], path.parent)
            except UserError as error:
                problems.append(f"  {key}: {error}")
    arms = data.get("arms")
    arms = arms.items() if isinstance(arms, dict) else ()
    arms = {name: arm for name, arm in arms if isinstance(arm, dict)}
    sections = []
    for place, holder in (("", data), *((f"arms.{name}.", arm) for name, arm in arms.items())):
        if isinstance(given := holder.get("segmentation"), dict):
            try:
                holder["segmentation"] = _resolve_recipe(given, path.parent)
            except UserError as error:
                problems.append(f"  {place}segmentation.recipe: {error}")
                given.pop("recipe", None)
            sections.append(holder["segmentation"])
    for holder, key in (
        (data, "label_space"),
        *((arm, "start") for arm in arms.values()),
        *((section, "encoder_weights") for section in sections),
    ):
        if isinstance(holder, dict) and isinstance(value := holder.get(key), str):
            holder[key] = _absolute_file(value, path.parent)
    for section, key in (place.split(".") for place in _PATHS):
        holder = data.get(section)
        if isinstance(holder, dict) and isinstance(value := holder.get(key), str):
            holder[key] = str(path.parent.absolute() / value)
    try:
        config = parse(Config, data, str(path))
    except UserError as error:
        if not problems:
            raise
        raise UserError("\n".join([str(error), *problems])) from error
    if problems:
        raise UserError("\n".join([f"{path}:", *problems]))
    return config


def _apply(data: dict[str, Any], setting: str) -> None:
    """Put one `a.b=value` into `data`."""
    keys, equals, text = setting.partition("=")
    if not equals or not keys:
        raise UserError(f"--set {setting!r}: expected KEY=VALUE, e.g. cyclegan.epochs=5")
    try:
        value = parse_yaml(text, "--set")
    except yaml.YAMLError as error:
        raise UserError(f"--set {setting!r}: the value is not YAML: {error}") from error
    problems: list[str] = []
    value = expand(value, f"--set {keys}", problems)
    if problems:
        raise UserError("\n".join(problems).strip())
    *parents, last = keys.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {setting!r}: {parent!r} is a value and has no keys below it")
    # On the command line a relative path starts where the user stands.
    value = located(DatasetSpec, {last: value}, Path())[last]
    if isinstance(value, str) and (keys in _PATHS or value.endswith(FILES)):
        value = str(Path(value).absolute())
    data[last] = escape(value)  # the rest of the file is still to be expanded


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe of segmentation that is known without being told."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


def _resolve_recipe(given: dict[str, Any], base: Path) -> dict[str, Any]:
    """Merge the settings of `recipe` under those given beside it."""
    given = dict(given)
    if (name := given.pop("recipe", None)) is None:
        return given
    known = recipes()
    named = str(name)
    path = base / named if named.endswith((".yaml", ".yml")) else known.get(named)
    if path is None:
        raise UserError(
            f"no recipe {named!r}.{near(named, known)} Known: {', '.join(known)}; or give the path "
            "of a .yaml file."
        )
    # A mapping is merged with the recipe's, but for `options`: see `overlay`.
    said = {key for key, value in given.items() if key == "options" or not isinstance(value, dict)}
    fields = read_settings(path, "settings of segmentation", said)
    if isinstance(weights := fields.get("encoder_weights"), str):
        fields["encoder_weights"] = _absolute_file(weights, path.parent)
    return overlay(fields, given)


def _absolute_file(value: str, base: Path) -> str:
    """File names relative to the configuration become absolute; other words stay."""
    return str((base / value).absolute()) if value.endswith(FILES) else value
