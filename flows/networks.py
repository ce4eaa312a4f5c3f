"""Frozen segmentation networks as CycleGAN sees them, whose room does not import theirs."""

from pathlib import Path
from typing import Any

from cyclegan.discriminators import FrozenEncoder
from cyclegan.semantics import SemanticEvaluator
from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig
from pipeline.data.labels import LabelSpace

# Most trainings of translators need none, nor segmentation's libraries: they are imported when
# called. Generators work in [-1, 1], segmentation networks in [0, 1].


def semantic_evaluator(
    config: Config, space: LabelSpace, training: Path, device: Any
) -> SemanticEvaluator:
    """The network that was trained in the folder `training`, on a device."""
    from segmentation.models import build_model
    from segmentation.train import CHECKPOINT, load_segmenter

    recipe = config.recipe(training.parent.name)
    segmenter = load_segmenter(training / CHECKPOINT).requires_grad_(False).to(device)
    encoder, weights = segmenter, f"trained in {training.parent.name}"
    if recipe.encoder_weights != "none":
        encoder = build_model(recipe, len(space.classes))
        encoder.eval().requires_grad_(False).to(device)
        weights = Path(recipe.encoder_weights).stem
    return SemanticEvaluator(
        lambda x: segmenter.logits((x + 1) / 2),
        lambda x: encoder.features((x + 1) / 2),
        f"{recipe.encoder}, {weights}",
        space,
    )


def frozen_encoder(recipe: CycleGANConfig, device: Any) -> FrozenEncoder:
    """The encoder that a recipe's discriminators look through, on a device.

    Raises:
        UserError: no such encoder, or no weights for it.
    """
    from segmentation.models import build_encoder

    name, weights = str(recipe.feature_encoder), recipe.feature_encoder_weights
    encoder = build_encoder(name, weights, "cyclegan.feature_encoder").to(device)
    return FrozenEncoder(lambda x: encoder((x + 1) / 2), encoder.channels)
