"""Does a translation still show what its source shows? A frozen segmentation network evaluates it.

The semantic evaluator was trained on the labelled source; no label of the target is ever read. It
serves twice: its loss on translated frames is a loss of the generators, and its agreement with the
labels on a fixed set of probe frames, together with the distance between translated and real
frames, says which checkpoint is best.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.networks import to_network
from cyclegan.translate import FrameTranslator
from pipeline.config.translation import SemanticsConfig
from pipeline.csv_files import write_table
from pipeline.data.images import UInt8
from pipeline.data.labels import IGNORE, LabelSpace
from pipeline.data.listing import Sample, evenly
from pipeline.data.reading import LabelReader, read_frame
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.runtime.distributed import ONE_RANK, Ranks
from pipeline.scoring.confusion import ConfusionMatrix


@dataclass(frozen=True)
class SemanticEvaluator:
    """Frozen networks that take frames as the generators do: (N, 3, H, W) in [-1, 1]."""

    segmenter: Callable[[Tensor], Tensor]
    """-> (N, C, H, W) logits of the classes of `space`; gradients pass through to its input."""
    features: Callable[[Tensor], Tensor]
    """-> (N, D): what the distance between sets of frames is measured in."""
    features_name: str
    """What network gives the features; a distance means nothing without it."""
    space: LabelSpace
    """The classes of the segmenter and of the source's labels."""


def semantic_loss(
    segmenter: Callable[[Tensor], Tensor], frames: Tensor, classes: Tensor, ranks: Ranks = ONE_RANK
) -> Tensor:
    """Cross-entropy of a frozen segmenter on frames whose classes are known.

    CyCADA's semantic consistency (Hoffman et al., ICML 2018, eq. 4), with the source's labels in
    place of the segmenter's own prediction on source frames.

    Args:
        frames: (N, 3, H, W) in [-1, 1], translated.
        classes: (N, H, W) integers; `IGNORE` counts for nothing.
        ranks: those that have the other shards of the batch.

    Returns:
        The mean over all labelled pixels of the batch; 0 when there is none. With several ranks it
        is the mean of what they return: their shards hold different counts of labelled pixels.
    """
    logits = segmenter(frames).float()
    total = F.cross_entropy(logits, classes.long(), ignore_index=IGNORE, reduction="sum")
    return total * ranks.world_size / ranks.all_reduce_sum((classes != IGNORE).sum()).clamp(min=1)


