"""First specs for folders of unknown layout, from what real data sets look like to broken ones."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.labels import CITYSCAPES_IDS, CITYSCAPES_TRAIN_IDS, load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader
from pipeline.data.spec import DatasetSpec, built_in_specs, spec_fields
from pipeline.errors import UserError
from pipeline.intake.discover import Discovery, discover
from pipeline.intake.first_spec import describe, write_first_spec
from pipeline.schema import parse
from pipeline.toyworld.drawing import render_scene
from tests.foreign_layout import translation, write_foreign
from tests.layouts import load_spec

SIZE = (128, 64)
Array = np.ndarray[Any, Any]
Encode = Callable[[Array], Array]


@pytest.fixture(scope="session")
def scenes() -> list[tuple[Array, Array]]:
    """Toy frames (64, 128, 3) and their Cityscapes ids (64, 128)."""
    return [render_scene(np.random.default_rng(i), SIZE, "sim") for i in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder to discover."""
    return tmp_path / "data"


def save(path: Path, pixels: Array) -> None:
    """Write an array; 16-bit colour as well, which PIL cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        assert cv2.imwrite(str(path), pixels[:, :, ::-1])
    else:
        Image.fromarray(pixels).save(path)


def fill(
    folder: Path,
    scenes: list[tuple[Array, Array]],
    image: str,
    label: str | None,
    encode: Encode = lambda ids: ids,
) -> None:
    """Write scenes under names with {i} and, in turn, the words of {a|b|c}."""
    for i, (rgb, ids) in enumerate(scenes):
        save(folder / name(image, i), rgb)
        if label is not None:
            save(folder / name(label, i), encode(ids))


def name(template: str, i: int) -> str:
    """A file name: `{a|b}/{i:03d}.png` with i = 3 is `b/003.png`."""
    while "|" in template:
        start = template.rindex("{", 0, template.index("|"))
        end = template.index("}", start)
        words = template[start + 1 : end].split("|")
        template = template[:start] + words[i % len(words)] + template[end + 1 :]
    return template.format(i=i)


def recode(table: dict[int, int]) -> Encode:
    """Ids through a table, 255 for the rest."""
    lut = np.full(256, 255, np.uint8)
    for raw, value in table.items():
        lut[raw] = value
    return lambda ids: lut[ids]


def channel(values: Encode, place: int = 0, kind: type = np.uint8) -> Encode:
    """Values in one channel, numbers of instances in the next."""

    def encode(ids: Array) -> Array:
        result = np.zeros((*ids.shape, 3), kind)
        result[:, :, place] = values(ids)
        if kind is np.uint16:
            result[:, :, (place + 1) % 3] = np.arange(ids.shape[1]) // 2 * (ids == 26)
        return result

    return encode


def painted(colors: dict[str, tuple[int, int, int]]) -> Encode:
    """Cityscapes ids in the colours of their names, black for the rest."""
    lut = np.zeros((256, 3), np.uint8)
    for raw, label in CITYSCAPES_IDS.items():
        lut[raw] = colors.get(label, (0, 0, 0))
    return lambda ids: lut[ids]


def first_spec(folder: Path) -> tuple[Discovery, DatasetSpec]:
    """Discover, write, load, and read every label with the spec that came out."""
    found = discover(folder)
    out = folder.parent / "specs" / "first.yaml"
    written = write_first_spec(found, out)
    assert all(path.exists() for path in written)
    assert describe(found, out)[-1].endswith(f"`sim2real check {out}`")
    spec = load_spec(out)
    samples = list_samples(spec, labelled=spec.labels is not None)
    if spec.labels is not None:
        reader = LabelReader(spec, load_label_space("cityscapes19"))
        for sample in samples:
            reader.read(sample)
    return found, spec


TO_TRAIN = {
    raw: train
    for raw, label in CITYSCAPES_IDS.items()
    for train, other in CITYSCAPES_TRAIN_IDS.items()
    if label == other and train != 255
}


def test_gta5(world: Path) -> None:
    found, spec = first_spec_of_copy(world / "toy-sim", world.parent / "gta")
    assert (spec.images, spec.labels) == ("images/{frame}.png", "labels/{frame}.png")
    assert spec.encoding == "ids"
    assert spec.values == {str(k): v for k, v in CITYSCAPES_IDS.items()}
    assert found.table is not None
    assert found.table.table.name == "cityscapes_ids"
    assert "gta5" in found.table.table.users
    assert found.sure
    assert not found.questions()
    assert found.frames == len(list_samples(spec, labelled=True)) == 10


def first_spec_of_copy(source: Path, parent: Path) -> tuple[Discovery, DatasetSpec]:
    """A first spec beside a copy, so that the shared world stays as it is."""
    shutil.copytree(source, parent / source.name)
    return first_spec(parent / source.name)


def test_cityscapes(world: Path, scenes: list[tuple[Array, Array]], tmp_path: Path) -> None:
    root = tmp_path / "cityscapes"
    shutil.copytree(world / "toy-real", root)
    palette = {one.name: one.color for one in load_label_space("cityscapes19").classes}
    for label in list(root.rglob("*_labelIds.png")):
        ids = np.asarray(Image.open(label))
        stem = str(label).removesuffix("_labelIds.png")
        save(Path(f"{stem}_color.png"), painted(palette)(ids))
        instances = ids.astype(np.uint16)
        instances[ids > 23] = 26001
        save(Path(f"{stem}_instanceIds.png"), instances)
    (root / "README.txt").write_text("no list\n")
    found, spec = first_spec(root)
    assert spec.images == "leftImg8bit/{split}/{folder}/{frame}_leftImg8bit.png"
    assert spec.labels == "gtFine/{split}/{folder}/{frame}_gtFine_labelIds.png"
    assert spec.split == "train"
    assert found.splits == {"train": 10, "val": 4}
    assert found.table is not None
    assert found.table.table.name == "cityscapes_ids"
    text = "\n".join(found.remarks)
    assert "_gtFine_color.png (colours of labels); labels are read as ids" in text
    assert "_gtFine_instanceIds.png (values above 255" in text
    assert not found.lists


def test_synthia(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    values = translation("synthia")[:, 0]
    encode = channel(lambda ids: values[ids], kind=np.uint16)
    fill(folder, scenes, "RGB/{i:07d}.png", "GT/LABELS/{i:07d}.png", encode)
    palette = {one.name: one.color for one in load_label_space("cityscapes19").classes}
    fill(folder, scenes, "RGB/{i:07d}.png", "GT/COLOR/{i:07d}.png", painted(palette))
    found, spec = first_spec(folder)
    assert (spec.images, spec.labels) == ("RGB/{frame}.png", "GT/LABELS/{frame}.png")
    assert (spec.encoding, spec.channel) == ("channel", 0)
    assert found.table is not None
    assert found.table.table.name == "synthia"
    assert found.sure
    assert any("GT/COLOR" in remark for remark in found.remarks)
    assert any("green has" in remark for remark in found.remarks)


@pytest.mark.parametrize("table", ["carla_old", "carla_new"])
def test_carla(world: Path, folder: Path, table: str) -> None:
    write_foreign(world / "toy-sim", folder, frames=9, table=table)
    found, spec = first_spec(folder)
    assert (spec.images, spec.labels) == ("{town}/rgb/{frame}.png", "{town}/semantic/{frame}.png")
    assert (spec.encoding, spec.channel) == ("channel", 0)
    assert found.table is not None
    assert found.table.table.name == table
    # The files do not tell the version: it is said, with the other table, and never settled.
    assert not found.sure
    assert [fit.table.name for fit in found.alternatives] == [
        "carla_old" if table == "carla_new" else "carla_new"
    ]
    text = (folder.parent / "specs" / "first.yaml").read_text()
    assert f"# names: {table}?" in text
    assert f"# {found.alternatives[0].table.name}: " in text
    assert any("{town}/depth/{frame}.png" in remark for remark in found.remarks)


LAYOUTS = {
    "suffixes in one folder": (
        *("frame_{i:04d}_rgb.png", "frame_{i:04d}_seg.png"),
        *("{frame}_rgb.png", "{frame}_seg.png"),
    ),
    "prefixes": (
        *("rgb/rgb_{i:04d}.png", "ss/ss_{i:04d}.png"),
        *("rgb/rgb_{frame}.png", "ss/ss_{frame}.png"),
    ),
    "prefixes in one folder": (
        *("rgb_{i:04d}.png", "ss_{i:04d}.png"),
        *("rgb_{frame}.png", "ss_{frame}.png"),
    ),
    "endings alone": ("{i}.bmp", "{i}.png", "{frame}.bmp", "{frame}.png"),
    "splits below": (
        *("pics/{train|val}/{i}.png", "gt/{train|val}/{i}.png"),
        *("pics/{split}/{frame}.png", "gt/{split}/{frame}.png"),
    ),
    "splits above": (
        *("{training|testing}/images/x{i}y.png", "{training|testing}/v2/labels/x{i}y.png"),
        *("{split}/images/{frame}.png", "{split}/v2/labels/{frame}.png"),
    ),
    "split and kind in one name": (
        *("{train|val}_img/{i}.png", "{train|val}_labels/{i}.png"),
        *("{split}_img/{frame}.png", "{split}_labels/{frame}.png"),
    ),
    "scenes, weathers, cameras": (
        "Scene{01|02}/{fog|rain|15-left}/frames/rgb/Camera_{0|1}/rgb_{i:05d}.png",
        "Scene{01|02}/{fog|rain|15-left}/frames/sem/Camera_{0|1}/classgt_{i:05d}.png",
        "{scene}/{folder}/frames/rgb/{camera}/rgb_{frame}.png",
        "{scene}/{folder}/frames/sem/{camera}/classgt_{frame}.png",
    ),
    "names that say nothing": ("a/{i}.png", "b/{i}.png", "a/{frame}.png", "b/{frame}.png"),
    "parts the other way about": (
        *("rgb/{x1|x2}/{dusk|dawn|noon}/{i}.png", "gt/{dusk|dawn|noon}/{x1|x2}/{i}.png"),
        *("rgb/{folder}/{folder2}/{frame}.png", "gt/{folder2}/{folder}/{frame}.png"),
    ),
    "words of weather in names": (
        *("images/{a|b}_{day|dusk|night}{i}.png", "labels/{a|b}_{day|dusk|night}{i}.png"),
        *("images/{frame}.png", "labels/{frame}.png"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(folder: Path, scenes: list[tuple[Array, Array]], layout: str) -> None:
    image, label, images, labels = LAYOUTS[layout]
    fill(folder, scenes, image, label)
    found, spec = first_spec(folder)
    assert (spec.images, spec.labels) == (images, labels)
    assert found.pairs is not None
    assert found.pairs.count == len(scenes)
    assert found.table is not None
    assert found.table.table.name == "cityscapes_ids"


def test_camvids_folders_and_list(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    camvid = translation("camvid")[:, 0]
    fill(folder, scenes, "{train|test}/{i}.jpg", "{train|test}annot/{i}.png", lambda i: camvid[i])
    (folder / "splits").mkdir()
    (folder / "splits" / "clean.txt").write_text("1\n3\n")
    found, spec = first_spec(folder)
    assert (spec.images, spec.labels) == ("{split}/{frame}.jpg", "{split}annot/{frame}.png")
    assert spec.splits == {"clean": "splits/clean.txt"}
    assert spec.split == "train"
    clean = spec.model_copy(update={"split": "clean"})
    assert [s.name for s in list_samples(clean, labelled=True)] == ["test/1", "test/3"]
    assert found.table is not None
    assert found.table.table.name == "camvid"


def test_lists_that_the_pattern_cannot_use(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    fill(folder, scenes, "{train|test}/{i}.png", "{train|test}annot/{i}.png")
    (folder / "clean.txt").write_text("1\n3\n")
    found, spec = first_spec(folder)
    assert spec.splits == {}
    assert any("clean.txt lists frames, but" in remark for remark in found.remarks)


def test_lists_are_splits_where_folders_are_not(
    folder: Path, scenes: list[tuple[Array, Array]]
) -> None:
    fill(folder, scenes, "images/{i:03d}.png", "labels/{i:03d}.png")
    (folder / "train.txt").write_text("".join(f"images/{i:03d}.png\n" for i in range(4)))
    (folder / "val.txt").write_text("004\n005\n")
    _, spec = first_spec(folder)
    assert spec.splits == {"train": "train.txt", "val": "val.txt"}
    assert spec.split == "train"
    assert len(list_samples(spec, labelled=True)) == 4


def test_lists_of_frames_whose_names_recur_in_every_town(
    folder: Path, scenes: list[tuple[Array, Array]]
) -> None:
    for town in ("Town01", "Town02"):
        fill(folder / town, scenes, "rgb/{i:04d}.png", "seg/{i:04d}.png")
    lists = {
        "train": "".join(f"Town01/rgb/{i:04d}.png\n" for i in range(6)),
        "val": "".join(f"Town02/rgb/{i:04d}.png\n" for i in range(6)),
        "bare": "0000\n0001\n",
        "again": "Town01/rgb/0003.png\n",
        "other": "nothing\n",
    }
    for split, text in lists.items():
        (folder / f"{split}.txt").write_text(text)
    found, spec = first_spec(folder)
    assert spec.splits == {"train": "train.txt", "val": "val.txt"}
    names = [sample.name for sample in list_samples(spec, labelled=True)]
    assert names == [f"Town01/{i:04d}" for i in range(6)]
    text = "\n".join(found.remarks)
    assert "bare.txt lists frames, but its 2 lines fit 4 of them" in text
    assert "again.txt lists frames, but 1 of them are in train.txt, too" in text
    assert "other.txt" not in text


# The coarse ids 0 to 6 of IDD Lite stand in other tables, too: only a person can tell which it is.
@pytest.mark.parametrize("known", sorted(built_in_specs().keys() - {"idd_lite"}))
def test_every_known_data_set(folder: Path, scenes: list[tuple[Array, Array]], known: str) -> None:
    truth = parse(DatasetSpec, {**spec_fields(known, Path()), "root": folder}, known)
    assert truth.labels is not None
    values = {"split": "{train|val}", "frame": "{i:05d}", "camera": "Camera_{0|1}"}
    image, label = (
        re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], f"{{{m[1]}a|{m[1]}b}}"), pattern)
        for pattern in (truth.images, truth.labels)
    )
    table = translation(known)
    encode: Encode = lambda ids: table[ids][:, :, 0] if table.shape[1] == 1 else table[ids]  # noqa: E731
    if truth.encoding == "channel":
        encode = channel(lambda ids: table[ids][:, :, 0])
    fill(folder, scenes, f"{image}.jpg", f"{label}.png", encode)
    found, spec = first_spec(folder)
    assert spec.labels is not None
    assert unnamed(spec.images) == unnamed(f"{truth.images}.jpg")
    assert unnamed(spec.labels) == unnamed(f"{truth.labels}.png")
    assert (spec.encoding, spec.channel) == (truth.encoding, truth.channel)
    assert found.table is not None
    assert known in (found.table.table.name, *found.table.table.users)
    assert {raw: name.removesuffix("?") for raw, name in spec.values.items()} == truth.values
    # Nothing is asked but what one name cannot say: any vehicle is read as a car.
    assert set(found.questions()) == ({"10"} if known == "carla_old" else set())
    assert known in found.same_as
    assert any(f"`dataset: {known}`" in line or known in line for line in describe(found))


def unnamed(pattern: str) -> str:
    """A pattern without the names of its fields; a folder named after a split is a field too."""
    return re.sub(r"\{\w+\}|^training(?=/)", "{}", pattern)


def test_colours_of_cityscapes_say_what_they_cannot_tell(
    folder: Path, scenes: list[tuple[Array, Array]]
) -> None:
    palette = {one.name: one.color for one in load_label_space("cityscapes19").classes}
    fill(folder, scenes, "images/{i}.png", "labels/{i}.png", painted(palette))
    found, spec = first_spec(folder)
    assert found.table is not None
    assert found.table.table.name == "Cityscapes colours"
    assert spec.values["153,153,153"] == "pole"
    lines = (folder.parent / "specs" / "first.yaml").read_text().splitlines()
    (pole,) = [line for line in lines if '"153,153,153"' in line]
    assert "or polegroup: the colour does not tell" in pole


def test_colours_in_palettes_of_their_own(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    """As programs store pictures of few colours."""
    colors = {c.names[0]: c.color for c in load_label_space("cityscapes19").classes}
    fill(folder, scenes, "images/{i}.png", "labels/{i}.png", painted(colors))
    for path in (folder / "labels").iterdir():
        with Image.open(path) as picture:
            stored = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        stored.save(path)
    found, spec = first_spec(folder)
    assert spec.encoding == "rgb"
    assert spec.values["128,64,128"] == "road"
    assert any("palettes that differ" in remark for remark in found.remarks)


@pytest.mark.parametrize("equal_channels", [False, True])
def test_grey_training_ids(
    folder: Path, scenes: list[tuple[Array, Array]], equal_channels: bool
) -> None:
    def encode(ids: Array) -> Array:
        grey = recode(TO_TRAIN)(ids)
        return np.repeat(grey[:, :, None], 3, axis=2) if equal_channels else grey

    fill(folder, scenes, "images/{i}.png", "labels/{i}.png", encode)
    found, spec = first_spec(folder)
    assert spec.encoding == ("channel" if equal_channels else "ids")
    assert found.table is not None
    assert found.table.table.name == "cityscapes_train_ids"
    assert found.sure
    assert spec.values["255"] == "unlabeled"


def test_frames_only(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    fill(folder, scenes, "{berlin|rome|oslo}/{i}.jpg", None)
    found, spec = first_spec(folder)
    assert spec.labels is None
    assert spec.images == "{folder}/{frame}.jpg"
    assert found.observation is None
    text = (folder.parent / "specs" / "first.yaml").read_text()
    assert "values" not in text
    assert not (folder.parent / "specs" / "first.preview").exists()


def test_values_of_no_table_are_shown_and_left_to_the_user(
    folder: Path, scenes: list[tuple[Array, Array]]
) -> None:
    foreign = recode({raw: 200 - 3 * raw for raw in CITYSCAPES_IDS})
    fill(folder, scenes, "images/{i}.png", "labels/{i}.png", foreign)
    found, spec = first_spec(folder)
    assert found.table is None
    assert set(spec.values) == {str(v) for _, ids in scenes for v in np.unique(foreign(ids))}
    assert spec.values.pop(str(200 - 3 * 23)) == "sky at the top?"
    rare = [raw for raw, name in spec.values.items() if name == "unlabeled"]
    assert {name for raw, name in spec.values.items() if raw not in rare} == {"unlabeled?"}
    out = folder.parent / "specs" / "first.yaml"
    assert any("no known table fits" in line for line in describe(found, out))
    line = next(line for line in out.read_text().splitlines() if line.startswith("  179:"))
    assert line.startswith("  179: unlabeled?")
    assert "% of the pixels, at the bottom; colour " in line
    for value in spec.values.keys() - rare:
        with Image.open(out.parent / "first.preview" / f"value-{value}.png") as picture:
            assert picture.width > 400


def test_a_table_that_half_fits_is_a_question(
    folder: Path, scenes: list[tuple[Array, Array]]
) -> None:
    table = translation("camvid")[:, 0].copy()
    table[[7, 8]] = table[[8, 7]]  # sidewalk and road change places
    fill(folder, scenes, "images/{i}.png", "labels/{i}.png", lambda ids: table[ids])
    found, _ = first_spec(folder)
    assert found.table is not None
    assert not found.sure
    text = (folder.parent / "specs" / "first.yaml").read_text()
    assert f"# names: {found.table.table.name}?" in text


def test_channels_of_raw_carla_frames(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    table = translation("carla_new")[:, 0]

    def encode(ids: Array) -> Array:
        noise = np.arange(ids.size, dtype=np.uint32).reshape(ids.shape) // 40 * (ids > 23)
        rest = [noise % 256, noise // 256, np.full(ids.shape, 255)]
        return np.stack([table[ids], *rest], axis=2).astype(np.uint8)

    fill(folder, scenes, "rgb/{i}.png", "instance_segmentation/{i}.png", encode)
    found, spec = first_spec(folder)
    assert (spec.encoding, spec.channel) == ("channel", 0)
    assert found.table is not None
    assert found.table.table.name == "carla_new"


def test_values_beside_a_table(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    def encode(ids: Array) -> Array:
        ids = ids.copy()
        ids[40:44, 60:70] = 77
        return ids

    fill(folder, scenes, "images/{i}.png", "labels/{i}.png", encode)
    found, spec = first_spec(folder)
    assert set(found.questions()) == {"77"}
    assert spec.values["77"] == "unlabeled?"
    assert spec.values["7"] == "road"
    preview = folder.parent / "specs" / "first.preview"
    assert {path.name for path in preview.iterdir()} == {"frames.png", "value-77.png"}


def test_images_without_labels_are_quarantined(
    folder: Path, scenes: list[tuple[Array, Array]]
) -> None:
    fill(folder, scenes, "images/{train|test}/{i}.png", "labels/{train|test}/{i}.png")
    (folder / "labels" / "train" / "2.png").unlink()
    (folder / "images" / "test" / "1.png").unlink()
    found, spec = first_spec(folder)
    assert found.pairs is not None
    assert found.pairs.lone_images == (("train", "2"),)
    assert found.pairs.lone_labels == ("labels/test/1.png",)
    assert [s.name for s in list_samples(spec, labelled=True)] == ["train/0", "train/4"]
    assert any("1 labels have no image" in remark for remark in found.remarks)


def test_numbers_of_other_padding(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    fill(folder, scenes, "images/{i:04d}.png", "labels/{i:06d}.png")
    with pytest.raises(UserError, match=r"padded differently \(images/0000.png, labels/000000.png"):
        discover(folder)


def test_labels_that_pair_with_nothing(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    fill(folder, scenes, "images/{a|b|c}x.png", "labels/{d|e|f}y.png")
    with pytest.raises(UserError, match="no image and label have the same name"):
        discover(folder)


def test_images_of_two_cameras_and_labels_of_one(
    folder: Path, scenes: list[tuple[Array, Array]]
) -> None:
    fill(folder, scenes, "left/{i}.png", "semantic/{i}.png")
    fill(folder, scenes, "right/{i}.png", None)
    found, spec = first_spec(folder)
    assert spec.labels == "semantic/{frame}.png"
    assert spec.images in {"left/{frame}.png", "right/{frame}.png"}
    assert any("not used: 6 files {folder}/{frame}.png" in remark for remark in found.remarks)


def test_a_frame_in_two_formats(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    fill(folder, scenes, "images/{i}.png", "labels/{i}.png")
    save(folder / "images" / "3.jpg", scenes[3][0])
    save(folder / "labels" / "3.bmp", scenes[3][1])
    found, spec = first_spec(folder)
    assert (spec.images, spec.labels) == ("images/{frame}.png", "labels/{frame}.png")
    assert any("not used: 1 files images/{frame}.jpg" in remark for remark in found.remarks)
    assert any("not used: 1 files labels/{frame}.bmp" in remark for remark in found.remarks)


def test_frames_of_several_formats(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    fill(folder, scenes, "images/{i}.{png|jpg}", "labels/{i}.png")
    found, spec = first_spec(folder)
    assert spec.images == "images/{frame}"
    assert found.frames == len(list_samples(spec, labelled=True)) == len(scenes)


def test_labels_that_the_pattern_of_images_takes_too(
    folder: Path, scenes: list[tuple[Array, Array]]
) -> None:
    fill(folder, scenes, "{i:03d}.png", "{i:03d}_L.png")
    with pytest.raises(UserError, match=r"'\{frame\}.png' matches .*_L.png too"):
        discover(folder)


def test_folders_with_nothing_to_find(
    folder: Path, tmp_path: Path, scenes: list[tuple[Array, Array]]
) -> None:
    with pytest.raises(UserError, match="No folder"):
        discover(folder)
    folder.mkdir()
    with pytest.raises(UserError, match=r"No image file .*\(0 other"):
        discover(folder)
    (folder / "frames.zip").write_bytes(b"PK")
    (folder / ".hidden.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"\(1 other file\(s\)\). Not read: 1 archives: unpack"):
        discover(folder)
    with pytest.raises(UserError, match="is a file"):
        discover(folder / "frames.zip")
    save(folder / "label.png", scenes[0][1])
    with pytest.raises(UserError, match=r"No frames were found.*ids.*1 archives: unpack them"):
        discover(folder)
    (folder / "frame.exr").write_bytes(b"v/1")
    np.save(folder / "rgb.npy", scenes[0][0])
    with pytest.raises(UserError, match=r"of \.npy files labels alone.*1 OpenEXR pictures: conv"):
        discover(folder)


def test_unreadable_files_are_skipped_and_counted(
    folder: Path, scenes: list[tuple[Array, Array]]
) -> None:
    fill(folder, scenes, "images/{i}.png", "labels/{i}.png")
    for i in (0, 3):
        (folder / "images" / f"{i}.png").write_bytes(b"")
        (folder / "labels" / f"{i}.png").write_bytes(b"broken")
    found = discover(folder)
    assert found.observation is not None
    assert found.observation.files == 4
    assert any("2 of 6 label files cannot be read" in remark for remark in found.remarks)
    write_first_spec(found, folder.parent / "first.yaml")


def test_links_in_a_circle_and_hidden_files(
    folder: Path, scenes: list[tuple[Array, Array]]
) -> None:
    fill(folder, scenes, "images/{i}.png", "labels/{i}.png")
    os.symlink(folder, folder / "images" / "again")
    save(folder / "images" / ".part-1.png", scenes[0][0])
    save(folder / ".trash" / "1.png", scenes[0][0])
    found, _ = first_spec(folder)
    assert found.frames == len(scenes)


def test_names_that_a_spec_cannot_hold(
    folder: Path, tmp_path: Path, scenes: list[tuple[Array, Array]]
) -> None:
    fill(folder, scenes, "x/{i}.png", "y/{i}.png")
    for bad in ("a\udcff", "a\x7f"):
        moved = folder.rename(folder.with_name(bad))
        with pytest.raises(UserError, match=r"spec cannot hold|printable text"):
            write_first_spec(discover(moved), tmp_path / "first.yaml")
        moved.rename(folder)
    (folder / "x").rename(folder / "x\x7f")
    with pytest.raises(UserError, match=r"'\\x7f', which a file pattern cannot hold"):
        discover(folder)
    (folder / "x\x7f").rename(folder / "x")
    odd = folder / "x" / os.fsdecode(b"\xe9.png")
    (folder / "x" / "1.png").rename(odd)
    with pytest.raises(UserError, match=r"x/\?.png is no UTF-8"):
        discover(folder)
    odd.rename(folder / "x" / "1.png")
    (folder / os.fsdecode(b"\xe9.doc")).write_text("no frame")
    assert discover(folder).frames == len(scenes)


def test_a_folder_with_a_dollar(
    folder: Path, tmp_path: Path, scenes: list[tuple[Array, Array]]
) -> None:
    fill(folder, scenes, "x$HOME/{i}.png", "y/{i}.png")
    moved = folder.rename(folder.with_name("a$$HOME"))
    write_first_spec(discover(moved), tmp_path / "first.yaml")
    spec = load_spec(tmp_path / "first.yaml")
    assert spec.root == moved
    assert spec.images == "x$HOME/{frame}.png"
    assert len(list_samples(spec, labelled=True)) == len(scenes)


@pytest.mark.parametrize("bad", ["a{b}", "set [old]", "what?"])
def test_names_that_a_pattern_cannot_hold(
    folder: Path, scenes: list[tuple[Array, Array]], bad: str
) -> None:
    fill(folder, scenes, "x/{i}.png", "y/{i}.png")
    (folder / "x").rename(folder / bad)
    with pytest.raises(UserError, match="a file pattern cannot hold"):
        discover(folder)
    # Above the root, and in the values of fields, they do no harm.
    (folder / bad).rename(folder / "x")
    folder = folder.rename(folder.with_name(bad))
    (folder / "x" / "1.png").rename(folder / "x" / "1 (+).png")
    (folder / "y" / "1.png").rename(folder / "y" / "1 (+).png")
    found, _ = first_spec(folder)
    assert found.frames == len(scenes)


def test_sizes_that_differ(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    fill(folder, scenes, "images/{i}.png", "labels/{i}.png", lambda ids: ids[:-2])
    found = discover(folder)
    assert any("sizes differ in 6 sampled pairs" in remark for remark in found.remarks)


def test_nothing_is_overwritten(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    fill(folder, scenes, "images/{i}.png", "labels/{i}.png")
    found, _ = first_spec(folder)
    out = folder.parent / "specs" / "first.yaml"
    before = out.read_text()
    with pytest.raises(UserError, match=r"is there already.*--out"):
        write_first_spec(found, out)
    assert out.read_text() == before
    with pytest.raises(UserError, match=r"does not end in \.yaml"):
        write_first_spec(found, out.with_suffix(""))


def test_root_is_relative_so_that_both_can_move(
    folder: Path, scenes: list[tuple[Array, Array]], tmp_path: Path
) -> None:
    fill(folder, scenes, "images/{i}.png", "labels/{i}.png")
    write_first_spec(discover(folder), folder.parent / "first.yaml")
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "-moved"))
    spec = load_spec(moved / "first.yaml")
    assert spec.name == "data"
    assert len(list_samples(spec, labelled=True)) == len(scenes)


def test_many_files_are_listed_not_read(folder: Path, scenes: list[tuple[Array, Array]]) -> None:
    fill(folder, scenes, "images/{i:06d}.png", "labels/{i:06d}.png")
    for i in range(len(scenes), 3000):
        for kind in ("images", "labels"):
            os.link(folder / kind / f"{i % 6:06d}.png", folder / kind / f"{i:06d}.png")
    found = discover(folder)
    assert found.frames == 3000
    assert found.observation is not None
    assert found.observation.files == 64


def test_a_foreign_layout_of_streetsim(folder: Path) -> None:
    data = os.environ.get("SIM2REAL_DATA")
    if data is None or not (Path(data) / "streetsim").is_dir():
        pytest.skip("SIM2REAL_DATA does not name a folder with streetsim")
    count = write_foreign(Path(data) / "streetsim", folder, frames=12)
    found, spec = first_spec(folder)
    assert found.frames == count == 12
    assert found.table is not None
    assert found.table.table.name == "carla_new"
    assert found.table.plausible > 0.9
    assert found.alternatives[0].plausible < 0.5
    samples = list_samples(spec, labelled=True)
    gta5 = parse(DatasetSpec, {**spec_fields("gta5", Path()), "root": f"{data}/streetsim"}, "gta5")
    space = load_label_space("cityscapes19")
    before = LabelReader(gta5, space).read(list_samples(gta5, labelled=True)[0])
    after = LabelReader(spec, space).read(samples[0])
    assert (before == after).mean() > 0.999
