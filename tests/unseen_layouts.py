"""Layouts of published sets and tools that were written down here before any code knew them.

Each is drawn from the toy world as its public documentation says; no file of the sets is used. The
table in `docs/datasets.md` says what `new-dataset` makes of each: `python -m tests.unseen_layouts`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.labels import CITYSCAPES_IDS

Array = npt.NDArray[Any]
Scenes = Sequence[tuple[Array, Array]]
"""Frames (H, W, 3) uint8 and their Cityscapes ids (H, W)."""
Rgb = tuple[int, int, int]
SKY, CAR = 23, 26

# What each set calls the Cityscapes names; what is not listed falls to "" (void).
_VIPER = {
    "": 0, "sky": 2, "road": 3, "sidewalk": 4, "rail track": 5, "terrain": 6, "vegetation": 8,
    "building": 9, "pole": 10, "wall": 10, "fence": 11, "traffic light": 13, "traffic sign": 14,
    "person": 20, "rider": 20, "bicycle": 22, "motorcycle": 23, "car": 24, "bus": 26, "truck": 27,
    "train": 29,
}  # fmt: skip
_VIPER_NAMES = [
    "unlabeled", "ambiguous", "sky", "road", "sidewalk", "railtrack", "terrain", "tree",
    "vegetation", "building", "infrastructure", "fence", "billboard", "trafficlight",
    "trafficsign", "mobilebarrier", "firehydrant", "chair", "trash", "trashcan", "person",
    "animal", "bicycle", "motorcycle", "car", "van", "bus", "truck", "trailer", "train",
    "plane", "boat",
]  # fmt: skip
_CARLA_08 = {
    "": 0, "building": 1, "fence": 2, "person": 4, "rider": 4, "pole": 5, "road": 7, "sidewalk": 8,
    "vegetation": 9, "terrain": 9, "car": 10, "truck": 10, "bus": 10, "train": 10, "motorcycle": 10,
    "bicycle": 10, "wall": 11, "traffic sign": 12, "traffic light": 12,
}  # fmt: skip
CARLA_08_COLORS: list[Rgb] = [
    (0, 0, 0), (70, 70, 70), (190, 153, 153), (250, 170, 160), (220, 20, 60), (153, 153, 153),
    (157, 234, 50), (128, 64, 128), (244, 35, 232), (107, 142, 35), (0, 0, 142), (102, 102, 156),
    (220, 220, 0),
]  # fmt: skip
_RUGD: dict[str, tuple[str, Rgb]] = {
    "": ("void", (0, 0, 0)), "terrain": ("grass", (0, 102, 0)), "vegetation": ("tree", (0, 255, 0)),
    "pole": ("pole", (0, 153, 153)), "sky": ("sky", (0, 0, 255)), "car": ("vehicle", (255, 255, 0)),
    "truck": ("vehicle", (255, 255, 0)), "bus": ("vehicle", (255, 255, 0)),
    "road": ("asphalt", (64, 64, 64)), "building": ("building", (255, 0, 0)),
    "person": ("person", (204, 153, 255)), "rider": ("person", (204, 153, 255)),
    "fence": ("fence", (102, 0, 204)), "wall": ("fence", (102, 0, 204)),
    "bicycle": ("bicycle", (0, 128, 255)), "motorcycle": ("bicycle", (0, 128, 255)),
    "traffic sign": ("sign", (255, 255, 128)), "traffic light": ("sign", (255, 255, 128)),
    "sidewalk": ("concrete", (101, 101, 11)),
}  # fmt: skip
_A2D2: dict[str, tuple[str, Rgb]] = {
    "": ("Blurred area", (96, 69, 143)), "car": ("Car 1", (255, 0, 0)),
    "bicycle": ("Bicycle 1", (182, 89, 6)), "person": ("Pedestrian 1", (204, 153, 255)),
    "rider": ("Pedestrian 2", (189, 73, 155)), "truck": ("Truck 1", (255, 128, 0)),
    "motorcycle": ("Small vehicles 1", (0, 255, 0)), "traffic light": ("Traffic signal 1",
    (0, 128, 255)), "traffic sign": ("Traffic sign 1", (0, 255, 255)), "bus": ("Utility vehicle 1",
    (255, 255, 0)), "pole": ("Poles", (255, 246, 143)), "sidewalk": ("Sidewalk", (180, 150, 200)),
    "fence": ("Grid structure", (238, 162, 173)), "wall": ("Sidebars", (233, 100, 0)),
    "road": ("RD normal street", (255, 0, 255)), "sky": ("Sky", (135, 206, 255)),
    "building": ("Buildings", (241, 230, 255)), "vegetation": ("Nature object", (147, 253, 194)),
    "terrain": ("Nature object", (147, 253, 194)), "train": ("Truck 2", (200, 128, 0)),
}  # fmt: skip
_VOC: dict[str, tuple[str, Rgb]] = {
    "": ("background", (0, 0, 0)), "road": ("road", (128, 0, 0)), "sky": ("sky", (0, 128, 0)),
    "car": ("car", (128, 128, 0)), "truck": ("truck", (0, 0, 128)), "bus": ("bus", (128, 0, 128)),
    "building": ("building", (0, 128, 128)), "vegetation": ("tree", (128, 128, 128)),
    "terrain": ("grass", (64, 0, 0)), "sidewalk": ("pavement", (192, 0, 0)),
    "person": ("pedestrian", (64, 128, 0)), "rider": ("cyclist", (192, 128, 0)),
    "bicycle": ("bike", (64, 0, 128)), "motorcycle": ("motorbike", (192, 0, 128)),
    "pole": ("pole", (64, 128, 128)), "wall": ("wall", (192, 128, 128)),
    "fence": ("fence", (0, 64, 0)), "traffic sign": ("traffic_sign", (128, 64, 0)),
    "traffic light": ("traffic_light", (0, 192, 0)), "train": ("tram", (128, 192, 0)),
}  # fmt: skip


def _ids(table: dict[str, int]) -> Array:
    """Cityscapes id -> value, (256,)."""
    lut = np.full(256, table[""], np.int64)
    for raw, name in CITYSCAPES_IDS.items():
        lut[raw] = table.get(name, table[""])
    return lut


def _colors(table: dict[str, tuple[str, Rgb]]) -> Array:
    """Cityscapes id -> colour, (256, 3)."""
    lut = np.tile(np.array(table[""][1], np.uint8), (256, 1))
    for raw, name in CITYSCAPES_IDS.items():
        lut[raw] = table.get(name, table[""])[1]
    return lut


def _save(path: Path, pixels: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _objects(ids: Array) -> Array:
    """A number for each connected region of cars, persons and the like; 0 elsewhere."""
    things = np.isin(ids, [24, 25, 26, 27, 28, 31, 32, 33])
    return np.asarray(cv2.connectedComponents(things.astype(np.uint8))[1], np.int64)


def carla_08(folder: Path, scenes: Scenes) -> None:
    """CARLA 0.8 to 0.9.9: tags 0 to 12 in the red channel. There is no sky: it is 0."""
    table = _ids(_CARLA_08)
    for i, (rgb, ids) in enumerate(scenes):
        _save(folder / "CameraRGB" / f"{i:06d}.png", rgb)
        label = np.zeros_like(rgb)
        label[:, :, 0] = table[ids]
        _save(folder / "CameraSeg" / f"{i:06d}.png", label)


def carla_08_colours(folder: Path, scenes: Scenes) -> None:
    """The same through CARLA's colour converter, in the palette of that time."""
    table = np.array(CARLA_08_COLORS, np.uint8)[_ids(_CARLA_08)]
    for i, (rgb, ids) in enumerate(scenes):
        _save(folder / "_out" / "rgb" / f"{i:08d}.png", rgb)
        _save(folder / "_out" / "seg" / f"{i:08d}.png", table[ids])


