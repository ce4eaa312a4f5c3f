"""Tiny data sets in the true on-disk layout of each built-in spec: folders, names, bit depths,
palettes, channels, and the files that lie beside without belonging to the set.

A label holds every value of the set's table. The values are written out here and not read from the
spec, so that a test of the spec has something to be compared with.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.io import savemat

from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.schema import parse

Array = npt.NDArray[Any]
_COLUMNS, _BLOCK = 8, 2

CITYSCAPES_IDS = range(34)
TRAIN_IDS = (*range(19), 255)
VIRTUAL_KITTI_2 = (
    *[(210, 0, 200), (90, 200, 255), (0, 199, 0), (90, 240, 0), (140, 140, 140), (100, 60, 100)],
    *[(250, 100, 255), (255, 255, 0), (200, 200, 0), (255, 130, 0), (80, 80, 80), (160, 60, 60)],
    *[(255, 127, 80), (0, 139, 139), (0, 0, 0)],
)
CAMVID32 = (
    *[(64, 128, 64), (192, 0, 128), (0, 128, 192), (0, 128, 64), (128, 0, 0), (64, 0, 128)],
    *[(64, 0, 192), (192, 128, 64), (192, 192, 128), (64, 64, 128), (128, 0, 192), (192, 0, 64)],
    *[(128, 128, 64), (192, 0, 192), (128, 64, 64), (64, 192, 128), (64, 64, 0), (128, 64, 128)],
    *[(128, 128, 192), (0, 0, 192), (192, 128, 128), (128, 128, 128), (64, 128, 192)],
    *[(0, 0, 64), (0, 64, 64), (192, 64, 128), (128, 128, 0), (192, 128, 192), (64, 0, 64)],
    *[(192, 192, 0), (0, 0, 0), (64, 192, 0)],
)


def load_spec(path: Path) -> DatasetSpec:
    """A data set's file, read as the commands read it."""
    return parse(DatasetSpec, spec_fields(path.name, path.parent), str(path))


@dataclass
class Layout:
    """What was written: frame name -> raw label values, and which frames each split holds."""

    root: Path
    labels: dict[str, Array] = field(default_factory=dict)
    """(H, W) ids or (H, W, 3) colours; no entry for frames without a label file."""
    splits: dict[str | None, list[str]] = field(default_factory=dict)
    """Split -> sorted names; None where the spec is read without a split."""

    def add(self, name: str, image: str, label: Array, splits: Iterable[str | None]) -> Array:
        """Note a frame, write its image of noise in the label's size, and return the label."""
        self.labels[name] = label
        self.add_unlabelled(name, image, label.shape[:2], splits)
        return label

    def add_unlabelled(
        self, name: str, image: str, shape: Sequence[int], splits: Iterable[str | None]
    ) -> None:
        """Note a frame without label and write its image, `shape` = (H, W) pixels of noise."""
        rng = np.random.default_rng(len(self.splits))
        write(self.root / image, rng.integers(0, 256, (*shape, 3)))
        for split in splits:
            self.splits[split] = sorted([*self.splits.get(split, []), name])


def blocks(values: Iterable[Any], turn: int = 0) -> Array:
    """A label with a block of pixels for each value: (H, W) int ids or (H, W, 3) int colours.

    Args:
        turn: rotate the order by so many places, so that frames differ.
    """
    table = np.array(list(values))
    rows = -(-len(table) // _COLUMNS)
    table = np.resize(np.roll(table, turn, axis=0), (rows * _COLUMNS, *table.shape[1:]))
    grid = table.reshape(rows, _COLUMNS, *table.shape[1:])
    return grid.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)


