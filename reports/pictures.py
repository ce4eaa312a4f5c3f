"""Pictures that stand inside a page, as data URIs, within a budget."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.config.settings import BEFORE, Config
from pipeline.csv_files import read_table
from pipeline.data.images import UInt8, read_raw, read_rgb, resize_indices, resize_rgb, size_within
from pipeline.data.labels import LabelSpace
from pipeline.data.listing import evenly, list_samples
from pipeline.data.reading import LabelReader, read_frame
from pipeline.errors import UserError
from pipeline.scoring.evaluation import Evaluation
from pipeline.scoring.metrics import METRICS, Float, Score, class_iou, in_steps, ranking
from reports.colors import distinct_palette
from reports.tables import Evaluations, evaluation_folder

BUDGET = 13_000_000
"""Bytes of pictures, as they stand in a page: test frames are added until no more have room."""
FRAMES = 250
"""Test frames at most: to read and shrink one takes a tenth of a second."""
FRAME_WIDTH, PAIR_WIDTH, GRID_WIDTH = 480, 640, 1100
"""Pixels in a row of a test frame, a source frame and its translation, a grid of samples."""
LABEL_WIDTH = 400
"""Pixels in a row of a ground truth; as in the predictions that evaluation keeps."""
MOST, IN_ALL = 6, 12
"""Source frames, grids of samples and strips of a gate that are shown: of one translation, and of
all together."""


def photo(rgb: UInt8, width: int) -> str:
    """(H, W, 3) uint8 as a data URI, at most `width` pixels wide."""
    size = size_within(rgb.shape, width)
    return _data_uri(Image.fromarray(resize_rgb(rgb, size)), quality=80, method=1)


def label_picture(indices: UInt8, palette: UInt8, width: int) -> str:
    """(H, W) uint8 class indices as a data URI, exact, at most `width` pixels wide."""
    small = resize_indices(indices, size_within(indices.shape, width))
    return _data_uri(Image.fromarray(palette[small]), lossless=True, method=1)


def _data_uri(image: Image.Image, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Frame:
    """A test frame with its ground truth and each arm's prediction, as data URIs."""

    name: str
    photo: str
    truth: str
    predictions: dict[str, str]
    """Arm -> prediction of the network of the first seed."""
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    """Arm -> metric -> value, of the same network."""
    class_iou: dict[str, list[Score]] = field(default_factory=dict)
    """Arm -> IoU of each class."""

    @property
    def bytes(self) -> int:
        """Its size in a page."""
        return sum(map(len, (self.photo, self.truth, *self.predictions.values())))


@dataclass(frozen=True)
class Gallery:
    """The test frames of a page."""

    frames: list[Frame]
    of: int
    """How many frames there are."""
    examples: dict[str, Frame] = field(default_factory=dict)
    """`best`, `median` and `worst` by the ranking metric of `arm`."""
    arm: str | None = None


@dataclass(frozen=True)
class _Scores:
    """What the network of one arm and seed scores on each of N frames."""

    metrics: dict[str, Float]
    """Metric -> (N,)."""
    class_iou: Float
    """(N, K)."""


