"""The label-preservation gate: what it counts, what it leaves out, its place in a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from cyclegan.translate import translate_frames
from pipeline.config.load import load_config
from pipeline.config.settings import ComputeConfig, Config
from pipeline.config.translation import GateConfig, TranslationConfig
from pipeline.config.translators import TRANSLATORS, TranslationInputs, Translator
from pipeline.data.images import UInt8
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader, read_frame
from pipeline.data.spec import translated_spec
from pipeline.scoring.drift import agreements
from segmentation import gate as gate_module
from segmentation.gate import count, look_at_translation
from tests.conftest import TINY

SPACE = load_label_space("cityscapes19")
BUILDING, TREE = SPACE.class_names.index("building"), SPACE.class_names.index("vegetation")
SWAPPED = (1, 2, 5, 8)
"""The numbers of the toy world's frames in which building and tree are swapped."""
NAMES = [f"{number:05}" for number in range(1, 11)]
WRONG = [NAMES[i] for i in SWAPPED]


def swapped(rgb: UInt8, label: UInt8) -> UInt8:
    """The frame with the look of buildings on trees, and of trees on buildings."""
    result = rgb.copy()
    for one, other in ((BUILDING, TREE), (TREE, BUILDING)):
        place, look = label == one, rgb[label == other]
        result[place] = look[np.arange(place.sum()) % len(look)]
    return result


def translate_badly(
    config: TranslationConfig, given: TranslationInputs, folder: Path, compute: ComputeConfig
) -> None:
    """A little darker and redder, which is no flip; and swapped, where it is said above."""
    assert given.space is not None
    samples, labels = list_samples(given.source, labelled=True), LabelReader(given.source, SPACE)

    def each(number: int, frame: UInt8) -> UInt8:
        if number in SWAPPED:
            frame = swapped(frame, labels.read(samples[number]))
        return (frame * np.array([0.95, 0.9, 0.9])).astype(np.uint8)

    translate_frames(given.source, folder, compute, each=each)


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """A translator that is wrong where it is known."""
    entry = Translator("bad", frozenset(), f"{__name__}:translate_badly", reads_target=False)
    monkeypatch.setitem(TRANSLATORS, "bad", entry)


def configured(tiny: Path, *settings: str, **fields: object) -> Config:
    """A configuration with the bad translation, and with a gate unless `settings` say otherwise."""
    arms = {"source_only": "source", "adapted": "translated"}
    bad = {"method": "bad", "gate": {"ignore_flipped": True}}
    path = tiny.with_name("gated.yaml")
    path.write_text(yaml.safe_dump(TINY | {"arms": arms, "translation": bad} | fields))
    return load_config(path, ["compute.accelerator=cpu", *settings])


class Nearest(nn.Module):
    """Stands in for a trained network: sees the class whose mean colour is nearest."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        samples = list_samples(config.source, labelled=True)
        labels = LabelReader(config.source, SPACE)
        label = np.stack([labels.read(sample) for sample in samples])
        rgb = np.stack([read_frame(config.source, sample) for sample in samples])
        known = [rgb[label == k] for k in range(19)]
        means = [pixels.mean(axis=0) if len(pixels) else np.full(3, 1e4) for pixels in known]
        self.means = nn.Parameter(torch.tensor(np.array(means)).float())

    def forward(self, rgb: Tensor) -> Tensor:
        distances = (rgb[:, None].float() - self.means[None, :, None, None]).square().sum(dim=-1)
        return -distances


@pytest.fixture
def looked_at(
    tiny: Path, bad: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Looks at the bad translation with `Nearest`; the folder `gates/translated`."""
    config, run = configured(tiny), tmp_path / "run"
    translate_badly(
        TranslationConfig(),
        TranslationInputs(config.source, config.target, space=SPACE),
        run / "translated",
        config.compute,
    )
    checkpoint = tmp_path / "made.pt"
    checkpoint.touch()
    network = Nearest(config)
    monkeypatch.setattr(gate_module, "load_segmenter", lambda path: network)

    def look(place: str = "gates/translated", **settings: Any) -> Path:
        look_at_translation(
            GateConfig(**settings),
            SPACE,
            config.source,
            translated_spec(config.source, run / "translated"),
            checkpoint,
            run / place,
            config.compute,
            stage=place,
            translation="translated",
            arm="source_only",
        )
        return run / place

    return look


def test_counts_by_hand() -> None:
    label = np.array([[0, 0, 0, 1], [1, 1, IGNORE, IGNORE]], np.uint8)
    before = np.array([[0, 0, 1, 1], [1, 0, 0, 1]], np.uint8)
    after = np.array([[0, 1, 0, 2], [1, 1, 1, 1]], np.uint8)
    tables = count(label, before, after, 3)
    assert tables[0].tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert tables[1].tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 0]]
    assert tables[2].tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    found = agreements(tables)
    assert found["pixels"].tolist() == [3, 3, 0, 6]
    np.testing.assert_allclose(found["before"], [2 / 3, 2 / 3, np.nan, 4 / 6])
    np.testing.assert_allclose(found["after"], [2 / 3, 2 / 3, np.nan, 4 / 6])
    # What is gained elsewhere hides no flip.
    np.testing.assert_allclose(found["flipped"], [1 / 2, 1 / 2, np.nan, 2 / 4])