def instance_ids(folder: Path, scenes: Scenes) -> None:
    """KITTI-360's `instance` files alone: 16 bits, class * 1000 + number of the object."""
    for i, (rgb, ids) in enumerate(scenes):
        drive = f"2013_05_28_drive_{i % 2:04d}_sync"
        place = folder / "data_2d_raw" / drive / "image_00" / "data_rect"
        _save(place / f"{i:010d}.png", rgb)
        labels = folder / "data_2d_semantics" / "train" / drive / "image_00" / "instance"
        _save(labels / f"{i:010d}.png", (ids.astype(np.int64) * 1000 + _objects(ids)).astype("u2"))


def kitti_instances(folder: Path, scenes: Scenes) -> None:
    """The KITTI benchmark's `instance` files alone: 16 bits, class * 256 + number."""
    for i, (rgb, ids) in enumerate(scenes):
        _save(folder / "training" / "image_2" / f"{i:06d}_10.png", rgb)
        values = (ids.astype(np.int64) * 256 + _objects(ids)).astype("u2")
        _save(folder / "training" / "instance" / f"{i:06d}_10.png", values)


def viper(folder: Path, scenes: Scenes) -> None:
    """Playing for Benchmarks: ids of its own, and their names in `classes.csv`."""
    table = _ids(_VIPER).astype(np.uint8)
    for i, (rgb, ids) in enumerate(scenes):
        sequence = f"{1 + i % 3:03d}"
        name = f"{sequence}_{i:05d}"
        _save(folder / "train" / "img" / sequence / f"{name}.jpg", rgb)
        _save(folder / "train" / "cls" / sequence / f"{name}.png", table[ids])
    rows = [f"{i},{name},{7 * i % 256},{40 + 5 * i},{200 - 4 * i},{i}" for i, name in
            enumerate(_VIPER_NAMES)]  # fmt: skip
    _text(folder / "classes.csv", "\n".join(["id,classname,red,green,blue,trainid", *rows]) + "\n")


