"""The loss curves of all three training loops that `tests/data/golden_losses.json` holds.

`python -m tests.golden` writes the file anew: after a change that is meant to change them.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from cyclegan.train import train
from cyclegan.train_paired import train_paired
from pipeline.config.load import load_config
from pipeline.config.segmentation import SelfTrainingConfig
from pipeline.config.translation import CycleGANConfig
from pipeline.data.labels import load_label_space
from pipeline.toyworld.writing import write_toy_world
from segmentation.train import train as train_segmentation
from tests.conftest import TINY

FILE = Path(__file__).parent / "data" / "golden_losses.json"
STEPS = 20
LOOPS = ("cyclegan", "paired", "segmentation")


def curves(
    loop: str, world: Path, folder: Path, accelerator: str = "cpu", precision: str = "32-true"
) -> list[dict[str, float]]:
    """The log of `STEPS` steps of a loop, in `folder`, on a toy world."""
    os.environ["WORLD"] = str(world)
    path = folder / "golden.yaml"
    path.write_text(yaml.safe_dump(TINY))
    how = {"compute.accelerator": accelerator, "compute.precision": precision}
    how |= {"segmentation.encoder": "resnet18"}
    config = load_config(path, [f"{key}={value}" for key, value in how.items()])
    source, target, compute = config.source, config.target, config.compute
    every = {"log_every": 1, "checkpoint_every": STEPS}
    if loop == "segmentation":
        recipe = config.segmentation.model_copy(update={"steps": STEPS, "dice_weight": 0.5} | every)
        train_segmentation(
            recipe,
            load_label_space("cityscapes19"),
            [(source, 1.0)],
            0,
            folder,
            compute,
            self_training=SelfTrainingConfig(confidence=0.06, masked_weight=1.0),
            target=target,
        )
    else:
        own: dict[str, Any] = {"epochs": STEPS // 2, "decay_epochs": STEPS // 2}
        own |= {"steps_per_epoch": 1, "sample_every": STEPS, "paired": loop == "paired"}
        settings = CycleGANConfig.model_validate(config.cyclegan.model_dump() | own | every)
        if settings.paired:  # any two sets of one size and of equal names are pairs to the loop
            train_paired(settings, source, source, folder, compute)
        else:
            train(settings, source, target, folder, compute)
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        write_toy_world(world, sim_frames=10, real_train_frames=10, real_val_frames=4)
        found = {}
        for loop in LOOPS:
            (Path(folder) / loop).mkdir()
            found[loop] = curves(loop, world, Path(folder) / loop)
    lines = [
        f"{json.dumps(loop)}: [\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]"
        for loop, entries in found.items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