def gallery(
    run: Path,
    config: Config,
    space: LabelSpace,
    evaluations: Evaluations,
    main: str | None,
    budget: int = BUDGET,
) -> Gallery:
    """Test frames with what every arm predicts: the best, the worst and the median of each arm,
    those in which arms differ most, those on which a class fails, and others evenly spaced, until
    they have `budget` bytes.

    Args:
        main: the arm that stands for the adaptation.

    Raises:
        UserError: the test set or a prediction is no longer there.
    """
    firsts = {arm: found[0] for arm, found in evaluations.items()}
    names = list(next(iter(firsts.values())).pictures)
    names = [name for name in names if all(name in one.pictures for one in firsts.values())]
    if not names:
        return Gallery([], next(iter(firsts.values())).images)
    samples = {sample.name: sample for sample in list_samples(config.test, labelled=True)}
    if gone := [name for name in names if name not in samples]:
        raise UserError(f"Data set {config.test.name} no longer has frame {gone[0]!r}.")
    scores = {arm: _scores(one, names, space) for arm, one in firsts.items()}
    main = main or next(reversed(scores))
    palette, labels = distinct_palette(space), LabelReader(config.test, space)

    def frame(index: int) -> Frame:
        name = names[index]
        return Frame(
            name,
            photo(read_frame(config.test, samples[name]), FRAME_WIDTH),
            label_picture(labels.read(samples[name], native=True), palette, LABEL_WIDTH),
            {
                arm: label_picture(
                    read_raw(
                        evaluation_folder(run, arm, config.seeds[0]) / one.pictures[name]
                    ).astype(np.uint8),
                    palette,
                    LABEL_WIDTH,
                )
                for arm, one in firsts.items()
            },
            {
                arm: {key: _plain(values[index]) for key, values in one.metrics.items()}
                for arm, one in scores.items()
            },
            {arm: list(map(_plain, one.class_iou[index])) for arm, one in scores.items()},
        )

    wanted = islice(_order(scores, main, len(names)), FRAMES)
    made: dict[int, Frame] = {}
    with ThreadPoolExecutor() as threads:
        while part := list(islice(wanted, 16)):
            made |= zip(part, threads.map(frame, part), strict=True)
            if sum(one.bytes for one in made.values()) > budget:
                break
    kept: dict[int, Frame] = {}
    for index, one in made.items():
        budget -= one.bytes
        if budget >= 0 or not kept:
            kept[index] = one
    examples = {}
    if ranks := [i for i in _ranked(scores[main].metrics[ranking().key]) if i in kept]:
        places = {"worst": 0, "median": len(ranks) // 2, "best": -1}
        examples = {title: kept[ranks[place]] for title, place in places.items()}
    return Gallery([kept[index] for index in sorted(kept)], len(names), examples, main)


def _scores(evaluation: Evaluation, names: Sequence[str], space: LabelSpace) -> _Scores:
    """From the counts of the frames."""
    rows = {name: row for row, name in enumerate(evaluation.frames.names)}
    counts = evaluation.frames.counts[[rows[name] for name in names]]
    formulas = {metric.key: METRICS[metric.key].formula for metric in in_steps()}
    return _Scores(
        {key: formula(counts, space) for key, formula in formulas.items() if formula},
        class_iou(counts),
    )


def _plain(value: float) -> Score:
    return None if np.isnan(value) else round(float(value), 4)


def _ranked(values: Float) -> list[int]:
    """The positions of numbers from the lowest to the highest, without NaN."""
    return [int(i) for i in np.argsort(values, kind="stable") if not np.isnan(values[i])]


def _order(scores: Mapping[str, _Scores], main: str, number: int) -> Iterator[int]:
    """All frames, those that one asks for first: a turn from each question's answers in turn."""
    questions: list[list[int]] = []
    for one in scores.values():
        for values in one.metrics.values():
            ranks = _ranked(values)
            middle = ranks[len(ranks) // 2 :] + ranks[: len(ranks) // 2]
            questions += [ranks, ranks[::-1], middle]
    if BEFORE in scores:
        for key, values in scores[main].metrics.items():
            gains = _ranked(values - scores[BEFORE].metrics[key])
            questions += [gains, gains[::-1]]
    questions += map(_ranked, scores[main].class_iou.T)
    # By the bits of their numbers, the last first: however many have room, they are spread evenly.
    questions.append(sorted(range(number), key=lambda index: f"{index:032b}"[::-1]))
    turns = chain.from_iterable(zip_longest(*questions))
    return iter(dict.fromkeys(index for index in turns if index is not None))


@dataclass(frozen=True)
class Pair:
    """A source frame and its translation, as data URIs."""

    name: str
    source: str
    translated: str


def translated_files(run: Path, stage: str, most: int) -> list[tuple[str, Path, Path]]:
    """Name, source file and translation of a few frames that were translated, evenly spaced.

    Args:
        stage: that made the translation.

    Raises:
        UserError: nothing has been translated, or its table is damaged.
    """
    path = run / stage / "manifest.csv"
    if not path.is_file():
        raise UserError(f"No file {path}.")
    way_out = f"Translate anew with `sim2real run --force {stage}`."
    rows = read_table(path, ["name", "source", "translated"], way_out)
    return [
        (row["name"], Path(row["source"]), path.parent / row["translated"])
        for row in evenly([row for row in rows if row["translated"]], most)
    ]


def translated_pairs(run: Path, stage: str, most: int = MOST) -> list[Pair]:
    """The same frames with their translations; `UserError` also when a picture is gone."""
    return [
        Pair(name, photo(read_rgb(source), PAIR_WIDTH), photo(read_rgb(made), PAIR_WIDTH))
        for name, source, made in translated_files(run, stage, most)
    ]


@dataclass(frozen=True)
class Grid:
    """Samples of a translator in training, as a data URI."""

    step: int
    picture: str


def sample_grids(folder: Path, most: int = MOST) -> list[Grid]:
    """A few grids of samples of the translator in a folder, evenly spaced, the newest last."""
    paths = sorted((folder / "samples").glob("step-*.png"))
    shown = [*evenly(paths[:-1], most - 1), *paths[-1:]]
    return [
        Grid(int(path.stem.removeprefix("step-")), photo(read_rgb(path), GRID_WIDTH))
        for path in shown
    ]
