"""Scoring a trained network on labelled frames, at the ground truth's resolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.config.segmentation import EvaluationConfig
from pipeline.config.settings import ComputeConfig
from pipeline.data.images import (
    UInt8,
    read_rgb,
    resize_indices,
    size_within,
    write_image,
    write_indices,
)
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import Sample, list_samples
from pipeline.data.reading import LabelReader, at_width
from pipeline.data.spec import DatasetSpec
from pipeline.progress import progress
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.scoring.metrics import Counts
from segmentation.predict import overlay, scores, upsampled_argmax, views
from segmentation.scores import (
    IDS,
    OVERLAYS,
    PICTURES,
    counted_in,
    instance_files,
    label_ids,
    read_instances,
    write_scores,
)
from segmentation.tally import Tally
from segmentation.train import load_segmenter

PICTURE_WIDTH = 400
"""Pixels in a row of the pictures of predictions; some kilobytes each."""


def evaluate(
    config: EvaluationConfig,
    space: LabelSpace,
    dataset: DatasetSpec,
    checkpoint: Path,
    folder: Path,
    compute: ComputeConfig,
    *,
    arm: str,
    seed: int,
) -> None:
    """Score a checkpoint on every frame of `dataset`, or on those that an interrupted call left.

    Writes the files of `segmentation.scores.write_scores` and, unless `config.pictures` is 0,
    `predictions/NAME.png` of all frames (class indices as palette pictures, at most `PICTURE_WIDTH`
    wide) below `folder`; where the configuration asks for them, whole predictions in
    `predictions_ids/` and `overlays/`.

    Raises:
        UserError: no checkpoint, or a frame or label cannot be read.
    """
    space = space.averaging(config.classes)
    samples = list_samples(dataset, labelled=True)
    names = [sample.name for sample in samples]
    instances, instance_scores = instance_files(dataset, samples, space)
    tally = Tally(folder, names)
    del tally.frames[_whole(config, folder, names[: len(tally.frames)]) :]
    scorer = _scorer(config, space, dataset, checkpoint, folder, compute)
    done = len(tally.frames)
    with progress(folder, f"evaluation {arm}", len(names), done=done, unit="images") as advance:
        for number in range(done, len(names)):
            tally.add(*scorer.score(samples[number], instances[number] if instances else None))
            advance(1)
    write_scores(
        folder,
        space,
        dataset,
        names,
        tally.frames,
        {
            "input_width": dataset.width,
            "resampling": "bilinear logits, align_corners=False",
            **views(config),
            "checkpoint": "last",
            "instance_scores": instance_scores,
        },
        arm=arm,
        seed=seed,
        pictures={name: _file(PICTURES, name) for name in names} if config.pictures else {},
    )
    tally.remove()


def _scorer(
    config: EvaluationConfig,
    space: LabelSpace,
    dataset: DatasetSpec,
    checkpoint: Path,
    folder: Path,
    compute: ComputeConfig,
) -> "_Scorer":
    """The network of a checkpoint on its device, and what it is scored with."""
    network = load_segmenter(checkpoint, compute)
    counted = counted_in(space)
    index = torch.arange(len(space.classes), dtype=torch.uint8)
    if counted is not space:
        index = torch.from_numpy(label_ids(space))
    return _Scorer(
        config,
        space,
        dataset,
        folder,
        network,
        LabelReader(dataset, counted),
        index.to(next(network.parameters()).device),
        label_ids(space) if config.save == "label_ids" else None,
    )


@dataclass(frozen=True)
class _Scorer:
    """Predicts frames, counts them and writes their pictures."""

    config: EvaluationConfig
    space: LabelSpace
    dataset: DatasetSpec
    folder: Path
    network: nn.Module
    labels: LabelReader
    index: Tensor
    """(K,) uint8 class -> what is counted."""
    saved: UInt8 | None
    """(K,) class -> what is saved; None: itself."""

    @torch.inference_mode()
    def score(self, sample: Sample, instances: Path | None) -> tuple[Tensor, Counts | None]:
        """The counts of one frame; its pictures are there afterwards."""
        truth, frame = self.labels.read(sample, native=True), read_rgb(sample.image)
        found = scores(self.network, at_width(frame, self.dataset.width), self.config)
        classes = upsampled_argmax(found, truth.shape)
        counted = self.index[classes.int()]
        table = count_on_device(truth, counted, len(self.labels.space.classes))
        hits = None if instances is None else read_instances(instances, counted.cpu().numpy())
        if _kept(self.config):
            drawn = None
            if self.config.overlays:  # at the frame's own size, which its label may not have
                same = frame.shape[:2] == truth.shape
                seen = classes if same else upsampled_argmax(found, frame.shape[:2])
                drawn = overlay(frame, seen.cpu().numpy(), self.space.palette)
            self._keep(sample.name, classes.cpu().numpy(), drawn)
        return table, hits

    def _keep(self, name: str, classes: UInt8, drawn: UInt8 | None) -> None:
        """Write a frame's prediction, (H, W) class indices, in the forms that are asked for."""
        paths = {form: self.folder / _file(form, name) for form in _kept(self.config)}
        if path := paths.get(PICTURES):
            small = resize_indices(classes, size_within(classes.shape, PICTURE_WIDTH))
            write_indices(path, small, self.space.palette)
        if path := paths.get(IDS):
            write_indices(path, classes if self.saved is None else self.saved[classes], None)
        if drawn is not None:
            write_image(paths[OVERLAYS], drawn)


def _kept(config: EvaluationConfig) -> list[str]:
    """The forms in which predictions are kept."""
    asked = {PICTURES: config.pictures, IDS: config.save != "none", OVERLAYS: config.overlays}
    return [form for form, wanted in asked.items() if wanted]


def _file(form: str, name: str) -> str:
    """Where a frame's prediction is, below the folder of the scores."""
    return f"{form}/{name}.{'jpg' if form == OVERLAYS else 'png'}"


def _whole(config: EvaluationConfig, folder: Path, names: Sequence[str]) -> int:
    """How many of the first frames have all their pictures."""
    forms = _kept(config)
    for number, name in enumerate(names):
        if not all((folder / _file(form, name)).is_file() for form in forms):
            return number
    return len(names)


@torch.inference_mode()
def count_on_device(truth: UInt8, prediction: Tensor, classes: int) -> Tensor:
    """The confusion matrix of one frame, on the device that holds the prediction.

    Args:
        truth: (H, W) uint8 class indices, `IGNORE` where not scored.
        prediction: (H, W) uint8 class indices, `IGNORE` where void.

    Returns:
        (K, K + 1) int64: rows truth, columns prediction, the last one void.
    """
    if prediction.device.type == "cpu":
        matrix = ConfusionMatrix(classes)
        matrix.add(truth, prediction.numpy())
        return torch.from_numpy(matrix.table)
    return count_tensors(torch.from_numpy(truth).to(prediction.device), prediction, classes)


def count_tensors(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """As `count_on_device`, in tensor operations alone, which wait for nothing."""
    side = classes + 1  # one more for what is ignored, and for void
    keys = truth.clamp(max=classes).long() * side + prediction.clamp(max=classes)
    # torch.bincount would wait for the largest key, to know the size of its result.
    counts = torch.zeros(side * side, dtype=torch.int64, device=keys.device)
    counts.scatter_add_(0, keys.flatten(), torch.ones_like(keys).flatten())
    return counts.view(side, side)[:classes]