@torch.no_grad()
def pseudo_labels(segmenter: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """(N, H, W) classes that a segmenter predicts for frames without labels."""
    return segmenter(frames).max(dim=1).indices


@torch.inference_mode()
def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Kernel inception distance's estimator: unbiased MMD^2 under (x.y / D + 1)^3.

    Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4. Near 0, and as often below as
    above it, for two sets of one distribution.

    Args:
        a, b: (N, D) and (M, D) features, two rows or more each.
    """
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


@dataclass(frozen=True)
class TranslationScore:
    """How well a translator keeps what frames show and how near it comes to the target."""

    before: ConfusionMatrix
    """Pixels by label (rows) and predicted class (columns), of the source frames."""
    after: ConfusionMatrix
    """The same of their translations."""
    distance_before: float
    """Kernel distance of the source frames from the target's."""
    distance: float
    """Kernel distance of their translations."""

    @property
    def score(self) -> float:
        """Lower is better: the fraction of the distance that is left plus the lost agreement.

        1 for a translator that changes nothing; 0 for one that reaches the target and keeps all.
        """
        left = max(0.0, self.distance) / self.distance_before
        kept = self.after.pixel_accuracy / max(self.before.pixel_accuracy, 1e-12)
        return left + max(0.0, 1 - kept)

    def row(self) -> dict[str, float]:
        """The numbers of one line of the leaderboard."""
        return {
            "agreement_before": self.before.pixel_accuracy,
            "agreement_after": self.after.pixel_accuracy,
            "distance_before": self.distance_before,
            "distance": self.distance,
            "score": self.score,
        }

    def drift(self, space: LabelSpace) -> dict[str, object]:
        """As plain data: classes, and both count tables (rows labels, columns predictions)."""
        return {
            "classes": space.class_names,
            "before": self.before.counts.tolist(),
            "after": self.after.counts.tolist(),
        }


@dataclass
class Leaderboard:
    """The scores of all checkpoints of a training, as plain data that a checkpoint can hold."""

    rows: list[dict[str, float]] = field(default_factory=list)
    """`step` and the numbers of each score."""
    drifts: dict[str, object] = field(default_factory=dict)
    """`last` and `best`: the step and its drift; `features`: what distances are measured in."""

    def add(self, step: int, score: TranslationScore, evaluator: SemanticEvaluator) -> bool:
        """Note a score; True when no earlier one is as good."""
        best = all(score.score < row["score"] for row in self.rows)
        self.rows.append({"step": step, **score.row()})
        drift = {"step": step, **score.drift(evaluator.space)}
        self.drifts |= {"features": evaluator.features_name, "last": drift}
        if best:
            self.drifts["best"] = drift
        return best

    def write(self, folder: Path) -> None:
        """Write `leaderboard.csv`, best first, and `drift.json` into `folder`, if there is any."""
        if not self.rows:
            return
        rows = sorted(self.rows, key=lambda row: row["score"])
        write_table(folder / "leaderboard.csv", list(rows[0]), rows)
        write_json(folder / "drift.json", self.drifts)


class Probe:
    """A fixed set of frames on which translators are evaluated.

    Args:
        evaluator: the frozen networks.
        source: frames (H, W, 3) uint8 with their classes (H, W) uint8.
        target: frames (H, W, 3) uint8 of the target, two or more.
        device: where the networks are.
    """

    def __init__(
        self,
        evaluator: SemanticEvaluator,
        source: Iterable[tuple[UInt8, UInt8]],
        target: Iterable[UInt8],
        device: torch.device,
    ) -> None:
        self.evaluator, self.device = evaluator, device
        self.source = list(source)
        self.real = torch.cat([self._features(frame) for frame in target])
        raw = torch.cat([self._features(frame) for frame, _ in self.source])
        self.distance_before = kernel_distance(raw, self.real)
        self.before = self._agreement(frame for frame, _ in self.source)

    def score(self, source_to_target: nn.Module) -> TranslationScore:
        """Score a generator; its mode and weights are left as they are."""
        training = source_to_target.training
        source_to_target.eval()  # without dropout
        translate = FrameTranslator(source_to_target)
        translated = [translate(frame) for frame, _ in self.source]
        source_to_target.train(training)
        features = torch.cat([self._features(frame) for frame in translated])
        return TranslationScore(
            self.before,
            self._agreement(translated),
            self.distance_before,
            kernel_distance(features, self.real),
        )

    @torch.inference_mode()
    def _features(self, frame: UInt8) -> Tensor:
        return self.evaluator.features(self._input(frame)).float().cpu()

    @torch.inference_mode()
    def _agreement(self, frames: Iterable[UInt8]) -> ConfusionMatrix:
        matrix = ConfusionMatrix(len(self.evaluator.space.classes))
        for frame, (_, truth) in zip(frames, self.source, strict=True):
            predicted = pseudo_labels(self.evaluator.segmenter, self._input(frame))[0]
            prediction: npt.NDArray[np.uint8] = predicted.to(torch.uint8).cpu().numpy()
            matrix.add(truth, prediction)
        return matrix

    def _input(self, frame: UInt8) -> Tensor:
        return to_network(torch.tensor(frame[None], device=self.device))


def make_probe(
    evaluator: SemanticEvaluator,
    source: DatasetSpec,
    source_samples: list[Sample],
    target: DatasetSpec,
    target_samples: list[Sample],
    config: SemanticsConfig,
    device: torch.device,
) -> Probe:
    """Read the probe frames, evenly spaced: the source's with labels, the target's without.

    Raises:
        UserError: they cannot tell a good translation from a bad one.
    """
    for spec, samples in ((source, source_samples), (target, target_samples)):
        if len(samples) < 2:
            raise UserError(
                f"Data set {spec.name} has {len(samples)} frame(s), and cyclegan.semantics needs "
                "two or more. Raise `limit`, or leave cyclegan.semantics out."
            )
    labels = LabelReader(source, evaluator.space)
    probe = Probe(
        evaluator,
        [
            (read_frame(source, sample), labels.read(sample))
            for sample in evenly(source_samples, config.probe_frames)
        ],
        [read_frame(target, sample) for sample in evenly(target_samples, config.probe_frames)],
        device,
    )
    if not probe.before.counts.sum():
        raise UserError(
            f"No label of {config.probe_frames} frames of data set {source.name} has a class of "
            f"label space {evaluator.space.name}. Raise cyclegan.semantics.probe_frames."
        )
    if probe.distance_before <= 0:
        raise UserError(
            f"{config.probe_frames} frames of {source.name} and of {target.name} cannot be told "
            f"apart (distance {probe.distance_before:.2g} in the features of "
            f"{evaluator.features_name}): there is no gap to close, or the frames are too few. "
            "Raise cyclegan.semantics.probe_frames, or leave cyclegan.semantics out."
        )
    return probe
