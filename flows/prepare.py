"""Everything that is looked at before any work starts."""

import os
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from flows.plan import plan
from pipeline.config.segmentation import SegmentationConfig
from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig, place
from pipeline.data.labels import load_label_space
from pipeline.data.listing import label_finder, list_samples, not_here
from pipeline.data.reading import LabelReader, read_frame, working_size
from pipeline.data.spec import DatasetSpec, limited, missing_classes
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.intake.headers import check_headers
from pipeline.intake.lost import Lost, lost_classes, refuse
from pipeline.run.folder import LOST_FILE, write_run
from pipeline.run.stage import Stage, check, is_done, named, remove, reports_of_others
from pipeline.text import count

_OTHER_WAYS = "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT"


def preflight(config: Config) -> None:
    """Check that every data set, name and size of a configuration can work.

    Looks at the listing and all headers of each data set, decodes its first frame and label, and
    builds the network once. Frames beyond the first are decoded when they are read.

    Raises:
        UserError: shows all that is wrong at once; what needs networks, whose weights may come from
            a hub, only where the rest is right.
    """
    look_at_data(config)
    try_networks(config)


def _all_at_once(looks: Iterable[Callable[[], object]]) -> None:
    """Look at everything, and raise one `UserError` of all that is wrong."""
    problems: list[str] = []
    for look in looks:
        try:
            look()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def try_networks(config: Config) -> None:
    """Build each network once."""
    from flows.networks import frozen_encoder

    used = config.used_translations
    recipes = [config.cyclegan_recipe(name) for name in used if used[name].trains]
    asks = "imagenet" in {
        *(recipe.feature_encoder_weights for recipe in recipes if recipe.feature_encoder),
        *(config.recipe(arm).encoder_weights for arm in config.arms),
    }
    if asks and not hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # else each network waits for half a minute of retries
        if constants := sys.modules.get("huggingface_hub.constants"):
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    encoders = [partial(frozen_encoder, r, "cpu") for r in recipes if r.feature_encoder]
    _all_at_once([*encoders, partial(_networks, config)])


def hub_answers() -> bool:
    """Whether the hub of weights can be reached; True where a proxy or a mirror may know more."""
    if any(os.environ.get(name) for name in _OTHER_WAYS):
        return True
    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError:
        return False
    return True


def look_at_data(config: Config, *, devices: bool = True) -> None:
    """What `preflight` looks at without building a network.

    Args:
        devices: whether it is this machine that trains.

    Raises:
        UserError: shows all that is wrong at once.
    """
    from cyclegan.checkpoints import load_start
    from cyclegan.steps import check_crop

    looks: list[Callable[[], object]] = []
    collect = looks.append
    kinds = config.labels_read
    arms = config.arms.values()
    all_target = any("target" in arm.train.keys() - arm.frames for arm in arms)
    used = config.used_translations
    recipes = {name: config.cyclegan_recipe(name) for name in used if used[name].trains}
    crop = _largest_crop(recipes.values())
    target_crop = _largest_crop(r for name, r in recipes.items() if not used[name].teacher)
    collect(lambda: _look_at(config, config.source, bool(kinds - {"target"}), crop))
    collect(lambda: _look_at(config, config.target, all_target, target_crop))
    collect(lambda: _look_at(config, config.test, True))
    if config.validation is not None:
        collect(partial(_look_at_validation, config, config.validation))
    for part in dict.fromkeys(part for arm in arms for part in arm.frames.items()):
        collect(partial(_look_at_subset, config, *part))
    for name, translation in used.items():
        if translation.weights is not None:
            collect(partial(_generator, name, translation.weights))
    for name, recipe in recipes.items():
        collect(partial(check_crop, recipe))
        if recipe.paired and not used[name].teacher:
            collect(partial(_pairs, config))
        if recipe.start is not None:
            collect(partial(load_start, recipe))
    if devices:
        collect(lambda: _devices(config))
    collect(lambda: _scoring(config))
    collect(lambda: _names(config))
    _all_at_once(looks)


def _look_at_validation(config: Config, spec: DatasetSpec) -> None:
    def images(one: DatasetSpec) -> set[Path]:
        return {sample.image.resolve() for sample in list_samples(one, labelled=False)}

    frames, tested = images(spec), images(config.test)
    if shared := frames & tested:
        raise UserError(
            f"validation: {count(len(shared), 'frame')} of data set {spec.name} "
            f"{'is' if len(shared) == 1 else 'are'} of the test set, e.g. {min(shared)}. A network "
            "is not looked at through these while it trains: take another split."
        )
    learning = [
        name
        for name, arm in config.arms.items()
        if "target" in arm.train
        and frames & images(config.labelled("target", arm.frames.get("target")))
    ]
    if learning:
        print(
            f"Note: labels of validation frames are learned by {', '.join(learning)}, where the "
            "curve shows what is remembered. Frames that no arm learns from show more.",
            file=sys.stderr,
        )
    _look_at(config, spec, True)


def _look_at_subset(config: Config, kind: str, frames: int) -> None:
    spec = config.labelled(kind)
    here = len(list_samples(spec, labelled=False))
    if frames > here:
        arms = [name for name, arm in config.arms.items() if arm.frames.get(kind) == frames]
        raise UserError(
            f"{count(frames, 'frame')} of {kind} are to be learned from ({', '.join(arms)}), and "
            f"data set {spec.name} has {here:,}. Take at most so many, or all: `{kind}` without "
            "`frames`."
        )
    _look_at(config, limited(spec, frames), True)


