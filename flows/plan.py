"""The plan of a run: its stages, what each reads, where it writes, how it is done.

The command line and the Prefect flow both walk this plan, so either continues what the other
began.
"""

import hashlib
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.segmentation import SegmentationConfig, SelectionConfig
from pipeline.config.settings import Config
from pipeline.config.translation import TRANSLATED, CycleGANConfig, place
from pipeline.config.translators import TRANSLATORS, TranslationInputs
from pipeline.data.labels import LabelSpace, load_label_space
from pipeline.data.listing import Sample, digest, instance_finder, list_samples
from pipeline.data.reading import decoder_code
from pipeline.data.spec import DatasetSpec, limited, translated_spec
from pipeline.errors import UserError
from pipeline.run.contents import hashes
from pipeline.run.folder import (
    Inputs,
    cyclegan_folder,
    gate_folder,
    network_folder,
    translated_folder,
)
from pipeline.run.stage import Settings, Stage
from pipeline.schema import parse
from pipeline.scoring.cityscapes import has_official_scores
from pipeline.scoring.drift import gated_spec

if TYPE_CHECKING:
    from segmentation.validation import Validation

# Work functions import their libraries when called: `status` needs neither torch nor smp.


def plan(config: Config, run: Path) -> list[Stage]:
    """The stages of a run, each after those that it reads."""
    space = load_label_space(config.label_space)
    stages: dict[str, Stage] = {}
    shown: list[str] = []

    def add(stage: Stage) -> None:
        stages.setdefault(stage.name, stage)

    def train(arm: str, seed: int) -> None:
        for name in config.arms[arm].networks:
            if name in config.arms:
                train(name, seed)
        for frames in config.arms[arm].train:
            gate(frames)
        add(_training(config, run, space, arm, seed))

    def gate(frames: str) -> None:
        if (looks := config.gate_arm(frames)) is not None:
            train(looks, config.seeds[0])
            add(_gate(config, run, space, frames, looks))

    for name, translation in config.used_translations.items():
        if translation.pseudo_labels:
            train(translation.pseudo_labels, config.seeds[0])
            add(_pseudo_labels(config, run, translation.pseudo_labels))
        if translation.trains:
            if semantics := config.cyclegan_recipe(name).semantics:
                train(config.semantics_arm(semantics), config.seeds[0])
            add(_cyclegan(config, run, space, name))
        add(_translation(config, run, space, name))
    for seed in config.seeds:
        for arm in config.arms:
            train(arm, seed)
            looks = [_evaluation(config, run, space, arm, seed)]
            if config.selection and not config.sees_target_labels(arm):
                looks.append(_selection(config, config.selection, run, space, arm, seed))
            for look in looks:
                add(look)
                shown.append(look.name)
    for name in config.used_translations:
        gate(name)
        shown += [gate_folder(name)] if gate_folder(name) in stages else []
    add(_report(config, run, tuple(shown)))
    return list(stages.values())


def gate_plan(config: Config, run: Path) -> list[Stage]:
    """The gates of all translations of a run, and the stages that they read.

    Those that have none get one by default; the run's plan stays without it.

    Raises:
        UserError: no network can be the gate of a translation.
    """
    fields = config.model_dump(mode="json")
    known = {TRANSLATED: fields["translation"], **fields["translations"]}
    for name in config.used_translations:
        known[name]["gate"] = known[name]["gate"] or {}
    stages = plan(parse(Config, fields, "the run's configuration with gates"), run)
    needed: set[str] = set()
    for stage in reversed(stages):
        if stage.command == "gate" or stage.name in needed:
            needed |= {stage.name, *stage.reads}
    return [stage for stage in stages if stage.name in needed] or stages


def _spec(config: Config, run: Path, frames: str, number: int | None = None) -> DatasetSpec:
    """The data set that a name of frames means: `source`, `target` or a translation.

    Args:
        number: so many of its frames, evenly spaced; None: all.
    """
    if frames in ("source", "target"):
        return config.labelled(frames, number)
    return limited(translated_spec(config.source, run / translated_folder(frames)), number)


