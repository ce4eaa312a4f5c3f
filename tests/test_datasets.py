"""Data sets in their true on-disk layouts, label encodings, and what is refused."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipeline.data.labels import CITYSCAPES_IDS, IGNORE, LabelClass, LabelSpace, load_label_space
from pipeline.data.listing import list_samples, not_here, translated_path
from pipeline.data.reading import LabelReader, read_frame
from pipeline.data.spec import (
    DatasetSpec,
    built_in_specs,
    layered,
    save_spec,
    spec_fields,
    translated_spec,
)
from pipeline.errors import UserError
from pipeline.intake.headers import check_headers
from pipeline.schema import parse
from tests.layouts import load_spec

CITYSCAPES = load_label_space("cityscapes19")


def spec(name: str, root: Path, **fields: Any) -> DatasetSpec:
    """A built-in spec at a root."""
    return parse(DatasetSpec, {**spec_fields(name, root), "root": root, **fields}, name)


def own(root: Path, **fields: Any) -> DatasetSpec:
    """A spec of images/ and labels/ with ids."""
    given = {"images": "images/{frame}", "labels": "labels/{frame}", "values": {7: "road"}}
    return parse(DatasetSpec, {"name": "own", "root": root, **given, **fields}, "own")


def write(path: Path, pixels: Any) -> Path:
    """Write an array as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def pair(root: Path, label: Any, name: str = "a.png") -> None:
    """Write one image of the label's size, and the label."""
    label = np.asarray(label, np.uint8)
    write(root / "images" / name, np.zeros((*label.shape[:2], 3)))
    write(root / "labels" / name, label)


def test_gta5_layout(world: Path) -> None:
    gta5 = spec("gta5", world / "toy-sim")
    samples = list_samples(gta5, labelled=True)
    assert [s.name for s in samples] == [f"{i:05d}" for i in range(1, 11)]
    with Image.open(samples[0].label) as image:  # type: ignore[arg-type]
        assert image.mode == "P"
        ids = np.asarray(image)
    classes = LabelReader(gta5, CITYSCAPES).read(samples[0])
    for raw in np.unique(ids):
        assert (classes[ids == raw] == CITYSCAPES.index_of(CITYSCAPES_IDS[raw])).all()
    assert read_frame(gta5, samples[0]).shape == (64, 128, 3)


def test_cityscapes_layout_and_splits(world: Path) -> None:
    root = world / "toy-real"
    train = list_samples(spec("cityscapes", root, split="train"), labelled=True)
    val = list_samples(spec("cityscapes", root, split="val"), labelled=True)
    assert len(train) == 10
    assert len(val) == 4
    first = train[0]
    city, frame = first.name.split("/")[1:]
    assert first.image == root / f"leftImg8bit/train/{city}/{frame}_leftImg8bit.png"
    assert first.label == root / f"gtFine/train/{city}/{frame}_gtFine_labelIds.png"
    with pytest.raises(UserError, match=r"no split 'test'.*Found: train, val"):
        list_samples(spec("cityscapes", root, split="test"), labelled=False)


def test_camvid_layout_and_a_split_by_wildcard(tmp_path: Path) -> None:
    for name in ("train/0016E5_1", "test/0001TP_1", "test/Seq05VD_f1", "test/Seq05VD_f2"):
        split, frame = name.split("/")
        write(tmp_path / f"{split}/{frame}.png", np.zeros((4, 6, 3)))
        write(tmp_path / f"{split}annot/{frame}.png", [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]])
        write(tmp_path / f"{split}annot/{frame}.png", np.arange(24).reshape(4, 6) % 12)
    clean = spec("camvid", tmp_path, split="test_clean")
    samples = list_samples(clean, labelled=True)
    assert [s.name for s in samples] == ["test/Seq05VD_f1", "test/Seq05VD_f2"]
    classes = LabelReader(clean, load_label_space("camvid11")).read(samples[0])
    assert classes.ravel()[:12].tolist() == [*range(11), IGNORE]
    assert len(list_samples(spec("camvid", tmp_path, split="test"), labelled=True)) == 3