def write(path: Path, pixels: Any, palette: Sequence[int] | None = None) -> None:
    """Write 8-bit pixels, (H, W) grey or (H, W, 3 or 4) colour, or indices into a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def _palette() -> list[int]:
    return list(np.random.default_rng(0).bytes(768))


def gta5(root: Path) -> Layout:
    """Palette PNGs of Cityscapes ids with 34, and split.mat with frame numbers from 1."""
    layout = Layout(root)
    parts = {"train": [1, 4], "val": [2], "test": [3]}
    for part, numbers in parts.items():
        for number in numbers:
            name = f"{number:05}"
            label = blocks(range(35), number)
            layout.add(name, f"images/{name}.png", label, [None, part])
            write(root / f"labels/{name}.png", label, _palette())
    # MATLAB's lists are columns of doubles.
    savemat(root / "split.mat", {f"{p}Ids": np.array([n], float).T for p, n in parts.items()})
    return layout


def _cityscapes(root: Path, type_: str, frames: Iterable[tuple[str, str, str]]) -> Layout:
    layout = Layout(root)
    for turn, (split, city, number) in enumerate(frames):
        frame = f"{city}_{number}"
        label = blocks(CITYSCAPES_IDS, turn)
        name = f"{split}/{city}/{frame}" if type_ == "gtFine" else f"{city}/{frame}"
        wanted = split if type_ == "gtFine" else None
        layout.add(name, f"leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png", label, [wanted])
        stem = root / f"{type_}/{split}/{city}/{frame}_{type_}"
        write(Path(f"{stem}_labelIds.png"), label)
        write(Path(f"{stem}_color.png"), np.zeros((*label.shape, 4)))
        Image.fromarray((label * 1000).astype(np.uint16)).save(f"{stem}_instanceIds.png")
        Path(f"{stem}_polygons.json").write_text("{}")
    return layout


def cityscapes(root: Path) -> Layout:
    """Fine labels, several cities in a split, and the other files of gtFine."""
    return _cityscapes(
        root,
        "gtFine",
        [
            ("train", "aachen", "000000_000019"),
            ("train", "zurich", "000121_000019"),
            ("val", "frankfurt", "000000_000294"),
            ("test", "berlin", "000000_000019"),
        ],
    )


def cityscapes_extra(root: Path) -> Layout:
    """The further frames and their coarse labels."""
    return _cityscapes(
        root,
        "gtCoarse",
        [
            ("train_extra", "augsburg", "000000_000000"),
            ("train_extra", "bayreuth", "000000_000001"),
        ],
    )


def synthia(root: Path) -> Layout:
    """16-bit colour PNGs: class in red, instance in green."""
    layout = Layout(root)
    for turn, name in enumerate(("0000000", "0000001")):
        label = layout.add(name, f"RGB/{name}.png", blocks(range(23), turn), [None])
        blue_first = np.zeros((*label.shape, 3), np.uint16)
        blue_first[:, :, 1] = 300 + label  # more than 8 bits hold
        blue_first[:, :, 2] = label
        (root / "GT/LABELS").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / f"GT/LABELS/{name}.png"), blue_first)
        write(root / f"GT/COLOR/{name}.png", np.zeros((*label.shape, 3)))
    return layout


def synscapes(root: Path) -> Layout:
    """Numbers without leading zeros; instance colours and the larger frames lie beside."""
    layout = Layout(root)
    for number in (1, 2, 10):
        label = layout.add(
            str(number), f"img/rgb/{number}.png", blocks(CITYSCAPES_IDS, number), [None]
        )
        write(root / f"img/class/{number}.png", label)
        write(root / f"img/instance/{number}.png", np.zeros((*label.shape, 3)))
        write(root / f"img/rgb-2k/{number}.png", np.zeros((2 * len(label), 8, 3)))
    return layout


def urbansyn(root: Path) -> Layout:
    """Grey training ids with 19 for nothing; colours lie beside."""
    layout = Layout(root)
    for number in ("0001", "7539"):
        label = layout.add(number, f"rgb/rgb_{number}.png", blocks(range(20), int(number)), [None])
        write(root / f"ss/ss_{number}.png", label)
        write(root / f"ss_colour/ss_colour_{number}.png", np.zeros((*label.shape, 3)))
    return layout


def virtual_kitti_2(root: Path) -> Layout:
    """JPEG frames and colour PNGs of scenes, variations and two cameras."""
    layout = Layout(root)
    frames = [
        ("Scene01", "clone", "Camera_0", ["clone", "left"]),
        ("Scene01", "clone", "Camera_1", []),
        ("Scene01", "15-deg-left", "Camera_0", ["left"]),
        ("Scene20", "clone", "Camera_0", ["clone", "left"]),
    ]
    for turn, (scene, variation, camera, splits) in enumerate(frames):
        top = f"{scene}/{variation}/frames"
        label = blocks(VIRTUAL_KITTI_2, turn)
        layout.add(
            f"{scene}/{variation}/{camera}/00000",
            f"{top}/rgb/{camera}/rgb_00000.jpg",
            label,
            [None, *splits],
        )
        write(root / f"{top}/classSegmentation/{camera}/classgt_00000.png", label)
        write(root / f"{top}/instanceSegmentation/{camera}/instancegt_00000.png", label[:, :, 0])
    return layout


def carla_old(root: Path) -> Layout:
    """Raw frames of the semantic camera: the tag in red, nothing else."""
    layout = Layout(root)
    for turn, name in enumerate(("00000042", "00000043")):
        label = layout.add(name, f"rgb/{name}.png", blocks(range(23), turn), [None])
        nothing = np.zeros_like(label)
        write(root / f"semantic/{name}.png", np.dstack([label, nothing, nothing]))
    return layout


def carla_new(root: Path) -> Layout:
    """Raw frames of the instance camera: the tag in red, the actor's number in green and blue."""
    layout = Layout(root)
    rng = np.random.default_rng(1)
    for turn, name in enumerate(("00000042", "00000043")):
        label = layout.add(name, f"rgb/{name}.png", blocks(range(29), turn), [None])
        actor = rng.integers(0, 256, (*label.shape, 2))
        write(root / f"semantic/{name}.png", np.dstack([label, actor, np.full(label.shape, 255)]))
    return layout