def _training_spec(
    config: Config, run: Path, space: LabelSpace, frames: str, number: int | None
) -> DatasetSpec:
    """The same as arms train on it: what a gate has left of a translation."""
    spec, made = _spec(config, run, frames, number), config.all_translations.get(frames)
    if made is None or made.gate is None:
        return spec
    return gated_spec(spec, run / gate_folder(frames), space if made.gate.ignore_flipped else None)


def _making(config: Config, *frames: str | None) -> tuple[str, ...]:
    """The stages that make frames, where some do."""
    return tuple(translated_folder(name) for name in frames if name in config.all_translations)


def _cyclegan(config: Config, run: Path, space: LabelSpace, translation: str) -> Stage:
    settings, recipe = config.all_translations[translation], config.cyclegan_recipe(translation)
    semantics = recipe.semantics
    watches = config.semantics_arm(semantics) if semantics else None
    evaluator = (network_folder("segmentation", watches, config.seeds[0]),) if watches else ()
    labels = _labels(config, translation)
    name = cyclegan_folder(translation)

    def inputs() -> Inputs:
        start, encoder = recipe.start, Path(recipe.feature_encoder_weights)
        content = {"feature_encoder_weights": _content(encoder, run)} if encoder.is_file() else {}
        return {
            "version": 2,
            "config": Settings(_identity(recipe), frozenset({"start"}), content),
            # Frames that another stage makes are known by the stage.
            "source": _frames(
                config.source, run, labelled=semantics is not None or recipe.reads_labels
            ),
            **({} if settings.teacher else {"target": _frames(config.target, run)}),
            **({"label_space": _classes(space)} if recipe.reads_labels else {}),
            **({"start": _start(start, recipe.one_way, run)} if start else {}),
        }

    def work(folder: Path) -> None:
        from cyclegan.data import DomainLabels
        from cyclegan.train import train
        from cyclegan.train_contrastive import train_contrastive
        from cyclegan.train_paired import train_paired
        from flows.networks import frozen_encoder, semantic_evaluator
        from pipeline.runtime.distributed import process_group

        source, target = (
            _spec(config, run, frames) for frames in (settings.source, settings.teacher or "target")
        )
        arguments = (recipe, source, target, folder, config.compute)
        encoder_on = partial(frozen_encoder, recipe) if recipe.feature_encoder else None
        judge_on = None
        if evaluator:
            judge_on = partial(semantic_evaluator, config, space, run / evaluator[0])
        told = DomainLabels(space, run / labels[0]) if labels else None
        with process_group(config.compute) as ranks:
            if recipe.paired:
                train_paired(*arguments, ranks)
            elif recipe.contrastive:
                train_contrastive(*arguments, ranks, encoder_on=encoder_on, labels=told)
            else:
                train(*arguments, judge_on, ranks, encoder_on=encoder_on, labels=told)

    reads = (*evaluator, *labels, *_making(config, settings.source, settings.teacher))
    results = ("checkpoints/*.pt", "leaderboard.csv", "drift.json")
    devices = config.compute.devices
    return Stage(name, "train-cyclegan", reads, inputs, work, results, devices)


def _identity(recipe: CycleGANConfig) -> CycleGANConfig:
    """A recipe without the name of the arm that watches: the stage that is read tells which."""
    if recipe.semantics is None:
        return recipe
    return recipe.model_copy(
        update={"semantics": recipe.semantics.model_copy(update={"arm": None})}
    )


def _start(start: Path, one_way: bool, run: Path) -> Inputs | str:
    """The content of what CycleGAN starts from."""
    from cyclegan.reference import reference_files

    if not start.is_dir():
        return _content(start, run)
    files = reference_files(start, one_way=one_way)
    return {name: _content(path, run) for name, path in files.items()}


def _labels(config: Config, translation: str) -> tuple[str, ...]:
    """The stage that labels the target for a translation, where one does."""
    arm = config.all_translations[translation].pseudo_labels
    return (network_folder("pseudo_labels", arm, config.seeds[0]),) if arm else ()


