"""The stages of a run, bound to its folder: what each reads, where it writes, how it is done.

The command line and the Prefect flow both walk this plan, so either continues what the other
began.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.settings import Config, SegmentationConfig
from pipeline.data.labels import LabelSpace, load_label_space
from pipeline.data.listing import Sample, digest, instance_finder, list_samples
from pipeline.data.reading import decoder_code
from pipeline.data.spec import DatasetSpec, translated_spec
from pipeline.errors import UserError
from pipeline.files import remove_tree
from pipeline.progress import recorded as recorded_progress
from pipeline.run.contents import hashes
from pipeline.run.folder import (
    STAGE_FILE,
    Inputs,
    begin_stage,
    check_results,
    differences,
    fingerprint,
    finish_stage,
    read_stage,
    recorded_inputs,
    stage_state,
)
from pipeline.scoring.cityscapes import has_official_scores

if TYPE_CHECKING:
    from cyclegan.semantics import SemanticEvaluator


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    """Its folder below the run, e.g. `segmentation/adapted/seed-0`."""
    command: str
    """The command that runs it alone."""
    reads: tuple[str, ...]
    """Names of the stages whose results it reads."""
    inputs: Callable[[], Inputs]
    """Everything its result depends on, without what `reads` adds."""
    work: Callable[[Path], None]
    """Fills the folder; continues where an earlier call was interrupted."""
    results: tuple[str, ...] = ()
    """Patterns of the files in the folder that other stages, reports and commands read."""
    devices: int | None = None
    """Processes that do it together, one on each device; None: it is not made for several."""


# Work functions import their libraries when called: `status` needs neither torch nor smp.


def plan(config: Config, run: Path) -> list[Stage]:
    """The stages of a run, each after those that it reads."""
    space = load_label_space(config.label_space)
    stages = []
    if config.translates:
        if config.translation.trains:
            if config.cyclegan.semantics:
                stages.append(_training(config, run, space, *_judge_arm(config)))
            stages.append(_cyclegan(config, run, space))
        stages.append(_translation(config, run))
    evaluated = []
    for seed in config.seeds:
        for arm in config.arms:
            training = _training(config, run, space, arm, seed)
            if all(stage.name != training.name for stage in stages):
                stages.append(training)
            stages.append(_evaluation(config, run, space, arm, seed))
            evaluated.append(stages[-1].name)
    return [*stages, _report(config, run, tuple(evaluated))]


def _judge_arm(config: Config) -> tuple[str, int]:
    """The arm and seed whose network judges translations."""
    assert config.judge_arm is not None  # the configuration was checked
    return config.judge_arm, config.seeds[0]


def _cyclegan(config: Config, run: Path, space: LabelSpace) -> Stage:
    semantics = config.cyclegan.semantics
    judge = _path("segmentation", *_judge_arm(config)) if semantics else None

    def inputs() -> Inputs:
        start = config.cyclegan.start
        return {
            "version": 2,
            "config": config.cyclegan.model_dump(mode="json", exclude={"start"}),
            "source": _frames(config.source, run, labelled=semantics is not None),
            "target": _frames(config.target, run),
            **({"start": _start(start, config.cyclegan.paired, run)} if start else {}),
        }

    def work(folder: Path) -> None:
        from cyclegan.train import train
        from cyclegan.train_paired import train_paired
        from pipeline.runtime.distributed import process_group

        arguments = (config.cyclegan, config.source, config.target, folder, config.compute)
        with process_group(config.compute) as ranks:
            if config.cyclegan.paired:
                train_paired(*arguments, ranks)
            else:
                judge_on = _judge(config, space, run / judge) if judge else None
                train(*arguments, judge_on, ranks)

    reads = (judge,) if judge else ()
    results = ("checkpoints/*.pt", "leaderboard.csv", "drift.json")
    devices = config.compute.devices
    return Stage("cyclegan", "train-cyclegan", reads, inputs, work, results, devices)


def _start(start: Path, paired: bool, run: Path) -> Inputs | str:
    """The content of what CycleGAN starts from."""
    from cyclegan.reference import reference_files

    if not start.is_dir():
        return _content(start, run)
    files = reference_files(start, paired=paired)
    return {name: _content(path, run) for name, path in files.items()}


def _judge(
    config: Config, space: LabelSpace, training: Path
) -> "Callable[[Any], SemanticEvaluator]":
    """Makes a judge on a device of the network that was trained in the folder `training`."""
    return partial(_judge_on, config, space, training)


def _judge_on(
    config: Config, space: LabelSpace, training: Path, device: Any
) -> "SemanticEvaluator":
    from cyclegan.semantics import SemanticEvaluator
    from segmentation.models import build_model
    from segmentation.train import CHECKPOINT, load_segmenter

    recipe = config.recipe(_judge_arm(config)[0])
    segmenter = load_segmenter(training / CHECKPOINT).requires_grad_(False).to(device)
    eyes, weights = segmenter, f"trained in {training.parent.name}"
    if recipe.encoder_weights != "none":
        eyes = build_model(recipe, len(space.classes))
        eyes.eval().requires_grad_(False).to(device)
        weights = Path(recipe.encoder_weights).stem
    # Generators work in [-1, 1], segmentation networks in [0, 1].
    return SemanticEvaluator(
        lambda x: segmenter.logits((x + 1) / 2),
        lambda x: eyes.features((x + 1) / 2),
        f"{recipe.encoder}, {weights}",
        space,
    )


def _translation(config: Config, run: Path) -> Stage:
    settings = config.translation
    networks = {"checkpoint", "weights", "batch_norm", "shifts"}
    chance = {"method", "seed", "fda_beta"}

    def inputs() -> Inputs:
        if settings.method == "cyclegan":
            recipe = settings.model_dump(mode="json", exclude=chance)
            if settings.weights is not None:
                recipe["weights"] = _content(settings.weights, run)
            if recipe["batch_norm"] == "running":  # what there was before it could be chosen
                del recipe["batch_norm"]
            return {"version": 2, "config": recipe, "source": _frames(config.source, run)}
        unused = networks if settings.method == "fda" else networks | {"fda_beta"}
        return {
            "version": 1,
            "config": settings.model_dump(mode="json", exclude=unused),
            "source": _frames(config.source, run),
            "target": _frames(config.target, run),
        }

    def work(folder: Path) -> None:
        from cyclegan.statistics import translate_statistics
        from cyclegan.translate import translate

        source, target, compute = config.source, config.target, config.compute
        if settings.method == "cyclegan":
            translate(settings, translator(config, run), source, folder, compute)
        else:
            translate_statistics(settings, source, target, folder, compute)

    reads = ("cyclegan",) if settings.trains else ()
    results = ("images/**/*", "manifest.csv", "dataset.yaml")
    return Stage("translated", "translate", reads, inputs, work, results)


def translator(config: Config, run: Path) -> Path:
    """The file of weights that a run translates with.

    Raises:
        UserError: it translates without one.
    """
    from cyclegan.steps import BEST, CHECKPOINT

    if config.translation.method != "cyclegan":
        raise UserError(
            f"{run} translates with translation.method {config.translation.method!r}, which has no "
            "generator. Name a run that uses 'cyclegan', or a file of weights."
        )
    best = config.translation.checkpoint == "best"
    return config.translation.weights or run / "cyclegan" / (BEST if best else CHECKPOINT)


def _training(config: Config, run: Path, space: LabelSpace, name: str, seed: int) -> Stage:
    arm = config.arms[name]
    first = _path("segmentation", arm.start, seed) if arm.start in config.arms else None

    def inputs() -> Inputs:
        teaching: Inputs = {}
        if arm.self_training:
            teaching = {
                "self_training": arm.self_training.model_dump(mode="json"),
                "target": _frames(config.target, run),
            }
        if arm.start and not first:
            teaching["start"] = _content(Path(arm.start), run)
        return {
            "version": 2,
            "config": _recipe(config.recipe(name), run),
            "seed": seed,
            # A network of 16 classes can be scored on 13 of them.
            "label_space": space.model_dump(
                mode="json", include={"classes": {"__all__": {"name", "names", "color"}}}
            ),
            "train": {
                kind: {
                    "share": share,
                    "dataset": _frames(_labelled(config, kind), run, labelled=True),
                }
                for kind, share in arm.train.items()
            },
            **teaching,
        }

    def work(folder: Path) -> None:
        from pipeline.runtime.distributed import process_group
        from segmentation.train import CHECKPOINT, train

        start = run / first / CHECKPOINT if first else arm.start and Path(arm.start)
        specs = {
            "source": config.source,
            "translated": translated_spec(config.source, run / "translated"),
            "target": config.target,
        }
        # Without labels that it could read.
        target = config.target.model_copy(update={"labels": None}) if arm.self_training else None
        with process_group(config.compute) as ranks:
            train(
                config.recipe(name),
                space,
                [(specs[kind], share) for kind, share in arm.train.items()],
                seed,
                folder,
                config.compute,
                ranks,
                start=start or None,
                self_training=arm.self_training,
                target=target,
                title=f"segmentation {name} seed {seed}",
            )

    reads = ["translated"] if "translated" in arm.train else []
    reads += [first] if first else []
    place = _path("segmentation", name, seed)
    results, devices = ("checkpoints/*.pt",), config.compute.devices
    return Stage(place, "train-segmentation", tuple(reads), inputs, work, results, devices)


def _labelled(config: Config, kind: str) -> DatasetSpec:
    """The data set that kinds of training frames take their labels from."""
    return config.target if kind == "target" else config.source


def _evaluation(config: Config, run: Path, space: LabelSpace, arm: str, seed: int) -> Stage:
    training = _path("segmentation", arm, seed)
    pictures = config.evaluation.pictures

    def inputs() -> Inputs:
        return {
            "version": 3,
            # How many of the pictures are shown is the report's affair.
            "config": config.evaluation.model_dump(mode="json") | {"pictures": pictures > 0},
            "not_averaged": [c.name for c in space.classes if not c.averaged],
            "categories": space.categories,
            "test": _frames(config.test, run, labelled=True),
            **_instances(config.test if has_official_scores(space) else None, run),
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

    place = _path("evaluation", arm, seed)
    results = ("evaluation.json", "official.json", "per_image.csv", "per_image.npz")
    return Stage(place, "evaluate", (training,), inputs, work, results)


def _report(config: Config, run: Path, evaluations: tuple[str, ...]) -> Stage:
    def inputs() -> Inputs:
        return {"version": 3, "name": config.name, "pictures": config.evaluation.pictures}

    def work(folder: Path) -> None:
        from reports.report import write_report

        write_report(config, run, folder)

    return Stage(
        "report", "report", evaluations, inputs, work, ("*.html", "*.json", "*.csv", "*.md")
    )


def _path(kind: str, arm: str, seed: int) -> str:
    return f"{kind}/{arm}/seed-{seed}"


def _recipe(config: SegmentationConfig, run: Path) -> Inputs:
    """The settings of a training, with a weights file's content in place of its path."""
    recipe = config.model_dump(mode="json")
    path = Path(config.encoder_weights)
    if path.is_file():
        recipe["encoder_weights"] = _content(path, run)
    return recipe


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


