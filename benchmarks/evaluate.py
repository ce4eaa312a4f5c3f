"""Scoring 2048x1024 predictions: ours against the usual ways, in one process, interleaved.

First the confusion matrix of one pair of label maps in memory, then the whole evaluation of many
pairs of files. For each: the median of the paired ratios other / ours, with minimum and maximum;
above 1 means that ours is faster. Results are checked to be equal first. One thread, but for the
rows that say otherwise. Label maps are of a drawn street, with a prediction that is wrong at edges
and in patches; and of noise, which nobody predicts.

    python benchmarks/evaluate.py [--rounds 15] [--images 100]
"""

import argparse
import contextlib
import ctypes
import io
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from PIL import Image
from segmentation_models_pytorch.metrics import get_stats

from pipeline.data.images import UInt8, resize_indices, write_image, write_indices
from pipeline.data.labels import CITYSCAPES_IDS, IGNORE, load_label_space
from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.scoring.cityscapes import CLASS_OF_ID, LABEL_ID
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.toyworld.drawing import render_scene
from segmentation import score_files as files
from segmentation.predict import upsampled_argmax

try:
    from torchmetrics.classification import MulticlassConfusionMatrix
except ImportError:  # no part of the environment: `pip install torchmetrics` to compare with it
    MulticlassConfusionMatrix = None

SIZE, CLASSES, SCENES = (2048, 1024), 19, 8
SPACE = load_label_space("cityscapes19")
Pair = tuple[UInt8, UInt8]
"""Truth and prediction, (1024, 2048) uint8 class indices."""
Way = Callable[[UInt8, UInt8], Any]

KERNEL = """
void count(const unsigned char *prediction, const unsigned char *truth, unsigned pixels,
           unsigned long long *counts, unsigned side) {
    for (unsigned i = 0; i < pixels; ++i) counts[side * truth[i] + prediction[i]] += 1;
}
"""
"""The loop of cityscapesScripts' compiled kernel, whose source its package does not bring."""