def _pseudo_labels(config: Config, run: Path, arm: str) -> Stage:
    training = network_folder("segmentation", arm, config.seeds[0])

    def inputs() -> Inputs:
        return {"version": 1, "target": _frames(config.target, run)}

    def work(folder: Path) -> None:
        from segmentation.pseudo_labels import label_frames
        from segmentation.train import CHECKPOINT

        label_frames(config.target, run / training / CHECKPOINT, folder, config.compute)

    place = network_folder("pseudo_labels", arm, config.seeds[0])
    results = ("labels/**/*", "confidences/**/*")
    return Stage(place, "label-target", (training,), inputs, work, results)


def _translation(config: Config, run: Path, space: LabelSpace, name: str) -> Stage:
    settings = config.all_translations[name]
    translator = settings.translator
    labels = _labels(config, name) if translator.reads_labels else ()

    def inputs() -> Inputs:
        # What frames it starts from and how networks are trained is in the stages that it reads.
        unused = set(type(settings).model_fields) - translator.settings - {"method"}
        unused |= {"cyclegan", "source", "teacher"}
        content = {"weights": _content(settings.weights, run)} if settings.weights else {}
        return {
            "version": translator.version,
            "config": Settings(settings, frozenset(unused), content),
            "source": _frames(config.source, run, labelled=translator.reads_labels),
            **({"target": _frames(config.target, run)} if translator.reads_target else {}),
            **({"label_space": _classes(space)} if translator.reads_labels else {}),
        }

    def work(folder: Path, *part: int) -> None:
        given = TranslationInputs(
            _spec(config, run, settings.source),
            config.target,
            generator_file(config, run, name) if translator.trains else None,
            space,
            run / labels[0] if labels else None,
            (part[0], part[1]) if part else None,
        )
        translator.load()(settings, given, folder, config.compute)

    trained = (cyclegan_folder(name),) if settings.trains else ()
    results = ("images/**/*", "manifest.csv", "dataset.yaml")
    reads = (*trained, *labels, *_making(config, settings.source))
    return Stage(translated_folder(name), "translate", reads, inputs, work, results, part=work)


def _gate(config: Config, run: Path, space: LabelSpace, name: str, arm: str) -> Stage:
    settings, stage = config.all_translations[name].gate, gate_folder(name)
    training = network_folder("segmentation", arm, config.seeds[0])
    assert settings is not None

    def inputs() -> Inputs:
        return {
            "version": 1,
            "config": Settings(settings, frozenset({"arm"})),  # the stage that is read tells which
            "label_space": _classes(space),
            "source": _frames(config.source, run, labelled=True),
        }

    def work(folder: Path) -> None:
        from segmentation.gate import look_at_translation
        from segmentation.train import CHECKPOINT

        look_at_translation(
            settings,
            space,
            config.source,
            _spec(config, run, name),
            run / training / CHECKPOINT,
            folder,
            config.compute,
            stage=stage,
            translation=name,
            arm=arm,
        )

    results = ("drift.*", "quarantine.csv", "labels/**/*.png", "worst.png", "worst/*.png")
    return Stage(stage, "gate", (training, *_making(config, name)), inputs, work, results)


def generator_file(config: Config, run: Path, translation: str = TRANSLATED) -> Path:
    """The file of weights that a run translates with.

    Raises:
        UserError: it has no such translation, or translates without one.
    """
    from cyclegan.steps import BEST, CHECKPOINT

    if translation not in config.used_translations:
        known = ", ".join(config.used_translations) or "none"
        raise UserError(f"{run} has no translation {translation!r}. It has: {known}.")
    settings = config.all_translations[translation]
    if not settings.translator.trains:
        methods = [repr(name) for name, entry in TRANSLATORS.items() if entry.trains]
        raise UserError(
            f"{run} translates with {place(translation)}.method {settings.method!r}, which has no "
            f"generator. Name a translation by {' or '.join(methods)}, or a file of weights."
        )
    best = settings.checkpoint == "best"
    trained = run / cyclegan_folder(translation) / (BEST if best else CHECKPOINT)
    return settings.weights or trained


