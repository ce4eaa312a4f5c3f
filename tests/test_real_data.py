"""The pairs of `configs/` on data that is not part of the project; skipped where it is absent."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config.load import load_config
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader, read_frame
from tests.helpers import needs_real_data

pytestmark = needs_real_data

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "target", "test", "height"),
    [
        ("toonsim_to_camvid", 367, 171, 180),
        ("streetsim_to_camvid", 367, 171, 180),
        ("streetsim_to_idd_lite", 1403, 204, 170),
    ],
)
def test_listing_and_labels(name: str, target: int, test: int, height: int) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    space = load_label_space(config.label_space)
    for key, count in {"source": 1000, "target": target, "test": test}.items():
        spec = getattr(config, key)
        samples = list_samples(spec, labelled=True)
        assert len(samples) == count
        frame = read_frame(spec, samples[0])
        size = (180, 240) if key == "source" else (height, 240)
        assert frame.shape == (*size, 3)
        strict = spec.model_copy(update={"strict": True})
        label = LabelReader(strict, space).read(samples[0])
        assert label.shape == size
        assert (np.unique(label)[:-1] < len(space.classes)).all()
        assert (label != IGNORE).mean() > 0.5


def test_the_test_split_shares_no_drive_with_the_target() -> None:
    config = load_config(ROOT / "configs" / "toonsim_to_camvid.yaml")
    listed = (config.test.root / "splits" / "test_clean.txt").read_text().split()
    names = [s.name for s in list_samples(config.test, labelled=False)]
    assert names == sorted(f"test/{name}" for name in listed)
    target = {s.image.name.split("_")[0] for s in list_samples(config.target, labelled=False)}
    assert "Seq05VD" not in target