def camvid(root: Path) -> Layout:
    """Folders of images beside folders of labels, and lists that name other people's paths."""
    layout = Layout(root)
    frames = [
        ("train", "0001TP_006690", []),
        ("val", "0016E5_07959", []),
        ("test", "0001TP_008550", []),
        ("test", "Seq05VD_f00000", ["test_clean"]),
    ]
    for turn, (split, frame, others) in enumerate(frames):
        label = blocks(range(12), turn)
        layout.add(f"{split}/{frame}", f"{split}/{frame}.png", label, [split, *others])
        write(root / f"{split}annot/{frame}.png", label)
        (root / f"{split}.txt").write_text(f"/SegNet/CamVid/{split}/{frame}.png\n")
    return layout


def camvid32(root: Path) -> Layout:
    """Colour labels whose names end in _L."""
    layout = Layout(root)
    frames = ("0001TP_006690", "0006R0_f00930", "0016E5_00390", "Seq05VD_f00000")
    for turn, name in enumerate(frames):
        label = blocks(CAMVID32, turn)
        layout.add(name, f"701_StillsRaw_full/{name}.png", label, [None, name.split("_")[0]])
        write(root / f"LabeledApproved_full/{name}_L.png", label)
    (root / "label_colors.txt").write_text("64 128 64\tAnimal\n")
    return layout


def bdd100k(root: Path) -> Layout:
    """JPEG frames, grey training ids, colours beside; test without labels."""
    layout = Layout(root)
    for turn, (split, frame) in enumerate(
        [("train", "0a0a0b1a-7c39d841"), ("val", "7d2f7975-e0c1c5a7")]
    ):
        label = blocks(TRAIN_IDS, turn)
        layout.add(f"{split}/{frame}", f"images/10k/{split}/{frame}.jpg", label, [split])
        write(root / f"labels/sem_seg/masks/{split}/{frame}.png", label)
        write(root / f"labels/sem_seg/colormaps/{split}/{frame}.png", label, _palette())
    layout.add_unlabelled(
        "test/ac6d4f42-00000000", "images/10k/test/ac6d4f42-00000000.jpg", (4, 6), ["test"]
    )
    write(root / "images/100k/train/0000f77c-6257be58.jpg", np.zeros((4, 6, 3)))
    return layout


def kitti(root: Path) -> Layout:
    """Frames of several sizes; colours and 16-bit instances lie beside."""
    layout = Layout(root)
    for turn, name in enumerate(("000000_10", "000199_10")):
        label = blocks(CITYSCAPES_IDS, turn)[:, : 16 - turn]
        label = layout.add(name, f"training/image_2/{name}.png", label, [None])
        write(root / f"training/semantic/{name}.png", label)
        write(root / f"training/semantic_rgb/{name}.png", np.zeros((*label.shape, 3)))
        (root / "training/instance").mkdir(exist_ok=True)
        Image.fromarray((label * 256).astype(np.uint16)).save(
            root / f"training/instance/{name}.png"
        )
        write(root / f"testing/image_2/{name}.png", np.zeros((4, 6, 3)))
    return layout