def _instances(spec: DatasetSpec | None, run: Path) -> Inputs:
    """What tells objects apart: a hash of the files' listing, or their pattern where none is."""
    return {"instances": None} if spec is None else _instance_files(spec.model_dump_json(), run)


@cache
def _instance_files(spec_json: str, run: Path) -> Inputs:
    spec = DatasetSpec.model_validate_json(spec_json)
    names = [sample.name for sample in list_samples(spec, labelled=False)]
    files = zip(names, map(instance_finder(spec), names), strict=True)
    found = [Sample(name, file) for name, file in files if file is not None]
    if not found:
        return {"instances": spec.instances}
    content = _contents(found, run, f"{spec.name}, instances")
    return {"instances": digest(found), "instances_content": content}


_CONTENT = {"content", "instances_content"}
"""What earlier versions did not record."""


def _as_recorded(made: Any, recorded: Any) -> Any:
    """`made` without the contents that an earlier version left out of what it `recorded`."""
    if not isinstance(made, dict) or not isinstance(recorded, dict):
        return made
    return {
        key: _as_recorded(value, recorded.get(key))
        for key, value in made.items()
        if key in recorded or key not in _CONTENT
    }


def _frames(spec: DatasetSpec, run: Path, *, labelled: bool = False) -> Inputs:
    """A data set as a part of a stage's identity: how it is read and what is there, not where."""
    # What a split or a quarantine leaves is in the listing of the samples.
    # Instances are read by the evaluation alone, which says so itself.
    unseen = {"root", "label_root", "splits", "quarantine", "about", "instances"}
    if not labelled:
        unseen |= {"labels", "encoding", "channel", "decoder", "values", "strict"}
    fields = spec.model_dump(mode="json", exclude=unseen, exclude_defaults=True)
    if labelled and spec.decoder is not None:
        fields["decoder"] = Path(spec.decoder).name  # not where its file is
        fields["decoder_code"] = decoder_code(spec.decoder)
    return {**fields, **_listing(spec.model_dump_json(), labelled, run)}