def rugd(folder: Path, scenes: Scenes) -> None:
    """RUGD: colours, and a text of `number name red green blue`."""
    table = _colors(_RUGD)
    for i, (rgb, ids) in enumerate(scenes):
        place = ("creek", "trail-3", "village")[i % 3]
        _save(folder / "RUGD_frames-with-annotations" / place / f"{place}_{i:05d}.png", rgb)
        _save(folder / "RUGD_annotations" / place / f"{place}_{i:05d}.png", table[ids])
    known = dict.fromkeys(_RUGD.values())
    rows = [f"{i} {name} {r} {g} {b}" for i, (name, (r, g, b)) in enumerate(known)]
    _text(folder / "RUGD_annotations" / "RUGD_annotation-colormap.txt", "\n".join(rows) + "\n")


def a2d2(folder: Path, scenes: Scenes) -> None:
    """A2D2: `camera` and `label` within the file names, and `class_list.json` of colours."""
    table = _colors(_A2D2)
    for i, (rgb, ids) in enumerate(scenes):
        drive = ("20180807_145028", "20180925_101535")[i % 2]
        stamp = drive.replace("_", "")
        for kind, pixels in (("camera", rgb), ("label", table[ids])):
            name = f"{stamp}_{kind}_frontcenter_{i:09d}.png"
            _save(folder / drive / kind / "cam_front_center" / name, pixels)
    known = {f"#{r:02x}{g:02x}{b:02x}": name for name, (r, g, b) in _A2D2.values()}
    _text(folder / "class_list.json", json.dumps(known, indent=1))


def cvat_voc(folder: Path, scenes: Scenes) -> None:
    """CVAT's "segmentation mask" export, as PASCAL VOC: `labelmap.txt` and a list."""
    table = _colors(_VOC)
    for i, (rgb, ids) in enumerate(scenes):
        _save(folder / "JPEGImages" / f"frame_{i:06d}.jpg", rgb)
        _save(folder / "SegmentationClass" / f"frame_{i:06d}.png", table[ids])
        _save(folder / "SegmentationObject" / f"frame_{i:06d}.png", table[ids] // 2)
    names = "".join(f"frame_{i:06d}\n" for i in range(len(scenes)))
    _text(folder / "ImageSets" / "Segmentation" / "default.txt", names)
    known = dict.fromkeys(_VOC.values())
    rows = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in known]
    _text(folder / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *rows]) + "\n")


def camvid_class_dict(folder: Path, scenes: Scenes) -> None:
    """A set as many are passed on: `train`, `train_labels` with `_L`, and `class_dict.csv`."""
    table = _colors(_VOC)
    for i, (rgb, ids) in enumerate(scenes):
        part = ("train", "val")[i % 3 == 2]
        _save(folder / part / f"0001TP_{i:06d}.png", rgb)
        _save(folder / f"{part}_labels" / f"0001TP_{i:06d}_L.png", table[ids])
    rows = [f"{name}, {r}, {g}, {b}" for name, (r, g, b) in dict.fromkeys(_VOC.values())]
    _text(folder / "class_dict.csv", "\n".join(["name, r, g, b", *rows]) + "\n")


def unity_perception(folder: Path, scenes: Scenes) -> None:
    """Unity Perception's SOLO: files by step, colours in `annotation_definitions.json`."""
    table = np.concatenate([_colors(_VOC), np.full((256, 1), 255, np.uint8)], axis=1)
    for i, (rgb, ids) in enumerate(scenes):
        place = folder / f"sequence.{i}"
        _save(place / "step0.camera.png", rgb)
        _save(place / "step0.camera.semantic segmentation.png", table[ids])
        _text(place / "step0.frame_data.json", json.dumps({"frame": i, "captures": []}))
    spec = [
        {"label_name": name, "pixel_value": [r, g, b, 255]}
        for name, (r, g, b) in dict.fromkeys(_VOC.values())
        if name != "background"
    ]
    kind = "type.unity.com/unity.solo.SemanticSegmentationAnnotation"
    definitions = [{"@type": kind, "id": "semantic segmentation", "spec": spec}]
    _text(folder / "annotation_definitions.json",
          json.dumps({"annotationDefinitions": definitions}))  # fmt: skip


