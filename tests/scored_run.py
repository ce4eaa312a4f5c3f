"""A run as it is when everything is scored: made of files alone, its counts known."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.data.images import write_image, write_indices
from pipeline.data.labels import load_label_space
from pipeline.data.listing import list_samples, translated_path
from pipeline.data.reading import LabelReader, read_frame
from pipeline.files import write_json, write_text
from pipeline.run.folder import write_run
from pipeline.scoring.confusion import ConfusionMatrix
from pipeline.yaml_files import write_yaml

Table = list[list[int]]
FRAMES = 4
NASTY = "<script>alert('x')</script>"
DEFAULT_ARMS = {"source_only": "source", "adapted": "translated", "oracle": "target"}
# Two of three classes are in the ground truth, 10 pixels each; accuracies by hand in the tests.
COUNTS: dict[str, list[Table]] = {
    "source_only": [[[6, 4, 0], [5, 5, 0], [0, 0, 0]], [[7, 3, 0], [4, 6, 0], [0, 0, 0]]],
    "adapted": [[[7, 3, 0], [3, 7, 0], [0, 0, 0]], [[8, 2, 0], [2, 8, 0], [0, 0, 0]]],
    "oracle": [[[9, 1, 0], [1, 9, 0], [0, 0, 0]], [[9, 1, 0], [1, 9, 0], [0, 0, 0]]],
}
LOSSES = (
    *["identity_loss", "cycle_loss_source", "cycle_loss_target", "gan_loss_G", "gan_loss_F"],
    *["discriminator_loss_target", "discriminator_loss_source"],
)


def make_config(world: Path, folder: Path, **changes: Any) -> Config:
    """A run's configuration over a label space of three classes, one of them in no label."""
    write_yaml(
        folder / "space.yaml",
        {
            "name": "three",
            "classes": [
                {"name": "road", "names": ["road"], "color": [128, 64, 128]},
                {"name": NASTY, "names": ["building"], "color": [70, 70, 70]},
                {"name": "bicyclist", "names": ["bicyclist"], "color": [119, 11, 32]},
            ],
        },
    )
    sim = {"dataset": "gta5", "root": str(world / "toy-sim"), "name": f"sim {NASTY}"}
    real = {"dataset": "cityscapes", "root": str(world / "toy-real")}
    write_yaml(
        folder / "config.yaml",
        {
            "name": "tiny",
            "label_space": "space.yaml",
            "source": sim,
            "target": real | {"split": "train"},
            "test": real | {"split": "val"},
            "arms": DEFAULT_ARMS,
            "seeds": [0, 1],
            **changes,
        },
    )
    return load_config(folder / "config.yaml")


def write_evaluation(folder: Path, config: Config, arm: str, seed: int, counts: Table) -> None:
    space = load_label_space(config.label_space)
    pictures = {}
    samples = list_samples(config.test, labelled=True)
    for sample in samples:
        pictures[sample.name] = f"predictions/{sample.name.replace('/', '-')}.png"
        seen = LabelReader(config.test, space).read(sample, native=True) % len(space.classes)
        left = seen[:, : seen.shape[1] // 3]
        left[:] = (left + 1) % len(space.classes)  # wrong in the left third
        write_indices(folder / pictures[sample.name], seen, space.palette)
    write_json(
        folder / "evaluation.json",
        {
            "protocol": {"label_space": space.name, "resolution": "ground truth", "ignore": 255},
            "dataset": config.test.name,
            "split": config.test.split,
            "images": len(samples),
            "arm": arm,
            "seed": seed,
            "classes": space.class_names,
            "pictures": pictures,
            "confusion": counts,
            "void_predictions": [0] * len(counts),
            **ConfusionMatrix.from_counts(counts).metrics(space),
        },
    )
    names = [sample.name for sample in samples]
    by_frame = spread_out(counts, len(names))
    np.savez_compressed(folder / "per_image.npz", names=names, counts=by_frame)
    rows = [
        {"name": name, "pixel_accuracy": scores["pixel_accuracy"], "mean_iou": scores["mean_iou"]}
        for name, each in zip(names, by_frame, strict=True)
        for scores in [ConfusionMatrix.from_counts(each[:, :-1].tolist()).metrics(space)]
    ]
    pd.DataFrame(rows).to_csv(folder / "per_image.csv", index=False)


def spread_out(counts: Table, frames: int = FRAMES) -> npt.NDArray[np.int64]:
    """(frames, K, K + 1): the pixels dealt out to the frames, none of them void."""
    total = np.asarray(counts, np.int64)
    each = np.stack([(total + frames - 1 - i) // frames for i in range(frames)])
    return np.pad(each, ((0, 0), (0, 0), (0, 1)))


def make_run(
    config: Config, run: Path, counts: dict[str, list[Table]] = COUNTS, *, seconds: float = 61
) -> Path:
    """All files that a finished run leaves for its report."""
    write_run(run, config)
    for arm in config.arms:
        for seed in config.seeds:
            evaluation = run / "evaluation" / arm / f"seed-{seed}"
            write_evaluation(evaluation, config, arm, seed, counts[arm][seed])
            training = run / "segmentation" / arm / f"seed-{seed}"
            lines = [{"step": s, "loss": 1 / s, "learning_rate": 0.1} for s in range(1, 30)]
            write_text(training / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
            record = {"fingerprint": "", "seconds": seconds, "inputs": {}}
            write_json(training / "stage.json", record)
    lines = [{"step": s, **dict.fromkeys(LOSSES, 1 / s)} for s in range(1, 30)]
    write_text(run / "cyclegan/log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    rows = []
    for sample in list_samples(config.source, labelled=False):
        frame = read_frame(config.source, sample)
        path = translated_path(config.source, sample, run / "translated")
        write_image(path, 255 - frame)
        rows.append([sample.name, sample.image, path.relative_to(run / "translated")])
    pd.DataFrame(rows, columns=["name", "source", "translated"]).to_csv(
        run / "translated" / "manifest.csv", index=False
    )
    write_image(run / "cyclegan/samples/step-0000029.png", np.concatenate([frame] * 6, axis=1))
    return run


def read_report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def page_data(folder: Path) -> dict[str, Any]:
    """What the script of a run's page reads."""
    page = (folder / "index.html").read_text()
    text = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    data: dict[str, Any] = json.loads(text)
    return data


class Page(HTMLParser):
    """The tags of a page, and the text of its style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.style = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "style":
            self.style += data


def assert_self_contained(text: str) -> None:
    page = Page(text)
    addresses = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in {"src", "href", "srcset", "data", "action", "poster", "background"}
    ]
    assert all(address and address.startswith(("data:", "#")) for address in addresses)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import", page.style)