def _training(config: Config, run: Path, space: LabelSpace, name: str, seed: int) -> Stage:
    arm = config.arms[name]
    trained = {
        network: network_folder("segmentation", network, seed)
        for network in arm.networks
        if network in config.arms
    }

    def inputs() -> Inputs:
        teaching: Inputs = {}
        if arm.self_training:
            teaching = {
                "self_training": Settings(arm.self_training),
                "target": _frames(config.target, run),
            }
        if arm.start and arm.start not in trained:
            teaching["start"] = _content(Path(arm.start), run)
        return {
            "version": 2,
            "config": _recipe(config.recipe(name), run),
            "seed": seed,
            # A network of 16 classes can be scored on 13 of them.
            "label_space": _classes(space),
            "train": {
                kind: {
                    "share": share,
                    "dataset": _frames(
                        config.labelled(kind, arm.frames.get(kind)), run, labelled=True
                    ),
                }
                for kind, share in arm.weights.items()
            },
            **teaching,
        }

    def work(folder: Path) -> None:
        from pipeline.runtime.distributed import process_group
        from segmentation.train import CHECKPOINT, train

        files = {network: run / place / CHECKPOINT for network, place in trained.items()}
        start = files.get(arm.start, Path(arm.start)) if arm.start else None
        teacher = arm.self_training and arm.self_training.teacher
        # Without labels that it could read.
        target = config.target.model_copy(update={"labels": None}) if arm.self_training else None
        with process_group(config.compute) as ranks:
            train(
                config.recipe(name),
                space,
                [
                    (_training_spec(config, run, space, kind, arm.frames.get(kind)), share)
                    for kind, share in arm.weights.items()
                ],
                seed,
                folder,
                config.compute,
                ranks,
                start=start,
                self_training=arm.self_training,
                teacher_checkpoint=files[teacher] if teacher else None,
                target=target,
                validation=_validation(config, space),
                title=f"segmentation {name} seed {seed}",
            )

    gates = (gate_folder(kind) for kind in arm.train if config.gate_arm(kind))
    reads = (*_making(config, *arm.train), *gates, *trained.values())
    where = network_folder("segmentation", name, seed)
    results, devices = ("checkpoints/*.pt",), config.compute.devices
    return Stage(where, "train-segmentation", reads, inputs, work, results, devices)


def _validation(config: Config, space: LabelSpace) -> "Validation | None":
    from segmentation.validation import Validation

    averaged = space.averaging(config.evaluation.classes)
    return Validation(config.validation, averaged) if config.validation else None


def _evaluation(config: Config, run: Path, space: LabelSpace, arm: str, seed: int) -> Stage:
    training = network_folder("segmentation", arm, seed)
    pictures, test = config.evaluation.pictures, config.test.model_dump_json()

    def inputs() -> Inputs:
        return {
            "version": 3,
            # How many of the pictures are shown is the report's affair.
            "config": Settings(config.evaluation, instead={"pictures": pictures > 0}),
            "not_averaged": [c.name for c in space.classes if not c.averaged],
            "categories": space.categories,
            "test": _frames(config.test, run, labelled=True),
            **(_instance_files(test, run) if has_official_scores(space) else {"instances": None}),
        }

    def work(folder: Path) -> None:
        from segmentation.evaluate import evaluate
        from segmentation.train import CHECKPOINT

        evaluate(
            config.evaluation,
            space,
            config.test,
            run / training / CHECKPOINT,
            folder,
            config.compute,
            arm=arm,
            seed=seed,
        )

    place = network_folder("evaluation", arm, seed)
    results = ("evaluation.json", "official.json", "per_image.csv", "per_image.npz")
    return Stage(place, "evaluate", (training,), inputs, work, results)