def npy_labels(folder: Path, scenes: Scenes) -> None:
    """A script's own: frames as PNG, labels as NumPy arrays of int64 Cityscapes ids."""
    for i, (rgb, ids) in enumerate(scenes):
        _save(folder / "rgb" / f"{i:05d}.png", rgb)
        path = folder / "semantic" / f"{i:05d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, ids.astype(np.int64))


def half_size_labels(folder: Path, scenes: Scenes) -> None:
    """A renderer that writes its masks at half the resolution of its frames."""
    for i, (rgb, ids) in enumerate(scenes):
        _save(folder / "beauty" / f"shot_{i:04d}.png", rgb)
        _save(folder / "mask" / f"shot_{i:04d}.png", ids[::2, ::2])


def _polygons(ids: Array) -> list[tuple[str, list[list[int]]]]:
    found = []
    for raw in np.unique(ids):
        mask = (ids == raw).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        for outline in outlines:
            if len(outline) > 3:
                found.append((CITYSCAPES_IDS[int(raw)], outline[:, 0, :].tolist()))
    return found


def labelme(folder: Path, scenes: Scenes) -> None:
    """labelme: polygons in a JSON beside each picture."""
    for i, (rgb, ids) in enumerate(scenes):
        _save(folder / f"img_{i:04d}.jpg", rgb)
        shapes = [
            {"label": name, "points": points, "shape_type": "polygon", "flags": {}}
            for name, points in _polygons(ids)
        ]
        height, width = ids.shape
        document = {
            "version": "5.2.1",
            "flags": {},
            "shapes": shapes,
            "imageData": None,
            "imagePath": f"img_{i:04d}.jpg",
            "imageHeight": height,
            "imageWidth": width,
        }
        _text(folder / f"img_{i:04d}.json", json.dumps(document))


def cityscapes_polygons(folder: Path, scenes: Scenes) -> None:
    """IDD as it is downloaded, and other sets in Cityscapes' layout: polygons alone."""
    for i, (rgb, ids) in enumerate(scenes):
        city = ("aachen", "bonn")[i % 2]
        stem = f"{city}_{i:06d}_000019"
        _save(folder / "leftImg8bit" / "train" / city / f"{stem}_leftImg8bit.png", rgb)
        objects = [{"label": name, "polygon": points} for name, points in _polygons(ids)]
        height, width = ids.shape
        document = {"imgHeight": height, "imgWidth": width, "objects": objects}
        _text(folder / "gtFine" / "train" / city / f"{stem}_gtFine_polygons.json",
              json.dumps(document))  # fmt: skip


def coco_panoptic(folder: Path, scenes: Scenes) -> None:
    """COCO panoptic: colours are numbers of segments, whose classes are in one JSON."""
    annotations = []
    for i, (rgb, ids) in enumerate(scenes):
        _save(folder / "train2017" / f"{i:012d}.jpg", rgb)
        segments = ids.astype(np.int64) * 64 + _objects(ids) % 64 + 1000
        parts = [segments & 255, segments >> 8 & 255, segments >> 16]
        place = folder / "annotations" / "panoptic_train2017" / f"{i:012d}.png"
        _save(place, np.stack(parts, axis=2).astype(np.uint8))
        infos = [{"id": int(s), "category_id": int((s - 1000) // 64)} for s in np.unique(segments)]
        annotations.append({"image_id": i, "file_name": place.name, "segments_info": infos})
    categories = [{"id": raw, "name": name} for raw, name in CITYSCAPES_IDS.items()]
    document = {"images": [], "annotations": annotations, "categories": categories}
    _text(folder / "annotations" / "panoptic_train2017.json", json.dumps(document))


LAYOUTS: dict[str, Callable[[Path, Scenes], None]] = {
    layout.__name__: layout
    for layout in (
        carla_08, carla_08_colours, instance_ids, kitti_instances, viper, rugd, a2d2, cvat_voc,
        camvid_class_dict, unity_perception, npy_labels, half_size_labels, labelme,
        cityscapes_polygons, coco_panoptic,
    )
}  # fmt: skip