def _look_at(
    config: Config, spec: DatasetSpec, labelled: bool, crop: tuple[int, int] | None = None
) -> None:
    try:
        samples = list_samples(spec, labelled=labelled)
    except UserError as error:
        if labelled and spec == config.source and not has_labels(spec):
            raise UserError(
                f"{error} Frames without labels are translated outside of a run: `sim2real "
                "translate WEIGHTS --input FOLDER --out DIR`."
            ) from error
        if not labelled or spec != limited(config.target, spec.limit):
            raise
        what = error if has_labels(spec) else f"Data set {spec.name}: no frame has a label."
        raise UserError(f"{what} {config.without_target_labels}") from error
    if spec in config.datasets.values() and (seen := not_here(spec)):
        print(f"Note: data set {spec.name}: {seen}.", file=sys.stderr)
    check_headers(spec, samples, crop=crop)
    read_frame(spec, samples[0])
    if labelled:
        space = load_label_space(config.label_space)
        LabelReader(spec, space).read(samples[0])
        if len(missing_classes(spec, space)) == len(space.classes):
            raise UserError(
                f"Data set {spec.name} names nothing that label space {space.name} has a class "
                "for. Choose another label_space, or fix `values`."
            )


def has_labels(spec: DatasetSpec) -> bool:
    """Whether at least one frame has a label.

    Raises:
        UserError: there are no frames.
    """
    frames = list_samples(spec, labelled=False)
    if spec.labels is None:
        return False
    label_files = label_finder(spec)
    return any(label_files(frame.name) for frame in frames)


def _largest_crop(recipes: Iterable[CycleGANConfig]) -> tuple[int, int] | None:
    crops = [recipe.crop for recipe in recipes]
    return (max(w for w, _ in crops), max(h for _, h in crops)) if crops else None


def _names(config: Config) -> None:
    """Raise `UserError` for names of networks that there are not."""
    from segmentation.models import check_names

    problems = [line for arm in config.arms for line in check_names(config.recipe(arm))]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def _pairs(config: Config) -> None:
    from cyclegan.data import pairs

    both = pairs(config.source, config.target)
    specs = config.source, config.target
    sizes = [
        [working_size(spec, size) for size in check_headers(spec, samples)]
        for spec, samples in zip(specs, both, strict=True)
    ]
    differ = [i for i, (one, other) in enumerate(zip(*sizes, strict=True)) if one != other]
    if differ:
        images = [samples[differ[0]].image for samples in both]
        read = [f"{size[differ[0]][0]}x{size[differ[0]][1]}" for size in sizes]
        raise UserError(
            f"{len(differ):,} of {len(both[0]):,} pairs: {images[0]} is read at {read[0]}, "
            f"its pair {images[1]} at {read[1]}. Pairs must have one size: set `width` of both "
            "data sets."
        )


def _generator(translation: str, weights: Path) -> None:
    from cyclegan.checkpoints import load_generator

    if not weights.is_file():
        raise UserError(f"{place(translation)}.weights: no file {weights}.")
    load_generator(weights)


def _devices(config: Config) -> None:
    from pipeline.runtime.device import check_devices
    from pipeline.runtime.launch import torchrun

    check_devices(config.compute)
    if launch := torchrun():
        try:
            config.check_batches(launch.world_size, "the number of torchrun's processes")
        except ValueError as error:
            raise UserError(str(error)) from error


def _networks(config: Config) -> None:
    from segmentation.losses import class_weights
    from segmentation.models import try_model
    from segmentation.train import check_start

    space = load_label_space(config.label_space)
    tried: list[SegmentationConfig] = []
    for name, arm in config.arms.items():
        if (recipe := config.recipe(name)) not in tried:
            if isinstance(recipe.class_weights, dict):
                class_weights(recipe.class_weights, space)
            try_model(recipe, len(space.classes))
            tried.append(recipe)
        if arm.start and arm.start not in config.arms:
            check_start(Path(arm.start), recipe, space)


def _scoring(config: Config) -> None:
    from segmentation.scores import label_ids

    space = load_label_space(config.label_space).averaging(config.evaluation.classes)
    if config.evaluation.save == "label_ids":
        label_ids(space)


def lost_in(config: Config, file: Path | None) -> list[Lost]:
    """The classes that fall to nothing in the labels that a run reads.

    Args:
        file: what the configuration was read from, for the lines that are to be changed.
    """
    parts = config.datasets
    if "target" not in config.labels_read:
        del parts["target"]
    return lost_classes(parts, load_label_space(config.label_space), file)


def prepare(
    config: Config,
    run: Path,
    forced: list[str],
    file: Path | None = None,
    *,
    devices: bool = True,
) -> list[Stage]:
    """Check a configuration against its data and the run folder, then record it there.

    A report of other arms, seeds or settings is removed: the run makes it anew.

    Args:
        forced: names of stages to remove, with all that reads them.
        file: what the configuration was read from.
        devices: whether it is this machine that trains.

    Returns:
        The plan of the run.

    Raises:
        UserError: something cannot work, a class is lost, or the run holds stages made from other
            settings.
    """
    stages = plan(config, run)
    others = reports_of_others(run, stages)
    doomed = [*named(stages, forced), *others]
    if not doomed and all(is_done(run, stage.name) for stage in stages):
        check(run, stages)
        return stages
    look_at_data(config, devices=devices)
    lost = lost_in(config, file)
    refuse(lost)
    try_networks(config)
    check(run, stages, forced=doomed)
    for one in lost:
        print(f"Note: {one.text}.", file=sys.stderr)
    for name in others:
        print(f"Note: {run / name} is of other arms, seeds or settings; removed.", file=sys.stderr)
    remove(run, doomed)
    write_run(run, config)
    write_json(run / LOST_FILE, [one.model_dump(mode="json") for one in lost])
    return stages
