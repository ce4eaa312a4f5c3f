"""How long a report of many frames takes to build, how large it is, and how soon it answers.

    python benchmarks/report.py [--frames 500] [--seeds 3] [--out DIR]

Six arms on frames of 2048x1024 drawn by the toy world: ten scenes under many names, with a grain of
their own, so that pictures are as large as those of photographs. Needs an installed Chromium for
the last of the three.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.data.images import read_rgb, resize_indices, write_image, write_indices
from pipeline.data.labels import load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader
from pipeline.files import write_json
from pipeline.run.folder import write_run
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.toyworld.writing import write_toy_world
from pipeline.yaml_files import write_yaml
from reports.report import write_report

SCENES, SIZE = 10, (2048, 1024)
ARMS: dict[str, object] = {
    "source_only": "source",
    "adapted": "translated",
    "mixed": {"train": {"translated": 1, "source": 1}},
    "taught": {"train": "translated", "self_training": {}, "start": "adapted"},
    "longer": {"train": "translated", "segmentation": {"steps": 80_000}},
    "oracle": "target",
}
NOISE = dict(zip(ARMS, (0.5, 0.3, 0.35, 0.25, 0.28, 0.15), strict=True))
"""Arm -> share of the blocks of a prediction that are wrong."""


def make_run(folder: Path, frames: int, seeds: int) -> tuple[Config, Path]:
    """A run that is scored, made of files alone."""
    write_toy_world(folder, sim_frames=8, real_train_frames=2, real_val_frames=SCENES, size=SIZE)
    for kind in ("leftImg8bit", "gtFine"):
        scenes = sorted((folder / "toy-real" / kind / "val").rglob("*.*"))
        for path in scenes:
            _repeat(path, frames)
    real = {"dataset": "cityscapes", "root": str(folder / "toy-real")}
    write_yaml(
        folder / "config.yaml",
        {
            "name": "benchmark",
            "label_space": "cityscapes19",
            "source": {"dataset": "gta5", "root": str(folder / "toy-sim")},
            "target": real | {"split": "train"},
            "test": real | {"split": "val", "limit": frames},
            "arms": ARMS,
            "seeds": list(range(seeds)),
        },
    )
    config, run = load_config(folder / "config.yaml"), folder / "run"
    write_run(run, config)
    for arm in ARMS:
        _score(config, run / "evaluation" / arm, arm)
    return config, run


def _repeat(path: Path, frames: int) -> None:
    """A scene under further names; of a picture, with another grain in each of ten copies."""
    city, number, rest = path.name.split("_", 2)
    rng = np.random.default_rng(int(number))
    if path.suffix == ".png" and path.name.endswith("leftImg8bit.png"):
        rgb = read_rgb(path).astype(np.int16)
        grain = rng.normal(0, 9, rgb.shape[:2])[..., None]
        write_image(path, np.clip(rgb + grain, 0, 255).astype(np.uint8))
    for copy in range(1, frames // SCENES):
        path.with_name(f"{city}_{int(number) + copy * SCENES:06d}_{rest}").hardlink_to(path)


def _score(config: Config, folder: Path, arm: str) -> None:
    """Predictions with wrong blocks, and their counts, for all seeds."""
    space = load_label_space(config.label_space)
    reader, rng = LabelReader(config.test, space), np.random.default_rng(len(arm))
    samples, seen, tables = list_samples(config.test, labelled=True), {}, []
    first = folder / "seed-0"
    for number, sample in enumerate(samples):
        scene = number % SCENES
        if scene not in seen:
            seen[scene] = resize_indices(reader.read(sample, native=True), (400, 200))
        truth = seen[scene]
        wrong = np.kron(rng.random((20, 40)) < NOISE[arm], np.ones((10, 10), bool))
        other = np.kron(rng.integers(0, 19, (20, 40)), np.ones((10, 10), int))
        prediction = np.where(wrong, other, np.where(truth == 255, 0, truth)).astype(np.uint8)
        write_indices(first / f"predictions/{number}.png", prediction, space.palette)
        matrix = ConfusionMatrix(len(space.classes))
        matrix.add(truth, prediction)
        tables.append(matrix.table)
    counts = np.stack(tables)
    total = counts.sum(axis=0)
    np.savez_compressed(first / "per_image.npz", names=[s.name for s in samples], counts=counts)
    write_json(
        first / "evaluation.json",
        {
            "protocol": {"label_space": space.name, "resolution": "ground truth", "ignore": 255},
            "dataset": config.test.name,
            "split": config.test.split,
            "images": len(samples),
            "arm": arm,
            "seed": 0,
            "classes": space.class_names,
            "pictures": {s.name: f"predictions/{i}.png" for i, s in enumerate(samples)},
            "confusion": total[:, :-1].tolist(),
            **ConfusionMatrix.from_counts(total[:, :-1].tolist()).metrics(space),
        },
    )
    for seed in config.seeds[1:]:
        other_seed = folder / f"seed-{seed}"
        shutil.copytree(first, other_seed, copy_function=os.link)
        path = other_seed / "evaluation.json"
        path.unlink()
        write_json(path, json.loads((first / path.name).read_text()) | {"seed": seed})


def answers(page: Path) -> float | None:
    """Seconds until a browser shows the first frame's predictions; None without Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    switches = ["--headless", "--no-sandbox", "--disable-gpu"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=switches)
        tab = browser.new_page(viewport={"width": 1366, "height": 900})
        began = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_selector("#panes canvas")
        seconds = time.perf_counter() - began
        browser.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        config, run = make_run(folder, options.frames, options.seeds)
        began = time.perf_counter()
        write_report(config, run, run / "report")
        print(f"built in {time.perf_counter() - began:.1f} s")
        page = run / "report/index.html"
        print(f"{page.stat().st_size / 1e6:.1f} MB")
        waited = answers(page)
        print("no Chromium" if waited is None else f"answers after {waited:.2f} s")


if __name__ == "__main__":
    main()