def mapillary(root: Path) -> Layout:
    """JPEG frames, palette PNGs of v1.2 beside those of v2.0; testing without labels."""
    layout = Layout(root)
    for turn, (split, frame) in enumerate(
        [("training", "-0C1J9CvgFP4BTVLXNeNZA"), ("validation", "_1Gn_xkw7sa_i9GU4mkxxQ")]
    ):
        label = blocks(range(66), turn)
        layout.add(f"{split}/{frame}", f"{split}/images/{frame}.jpg", label, [split])
        write(root / f"{split}/v1.2/labels/{frame}.png", label, _palette())
        write(root / f"{split}/v2.0/labels/{frame}.png", label + 58, _palette())
        write(root / f"{split}/v1.2/panoptic/{frame}.png", np.zeros((*label.shape, 3)))
    frame = "aGbz4EdmHl9GZ4lLUJXY9A"
    layout.add_unlabelled(f"testing/{frame}", f"testing/images/{frame}.jpg", (4, 6), ["testing"])
    return layout


def idd(root: Path) -> Layout:
    """PNG frames of part I, JPEG frames of part II, drawn labels beside their polygons."""
    layout = Layout(root)
    frames = [
        ("train", "0", "005506", "png"),
        ("train", "202", "frame0029", "jpg"),
        ("val", "119", "638495", "png"),
    ]
    for turn, (split, drive, frame, ending) in enumerate(frames):
        label = blocks(range(40), turn)
        image = f"leftImg8bit/{split}/{drive}/{frame}_leftImg8bit.{ending}"
        layout.add(f"{split}/{drive}/{frame}", image, label, [split])
        stem = root / f"gtFine/{split}/{drive}/{frame}_gtFine"
        write(Path(f"{stem}_labelids.png"), label)
        write(Path(f"{stem}_labellevel3Ids.png"), label % 26)
        Path(f"{stem}_polygons.json").write_text("{}")
    layout.add_unlabelled(
        "test/7/100135", "leftImg8bit/test/7/100135_leftImg8bit.png", (4, 6), ["test"]
    )
    return layout


def idd_lite(root: Path) -> Layout:
    """JPEG frames and labels of the hierarchy's first level; test without labels."""
    layout = Layout(root)
    for turn, (split, frame) in enumerate([("train", "0_024541"), ("val", "119_638495")]):
        label = blocks([*range(7), 255], turn)
        layout.add(f"{split}/{frame}", f"images/{split}/{frame}_image.jpg", label, [split])
        write(root / f"labels/{split}/{frame}_label.png", label)
        write(root / f"labels/{split}/{frame}_inst_label.png", label)
    layout.add_unlabelled("test/902_327850", "images/test/902_327850_image.jpg", (4, 6), ["test"])
    return layout


def acdc(root: Path) -> Layout:
    """Conditions above splits; reference frames, training ids and masks lie beside."""
    layout = Layout(root)
    frames = [
        ("fog", "train", "GOPR0475", "GOPR0475_frame_000041"),
        ("fog", "val", "GOPR0476", "GOPR0476_frame_000854"),
        ("night", "train", "GOPR0351", "GOPR0351_frame_000159"),
        ("night", "val", "GOPR0356", "GOPR0356_frame_000324"),
        ("rain", "train", "GOPR0400", "GOPR0400_frame_000088"),
        ("rain", "val", "GOPR0402", "GOPR0402_frame_000101"),
        ("snow", "train", "GOPR0122", "GOPR0122_frame_000161"),
        ("snow", "val", "GOPR0607", "GOPR0607_frame_000141"),
    ]
    for turn, (condition, split, sequence, frame) in enumerate(frames):
        place = f"{condition}/{split}/{sequence}/{frame}"
        label = blocks(CITYSCAPES_IDS, turn)
        layout.add(place, f"rgb_anon/{place}_rgb_anon.png", label, [split, f"{condition}_{split}"])
        write(root / f"gt/{place}_gt_labelIds.png", label)
        write(root / f"gt/{place}_gt_labelTrainIds.png", label % 19)
        write(root / f"gt/{place}_gt_labelColor.png", np.zeros((*label.shape, 3)))
        write(root / f"gt/{place}_gt_invIds.png", label)
        reference = f"rgb_anon/{condition}/{split}_ref/{sequence}/{frame}_rgb_ref_anon.png"
        write(root / reference, np.zeros((4, 6, 3)))
    place = "rain/test/GP010572/GP010572_frame_000153"
    layout.add_unlabelled(place, f"rgb_anon/{place}_rgb_anon.png", (4, 6), ["test"])
    return layout


LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    write_layout.__name__: write_layout
    for write_layout in (
        *[gta5, cityscapes, cityscapes_extra, synthia, synscapes, urbansyn, virtual_kitti_2],
        *[carla_old, carla_new, camvid, camvid32, bdd100k, kitti, mapillary, idd],
        *[idd_lite, acdc],
    )
}
"""Name of a built-in spec -> what writes its layout into a folder."""