def all_inputs(
    stages: list[Stage],
    recorded: Mapping[str, Inputs] | None = None,
    earlier: Mapping[str, Inputs] | None = None,
) -> dict[str, Inputs]:
    """Each stage's inputs by name, with the fingerprints of what it reads.

    Args:
        recorded: inputs of stages that are taken as they were when the stage was done.
        earlier: inputs that stages were begun with, perhaps by an earlier version: what that did
            not record is left out.
    """
    inputs: dict[str, Inputs] = dict(recorded or {})
    for stage in stages:
        if stage.name in inputs:
            continue
        reads = {name: fingerprint(inputs[name]) for name in stage.reads}
        made = {**stage.inputs(), "reads": reads}
        inputs[stage.name] = _as_recorded(made, (earlier or {}).get(stage.name))
    return inputs


def check(
    run: Path, stages: list[Stage], *, command: str | None = None, forced: Collection[str] = ()
) -> dict[str, Inputs]:
    """The inputs of all stages, after comparing them with what the run holds.

    Args:
        command: look at this command's stages only; the others are taken as they were done, so
            that a report can be made where the data is not.
        forced: stages that are about to be removed, and need not agree.

    Raises:
        UserError: a stage was made from other inputs.
    """
    recorded = {
        stage.name: read_stage(run, stage.name).inputs
        for stage in stages
        if command not in (None, stage.command) and is_done(run, stage.name)
    }
    begun = {
        stage.name: found
        for stage in stages
        if stage.name not in forced and (found := recorded_inputs(run, stage.name)) is not None
    }
    inputs = all_inputs(stages, recorded, begun)
    for stage in stages:
        if stage.name in forced:
            continue
        stage_state(run, stage.name, inputs[stage.name])
    return inputs


