"""`run --ablate`: a configuration whose arms show what each step of an adaptation brings."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from flows.plan import plan
from pipeline.config.fields import overlay
from pipeline.config.settings import AFTER, BEFORE, IDEAL, Config
from pipeline.config.translation import TRANSLATED, TranslationConfig
from pipeline.config.translators import TRANSLATORS
from pipeline.files import TAKEN
from pipeline.run.folder import check_results, fingerprint, read_stage, stage_state
from pipeline.run.stage import check, is_done
from pipeline.schema import parse

PLAIN = {"scale": [1, 1], "flip": False, "color": 0, "hue": 0, "blur": 0, "noise": 0}
"""Augmentation that leaves frames as they are, but for the random crop."""
SEMANTIC = "semantic_consistency"
"""The name of the arm with semantic consistency, and of its translation."""

Fields = dict[str, Any]
Arms = dict[str, Fields]


def ablation(config: Config) -> Config:
    """A configuration with an arm for each step of an adaptation, each added to an earlier one.

    Data sets, networks and recipes are the configuration's. Its settings of semantic consistency,
    and its first arm with self-training on translated frames and on no label of the target, with
    rare class sampling and masking, are those of the arms that add them; without any, these arms
    take the defaults. Left out are gates, semantic consistency for pairs and given weights, and the
    oracle where no arm may see the target's labels.
    """
    if config.translation.teacher:  # the networks of a student are no CycleGAN
        config = config.model_copy(update={"translation": TranslationConfig()})
    weights = config.translation.weights
    recipe = config.cyclegan_recipe(TRANSLATED)
    own_cyclegan = {k: v for k, v in config.translation.cyclegan.items() if k != "semantics"}
    trains = config.translation.translator.trains
    method = config.translation.method if trains else "cyclegan"
    labels = {"pseudo_labels": BEFORE if recipe.reads_labels and weights is None else None}
    untrained: Arms = {
        name: {"method": name, **({"pseudo_labels": BEFORE} if entry.reads_labels else {})}
        for name, entry in TRANSLATORS.items()
        if not entry.trains
    }
    fields = config.model_dump(mode="json")
    own_translations = {
        name: own | {"pseudo_labels": _kept(config, own["pseudo_labels"]), "gate": None}
        for name, own in fields["translations"].items()
    }
    translations: Arms = {**own_translations, **untrained}
    arms: Arms = {
        "no_augmentation": {
            "train": "source",
            "title": "source only, without augmentation",
            "segmentation": {"augmentation": PLAIN},
        },
        BEFORE: {"train": "source", "title": "source only", "base": "no_augmentation"},
        **{
            name: {"train": name, "title": TRANSLATORS[name].title, "base": BEFORE}
            for name in untrained
        },
        AFTER: {
            "train": TRANSLATED,
            "title": f"generator {weights.name}" if weights else TRANSLATORS[method].title,
            "base": BEFORE,
        },
    }
    last = AFTER
    if weights is None and not recipe.one_way:
        semantics = recipe.semantics
        own = semantics.model_dump(mode="json", exclude_defaults=True) if semantics else {}
        own = {**own, "arm": BEFORE, "consistency": own.get("consistency") or 1}
        translations[SEMANTIC] = {
            "checkpoint": config.translation.checkpoint,
            "shifts": config.translation.shifts,
            "cyclegan": {**own_cyclegan, "semantics": own},
            **labels,
        }
        title = "+ semantic consistency"
        arms[SEMANTIC] = {"train": SEMANTIC, "title": title, "base": AFTER}
        last = SEMANTIC
    arms |= _self_training(config, last)
    if "target" in config.labels_read:
        arms[IDEAL] = {"train": "target", "title": "oracle"}
    fields["cyclegan"]["semantics"] = None
    fields["segmentation"]["rare_class_sampling"] = None
    used = TRANSLATORS[method].settings
    plain = {key: value for key, value in fields["translation"].items() if key in used}
    plain |= {"method": method, "checkpoint": "last", "cyclegan": own_cyclegan}
    fields["translation"] = plain | labels
    fields |= {"name": f"{config.name}-ablation", "arms": arms, "translations": translations}
    return parse(Config, fields, "the configuration of --ablate")


def _self_training(config: Config, last: str) -> Arms:
    """The arms that add self-training, rare class sampling and masked consistency to `last`."""
    arm, arms, last = _recipe(config, last)
    rare = arm["segmentation"].get("rare_class_sampling")
    if rare is None:
        own = config.segmentation.rare_class_sampling
        rare = own.model_dump(mode="json") if own else {}
    masked = arm["self_training"].get("masked_weight") or 1
    plain = {"segmentation": {"rare_class_sampling": None}, "self_training": {"masked_weight": 0}}
    arm = overlay(arm, plain)
    for step, title, added in (
        ("self_training", "+ self-training", {}),
        (
            "rare_class_sampling",
            "+ rare class sampling",
            {"segmentation": {"rare_class_sampling": rare}},
        ),
        (
            "masked_consistency",
            "+ masked consistency",
            {"self_training": {"masked_weight": masked}},
        ),
    ):
        arm = overlay(arm, added) | {"title": title, "base": last}
        arms[step] = arm
        last = step
    return arms


def _recipe(config: Config, last: str) -> tuple[Fields, Arms, str]:
    """The configuration's own self-training, or the defaults; the arms that it needs; its base.

    The base is `last`, whose frames take the place of `translated`. Of a recipe that trains on
    others, it is the arm that it starts from or is taught by.
    """
    translation = SEMANTIC if last == SEMANTIC else TRANSLATED

    def fields(name: str) -> Fields:
        arm = config.arms[name].model_dump(mode="json", exclude={"title", "base"})
        arm["train"] = {
            translation if kind == TRANSLATED else kind: weight
            for kind, weight in arm["train"].items()
        }
        arm["start"] = _kept(config, arm["start"])
        if arm["self_training"]:
            arm["self_training"]["teacher"] = _kept(config, arm["self_training"]["teacher"])
        return arm

    known = set(config.all_translations)
    for name, arm in config.arms.items():
        needed = _needed(config, name)
        frames = {kind for link in (*needed, name) for kind in config.arms[link].train}
        if arm.self_training and frames & known and not config.sees_target_labels(name):
            links = {str(_kept(config, link)): link for link in needed}
            arms = {new: fields(old) for new, old in links.items() if new != old}
            if TRANSLATED not in arm.train:
                builds_on = (_kept(config, link) for link in arm.networks)
                last = next((name for name in builds_on if name in arms), BEFORE)
            return fields(name), arms, last
    return {"train": translation, "self_training": {}, "segmentation": {}}, {}, last


def _kept(config: Config, network: str | None) -> str | None:
    """What an arm of the configuration is called beside the steps; other names stay."""
    same = network == BEFORE and config.arms[BEFORE].only == "source"
    return network if same or network not in config.arms else f"start_{network}"


def _needed(config: Config, arm: str) -> list[str]:
    """The arms whose networks an arm or its frames are made with, each after those of its own."""
    found: list[str] = []

    def visit(name: str) -> None:
        frames = [kind for kind in config.arms[name].train if kind != TRANSLATED]
        labellers = []
        while frames:
            if made := config.all_translations.get(frames.pop()):
                frames += [made.source, made.teacher or "source"]
                labellers.append(made.pseudo_labels)
        for other in (*labellers, *config.arms[name].networks):
            if other in config.arms and other not in found:
                visit(str(other))
                found.append(str(other))

    visit(arm)
    return found


def take_over(config: Config, run: Path, other: Path) -> list[str]:
    """Give a run the stages that it has not begun and that `other` made from equal inputs.

    Files are linked, or copied where the file system has no links: no stage changes them once it
    is done. A stage's folder appears whole or not at all.

    Returns:
        The names of the stages.
    """
    stages = plan(config, run)
    inputs = check(run, stages)
    taken = []
    for stage in stages:
        if stage.command == "report" or not is_done(other, stage.name):
            continue
        if stage_state(run, stage.name, inputs[stage.name]) != "absent":
            continue
        if read_stage(other, stage.name).fingerprint == fingerprint(inputs[stage.name]):
            check_results(other, stage.name)
            _link_tree(other / stage.name, run / stage.name)
            taken.append(stage.name)
    return taken


def _link_tree(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=TAKEN, dir=place.parent))
    shutil.copytree(source, part / place.name, copy_function=_link)
    os.replace(part / place.name, place)
    part.rmdir()


def _link(source: str, place: str) -> None:
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)