def _selection(
    config: Config, selection: SelectionConfig, run: Path, space: LabelSpace, arm: str, seed: int
) -> Stage:
    training = network_folder("segmentation", arm, seed)

    def inputs() -> Inputs:
        return {
            "version": 1,
            "config": Settings(selection),
            "label_space": _classes(space),
            "target": _frames(config.target, run),
            "source": _frames(config.source, run, labelled=True),
        }

    def work(folder: Path) -> None:
        from segmentation.selection import measure
        from segmentation.train import CHECKPOINT

        measure(
            selection,
            space,
            config.target.model_copy(update={"labels": None}),  # without labels to read
            config.source,
            run / training / CHECKPOINT,
            folder,
            config.compute,
            title=f"selection {arm}",
        )

    place = network_folder("selection", arm, seed)
    results = ("criteria.json", "predictions/**/*.png")
    return Stage(place, "select", (training,), inputs, work, results)


def _report(config: Config, run: Path, shown: tuple[str, ...]) -> Stage:
    def inputs() -> Inputs:
        steps = {arm: [own.title, own.base] for arm, own in config.arms.items()}
        shown = any(part for pair in steps.values() for part in pair)
        return {
            "version": 3,
            "name": config.name,
            "pictures": config.evaluation.pictures,
            **({"steps": steps} if shown else {}),
        }

    def work(folder: Path) -> None:
        from reports.report import write_report

        write_report(config, run, folder)

    return Stage("report", "report", shown, inputs, work, ("*.html", "*.json", "*.csv", "*.md"))


def _recipe(config: SegmentationConfig, run: Path) -> Settings:
    """The settings of a training, with a weights file's content in place of its path."""
    path = Path(config.encoder_weights)
    content = {"encoder_weights": _content(path, run)} if path.is_file() else {}
    return Settings(config, instead=content)


def _classes(space: LabelSpace) -> Inputs:
    """What labels mean; which classes are averaged is the evaluation's affair."""
    return space.model_dump(
        mode="json", include={"classes": {"__all__": {"name", "names", "color"}}}
    )


def _content(path: Path, run: Path) -> str:
    """A file's content as a part of a stage's identity."""
    if not path.is_file():
        raise UserError(f"No file {path}. Give the path of the weights, or leave it out.")
    return hashes([path], run, path.name)[0][:16]


@cache
def _listing(spec_json: str, labelled: bool, run: Path) -> Inputs:
    """The frames of a data set: names and sizes of their files, and what is in these."""
    spec = DatasetSpec.model_validate_json(spec_json)
    samples = list_samples(spec, labelled=labelled)
    return {"samples": digest(samples), "content": _contents(samples, run, spec.name)}


def _contents(samples: list[Sample], run: Path, title: str) -> str:
    """A hash of all that is in the files of `samples`."""
    files = [file for s in samples for file in (s.image, s.label) if file is not None]
    found = hashes(files, run, f"{title}: content of files")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


@cache
def _instance_files(spec_json: str, run: Path) -> Inputs:
    """What tells objects apart: a hash of the files' listing, or their pattern where none is."""
    spec = DatasetSpec.model_validate_json(spec_json)
    names = [sample.name for sample in list_samples(spec, labelled=False)]
    files = zip(names, map(instance_finder(spec), names), strict=True)
    found = [Sample(name, file) for name, file in files if file is not None]
    if not found:
        return {"instances": spec.instances}
    content = _contents(found, run, f"{spec.name}, instances")
    return {"instances": digest(found), "instances_content": content}


def _frames(spec: DatasetSpec, run: Path, *, labelled: bool = False) -> Inputs:
    """A data set as a part of a stage's identity: how it is read and what is there, not where."""
    # What a split or a quarantine leaves is in the listing of the samples.
    # Instances are read by the evaluation alone, which says so itself.
    unseen = {"root", "label_root", "splits", "quarantine", "about", "instances", "confirmed"}
    if not labelled:
        unseen |= {"labels", "encoding", "channel", "divide", "label_scale"}
        unseen |= {"decoder", "values", "strict"}
    fields = spec.model_dump(mode="json", exclude=unseen, exclude_defaults=True)
    if labelled and spec.decoder is not None:
        fields["decoder"] = Path(spec.decoder).name  # not where its file is
        fields["decoder_code"] = decoder_code(spec.decoder)
    return {**fields, **_listing(spec.model_dump_json(), labelled, run)}