_TEST_CONTENT = {"test.content", "instances_content"}


def scored_on_other_data(run: Path, stages: list[Stage]) -> list[str]:
    """The evaluations of the same test files, whose content alone has changed since."""
    outdated = []
    for stage in stages:
        before = recorded_inputs(run, stage.name) if stage.command == "evaluate" else None
        if before is not None:
            now = json.loads(json.dumps(_as_recorded(stage.inputs(), before)))
            lines = differences({**before, "reads": None}, {**now, "reads": None})
            changed = {line.partition(":")[0] for line in lines}
            if changed and changed <= _TEST_CONTENT:
                outdated.append(stage.name)
    return outdated


def run_stage(run: Path, stage: Stage, inputs: Inputs) -> bool:
    """Do one stage, or what is left of it; False when it was complete already.

    Raises:
        UserError: it was made from other inputs, or what it reads is not complete.
    """
    state = stage_state(run, stage.name, inputs)
    if state == "done":
        return False
    for name in stage.reads:
        if not is_done(run, name):
            raise UserError(
                f"Stage {stage.name} reads {name}, which is not complete in {run}. "
                f"Run `sim2real run` or the command of that stage first."
            )
    for name in stage.reads:
        check_results(run, name)
    folder = run / stage.name
    if state == "absent":
        begin_stage(folder, inputs)
    start = time.monotonic()
    _perform(run, stage)
    progress = recorded_progress(folder)
    seconds = progress.seconds if progress else time.monotonic() - start
    finish_stage(run, stage.name, inputs, seconds=seconds, results=stage.results)
    return True


def _perform(run: Path, stage: Stage) -> None:
    """Do the work of a stage, by the ranks of torchrun where it uses several devices."""
    if stage.devices is not None:
        from pipeline.runtime.launch import run_ranks, torchrun

        if torchrun():
            from pipeline.runtime.distributed import connected

            with connected() as ranks:  # the others wait in `flows.rank.follow_rank_zero`
                ranks.broadcast((str(run.absolute()), stage.name))
        elif stage.devices > 1:
            run_ranks("flows.rank", [run.absolute(), stage.name], stage.devices)
            return
    stage.work(run / stage.name)


def named(stages: list[Stage], wanted: list[str]) -> list[str]:
    """The stages of these names or below these folders, and every stage that reads one of them.

    Raises:
        UserError: a name that no stage has.
    """
    found: list[str] = []
    for name in wanted:
        if not any(stage.name == name or stage.name.startswith(name + "/") for stage in stages):
            raise UserError(
                f"--force {name!r}: no such stage. Stages: {', '.join(s.name for s in stages)}; "
                "or a folder of them."
            )
    for stage in stages:
        if any(stage.name == name or stage.name.startswith(name + "/") for name in wanted) or set(
            stage.reads
        ) & set(found):
            found.append(stage.name)
    return found


def remove(run: Path, names: list[str]) -> None:
    """Remove stages, those that read others first: a kill leaves none without what it reads."""
    for name in reversed(names):
        remove_tree(run / name)


def is_done(run: Path, name: str) -> bool:
    """Whether a stage of a run is complete."""
    return (run / name / STAGE_FILE).is_file()
