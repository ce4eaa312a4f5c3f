"""`sim2real new-dataset --target`: first specs of all data sets, and a run's configuration."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.config.settings import IDEAL, ComputeConfig
from pipeline.data.images import image_size
from pipeline.data.labels import ASKED, IGNORE, load_label_space
from pipeline.data.listing import evenly, list_samples
from pipeline.data.reading import working_size
from pipeline.data.spec import DatasetSpec, read_spec
from pipeline.errors import UserError
from pipeline.files import write_text
from pipeline.intake.discover import Discovery, discover
from pipeline.intake.examine import split_specs
from pipeline.intake.first_spec import describe, quoted, write_first_spec
from pipeline.intake.lost import NARROWER, lost_classes
from pipeline.yaml_files import SUFFIXES, read_yaml, yaml_text

_DEMO, _OWN = (Path(__file__).parent / f"{name}.yaml" for name in ("demo", "first_run"))
_SPACES = "cityscapes19", "camvid11", "idd7", "cityscapes7"
"""The first of these that has a class for each name of the test set is taken."""
_MULTIPLE = 32
"""What the sides of training crops are a multiple of."""


def write_first_run(folder: Path, target: Path, test: Path | None, out: Path | None) -> list[str]:
    """Look at the folders, and write what a first run needs beside `out`.

    Args:
        folder: the labelled synthetic frames.
        target: real frames, labelled or not: a folder, or a data set's YAML file.
        test: labelled real frames; none is another split of the target.
        out: the spec of `folder`.

    Returns:
        What was found and written, in lines.

    Raises:
        UserError: as `discover` and `write_first_spec`; nothing to score on.
    """
    given = {"source": folder, "target": target} | ({"test": test} if test else {})
    found = {part: None if path.suffix in SUFFIXES else discover(path)
             for part, path in given.items()}  # fmt: skip
    home = out.parent if out else Path()
    files = {
        part: (out if out and part == "source" else home / f"{seen.name}.yaml") if seen else path
        for (part, path), seen in zip(given.items(), found.values(), strict=True)
    }
    config = home / f"{files['source'].stem}_to_{files['target'].stem}.yaml"
    for path in (config, *(files[part] for part, seen in found.items() if seen)):
        if path.exists():
            raise UserError(f"{path} is there already. Remove it, or name another with --out.")
    if len(set(files.values())) != len(files):
        raise UserError("Two of the folders have one name. Rename one, or link to it.")
    if test is None:
        _check_scores(found["target"], target)
    lines = []
    for part, seen in found.items():
        if seen:
            written = write_first_spec(seen, files[part])
            lines += [f"{part}:", *(f"  {line}" for line in describe(seen))]
            lines.append(f"  written: {', '.join(map(str, written))}")
    text, asked = _config_text(config, files)
    write_text(config, text)
    asked += sum(len(seen.questions()) for seen in found.values() if seen)
    edit = f"answer {asked} question(s), which end in ?, then " if asked else ""
    return [
        *lines,
        f"Written: {config}",
        f"Next: {edit}`sim2real check {config}`, `sim2real run {config}`",
    ]


def _check_scores(target: Discovery | None, folder: Path) -> None:
    """Raise `UserError` if a target alone leaves nothing to score on."""
    if target is not None and target.pairs is None:
        raise UserError(
            f"{folder} has no labels: it is a target. A run is scored on labelled real frames: "
            "give their folder too, --test FOLDER."
        )


def _config_text(config: Path, files: dict[str, Path]) -> tuple[str, int]:
    """The configuration, and how many questions it asks."""
    from pipeline.runtime.device import accelerator

    gpu = accelerator(ComputeConfig()) == "cuda"
    demo: Any = read_yaml(_DEMO)
    own: Any = read_yaml(_OWN)
    recipe = demo | own["gpu" if gpu else "cpu"]
    specs = {part: read_spec(path) for part, path in files.items()}
    splits: dict[str, str] = {}
    if "test" not in specs:
        files = {**files, "test": files["target"]}
        specs["test"] = specs["target"]
        if other := _other_split(specs["target"]):
            splits["test"] = other
            specs["test"] = specs["target"].model_copy(update={"split": other})
    same = specs["test"] == specs["target"]
    labelled = specs["target"].labels is not None and not same
    width = min(recipe["width"], *(_size(spec)[0] for spec in specs.values()))
    smallest = [
        min(working_size(spec.model_copy(update={"width": width}), _size(spec))[i]
            for spec in (specs["source"], specs["target"]))
        for i in (0, 1)
    ]  # fmt: skip
    for part in ("cyclegan", "segmentation"):
        if crop := recipe[part].get("crop"):
            sides = zip(crop, smallest, strict=True)
            recipe[part]["crop"] = [
                min(side, max(_MULTIPLE, most - most % _MULTIPLE)) for side, most in sides
            ]
    space = _space(specs.values())
    classes = load_label_space(space)
    lost = lost_classes({"source": specs["source"], "test": specs["test"]}, classes)
    absent = [one.key for one in lost if one.refused and one.key in classes.class_names]
    lines = [
        f"# A first run, sized for {'a GPU' if gpu else f'{os.cpu_count()} CPU cores'}:",
        f"#   sim2real check {config.name} && sim2real run {config.name}",
        f"name: {quoted(config.stem)}",
        f"label_space: {space}",
    ]
    for part in specs:
        dataset = os.path.relpath(files[part].absolute(), config.absolute().parent)
        fields = [f"dataset: {quoted(dataset)}"]
        if split := splits.get(part):
            fields.append(f"split: {quoted(split)}")
        fields.append(f"width: {width}")
        if part == "source" and absent:
            lines += [
                f"# No label of the source shows {', '.join(absent)}. Name their values in its",
                "# spec; or, if they are meant to be lost, remove the question marks here.",
            ]
            words = ", ".join(quoted(f"{name}{ASKED}") for name in absent)
            fields.append(f"confirmed: [{words}]")
        if part == "test" and same:
            lines.append("# The target's own frames? Others, that nothing adapts to, are fairer.")
        lines.append(f"{part}: {{{', '.join(fields)}}}")
    if not labelled:
        lines.append("# No arm is an oracle, which learns from labels of the target.")
        recipe["arms"].pop(IDEAL)
    for key in ("name", "label_space", "source", "target", "test", "width"):
        recipe.pop(key)
    return "\n".join(lines) + "\n" + yaml_text(recipe), len(absent)


def _size(spec: DatasetSpec) -> tuple[int, int]:
    """The smallest size of a few frames."""
    sizes = [image_size(s.image) for s in evenly(list_samples(spec, labelled=False), 8)]
    return min(w for w, _ in sizes), min(h for _, h in sizes)


def _other_split(spec: DatasetSpec) -> str | None:
    """A split of the target's data set to score on: one that is called so, and has labels."""
    names = [*split_specs(spec), *spec.splits]
    held_out = [name for name in names if name.lower().startswith(("test", "val"))]
    for name in sorted(held_out, reverse=True):  # val before test, whose labels are seldom given
        try:
            list_samples(spec.model_copy(update={"split": name}), labelled=True)
        except UserError:
            continue
        if name != spec.split:
            return name
    return None


def _space(specs: Iterable[DatasetSpec]) -> str:
    """The label space with the most classes that no name of the sets falls out of."""
    names = {name for spec in specs for name in spec.names() if name in NARROWER or "/" in name}
    for space in _SPACES:
        if all(load_label_space(space).index_of(name) != IGNORE for name in names):
            return space
    return _SPACES[0]