def street(rng: np.random.Generator) -> tuple[UInt8, Pair]:
    """Label ids of a drawn street, and its pair of truth and prediction."""
    _, ids = render_scene(rng, (SIZE[0] // 2, SIZE[1] // 2), "real")
    ids = resize_indices(np.asarray(ids, np.uint8), SIZE)
    table = np.full(256, IGNORE, np.uint8)
    for value, name in CITYSCAPES_IDS.items():
        table[value] = SPACE.index_of(name)
    truth = table[ids]

    def patches(cell: int, share: float) -> Any:
        small = (rng.random((SIZE[1] // cell, SIZE[0] // cell)) < share).astype(np.uint8)
        return resize_indices(small, SIZE).astype(bool)

    prediction = np.where(patches(16, 0.3), np.roll(truth, (3, -4), (0, 1)), truth)
    wrong = rng.integers(0, CLASSES, (SIZE[1] // 8, SIZE[0] // 8), np.uint8)
    prediction = np.where(patches(8, 0.08), resize_indices(wrong, SIZE), prediction)
    prediction[prediction == IGNORE] = 2
    return ids, (truth, np.ascontiguousarray(prediction))


def ours(truth: UInt8, prediction: UInt8) -> Any:
    """The project's confusion matrix."""
    matrix = ConfusionMatrix(CLASSES)
    matrix.add(truth, prediction)
    return matrix.counts


def masked(truth: UInt8, prediction: UInt8) -> Any:
    """The usual lines: mask what is ignored, count class * classes + class."""
    scored = truth != IGNORE
    keys = truth[scored].astype(int) * CLASSES + prediction[scored]
    return np.bincount(keys, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def unique(truth: UInt8, prediction: UInt8) -> Any:
    """How cityscapesScripts counts without its compiled kernel."""
    keys, times = np.unique(truth.astype(np.int32) * 256 + prediction, return_counts=True)
    counts = np.zeros((256, 256), np.int64)
    for key, count in zip(keys, times, strict=True):
        counts[key // 256, key % 256] += count
    return counts[:CLASSES, :CLASSES]


def kernel(folder: Path) -> Way | None:
    """How cityscapesScripts counts with its compiled kernel; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source, library = folder / "kernel.c", folder / "kernel.so"
    source.write_text(KERNEL)
    subprocess.run([compiler, "-O3", "-shared", "-fPIC", source, "-o", library], check=True)
    count = ctypes.CDLL(str(library)).count

    def way(truth: UInt8, prediction: UInt8) -> Any:
        counts = np.zeros((256, 256), np.uint64)
        address = ctypes.c_void_p
        count(
            prediction.ctypes.data_as(address),
            truth.ctypes.data_as(address),
            truth.size,
            counts.ctypes.data_as(address),
            256,
        )
        return counts[:CLASSES, :CLASSES]

    return way


def torchmetrics(truth: UInt8, prediction: UInt8) -> Any:
    """A metric of torchmetrics, updated once."""
    metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE, validate_args=False)
    metric.update(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
    return metric.compute().numpy()


def smp(truth: UInt8, prediction: UInt8) -> Any:
    """Hits of each class by segmentation-models-pytorch; it has no confusion matrix."""
    hits, *_ = get_stats(
        torch.from_numpy(prediction)[None].long(),
        torch.from_numpy(truth)[None].long(),
        mode="multiclass",
        num_classes=CLASSES,
        ignore_index=IGNORE,
    )
    return np.diag(hits[0].numpy())


def seconds(work: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(name: str, other: list[float], own: list[float]) -> None:
    """Print the paired ratios of two lists of times."""
    ratios = [a / b for a, b in zip(other, own, strict=True)]
    print(
        f"{name:<52} {statistics.median(ratios):6.1f}x (min {min(ratios):.1f}, max "
        f"{max(ratios):.1f}; {1000 * statistics.median(other):.1f} -> "
        f"{1000 * statistics.median(own):.1f} ms)",
        flush=True,
    )


def compare_counting(title: str, pairs: list[Pair], ways: dict[str, Way], rounds: int) -> None:
    """Time all ways of counting one pair in turn, after checking that they agree."""
    times: dict[str, list[float]] = {name: [] for name in [*ways, "ours"]}
    for truth, prediction in pairs:  # this also warms up
        expected = ours(truth, prediction)
        for name, way in ways.items():
            found = way(truth, prediction)
            wanted = np.diag(np.diag(expected)) if way is smp else expected
            assert (found == wanted).all(), name
    for turn in range(rounds):
        truth, prediction = pairs[turn % len(pairs)]
        for name, way in [*ways.items(), ("ours", ours)]:
            times[name].append(seconds(partial(way, truth, prediction)))
    print(f"\nconfusion matrix of one pair, {title}:")
    for name in ways:
        row(name, times[name], times["ours"])


def compare_upsampling(rounds: int) -> None:
    """Logits of half the size to classes of the full one."""
    logits = torch.randn(1, CLASSES, SIZE[1] // 32, SIZE[0] // 32)
    size = (SIZE[1], SIZE[0])
    logits = torch.nn.functional.interpolate(logits, size=(512, 1024), mode="bilinear")

    def usual() -> torch.Tensor:
        large = torch.nn.functional.interpolate(logits, size=size, mode="bilinear")
        return large.argmax(dim=1)[0]

    with torch.inference_mode():
        assert torch.equal(usual(), upsampled_argmax(logits, size).long())
        times = [
            (seconds(usual), seconds(partial(upsampled_argmax, logits, size)))
            for _ in range(max(3, rounds // 3))
        ]
    print("\nlogits 1024x512 to classes 2048x1024:")
    row("interpolate + argmax", *map(list, zip(*times, strict=True)))


def write_set(root: Path, scenes: list[tuple[UInt8, Pair]], images: int) -> DatasetSpec:
    """Pairs of files in the layout of Cityscapes; predictions are label ids below `results`."""
    frame = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    for number in range(images):
        ids, (_, prediction) = scenes[number % len(scenes)]
        name = f"town_{number:06}_000019"
        write_image(root / f"leftImg8bit/val/town/{name}_leftImg8bit.png", frame)
        # No two files are alike.
        turned = np.roll(ids, 8 * number, axis=1), np.roll(prediction, 8 * number, axis=1)
        write_indices(root / f"gtFine/val/town/{name}_gtFine_labelIds.png", turned[0], None)
        write_indices(root / f"results/{name}_pred.png", LABEL_ID[turned[1]], None)
    fields = {**spec_fields("cityscapes", Path()), "root": root, "split": "val"}
    return DatasetSpec.model_validate(fields)


def file_pairs(spec: DatasetSpec) -> list[tuple[Path, Path]]:
    """The files of truth and prediction."""
    truths = sorted((spec.root / "gtFine").rglob("*_labelIds.png"))
    return list(zip(truths, sorted((spec.root / "results").iterdir()), strict=True))


def by_torchmetrics(spec: DatasetSpec) -> Any:
    """The usual loop: decode, remap, update; None where torchmetrics is not installed."""
    if MulticlassConfusionMatrix is None:
        return None
    table = np.append(CLASS_OF_ID, np.full(256 - len(CLASS_OF_ID), IGNORE, np.uint8))
    metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE, validate_args=False)
    for pair in file_pairs(spec):
        truth, prediction = (
            torch.from_numpy(table[np.asarray(Image.open(path))]).long() for path in pair
        )
        metric.update(prediction, truth)
    return metric.compute().numpy()


def by_script(spec: DatasetSpec) -> Any:
    """Cityscapes' own script, without instances; None where it is not installed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script
    except ImportError:
        return None
    script.args.evalInstLevelScore, script.args.JSONOutput = False, False
    script.args.quiet = True
    truths, predictions = zip(*file_pairs(spec), strict=True)
    with np.errstate(invalid="ignore"):
        result = script.evaluateImgLists([*map(str, predictions)], [*map(str, truths)], script.args)
    return np.array(result["confMatrix"])[np.ix_(LABEL_ID, LABEL_ID)]


def by_us(spec: DatasetSpec, threads: int) -> Any:
    """`sim2real evaluate --predictions`, with intervals and all files that it writes."""
    with mock.patch.object(files.os, "cpu_count", return_value=threads):
        found, _ = files.score_files(spec, SPACE, spec.root / "results", spec.root / "scores")
    return np.array(found.confusion)


def compare_evaluations(spec: DatasetSpec, rounds: int) -> None:
    """Time whole evaluations of files in turn, after checking that they agree."""
    ways = {"torchmetrics": by_torchmetrics, "cityscapesScripts without kernel": by_script}
    found = {name: way(spec) for name, way in ways.items()}
    ways = {name: way for name, way in ways.items() if found[name] is not None}
    expected = by_us(spec, 1)
    for name in ways:
        assert (found[name] == expected).all(), name
    times: dict[str, list[float]] = {name: [] for name in [*ways, "ours", "threads"]}
    cores = len(os.sched_getaffinity(0))
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(partial(way, spec)))
        times["ours"].append(seconds(partial(by_us, spec, 1)))
        times["threads"].append(seconds(partial(by_us, spec, cores)))
    count = len(file_pairs(spec))
    print(f"\nwhole evaluation of {count} pairs of files, on {cores} core(s):")
    for name in ways:
        row(name, times[name], times["ours"])
        row(f"{name}, ours with threads", times[name], times["threads"])


def main() -> None:
    """Compare, and say on what."""
    parser = argparse.ArgumentParser(description="Scoring, against the usual ways.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    scenes = [street(rng) for _ in range(SCENES)]
    pairs = [pair for _, pair in scenes]
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Way] = {
            "masked np.bincount": masked,
            "cityscapesScripts, Python (np.unique)": unique,
            "segmentation-models-pytorch, get_stats": smp,
        }
        if MulticlassConfusionMatrix:
            ways["torchmetrics"] = torchmetrics
        if compiled := kernel(Path(folder)):
            ways["cityscapesScripts, its kernel's loop compiled"] = compiled
        print(f"{SIZE[0]}x{SIZE[1]}, {CLASSES} classes, {arguments.rounds} rounds: other -> ours")
        compare_counting("a street", pairs, ways, arguments.rounds)
        noise = rng.integers(0, CLASSES, (2, SIZE[1], SIZE[0]), np.uint8)
        compare_counting("noise", [(noise[0], noise[1])], ways, arguments.rounds)
        compare_upsampling(arguments.rounds)
        spec = write_set(Path(folder), scenes, arguments.images)
        compare_evaluations(spec, 3)


if __name__ == "__main__":
    main()