def test_a_split_by_list(tmp_path: Path) -> None:
    for name in "abc":
        pair(tmp_path, [[7]], f"{name}.png")
    (tmp_path / "val.txt").write_text("a.png\nc\n\n")
    chosen = own(tmp_path, splits={"val": "val.txt"}, split="val")
    assert [s.name for s in list_samples(chosen, labelled=True)] == ["a", "c"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif", ".JPG"])
def test_any_common_image_format(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"images/a{suffix}", np.full((8, 8, 3), 100))
    write(tmp_path / "labels/a.png", np.full((8, 8), 7))
    (sample,) = list_samples(own(tmp_path), labelled=True)
    assert np.abs(read_frame(own(tmp_path), sample).astype(int) - 100).max() <= 3


def test_endings_in_capitals(tmp_path: Path) -> None:
    for image, label in (("a.PNG", "a.PNG"), ("b.JPG", "b.png"), ("c.png", "c.Tif")):
        write(tmp_path / "images" / image, np.zeros((1, 1, 3)))
        write(tmp_path / "labels" / label, [[7]])
    samples = list_samples(own(tmp_path), labelled=True)
    assert [s.label.name for s in samples if s.label] == ["a.PNG", "b.png", "c.Tif"]
    write(tmp_path / "labels/a.png", [[7]])
    with pytest.raises(UserError, match=r"frame 'a' has two labels: .*a\.PNG and .*a\.png"):
        list_samples(own(tmp_path), labelled=True)


def test_brackets_and_stars_in_folders_are_themselves(tmp_path: Path) -> None:
    root = tmp_path / "root [1]*"
    for folder in ("im[ab]ges", "images x"):
        write(root / folder / "a.png", np.zeros((1, 1, 3)))
    write(root / "labels/a.png", [[7]])
    (sample,) = list_samples(own(root, images="im[ab]ges/{frame}"), labelled=True)
    assert sample.image.parent.name == "im[ab]ges"
    write(root / "[val]/a.png", np.zeros((1, 1, 3)))
    chosen = own(root, images="{split}/{frame}", labels=None, split="[val]")
    assert [s.name for s in list_samples(chosen, labelled=False)] == ["[val]/a"]


def test_labels_beside_their_frames_are_no_frames(tmp_path: Path) -> None:
    for name in ("a", "b", "b_mask_c"):
        write(tmp_path / f"{name}.jpg", np.zeros((1, 1, 3)))
        write(tmp_path / f"{name}_mask.png", [[7]])
    spec = own(tmp_path, images="{frame}", labels="{frame}_mask")
    for labelled in (True, False):
        samples = list_samples(spec, labelled=labelled)
        assert [s.image.name for s in samples] == ["a.jpg", "b.jpg", "b_mask_c.jpg"]
    annot = own(tmp_path / "x", images="{split}/{frame}", labels="{split}annot/{frame}")
    write(tmp_path / "x/train/a.png", np.zeros((1, 1, 3)))
    write(tmp_path / "x/trainannot/a.png", [[7]])
    with pytest.raises(UserError, match=r"Found: train\. Set `split`"):
        list_samples(annot, labelled=True)


def test_limit_is_evenly_spaced(world: Path) -> None:
    names = [s.name for s in list_samples(spec("gta5", world / "toy-sim", limit=3), labelled=False)]
    assert names == ["00001", "00004", "00007"]


def test_rgb_labels(tmp_path: Path) -> None:
    pair(tmp_path, [[[128, 64, 128], [70, 130, 180], [1, 2, 3]]])
    rgb = own(tmp_path, encoding="rgb", values={"128,64,128": "road", "70,130,180": "sky"})
    (sample,) = list_samples(rgb, labelled=True)
    assert LabelReader(rgb, CITYSCAPES).read(sample).tolist() == [[0, 10, IGNORE]]


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_one_channel_labels(tmp_path: Path, depth: Any) -> None:
    write(tmp_path / "images/a.png", np.zeros((1, 3, 3)))
    (tmp_path / "labels").mkdir()
    bgr = np.zeros((1, 3, 3), depth)
    bgr[..., 2] = [[7, 23, 99]]  # OpenCV writes blue first: this is the red channel
    bgr[..., 1] = 50
    cv2.imwrite(str(tmp_path / "labels/a.png"), bgr)
    red = own(tmp_path, encoding="channel", channel=0, values={7: "road", 23: "sky"})
    (sample,) = list_samples(red, labelled=True)
    assert LabelReader(red, CITYSCAPES).read(sample).tolist() == [[0, 10, IGNORE]]


def test_width_resizes_frames_and_labels(world: Path) -> None:
    half = spec("gta5", world / "toy-sim", width=64)
    sample = list_samples(half, labelled=True)[0]
    assert read_frame(half, sample).shape == (32, 64, 3)
    reader = LabelReader(half, CITYSCAPES)
    assert reader.read(sample).shape == (32, 64)
    assert reader.read(sample, native=True).shape == (64, 128)


def test_translated_spec_reuses_labels_and_file_names(tmp_path: Path, world: Path) -> None:
    source = spec("gta5", world / "toy-sim", width=64, limit=4)
    for sample in list_samples(source, labelled=False):
        path = translated_path(source, sample, tmp_path)
        assert path == tmp_path / "images" / sample.image.name
        write(path, read_frame(source, sample))
    save_spec(translated_spec(source, tmp_path), tmp_path / "dataset.yaml")
    translated = load_spec(tmp_path / "dataset.yaml")
    pairs = zip(
        list_samples(source, labelled=True), list_samples(translated, labelled=True), strict=True
    )
    for old, new in pairs:
        assert (old.name, old.label) == (new.name, new.label)
        assert (
            LabelReader(source, CITYSCAPES).read(old)
            == LabelReader(translated, CITYSCAPES).read(new)
        ).all()


def test_translated_spec_of_a_wildcard_split(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b1"):
        pair(tmp_path / "data", [[7] * 16], f"{name}.png")
    source = own(tmp_path / "data", splits={"some": "a*"}, split="some")
    out = tmp_path / "out"
    for sample in list_samples(source, labelled=False):
        write(translated_path(source, sample, out), np.zeros((1, 16, 3)))
    names = [s.name for s in list_samples(translated_spec(source, out), labelled=True)]
    assert names == ["a1", "a2"]


# What is refused.


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere\. Set its `root`"):
        list_samples(own(tmp_path / "nowhere"), labelled=False)


def test_empty_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no frame matches 'images/\{frame\}'"):
        list_samples(own(tmp_path), labelled=False)


def test_orphan_images(tmp_path: Path) -> None:
    pair(tmp_path, [[7]])
    write(tmp_path / "images/lonely.png", np.zeros((1, 1, 3)))
    with pytest.raises(UserError, match=r"1 of 2 images have no label, first .*lonely.png"):
        list_samples(own(tmp_path), labelled=True)
    assert len(list_samples(own(tmp_path), labelled=False)) == 2


def test_hidden_files_are_no_frames(tmp_path: Path) -> None:
    pair(tmp_path, [[7]])
    write(tmp_path / "images/.part-abc.png", np.zeros((1, 1, 3)))
    assert [s.name for s in list_samples(own(tmp_path), labelled=True)] == ["a"]


def test_all_sizes_from_headers(tmp_path: Path) -> None:
    for name in "abc":
        pair(tmp_path, [[7, 7]], f"{name}.png")
    check_headers(own(tmp_path), list_samples(own(tmp_path), labelled=True))
    for name in "bc":
        write(tmp_path / f"labels/{name}.png", [[7]])
    with pytest.raises(UserError, match=r": 2 of 3\. .*b\.png: image 2x1, label 1x1"):
        check_headers(own(tmp_path), list_samples(own(tmp_path), labelled=True))


def test_deep_frames_are_refused_not_cut(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((2, 2), 30000, np.uint16)).save(tmp_path / "images/a.png")
    (sample,) = list_samples(own(tmp_path), labelled=False)
    with pytest.raises(UserError, match="frames of 8 bits a channel"):
        read_frame(own(tmp_path), sample)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    pair(tmp_path, [[7]])
    write(tmp_path / "images/a.jpg", np.zeros((1, 1, 3)))
    with pytest.raises(UserError, match="both frame 'a'"):
        list_samples(own(tmp_path), labelled=False)


def test_sizes_that_differ(tmp_path: Path) -> None:
    write(tmp_path / "images/a.png", np.zeros((4, 6, 3)))
    write(tmp_path / "labels/a.png", np.full((4, 5), 7))
    (sample,) = list_samples(own(tmp_path), labelled=True)
    with pytest.raises(UserError, match=r"images/a\.png and .*labels/a\.png: image 6x4, label 5x4"):
        LabelReader(own(tmp_path), CITYSCAPES).read(sample)


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_truncated_png(tmp_path: Path, folder: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    pair(tmp_path, noise)
    path = write(tmp_path / folder / "a.png", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (sample,) = list_samples(own(tmp_path), labelled=True)
    with pytest.raises(UserError, match=rf"{folder}/a\.png cannot be read as an image"):
        read_frame(own(tmp_path), sample)
        LabelReader(own(tmp_path), CITYSCAPES).read(sample)


def test_unnamed_values_are_ignored_or_refused(tmp_path: Path) -> None:
    pair(tmp_path, [[7, 9, 250, 250]])
    (sample,) = list_samples(own(tmp_path), labelled=True)
    assert LabelReader(own(tmp_path), CITYSCAPES).read(sample).tolist() == [[0, *[IGNORE] * 3]]
    with pytest.raises(UserError, match=r"values without a name: 9; 250 \(75\.0% of its pixels\)"):
        LabelReader(own(tmp_path, strict=True), CITYSCAPES).read(sample)


def test_wrong_encodings(tmp_path: Path) -> None:
    pair(tmp_path, [[[7, 7, 7]]], "colour.png")
    (sample,) = list_samples(own(tmp_path), labelled=True)
    with pytest.raises(UserError, match=r"colour\.png is no label .*a colour image \(3 channels\)"):
        LabelReader(own(tmp_path), CITYSCAPES).read(sample)
    other = tmp_path / "other"
    pair(other, [[7]])
    rgb = own(other, encoding="rgb", values={"7,7,7": "road"})
    with pytest.raises(UserError, match=r"1 channel\(s\), where `encoding: rgb` is said"):
        LabelReader(rgb, CITYSCAPES).read(list_samples(rgb, labelled=True)[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": {7: "raod"}}, "unknown label name 'raod'. Did you mean 'road'"),
        ({"values": {"x": "road"}}, "value 'x' is not an id"),
        ({"values": {7: "road", "07": "sky"}}, "named both 'road' and 'sky'"),
        ({"encoding": "rgb", "values": {"1,2": "road"}}, "value '1,2' is not a colour"),
        ({"images": "../{frame}"}, "leaves the root"),
        ({"images": "images/a.png"}, "no field in braces"),
        ({"images": "images/{frame}*.png"}, "holds '*', and is no wildcard; write a field"),
        ({"labels": "labels/{frame}_?"}, "holds '?', and is no wildcard; write a field"),
        ({"instances": "{frame}*"}, "holds '*', and is no wildcard; write a field"),
        ({"images": "x/{℘}"}, "field {℘} cannot be read"),
        ({"images": "{a}{b}", "labels": None}, "something between them"),
        ({"images": "x/{0a}"}, "field {0a} cannot be read"),
        ({"images": "x/{a"}, "its braces cannot be read"),
        ({"labels": "labels/{other}"}, "must have the same fields"),
        ({"values": "carla"}, "no table 'carla'. Did you mean 'carla_old' or 'carla_new'"),
        ({"values": "camvid32"}, "value '64,128,64' is not an id"),
        ({"values": {"²": "road"}}, "value '²' is not an id"),
        ({"values": {"9" * 5000: "road"}}, "is not an id"),
        ({"imagse": "x"}, "Did you mean 'images'"),
        ({"values": {}}, "names none of their raw values"),
        (
            {"encoding": "rgb", "values": {"153,153,153": "pole", "153, 153,153": "polegroup"}},
            "this colour does not tell them apart. Where the set has label ids, read those",
        ),
        ({"splits": {"x": "../list.txt"}}, "path '../list.txt' leaves the root"),
        ({"splits": {"x": "/etc/split.mat:ids"}}, "leaves the root"),
        ({"decoder": "os.system"}, "decoder: String should match pattern"),
        ({"decoder": "a:b", "encoding": "rgb", "values": {"1,2,3": "road"}}, "returns ids"),
    ],
)
def test_bad_specs(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        own(tmp_path, **fields)
    assert message in str(error.value)


def test_glob_characters_in_literal_parts_of_a_pattern_are_legal(tmp_path: Path) -> None:
    assert own(tmp_path, images="set [1]/{frame}", labels="l[a-c]/{frame}_[x]").labels


@pytest.mark.parametrize(
    ("name", "table"), [("carla_new", "24"), ("gta5", "34"), ("cityscapes_train_ids", "255")]
)
def test_a_known_table_by_name(tmp_path: Path, name: str, table: str) -> None:
    values = own(tmp_path, values=name).values
    assert table in values
    if name in built_in_specs():
        assert values == spec(name, tmp_path).values


def test_every_known_table_is_one(tmp_path: Path) -> None:
    for name in built_in_specs():
        encoding = spec(name, tmp_path).encoding
        assert own(tmp_path, values=name, encoding=encoding).values == spec(name, tmp_path).values


def test_a_data_set_starts_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_spec(place: str, text: str) -> Path:
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    monkeypatch.delenv("NOWHERE", raising=False)
    write_spec("a/base.yaml", "dataset: cityscapes\nroot: data\nname: base\nquarantine: $NOWHERE\n")
    own = write_spec("own.yaml", "dataset: a/base.yaml\nname: own\nquarantine: q.csv\nwidth: 64\n")
    found = load_spec(own)
    assert (found.name, found.width) == ("own", 64)
    assert (found.root, found.quarantine) == (tmp_path / "a/data", tmp_path / "q.csv")
    assert found.labels == spec("cityscapes", tmp_path).labels
    layers = layered({"dataset": "own.yaml", "width": 32, "root": "x"}, tmp_path)
    assert (layers["width"], layers["root"]) == (32, str(tmp_path / "x"))
    with pytest.raises(UserError, match=r"base\.yaml:\n  quarantine: environment variable NOWHERE"):
        spec_fields("a/base.yaml", tmp_path)
    assert "quarantine" not in spec_fields("a/base.yaml", tmp_path, given=["quarantine"])


def test_data_sets_that_start_from_themselves(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("dataset: sub/b.yaml\n")
    (tmp_path / "sub/b.yaml").write_text("dataset: ../c.yaml\n")
    (tmp_path / "c.yaml").write_text("dataset: sub/../a.yaml\n")
    with pytest.raises(UserError, match="in a circle: ") as error:
        spec_fields("a.yaml", tmp_path)
    files = [tmp_path / name for name in ("a.yaml", "sub/b.yaml", "c.yaml", "a.yaml")]
    assert " -> ".join(map(str, files)) in str(error.value)


def test_a_saved_spec_with_dollars_is_read_back(tmp_path: Path) -> None:
    root = tmp_path / "w$HOME"
    root.mkdir()
    before = own(root, name="5$", images="$a/{frame}", labels="$${frame}_$b", splits={"$": "$*"})
    save_spec(before, root / "dataset.yaml")
    assert load_spec(root / "dataset.yaml") == before


def test_unknown_data_set_suggests_near_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No data set 'gta'.*Did you mean 'gta5'"):
        spec_fields("gta", tmp_path)


def test_two_labels_of_one_image(tmp_path: Path) -> None:
    pair(tmp_path, [[7]])
    write(tmp_path / "labels/a.bmp", [[7]])
    with pytest.raises(UserError, match=r"frame 'a' has two labels: .*a\.png and .*a\.bmp"):
        list_samples(own(tmp_path), labelled=True)


# Frames that are left out, and splits that are listed.


def test_quarantined_frames_are_left_out_everywhere(tmp_path: Path) -> None:
    for name in "abc":
        pair(tmp_path, [[7] * 16], f"{name}.png")
    write(tmp_path / "images/orphan.png", np.zeros((1, 16, 3)))
    (tmp_path / "bad.csv").write_text('name,reason\norphan,no label\nb,"blank, all of it"\n')
    spec = own(tmp_path, quarantine=tmp_path / "bad.csv")
    assert [s.name for s in list_samples(spec, labelled=True)] == ["a", "c"]
    assert [s.name for s in list_samples(spec, labelled=False)] == ["a", "c"]
    save_spec(spec, tmp_path / "sub" / "set.yaml")
    assert load_spec(tmp_path / "sub" / "set.yaml").quarantine is not None
    assert len(list_samples(load_spec(tmp_path / "sub" / "set.yaml"), labelled=True)) == 2
    assert translated_spec(spec, tmp_path / "out").quarantine is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"No quarantine list .*bad\.csv"),
        ("a\nb\n", r"begins with the columns \['a'\]; name,reason were expected"),
        ("", "begins with the columns None"),
        ('name,reason\n"a', "cannot be read as a table"),
        ("name,reason\na.png,typo\n", r"lists 'a\.png' and so on, and no frame has such a name"),
        ("\ufeffname,reason\r\na,from a spreadsheet\r\n", "and `quarantine`"),
        ("name,reason\na,all\n", "Check `root`, `images`, `split` and `quarantine`"),
    ],
)
def test_bad_quarantine_lists(tmp_path: Path, content: str | None, message: str) -> None:
    pair(tmp_path, [[7]])
    if content is not None:
        (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        list_samples(own(tmp_path, quarantine=tmp_path / "bad.csv"), labelled=True)


def test_splits_of_a_matlab_file(tmp_path: Path) -> None:
    for i in range(1, 6):
        pair(tmp_path, [[7]], f"{i:05d}.png")
    savemat(tmp_path / "split.mat", {"trainIds": [[2], [4]], "valIds": [[5]]})
    splits = {"train": "split.mat:trainIds", "val": "split.mat:valIds", "odd": "split.mat:x"}
    train = own(tmp_path, splits=splits, split="train")
    assert [s.name for s in list_samples(train, labelled=True)] == ["00002", "00004"]
    with pytest.raises(UserError, match="has no 'x'; it has trainIds, valIds"):
        list_samples(own(tmp_path, splits=splits, split="odd"), labelled=True)
    (tmp_path / "split.mat").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"split\.mat cannot be read as a MATLAB file"):
        list_samples(train, labelled=True)
    (tmp_path / "split.mat").unlink()
    with pytest.raises(UserError, match=r"split 'train' is listed in .*split\.mat: no file"):
        list_samples(train, labelled=True)


def test_a_part_of_the_listed_frames_is_said_not_refused(tmp_path: Path) -> None:
    for i in (2, 4):
        pair(tmp_path, [[7]], f"{i:05d}.png")
    savemat(
        tmp_path / "split.mat",
        {"a": [[2.0], [4.0], [6.0]], "b": [[9]], "c": [[0.5]], "d": [[np.nan]]},
    )
    chosen = {
        key: own(tmp_path, splits={"x": f"split.mat:{key}"}, split="x", limit=1) for key in "abcd"
    }
    assert len(list_samples(chosen["a"], labelled=True)) == 1
    assert str(not_here(chosen["a"])).endswith("lists 3 frames of split x, and 2 of them are here")
    assert not_here(own(tmp_path)) is None
    with pytest.raises(UserError, match=r"1 of 1 entries of list split\.mat:b match no frame: 9"):
        list_samples(chosen["b"], labelled=True)
    for key in "cd":
        with pytest.raises(UserError, match=f"'{key}' holds no numbers of frames"):
            list_samples(chosen[key], labelled=True)


LISTS = {
    "byte order mark": b"\xef\xbb\xbfa.png\r\nc.png\r\n",
    "UTF-16": "a\nc\n".encode("utf-16"),
    "comments": b"# training\n\na\n  c  \n",
    "image and label": b"images/a.png labels/a.png\nimages/c.png labels/c.png\n",
    "tabs": b"images/a.png\tlabels/a.png\nimages/c.png\tlabels/c.png",
    "commas": b"a.png,1\nc.png,2\n",
    "places of another machine": b"/data/images/a.png /x/a.png\n/data/images/c.png /y\n",
    "Windows": b"images\\a.png\r\nimages\\c.png\r\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_other_programs(tmp_path: Path, kind: str) -> None:
    for name in "abc":
        pair(tmp_path, [[7]], f"{name}.png")
    (tmp_path / "x.txt").write_bytes(LISTS[kind])
    chosen = own(tmp_path, splits={"x": "x.txt"}, split="x")
    assert [s.name for s in list_samples(chosen, labelled=True)] == ["a", "c"]


def test_names_with_spaces_are_names(tmp_path: Path) -> None:
    for name in ("a 1", "a 2", "a"):
        pair(tmp_path, [[7]], f"{name}.png")
    (tmp_path / "x.txt").write_text("a 1.png\na 2\n")
    chosen = own(tmp_path, splits={"x": "x.txt"}, split="x")
    assert [s.name for s in list_samples(chosen, labelled=True)] == ["a 1", "a 2"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "x.txt",
            r"4 of 6 entries of list .*x\.txt match no frame: d, e\.png, f\. Frames are like",
        ),
        ("empty.txt", r"0 of 0 entries of list .*empty\.txt match no frame: it is empty"),
        (
            "b_*",
            r"1 of 1 entries of wildcard 'b_\*' match no frame: b_\*\. Frames are like a, b, c",
        ),
    ],
)
def test_what_a_split_names_is_there(tmp_path: Path, rule: str, message: str) -> None:
    for name in "abc":
        pair(tmp_path, [[7]], f"{name}.png")
    (tmp_path / "x.txt").write_text("a\nd\nb\ne.png\nf\nother/g\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=message):
        list_samples(own(tmp_path, splits={"x": rule}, split="x"), labelled=True)


def test_names_of_ones_own(tmp_path: Path) -> None:
    forklift = LabelClass(name="forklift", names=("mysim/forklift",), color=(1, 2, 3))
    road = LabelClass(name="road", names=("road",), color=(4, 5, 6))
    space = LabelSpace(name="yard", classes=(road, forklift))
    pair(tmp_path, [[7, 40]])
    spec = own(tmp_path, values={7: "road", 40: "mysim/forklift"})
    (sample,) = list_samples(spec, labelled=True)
    assert LabelReader(spec, space).read(sample).tolist() == [[0, 1]]
    assert LabelReader(spec, CITYSCAPES).read(sample).tolist() == [[0, IGNORE]]


def test_colors_equal_a_loop_over_classes() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (12, 3), np.uint8)
    values = {",".join(map(str, c)): n for c, n in zip(table, CITYSCAPES.class_names, strict=False)}
    reader = LabelReader(own(Path(), encoding="rgb", values=values), CITYSCAPES)
    rgb = table[rng.integers(0, 12, (70, 33))]
    rgb[rng.random((70, 33)) < 0.1] = 7  # a colour without a name
    expected = np.full(rgb.shape[:2], IGNORE, np.uint8)
    for index, color in enumerate(table):
        expected[(rgb == color).all(-1)] = index
    assert (reader.classes(rgb) == expected).all()


def test_listed_splits_tell_folders_apart(tmp_path: Path) -> None:
    for town in ("Town01", "Town02"):
        for i in range(2):
            write(tmp_path / f"{town}/rgb/{i:04d}.png", np.zeros((1, 16, 3)))
    (tmp_path / "train.txt").write_text("Town01/rgb/0000.png\nTown01/rgb/0001.png\n")
    (tmp_path / "val.txt").write_text("Town02/0000\r\n")
    (tmp_path / "both.txt").write_text("0001\n")
    splits = {name: f"{name}.txt" for name in ("train", "val", "both")}
    fields = {"images": "{town}/rgb/{frame}", "labels": None, "splits": splits}
    found = {
        name: [s.name for s in list_samples(own(tmp_path, **fields, split=name), labelled=False)]
        for name in splits
    }
    assert found == {
        "train": ["Town01/0000", "Town01/0001"],
        "val": ["Town02/0000"],
        "both": ["Town01/0001", "Town02/0001"],
    }
    (tmp_path / "val.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"val\.txt cannot be read as a list"):
        list_samples(own(tmp_path, **fields, split="val"), labelled=False)


def test_hidden_folders_are_no_part_of_a_set(tmp_path: Path) -> None:
    write(tmp_path / "Town01/rgb/0.png", np.zeros((1, 16, 3)))
    write(tmp_path / ".trash/rgb/0.png", np.zeros((1, 16, 3)))
    spec = own(tmp_path, images="{town}/rgb/{frame}", labels=None)
    assert [s.name for s in list_samples(spec, labelled=False)] == ["Town01/0"]


def test_palette_frames_with_transparency(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "images/a.png", transparency=bytes([0, 255]))
    spec = own(tmp_path, labels=None)
    (sample,) = list_samples(spec, labelled=False)
    assert read_frame(spec, sample).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_yaml_bombs_and_giants_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "set.yaml"
    layers = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10)]
    path.write_text("\n".join(["l0: &l0 [lol]", *layers]))
    with pytest.raises(UserError, match=r"alias \*l0 is not supported"):
        load_spec(path)
    path.write_text("values: " + "[" * 100_000)
    with pytest.raises(UserError, match="is not readable as YAML"):
        load_spec(path)
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match=r"has 1,073,741,824 bytes; a YAML file of at most"):
        load_spec(path)
