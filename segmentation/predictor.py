"""A trained network as a function of frames, for Python programs and for `sim2real predict`.

from segmentation.predictor import load_predictor
predictor = load_predictor("runs/NAME/segmentation/ARM/seed-0/checkpoints/last.pt")
classes = predictor(frame)  # (H, W, 3) uint8 RGB -> (H, W) uint8, see predictor.space.class_names
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.config.segmentation import EvaluationConfig
from pipeline.config.settings import ComputeConfig
from pipeline.data.images import UInt8
from pipeline.data.labels import LabelSpace, label_space_names, load_label_space
from pipeline.data.reading import at_width
from pipeline.errors import UserError
from pipeline.runtime.device import on_device
from pipeline.schema import parse_record
from segmentation.predict import DEFAULT, predict
from segmentation.train import built, trained_state


@dataclass(frozen=True)
class Predictor:
    """A trained segmentation network, and what its predictions mean."""

    network: nn.Module
    """(1, h, w, 3) uint8 RGB -> (1, K, h, w) logits; normalises and pads by itself."""
    space: LabelSpace
    """The K classes: names and colours by index."""
    width: int | None = None
    """In pixels, at which frames are shown to the network, aspect kept; None: as they are."""
    views: EvaluationConfig = DEFAULT
    """How a frame is looked at: windows, scales, mirrored."""

    def __call__(self, rgb: UInt8) -> UInt8:
        """Class indices (H, W) uint8 of a frame (H, W, 3) uint8 RGB of any size.

        They are those of the frame's own size: logits are resized bilinearly, then the highest is
        taken, as in an evaluation.
        """
        return predict(self.network, at_width(rgb, self.width), rgb.shape[:2], self.views)


def load_predictor(
    checkpoint: Path | str, compute: ComputeConfig | None = None, space: LabelSpace | None = None
) -> Predictor:
    """The trained network of a `checkpoints/last.pt`, or of an exported `model.pt`, on its device.

    Args:
        compute: where to compute; None: on a GPU, where there is one.
        space: the classes, for a checkpoint of an earlier version, which has their names alone.

    Raises:
        UserError: no such file, a damaged one, one of something else, or of an earlier version and
            with classes that no built-in label space has.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise UserError(f"No checkpoint {path}. Give the path of a last.pt of ours.")
    state = trained_state(path)
    network = on_device(built(state, path), compute or ComputeConfig())
    return Predictor(network, recorded_space(state, path, space), state.get("width"))


def recorded_space(state: dict[str, Any], path: Path, known: LabelSpace | None) -> LabelSpace:
    """The label space of a checkpoint.

    Args:
        known: that of its run; earlier versions recorded the names of classes alone.

    Raises:
        UserError: it is not recorded, and no label space has these classes.
    """
    if "label_space" in state:
        return parse_record(LabelSpace, state["label_space"], str(path))
    for space in (*([known] if known else []), *map(load_label_space, label_space_names())):
        if space.class_names == state["classes"]:
            return space
    raise UserError(
        f"{path} was written by an earlier version and does not say the colours of its classes "
        f"({', '.join(map(str, state['classes']))}), and no built-in label space has these. Give "
        "its run and arm: RUN/ARM."
    )
