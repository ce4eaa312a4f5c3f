"""Scores of a network in training on a few labelled frames, to draw a curve of them."""

from typing import TYPE_CHECKING

import torch

from pipeline.data.labels import LabelSpace
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader, read_frame
from pipeline.data.spec import DatasetSpec, limited
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.scoring.metrics import in_steps
from segmentation.models import Segmenter
from segmentation.predict import DEFAULT, scores, upsampled_argmax

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FRAMES = 32
"""Frames that are scored, evenly spaced, where the data set has no `limit` of its own."""


class Validation:
    """Scores networks on the frames of a labelled data set, at the labels' own size."""

    def __init__(self, dataset: DatasetSpec, space: LabelSpace) -> None:
        self.space, self.dataset = space, dataset
        self.samples = list_samples(limited(dataset, dataset.limit or FRAMES), labelled=True)
        self.labels = LabelReader(dataset, space)

    @torch.no_grad()
    def score(self, model: Segmenter, fabric: "Fabric") -> dict[str, float]:
        """`validation_METRIC` -> its value, where it is defined.

        The network is in training mode again afterwards, and as it was: no statistic of batches
        has moved, no random number was drawn.
        """
        matrix = ConfusionMatrix(len(self.space.classes))
        model.eval()
        for sample in self.samples:
            truth = self.labels.read(sample, native=True)
            with fabric.autocast():
                found = scores(model, read_frame(self.dataset, sample), DEFAULT)
            matrix.add(truth, upsampled_argmax(found, truth.shape).cpu().numpy())
        model.train()
        known = matrix.metrics(self.space)
        values = {m.key: known[m.key] for m in in_steps()}
        return {f"validation_{key}": v for key, v in values.items() if isinstance(v, float)}
