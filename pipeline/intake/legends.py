"""Names of label values that are written in a file beside the data, and label files of other kinds.

CSV, JSON and text files of whatever tool: each line or entry that holds a name beside a number, a
colour, or both is taken. What it is called becomes a name of the vocabulary where that is plain.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.labels import VOCABULARY
from pipeline.data.listing import read_list
from pipeline.errors import UserError
from pipeline.intake.encodings import Observation
from pipeline.intake.lost import NARROWER
from pipeline.intake.tables import Table

_BYTES = 4 << 20
"""Larger files are no legends but labels or lists of frames."""
_NAME = "name", "label_name", "classname", "class_name", "class", "label", "readable"
_NUMBER = "id", "index", "value", "png_index", "pixel_value", "n"
_COLOR = "color", "colour", "rgb", "pixel_value"

_CALLED = {
    "road": "street, asphalt, lane, roadway, normal street, rd normal street, drivable",
    "road line": "lane marking, road marking, lane line, marking",
    "sidewalk": "pavement, footpath, walkway, footway",
    "building": "house, skyscraper",
    "vegetation": "tree, bush, plant, hedge, nature object",
    "terrain": "grass, lawn, soil",
    "person": "pedestrian, human, people",
    "rider": "cyclist, motorcyclist",
    "bicycle": "bike, cycle",
    "motorcycle": "motorbike, scooter, moped",
    "car": "automobile, van, sedan, suv",
    "truck": "lorry",
    "train": "tram",
    "traffic light": "traffic signal",
    "traffic sign": "street sign, road sign, sign",
    "guard rail": "crash barrier",
    "rail track": "rails, railway",
    "ego vehicle": "ego car, car hood, ego",
    "unlabeled": "void, background, unknown, other, none, ignore, unlabelled, undefined, ambiguous",
}
"""Name of the vocabulary -> what else it is called."""


def _plain(called: str) -> str:
    """Small letters without spaces, numbers at the end and plurals: `Traffic_Lights 1`."""
    letters = re.sub(r"[^a-z]", "", called.rsplit("--", 1)[-1].lower())
    return letters.removesuffix("s") if letters not in ("grass", "bus") else letters


_KNOWN = {_plain(name): name for name in VOCABULARY}
_KNOWN |= {_plain(word): name for name, words in _CALLED.items() for word in words.split(",")}


@dataclass(frozen=True)
class Entry:
    """What a legend says of one class."""

    called: str
    number: int | None
    color: tuple[int, ...] | None


def legend_tables(
    folder: Path, files: Sequence[str], name: str, observation: Observation
) -> list[Table]:
    """The legends below a folder as tables, those with the most entries first.

    Args:
        files: paths below `folder` that may be legends.
        name: of the data set, for names of its own.
        observation: what the labels hold: numbers or colours are taken accordingly.
    """
    tables = []
    for path in _few(files):
        values, asked = {}, {}
        for entry in read_legend(folder / path):
            key = entry.color if observation.encoding == "rgb" else entry.number
            if key is None:
                continue
            raw = ",".join(map(str, key)) if isinstance(key, tuple) else str(key)
            values[raw], sure = vocabulary_name(entry.called, name)
            if not sure:
                asked[raw] = f"called {entry.called!r} in {path}"
        if len(values) > 1:
            tables.append(Table(path, observation.encoding, values, asked=asked))
    return sorted(tables, key=lambda table: -len(table.values))


def vocabulary_name(called: str, dataset: str) -> tuple[str, bool]:
    """The vocabulary name of what somebody calls a class, and whether that is plain.

    What has none gets a name of the data set's own, `DATASET/NAME`.
    """
    known = _KNOWN.get(_plain(called))
    if known is None:
        own = re.sub(r"[^a-z0-9_-]+", " ", called.lower()).strip() or "class"
        return f"{re.sub('[^a-z0-9_-]+', '-', dataset.lower()).strip('-') or 'own'}/{own}", False
    return NARROWER.get(known, known), known not in NARROWER


def _few(files: Sequence[str]) -> Iterator[str]:
    """The files of folders that do not hold one for each frame."""
    for path in files:
        place, ending = path.rpartition("/")[0], Path(path).suffix
        alike = [p for p in files if p.rpartition("/")[0] == place and Path(p).suffix == ending]
        if len(alike) <= 3:
            yield path


def read_legend(path: Path) -> list[Entry]:
    """What a file says of names beside numbers or colours; nothing where it is no legend."""
    try:
        if not path.is_file() or path.stat().st_size > _BYTES:
            return []
        text = read_list(path)
    except (UserError, OSError):
        return []
    if path.suffix.lower() == ".json":
        try:
            return list(_of_json(json.loads(text)))
        except (ValueError, RecursionError):
            return []
    rows = list(_of_table(text)) if path.suffix.lower() == ".csv" else []
    return rows or list(_of_lines(text))


def _of_table(text: str) -> Iterator[Entry]:
    """A CSV file whose first line names its columns."""
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    for row in reader:
        fields = {str(k).strip().lower(): str(v).strip() for k, v in row.items() if k and v}
        fields |= {long[0]: fields[long] for long in ("red", "green", "blue") if long in fields}
        color = None
        if {"r", "g", "b"} <= fields.keys():
            color = _color([fields[c] for c in "rgb"])
        called = next((fields[key] for key in _NAME if key in fields), "")
        number = next((fields[k] for k in _NUMBER if fields.get(k, "").isdecimal()), None)
        if called and (color or number):
            yield Entry(called, None if number is None else int(number), color)


def _of_lines(text: str) -> Iterator[Entry]:
    """Lines of a name and of one, three or four numbers."""
    for line in text.splitlines():
        line = line.split("#")[0]
        names = re.findall(r"[A-Za-z][A-Za-z _\-]*[A-Za-z]", line)
        numbers = [int(n) for n in re.findall(r"\d+", line)]
        if len(names) != 1 or len(numbers) not in (1, 3, 4) or "/" in line or max(numbers) > 65535:
            continue
        color = _color(numbers[-3:]) if len(numbers) > 1 else None
        yield Entry(names[0], numbers[0] if len(numbers) != 3 else None, color)


def _of_json(document: object) -> Iterator[Entry]:
    """Mappings of colours or numbers to names or the other way about, and lists of entries."""
    if isinstance(document, list):
        for item in document:
            if isinstance(item, dict) and (entry := _entry(item)):
                yield entry
            else:
                yield from _of_json(item)
    elif isinstance(document, dict):
        for key, value in document.items():
            name = value
            if isinstance(value, dict):
                name = next((value[k] for k in _NAME if isinstance(value.get(k), str)), None)
            color = _color(key)
            if isinstance(name, str) and (color or key.isdecimal()):
                yield Entry(name, int(key) if key.isdecimal() else None, color)
            elif isinstance(value, int) and not isinstance(value, bool) and key.lower() in _KNOWN:
                yield Entry(key, value, None)
            elif isinstance(value, list) and len(value) in (3, 4) and _color(value):
                yield Entry(key, None, _color(value))
            else:
                yield from _of_json(value)


def _entry(item: Mapping[str, object]) -> Entry | None:
    called = next((item[key] for key in _NAME if isinstance(item.get(key), str)), None)
    number = next((item[key] for key in _NUMBER if isinstance(item.get(key), int)), None)
    color = next((found for key in _COLOR if (found := _color(item.get(key)))), None)
    if not isinstance(called, str) or (number is None and color is None):
        return None
    return Entry(called, number if isinstance(number, int) else None, color)


def _color(value: object) -> tuple[int, ...] | None:
    """R, G, B of `[r, g, b]`, `{"r": ...}`, `#rrggbb` or `(r, g, b, a)`."""
    if isinstance(value, dict):
        value = [value.get(channel) for channel in "rgb"]
    if isinstance(value, str):
        if code := re.fullmatch(r"#([0-9a-fA-F]{6})([0-9a-fA-F]{2})?", value):
            value = list(bytes.fromhex(code[1]))
        else:
            value = re.fullmatch(r"\((\d+), *(\d+), *(\d+)(?:, *\d+)?\)", value)
            value = list(value.groups()) if value else None
    if not isinstance(value, list) or len(value) < 3:
        return None
    try:
        color = tuple(int(part) for part in value[:3])
    except (TypeError, ValueError):
        return None
    return color if all(0 <= part <= 255 for part in color) else None


# What is there and is not read --------------------------------------------------------------------

_FOREIGN = {
    ".npz": "NumPy archives: save each array as PNG, or labels as .npy",
    ".exr": "OpenEXR pictures: convert them to PNG (`oiiotool x.exr -o x.png`)",
    **dict.fromkeys(
        (".mp4", ".avi", ".mkv", ".mov", ".bag"),
        "video: take frames out of it (`ffmpeg -i x.mp4 -vf fps=2 frames/%06d.png`)",
    ),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"), "archives: unpack them"),
    ".h5": "HDF5: save its pictures as PNG",
    ".tfrecord": "TFRecord: save its pictures as PNG",
}


def foreign_files(files: Iterable[str]) -> list[str]:
    """What files of other kinds are, and how to come to pictures, a line for each kind."""
    found: dict[str, list[str]] = {}
    for path in files:
        if what := _FOREIGN.get(Path(path).suffix.lower()):
            found.setdefault(what, []).append(path)
    return [f"Not read: {len(paths):,} {what} (first {paths[0]})" for what, paths in found.items()]


def foreign_labels(folder: Path, files: Sequence[str]) -> str | None:
    """What label files are that hold no picture: polygons, COCO; None where there are none."""
    documents = [path for path in files if path.lower().endswith(".json")]
    for path in documents[:3] + documents[-2:]:
        try:
            document = json.loads((folder / path).read_bytes()[: 256 << 20])
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(document, dict):
            continue
        shapes, objects = document.get("shapes"), document.get("objects")
        annotations = document.get("annotations")
        if isinstance(shapes, list) and "imagePath" in document:
            return (
                f"{len(documents):,} JSON files of labelme polygons (first {path}). Draw them as "
                "label PNGs with labelme's own labelme2voc.py, or read them by a `decoder`"
            )
        if isinstance(objects, list) and "imgHeight" in document:
            return (
                f"{len(documents):,} JSON files of Cityscapes polygons (first {path}). Draw them "
                "as label PNGs with cityscapesScripts (preparation/json2labelImg.py) or the set's "
                "own scripts, or read them by a `decoder`"
            )
        if isinstance(annotations, list) and annotations and isinstance(annotations[0], dict):
            if "segments_info" in annotations[0]:
                return (
                    f"COCO panoptic labels ({path}): the colours of the PNGs are numbers of "
                    "segments. Make label PNGs with panopticapi's panoptic2semantic_segmentation"
                    ".py, or read them by a `decoder`"
                )
            if "segmentation" in annotations[0]:
                return (
                    f"COCO labels ({path}): polygons or runs of pixels. Draw them as label PNGs "
                    "with pycocotools (`coco.annToMask`)"
                )
    return None
