"""Recipes of segmentation by name or file: they load, build, and give way to what is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.config.load import load_config, recipes
from pipeline.config.segmentation import SegmentationConfig
from pipeline.errors import UserError
from pipeline.yaml_files import read_yaml
from segmentation.models import build_model, check_names


def write(tiny: Path, segmentation: Any, arms: dict[str, Any] | None = None) -> Path:
    text = yaml.safe_load(tiny.read_text()) | {"segmentation": segmentation}
    tiny.write_text(yaml.safe_dump(text | ({"arms": arms} if arms else {})))
    return tiny


def build(name: str, device: str) -> None:
    recipe = SegmentationConfig.model_validate(read_yaml(recipes()[name]))
    with torch.device(device), torch.inference_mode():
        model = build_model(recipe, 19, pretrained=False).eval()
        assert model(torch.zeros(1, 64, 96, 3, dtype=torch.uint8)).shape == (1, 19, 64, 96)


@pytest.mark.parametrize("name", list(recipes()))
def test_every_recipe_loads_and_knows_its_names(tiny: Path, name: str) -> None:
    config = load_config(write(tiny, {"recipe": name})).segmentation
    assert config == SegmentationConfig.model_validate(read_yaml(recipes()[name]))
    assert check_names(config) == []
    assert config.encoder_weights == "imagenet"


def test_the_small_recipe_builds() -> None:
    build("small", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(recipes().keys() - {"small"}))
def test_large_recipes_build(name: str) -> None:
    # Shapes without numbers where a network allows it: five of them have 300 million weights.
    build(name, "cpu" if name.startswith(("deeplab", "segformer")) else "meta")


def test_what_is_said_wins_over_the_recipe(tiny: Path) -> None:
    said = {"recipe": "segformer_b2", "batch_size": 4, "augmentation": {"color": 0.1}}
    arms = {
        "source_only": "source",
        "other": {"train": "source", "segmentation": {"recipe": "small", "steps": 7}},
    }
    config = load_config(write(tiny, said, arms), ["segmentation.poly_power=0.5"])
    mine = config.segmentation
    assert (mine.encoder, mine.batch_size, mine.poly_power) == ("mit_b2", 4, 0.5)
    assert (mine.warmup_steps, mine.augmentation.color) == (1500, 0.1)
    other = config.recipe("other")
    assert (other.architecture, other.options, other.steps) == ("fpn", {}, 7)
    assert other.augmentation.color == 0.1  # of what the recipe leaves open
    assert config.recipe("source_only") == mine


def test_a_recipe_from_a_file(tiny: Path) -> None:
    folder = tiny.parent / "mine"
    folder.mkdir()
    (folder / "net.yaml").write_text("encoder: resnet34\nencoder_weights: net.pth\nsteps: 9\n")
    config = load_config(write(tiny, {"recipe": "mine/net.yaml", "steps": 5})).segmentation
    assert (config.encoder, config.steps) == ("resnet34", 5)
    assert config.encoder_weights == str(folder / "net.pth")
    (folder / "net.yaml").write_text("- resnet34\n")
    with pytest.raises(UserError, match=r"net.yaml: expected settings of segmentation"):
        load_config(tiny)


def test_a_part_of_a_recipe_s_mapping_wins_alone(tiny: Path) -> None:
    recipe = "augmentation: {scale: [0.3, 3], flip: false}\noptions: {encoder_depth: 4}\n"
    (tiny.parent / "net.yaml").write_text(recipe)
    own = {"recipe": "net.yaml", "augmentation": {"color": 0.1}, "options": {}}
    config = load_config(write(tiny, own)).segmentation
    found = config.augmentation
    assert (found.scale, found.flip, found.color) == ((0.3, 3), False, 0.1)
    assert config.options == {}


def test_an_unknown_recipe(tiny: Path) -> None:
    with pytest.raises(UserError) as error:
        load_config(write(tiny, {"recipe": "segformer_b3", "batch_size": 0}))
    assert "no recipe 'segformer_b3'. Did you mean 'segformer_b" in str(error.value)
    assert "deeplabv3plus_r50" in str(error.value)
    assert "batch_size" in str(error.value)  # all that is wrong at once
