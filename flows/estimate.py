"""What a run will take on this machine, by stage, from one measured pass each."""

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig
from pipeline.config.translators import TranslationInputs
from pipeline.data.images import write_image, write_indices
from pipeline.data.labels import load_label_space
from pipeline.data.listing import list_samples, pseudo_label_paths
from pipeline.data.reading import read_frame

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Estimate:
    """The stages of one command, all arms and seeds together."""

    command: str
    seconds: float
    bytes: int
    """On disk."""
    memory: int = 0
    """Bytes of a device, where they are known."""


def estimate(config: Config) -> list[Estimate]:
    """Time, disk and memory of the stages that compute, from passes of random pixels made here.

    Good to a factor of about two: reading and writing files, logs, a semantic evaluator, gates,
    the few frames of `selection` and the resampling of evaluation are not counted, and a busy
    machine times long.

    Raises:
        UserError: the GPU's memory does not suffice.
    """
    from pipeline.runtime.device import explain_memory

    used = config.used_translations
    with explain_memory("cyclegan"):
        parts = [_cyclegan(config, name) for name in used if used[name].trains]
        parts += [_translation(config, name) for name in used]
    with explain_memory("segmentation"):
        labellers = {own.pseudo_labels: None for own in used.values() if own.pseudo_labels}
        parts += [_pseudo_labels(config, arm) for arm in labellers]
        parts += _segmentation(config)
    return [
        Estimate(
            command,
            sum(part.seconds for part in parts if part.command == command),
            sum(part.bytes for part in parts if part.command == command),
            max(part.memory for part in parts if part.command == command),
        )
        for command in dict.fromkeys(part.command for part in parts)
    ]


def _cyclegan(config: Config, translation: str) -> Estimate:
    from cyclegan.discriminators import domain_discriminator
    from cyclegan.networks import build_generator
    from flows.networks import frozen_encoder
    from pipeline.runtime.device import compute_device, measure_pass

    recipe = config.cyclegan_recipe(translation)
    # The frames of a teacher are called as those of the source.
    target = config.source if config.all_translations[translation].teacher else config.target
    device = compute_device(config.compute)
    encoder = frozen_encoder(recipe, device) if recipe.feature_encoder else None
    generator, discriminator = build_generator(recipe), domain_discriminator(recipe, encoder)
    width, height = recipe.crop
    crops = recipe.batch_size // config.compute.devices, 3, height, width
    generating = measure_pass(generator, crops, config.compute, training=True).seconds
    shown = (crops[0], 6, *crops[2:]) if recipe.paired else crops
    discriminating = measure_pass(discriminator, shown, config.compute, training=True).seconds
    sets = [list_samples(spec, labelled=False) for spec in (config.source, target)]
    names = [{sample.name for sample in samples} for samples in sets]
    frames = len(names[0] & names[1]) if recipe.paired else max(map(len, names))
    epoch = recipe.steps_per_epoch or -(-frames // recipe.batch_size)
    steps = epoch * (recipe.epochs + recipe.decay_epochs)
    domains = 1 if recipe.one_way else 2
    step = domains * (_passes(recipe) * generating + 3 * discriminating)
    networks = generator, discriminator
    weights = sum(p.numel() for network in networks for p in network.parameters())
    pool = 0 if recipe.one_way else recipe.pool_size * 3 * width * height
    # Adam keeps two moments of each parameter.
    return Estimate("train-cyclegan", steps * step, domains * (3 * weights + pool) * _FLOAT)


def _passes(recipe: CycleGANConfig) -> float:
    """How often a step goes through each generator and back, for each image of a batch."""
    if recipe.paired:
        return 1
    if recipe.contrastive:
        # The translation, and two thirds of the layers again for its features.
        return (2 if recipe.contrastive.identity else 1) * 5 / 3
    # The translation, its cycle, and the identity loss.
    return 3 if recipe.identity_weight > 0 else 2


def _translation(config: Config, name: str) -> Estimate:
    settings = config.all_translations[name]
    samples = list_samples(config.source, labelled=False)
    frame = read_frame(config.source, samples[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.png"
        write_image(path, frame)
        size = path.stat().st_size
        if settings.translator.trains:
            seconds = _generator_seconds(config, name, frame.shape[:2])
        else:
            one = config.source.model_copy(update={"limit": 1})
            pseudo = Path(folder) / "pseudo_labels"
            target = config.target.model_copy(update={"limit": 1})
            space = load_label_space(config.label_space)
            (shown,) = list_samples(target, labelled=False)
            label = np.zeros(read_frame(target, shown).shape[:2], np.uint8)
            for file in pseudo_label_paths(pseudo, shown.name):  # any label takes as long
                write_indices(file, label, None)
            given = TranslationInputs(one, target, None, space, pseudo)
            start = time.perf_counter()
            settings.translator.load()(settings, given, Path(folder) / "one", config.compute)
            seconds = time.perf_counter() - start
    return Estimate("translate", len(samples) * seconds, len(samples) * size)


def _pseudo_labels(config: Config, arm: str) -> Estimate:
    """A pass for each frame of the target."""
    from pipeline.runtime.device import measure_pass
    from segmentation.models import build_model

    classes = len(load_label_space(config.label_space).classes)
    model = build_model(config.recipe(arm), classes, pretrained=False)
    samples = list_samples(config.target, labelled=False)
    shape = 1, *read_frame(config.target, samples[0]).shape
    seconds = measure_pass(model, shape, config.compute, training=False).seconds
    return Estimate("label-target", len(samples) * seconds, len(samples) * shape[1] * shape[2])


def _generator_seconds(config: Config, translation: str, size: tuple[int, ...]) -> float:
    """What translating a frame of this height and width takes."""
    from cyclegan.checkpoints import load_generator
    from cyclegan.networks import build_generator
    from pipeline.runtime.device import measure_pass

    settings = config.all_translations[translation]
    recipe = config.cyclegan_recipe(translation)
    generator = load_generator(settings.weights) if settings.weights else build_generator(recipe)
    height, width = (side + -side % generator.multiple for side in size)
    shape = 1, 3, height, width
    measured = measure_pass(generator, shape, config.compute, training=False)
    return measured.seconds * settings.shifts


def _segmentation(config: Config) -> list[Estimate]:
    from pipeline.runtime.device import measure_pass
    from segmentation.cost import step_cost
    from segmentation.models import build_model
    from segmentation.predict import passes

    classes = len(load_label_space(config.label_space).classes)
    samples = list_samples(config.test, labelled=False)
    height, width = read_frame(config.test, samples[0]).shape[:2]
    seen = passes(height, width, config.evaluation)
    largest = max(seen, key=math.prod)
    pixels = sum(map(math.prod, seen))
    known: dict[str, list[Estimate]] = {}
    parts = []
    for name, arm in config.arms.items():
        recipe, teaching = config.recipe(name), arm.self_training
        key = recipe.model_dump_json() + (teaching.model_dump_json() if teaching else "")
        if key not in known:
            model = build_model(recipe, classes, pretrained=False)
            cost = step_cost(model, recipe, teaching, config.compute)
            shape = 1, *largest, 3
            predicting = measure_pass(model, shape, config.compute, training=False).seconds
            predicting *= pixels / math.prod(largest)
            seconds = recipe.steps * cost.seconds
            known[key] = [
                Estimate("train-segmentation", seconds, cost.stored, cost.memory),
                Estimate("evaluate", len(samples) * predicting, 0),
            ]
        parts += len(config.seeds) * known[key]
    return parts
