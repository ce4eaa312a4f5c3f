"""`sim2real check`: planted faults are found, each in the right frame, and none is invented."""

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from flows import doctor
from pipeline.data.images import read_rgb
from pipeline.data.labels import load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader
from pipeline.data.spec import DatasetSpec, save_spec, spec_fields
from pipeline.errors import UserError
from pipeline.intake.compare import compare
from pipeline.intake.examine import examine, split_specs
from pipeline.intake.facts import between_share, count_values
from pipeline.intake.faults import renumbered
from pipeline.intake.findings import (
    SEVERITIES,
    DatasetReport,
    Finding,
    kinds,
    write_quarantine,
)
from pipeline.intake.headers import check_headers
from pipeline.intake.lost import lost_classes
from pipeline.toyworld.writing import write_toy_world
from reports.check import write_check

SPACE = load_label_space("cityscapes19")
FRAMES = 24
Ids = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_toy_world(root, sim_frames=FRAMES, real_train_frames=24, real_val_frames=20)
    return root


@pytest.fixture
def sim(clean: Path, tmp_path: Path) -> Path:
    """A copy of toy-sim to spoil."""
    return shutil.copytree(clean / "toy-sim", tmp_path / "sim")


def spec_of(root: Path, base: str = "gta5", **changes: Any) -> DatasetSpec:
    return DatasetSpec(**spec_fields(base, Path()) | {"root": root} | changes)


def look(root: Path, base: str = "gta5", **changes: Any) -> DatasetReport:
    return examine(spec_of(root, base, **changes), SPACE, workers=2)


def found(report: DatasetReport, *, notes: bool = False) -> dict[str, Finding]:
    """Kind -> finding, without notes: small sets lack some rare class."""
    return {f.kind: f for f in report.findings if notes or f.severity != "note"}


def image(root: Path, n: int) -> Path:
    return root / "images" / f"{n:05}.png"


def label(root: Path, n: int) -> Path:
    return root / "labels" / f"{n:05}.png"


def ids(root: Path, n: int) -> Ids:
    return np.asarray(Image.open(label(root, n)))


def rgb(root: Path, n: int) -> Ids:
    return np.asarray(Image.open(image(root, n)).convert("RGB"))


def each_label(root: Path, change: Callable[[Ids], npt.NDArray[Any]]) -> None:
    for n in range(1, FRAMES + 1):
        Image.fromarray(change(ids(root, n))).save(label(root, n))


def test_clean_sets_have_no_findings(clean: Path) -> None:
    reports = {
        "source": look(clean / "toy-sim"),
        "target": look(clean / "toy-real", "cityscapes", split="train"),
        "test": look(clean / "toy-real", "cityscapes", split="val"),
    }

    for report in compare(reports).values():
        assert found(report) == {}
        assert {f.kind for f in report.findings} <= {"names-unused", "class-absent"}
        assert report.must_fix == 0
        assert report.quarantined() == {}


def test_counts_are_those_of_the_files(clean: Path) -> None:
    report = look(clean / "toy-sim")

    labels = [ids(clean / "toy-sim", n) for n in range(1, FRAMES + 1)]
    assert report.frames == report.labelled == FRAMES
    assert report.sizes == {"128x64": FRAMES}
    road = sum(int((values == 7).sum()) for values in labels)
    assert report.class_pixels["road"] == road
    assert sum(report.class_pixels.values()) + report.ignored_pixels == FRAMES * 128 * 64
    use = next(value for value in report.values if value.value == "7")
    assert (use.name, use.pixels, use.frames) == ("road", road, FRAMES)
    assert report.decoded_bytes == FRAMES * 128 * 64 * 3
    assert report.image_bytes == sum(f.stat().st_size for f in (clean / "toy-sim/images").iterdir())
    assert look(clean / "toy-sim", width=64).decoded_bytes == FRAMES * 64 * 32 * 3
    one, many = (examine(spec_of(clean / "toy-sim"), SPACE, workers=n) for n in (1, 3))
    assert one.as_json() == many.as_json()


def exif_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def folder_for_image(root: Path) -> None:
    image(root, 3).unlink()
    image(root, 3).mkdir()


def truncated_jpeg(root: Path) -> None:
    """A JPEG that lost its end, under the ending of one."""
    picture = Image.open(image(root, 3))
    image(root, 3).unlink()
    path = image(root, 3).with_suffix(".jpg")
    picture.save(path, quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def optimised_palette(path: Path, *, turn: int = 0) -> None:
    """Indices renumbered by use, colours kept: what some optimisers do.

    Args:
        turn: begin with another of the used indices.
    """
    with Image.open(path) as picture:
        palette = picture.getpalette()
        used, places = np.unique(np.asarray(picture), return_inverse=True)
    assert palette is not None
    new = np.roll(np.arange(len(used)), turn)
    other = Image.fromarray(new[places].reshape(64, 128).astype(np.uint8))
    other.putpalette([c for i in used[np.argsort(new)] for c in palette[3 * i : 3 * i + 3]])
    other.save(path)


def smooth(values: Ids) -> Ids:
    return np.asarray(cv2.resize(cv2.resize(values, (200, 100)), (128, 64)))


def to_rgb(root: Path) -> None:
    Image.open(label(root, 3)).convert("RGB").save(label(root, 3))


def copy_frame(root: Path, *, label_too: bool) -> None:
    shutil.copy(image(root, 1), image(root, 3))
    if label_too:
        shutil.copy(label(root, 1), label(root, 3))


def with_ids(root: Path, change: Callable[[Ids], npt.NDArray[Any]], ending: str = ".png") -> None:
    changed = change(ids(root, 3))
    label(root, 3).unlink()
    Image.fromarray(changed).save(label(root, 3).with_suffix(ending))


def with_rgb(root: Path, change: Callable[[Ids], npt.NDArray[Any]]) -> None:
    Image.fromarray(change(rgb(root, 3))).save(image(root, 3))


def unnamed(values: Ids) -> Ids:
    values = values.copy()
    values[:20, :20] = 99
    return values


def noise(values: Ids) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 3, (*values.shape[:2], 3)).astype(np.uint8)


PLANTED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no label": ("no-label", lambda r: label(r, 3).unlink()),
    "empty image": ("empty-file", lambda r: image(r, 3).write_bytes(b"")),
    "empty label": ("empty-file", lambda r: label(r, 3).write_bytes(b"")),
    "truncated image": ("unreadable", lambda r: truncate(image(r, 3))),
    "truncated label": ("unreadable", lambda r: truncate(label(r, 3))),
    "truncated JPEG": ("unreadable", truncated_jpeg),
    "no image": ("unreadable", lambda r: image(r, 3).write_text("<html>404</html>")),
    "folder for an image": ("unreadable", folder_for_image),
    "two labels": (
        "two-labels",
        lambda r: Image.open(label(r, 3)).save(label(r, 3).with_suffix(".bmp")),
    ),
    "sizes differ": ("size-differs", lambda r: with_ids(r, lambda v: v[:, :-1])),
    "blank": ("blank-frame", lambda r: with_rgb(r, lambda v: v * 0 + 7)),
    "nearly blank": ("blank-frame", lambda r: with_rgb(r, noise)),
    "wrong ending": ("wrong-ending", lambda r: Image.open(image(r, 3)).save(image(r, 3), "BMP")),
    "grey": ("grey-frame", lambda r: Image.open(image(r, 3)).convert("L").save(image(r, 3))),
    "grey as RGB": (
        "grey-frame",
        lambda r: Image.open(image(r, 3)).convert("L").convert("RGB").save(image(r, 3)),
    ),
    "alpha": ("alpha-frame", lambda r: Image.open(image(r, 3)).convert("RGBA").save(image(r, 3))),
    "EXIF": ("rotated-frame", lambda r: exif_rotated(image(r, 3))),
    "16-bit frame": ("frame-depth", lambda r: with_rgb(r, lambda v: v[..., 0].astype("u2") * 257)),
    "16-bit colours": (
        "frame-depth-cut",
        lambda r: cv2.imwrite(str(image(r, 3)), rgb(r, 3)[..., ::-1].astype("u2") * 257),
    ),
    "constant label": ("constant-label", lambda r: with_ids(r, lambda v: v * 0 + 7)),
    "ignored label": ("ignored-label", lambda r: with_ids(r, lambda v: v * 0)),
    "unnamed": ("unnamed-values", lambda r: with_ids(r, unnamed)),
    "colours": ("label-colours", to_rgb),
    "grey and alpha": (
        "label-colours",
        lambda r: Image.open(label(r, 3)).convert("LA").save(label(r, 3)),
    ),
    "instances": ("label-depth", lambda r: with_ids(r, lambda v: v.astype("u2") * 1000 + 3)),
    "stretched": ("label-depth", lambda r: with_ids(r, lambda v: v.astype("u2") * 257)),
    "palette": ("palette-differs", lambda r: optimised_palette(label(r, 3))),
    "negative ids": (
        "label-depth",
        lambda r: with_ids(r, lambda v: np.where(v == 7, -1, v.astype("i4")), ".tif"),
    ),
    "float ids": ("label-depth", lambda r: with_ids(r, lambda v: v.astype("f4"), ".tif")),
    "EXIF of a label": ("rotated-frame", lambda r: exif_rotated(label(r, 3))),
    "label among frames": (
        "mask-frames",
        lambda r: (image(r, 3).rename(r / "images/00004_mask.png"),
                   label(r, 3).rename(r / "labels/00004_mask.png")),
    ),
    "JPEG label": ("label-jpeg", lambda r: Image.open(label(r, 3)).convert("L").save(
        label(r, 3), "JPEG")),
    "resampled": ("resampled-label", lambda r: with_ids(r, smooth)),
    "duplicate": ("duplicate-frames", lambda r: copy_frame(r, label_too=True)),
    "disagreeing": ("duplicates-disagree", lambda r: copy_frame(r, label_too=False)),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found(sim: Path, tmp_path: Path, fault: str) -> None:
    kind, plant = PLANTED[fault]
    plant(sim)
    name = "00004_mask" if kind == "mask-frames" else "00003"

    report = look(sim)

    findings = found(report)
    assert findings[kind].frames == (name,)
    assert findings[kind].count == 1
    assert findings[kind].share == 1 / FRAMES
    assert findings[kind].examples[0].frame == name
    assert findings[kind].examples[0].detail
    # One fault may show in several ways, all of them in its frame.
    assert {name for f in findings.values() for name in f.frames} == {name}
    assert all(f.severity in SEVERITIES for f in findings.values())
    assert set(report.quarantined()) == ({name} if _spoils(findings) else set())
    write_check({"source": report}, tmp_path / "out")
    assert kind in (tmp_path / "out" / "check.html").read_text()


def _spoils(findings: dict[str, Finding]) -> bool:
    return any(kinds()[kind].quarantines for kind in findings)


HEADERS = {
    "empty image": "cannot be read as an image",
    "folder for an image": "is no regular file",
    "sizes differ": r"1 of 24\. .*00003\.png: image 128x64, label 127x64",
    "EXIF": r"turned by their EXIF data: 1 of 24\. .*images/00003\.png: EXIF orientation 6",
    "EXIF of a label": "the label has EXIF orientation 6",
    "16-bit frame": r"Frames of more than 8 bits: 1 of 24\. .*images/00003\.png",
    "colours": r"labels/00003\.png: a colour image \(3 channels\), where `encoding: ids`",
    "float ids": r"labels/00003\.tif: floating point pixels",
    "palette": r"labels/00003\.png: .*is drawn as .*`encoding: rgb`",
    "JPEG label": r"labels/00003\.png: JPEG blurs ids",
    "label among frames": r"images/00004_mask\.png: named like the label of 00004",
}
"""Planted faults that a run finds before it starts, and what it says."""


@pytest.mark.parametrize("fault", HEADERS)
def test_what_headers_show_stops_a_run_before_it_starts(sim: Path, fault: str) -> None:
    kind, plant = PLANTED[fault]
    spec = spec_of(sim)
    assert check_headers(spec, list_samples(spec, labelled=True)) == [(128, 64)] * FRAMES
    plant(sim)
    with pytest.raises(UserError, match=HEADERS[fault]) as error:
        check_headers(spec, list_samples(spec, labelled=True))
    if kind != "empty-file":
        assert kinds()[kind].title in str(error.value)
        assert kinds()[kind].advice in str(error.value)
    assert "`sim2real check --quarantine` lists them." in str(error.value)


def test_palettes_that_each_file_has_for_itself(sim: Path) -> None:
    for n in range(1, FRAMES + 1):
        picture = Image.open(label(sim, n))
        # Of colours that are no data set's: indices alone tell.
        picture.putpalette([(c * 7 + 3) % 256 for c in range(768)])
        picture.save(label(sim, n))
    assert found(look(sim)) == {}
    for n in range(1, FRAMES + 1):
        optimised_palette(label(sim, n), turn=n)

    finding = found(look(sim))["palette-differs"]

    assert finding.count >= FRAMES / 2
    assert not finding.quarantines
    assert "encoding: rgb" in finding.advice
    spec = spec_of(sim)
    with pytest.raises(UserError, match=r"its palette has colour [\d,]+ at index \d+, other"):
        check_headers(spec, list_samples(spec, labelled=True))


def test_labels_among_frames_by_their_pixels(sim: Path) -> None:
    for n in (3, 4):
        shutil.copy(label(sim, n), sim / f"images/mask_{n}.png")
    frames = spec_of(sim, labels=None)

    finding = found(look(sim, labels=None))["mask-frames"]

    assert finding.frames == ("mask_3", "mask_4")
    assert finding.quarantines
    with pytest.raises(UserError, match=r"Labels among the frames: 2 of 26\. .*mask_3\.png: one"):
        check_headers(frames, list_samples(frames, labelled=False))


def test_grey_frames_of_few_values_are_frames(tmp_path: Path) -> None:
    """Of a thermal camera, of which one is richer."""
    noise = np.random.default_rng(0).integers(0, 50, (20, 32, 48), np.uint8)
    noise[7] *= 5
    noise[7, 0] = range(48)
    for n, frame in enumerate(noise):
        Image.fromarray(frame).save(tmp_path / f"{n}.png")
    frames = DatasetSpec(name="thermal", root=tmp_path, images="{frame}.png")
    assert len(check_headers(frames, list_samples(frames, labelled=False))) == 20


def test_a_set_of_grey_frames_is_no_set_of_labels(sim: Path) -> None:
    for n in range(1, FRAMES + 1):
        grey = Image.open(image(sim, n)).convert("L").point(lambda v: v // 16 * 16)
        grey.save(image(sim, n))
    frames = spec_of(sim)

    assert set(found(look(sim))) == {"grey-frame"}
    check_headers(frames, list_samples(frames, labelled=True))


PALETTES = {
    "one for all": [bytes(range(200)) + bytes(range(100))] * 3,
    "cut off behind what is used": [bytes(range(240))[:n] for n in (30, 60, 240)],
    "grey": [bytes(v for v in range(n) for _ in "rgb") for n in (256, 34)],
    "of chance": [np.random.default_rng(i).bytes(768) for i in range(8)],
    "none": [b"", b"", bytes(range(90))],
    "Pascal VOC's and that of Cityscapes": [
        bytes(
            sum((i >> (3 * b + c) & 1) << (7 - b) for b in range(3)) for i in range(256)
            for c in range(3)
        ),
        bytes(v for c in SPACE.classes for v in c.color),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", PALETTES)
def test_palettes_that_say_nothing_against_ids(kind: str) -> None:
    assert renumbered(PALETTES[kind]) == {}


def test_frames_smaller_than_the_crop(sim: Path) -> None:
    for path in (image(sim, 3), label(sim, 3)):
        Image.open(path).crop((0, 0, 56, 28)).save(path)
    spec = spec_of(sim)
    report = examine(spec, SPACE, workers=1, crop=(64, 48))
    assert found(report)["small-frame"].frames == ("00003",)
    assert set(report.quarantined()) == {"00003"}
    seen = report.findings[0].examples[0].detail
    assert seen == "read at 56x28, and cyclegan.crop is 64x48"
    samples = list_samples(spec, labelled=True)
    with pytest.raises(UserError, match=rf"1 of 24\. .*00003\.png: {seen}"):
        check_headers(spec, samples, crop=(64, 48))
    check_headers(spec_of(sim, width=128), samples, crop=(64, 48))


def test_labels_without_any_class_must_be_fixed(sim: Path) -> None:
    each_label(sim, np.zeros_like)

    finding = found(look(sim))["ignored-label"]

    assert (finding.severity, finding.count) == ("must fix", FRAMES)


def test_lists_of_splits_that_name_others(sim: Path) -> None:
    (sim / "val.txt").write_text("00001\nnone\n")
    spec = spec_of(sim, splits={"val": "val.txt", "gone": "gone.txt"})
    save_spec(spec, sim.parent / "sim.yaml")

    target = doctor.check_target(str(sim.parent / "sim.yaml"), None, SPACE.name, None)
    (report,) = doctor.check(target).values()

    finding = found(report)["split-unusable"]
    assert "1 of 2 entries of list" in finding.detail
    assert "gone" not in finding.detail


def test_label_without_image(sim: Path) -> None:
    image(sim, 3).unlink()

    finding = found(look(sim))["no-image"]

    assert finding.frames == ("00003",)
    assert not finding.quarantines


def test_label_of_a_decoder(sim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sim / "own.py").write_text("from numpy import load\n")
    monkeypatch.setenv("SIM2REAL_ALLOW_CODE", "1")
    for n in range(1, FRAMES + 1):
        np.save(label(sim, n).with_suffix(".npy"), ids(sim, n))
    np.save(label(sim, 3).with_suffix(".npy"), np.zeros((0, 0), np.uint8))
    image(sim, 4).unlink()

    report = look(sim, labels="labels/{frame}.npy", decoder=f"{sim}/own.py:load")

    findings = found(report)
    assert set(findings) == {"unreadable", "no-image"}
    assert findings["unreadable"].frames == ("00003",)
    assert "(0, 0)" in findings["unreadable"].examples[0].detail
    assert findings["no-image"].frames == ("00004",)


def test_labels_have_the_values_that_training_reads(sim: Path) -> None:
    """PIL alone cuts the 16 bits of a TIFF's channels down to 8."""
    labels = "labels/{frame}.tiff"
    for n in range(1, FRAMES + 1):
        wide = np.repeat(ids(sim, n)[..., None], 3, axis=2).astype(np.uint16) + 256
        assert cv2.imwrite(str(label(sim, n).with_suffix(".tiff")), wide)
    named = {str(256 + int(raw)): name for raw, name in spec_of(sim).values.items()}
    spec = spec_of(sim, labels=labels, encoding="channel", values=named)

    report = examine(spec, SPACE, workers=1)

    (sample, *_) = list_samples(spec, labelled=True)
    assert sample.label is not None
    raw = {str(value) for value in np.unique(LabelReader(spec, SPACE).raw(sample.label))}
    assert raw <= {value.value for value in report.values}
    assert found(report) == {}
    as_colours = found(look(sim, labels=labels, encoding="rgb", values=COLORS))
    assert as_colours["label-depth"].count == FRAMES


def test_copied_label_is_told_from_its_original(sim: Path) -> None:
    shutil.copy(label(sim, 5), label(sim, 2))

    report = look(sim)

    (finding,) = found(report).values()
    assert (finding.kind, finding.severity) == ("copied-label", "must fix")
    assert finding.frames == ("00002",)
    assert "00005" in finding.examples[0].detail
    assert set(report.quarantined()) == {"00002"}


def test_weathers_may_share_a_label(sim: Path) -> None:
    """The same view by day and in the dark, as Virtual KITTI 2 has it."""
    for n in range(2, FRAMES + 1, 2):
        dark = rgb(sim, n - 1) // 3
        Image.fromarray(dark).save(image(sim, n))
        shutil.copy(label(sim, n - 1), label(sim, n))

    report = look(sim)

    (finding,) = found(report).values()
    assert (finding.kind, finding.severity) == ("shared-label", "look")
    assert finding.count == FRAMES
    assert report.quarantined() == {}


def test_near_duplicate_is_a_note_and_stays(sim: Path) -> None:
    frame = rgb(sim, 1)
    Image.fromarray(np.clip(frame.astype(int) + 1, 0, 255).astype(np.uint8)).save(image(sim, 3))
    shutil.copy(label(sim, 1), label(sim, 3))

    report = look(sim)

    assert found(report) == {}
    finding = found(report, notes=True)["near-duplicates"]
    assert finding.severity == "note"
    assert finding.frames == ("00003",)
    assert "00001" in finding.examples[0].detail
    assert report.quarantined() == {}


def test_frames_of_fog_are_no_duplicates(sim: Path) -> None:
    """Little contrast makes any two frames near in grey levels."""
    for n in range(1, FRAMES + 1):
        fog = np.round(200 + (rgb(sim, n).astype(float) - 128) / 28)
        Image.fromarray(fog.astype(np.uint8)).save(image(sim, n))

    report = look(sim)

    assert found(report) == {}
    assert "near-duplicates" not in found(report, notes=True)


def test_sizes_vary(sim: Path) -> None:
    for path in (image(sim, 3), label(sim, 3)):
        Image.open(path).crop((0, 0, 100, 64)).save(path)

    report = look(sim)

    assert found(report) == {}
    assert found(report, notes=True)["sizes-vary"].detail == "23 of 128x64, 1 of 100x64"
    assert "upscaled" in found(look(sim, width=110), notes=True)


def test_train_ids(sim: Path) -> None:
    order = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    table = np.full(256, 255, np.uint8)
    table[order] = np.arange(19)
    each_label(sim, lambda values: table[values])

    finding = found(look(sim))["train-ids"]

    assert finding.severity == "must fix"
    assert not finding.quarantines


@pytest.mark.parametrize("flip", [np.fliplr, np.flipud])
def test_flipped_labels(sim: Path, flip: Callable[[Ids], Ids]) -> None:
    each_label(sim, flip)

    assert set(found(look(sim))) == {"mirrored-labels"}


def test_labels_of_other_frames(sim: Path) -> None:
    label(sim, 1).rename(label(sim, 0))
    for n in range(2, FRAMES + 1):
        label(sim, n).rename(label(sim, n - 1))
    label(sim, 0).rename(label(sim, FRAMES))

    assert set(found(look(sim))) == {"labels-apart"}


def test_a_fault_of_most_frames_is_not_quarantined(sim: Path) -> None:
    """Then the spec is wrong, or the whole set."""
    for n in range(1, FRAMES + 1):
        Image.open(label(sim, n)).convert("RGB").save(label(sim, n))

    report = look(sim)

    finding = found(report)["label-colours"]
    assert "encoding: rgb" in finding.examples[0].detail
    assert finding.share == 1
    assert report.quarantined() == {}
    assert report.class_pixels == dict.fromkeys(SPACE.class_names, 0)


COLORS = {"128,64,128": "road", "70,130,180": "sky", "70,70,70": "building"}


def test_encodings_by_colour_and_channel(sim: Path) -> None:
    by_colour: dict[str, Any] = {"encoding": "rgb", "values": COLORS}
    indexed = look(sim, **by_colour)  # palette files have both
    for n in range(1, FRAMES + 1):
        Image.open(label(sim, n)).convert("RGB").save(label(sim, n))
    report = look(sim, **by_colour)
    assert report.class_pixels == indexed.class_pixels
    assert report.class_pixels["road"] > 0
    assert set(found(report)) == {"unnamed-values"}
    assert found(report)["unnamed-values"].severity == "must fix"
    assert all(value.value.count(",") == 2 for value in report.values)

    grey = shutil.copytree(sim, sim.with_name("grey"))
    each_label(grey, lambda values: values[:, :, 0])
    assert found(look(grey, **by_colour))["label-ids"].count == FRAMES

    shutil.rmtree(sim / "labels")
    (sim / "labels").mkdir()
    rng = np.random.default_rng(0)
    for n in range(1, FRAMES + 1):
        values = rng.choice([7, 23, 26], (64, 1)).astype(np.uint8) * np.ones((1, 128), np.uint8)
        none = np.zeros_like(values)
        Image.fromarray(np.stack([values, none, none], axis=2)).save(label(sim, n))
    assert "channel: 0" in found(look(sim))["label-colours"].examples[0].detail
    assert "label-channel" not in found(look(sim, encoding="channel"))
    wrong = found(look(sim, encoding="channel", channel=1))["label-channel"]
    assert wrong.examples[0].detail == "channel 1 holds only 0; 0 varies"


def test_antialiased_colours(sim: Path) -> None:
    for n in range(1, FRAMES + 1):
        colours = np.asarray(Image.open(label(sim, n)).convert("RGB"))
        Image.fromarray(smooth(colours)).save(label(sim, n))

    assert found(look(sim, encoding="rgb", values=COLORS))["resampled-label"].count == FRAMES


def test_shared_frames(clean: Path, sim: Path) -> None:
    """Copied, re-encoded and resized frames of the test set are found in the source."""
    real = spec_of(clean / "toy-real", "cityscapes", split="val")
    frames = [s.image for s in list_samples(real, labelled=False)]
    shutil.copy(frames[0], image(sim, 3))
    Image.open(frames[1]).save(image(sim, 4).with_suffix(".jpg"), quality=80)
    image(sim, 4).unlink()
    Image.open(frames[2]).resize((256, 128)).save(image(sim, 5))
    reports = {"source": look(sim), "test": examine(real, SPACE, workers=1)}

    compared = compare(reports)

    finding = found(compared["source"])["shared-frames"]
    assert finding.severity == "must fix"
    assert finding.frames == ("00003", "00004", "00005")
    assert {"00003", "00004", "00005"} <= set(compared["source"].quarantined())
    assert found(compared["test"]) == {}
    assert found(compare(reports, scored=())["source"])["shared-unscored"].count == 3
    assert not found(compare(reports, one_set=True)["source"])["shared-frames"].quarantines


def test_splits_of_one_drive(clean: Path, tmp_path: Path) -> None:
    root = shutil.copytree(clean / "toy-real", tmp_path / "real")
    parts = split_specs(spec_of(root, "cityscapes", split="train"))
    assert list(parts) == ["train", "val"]
    for kind, folder in (("leftImg8bit", "tolmstadt"), ("gtFine", "tolmstadt")):
        for path in sorted((root / kind / "val" / folder).iterdir()):
            path.rename(path.with_name(path.name.replace("tolmstadt", "arnsmark")))
    reports = {part: examine(spec, SPACE, workers=1) for part, spec in parts.items()}

    compared = compare(reports)

    assert "arnsmark" in found(compared["train"])["same-drive"].detail
    assert found(compared["val"]) == {}


LISTS = {"train": "train.txt", "val": "val.txt", "trainval": "trainval.txt", "gone": "gone.txt"}


def test_listed_splits_are_compared_and_no_file_is_decoded_twice(
    sim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(image(sim, 20), image(sim, 3))
    shutil.copy(label(sim, 20), label(sim, 3))
    names = [f"{n:05}\n" for n in range(1, FRAMES + 1)]
    (sim / "train.txt").write_text("".join(names[:16]))
    (sim / "val.txt").write_text("".join(names[15:]))
    (sim / "trainval.txt").write_text("".join(names))
    spec = spec_of(sim, splits=LISTS)
    save_spec(spec, sim.parent / "sim.yaml")
    decoded: list[Path] = []

    def read(path: Path) -> Ids:
        decoded.append(path)
        return read_rgb(path)

    monkeypatch.setattr("pipeline.intake.facts.read_rgb", read)

    target = doctor.check_target(str(sim.parent / "sim.yaml"), None, SPACE.name, None)
    reports = doctor.check(target)

    assert list(reports) == ["gta5"]
    assert sorted(decoded) == [image(sim, n) for n in range(1, FRAMES + 1)]
    # 16 is in both lists, 3 shows what 20 shows; that trainval holds val is meant.
    finding = found(reports["gta5"])["shared-frames"]
    assert finding.frames == ("00003", "00016")
    assert finding.detail == "train: also in val"
    assert "Take them out of one" in finding.advice
    # One list for both: a frame that it held would be missing in val, too.
    assert set(reports["gta5"].quarantined()) == {"00020"}


def test_a_known_set_without_its_lists_is_examined_whole(clean: Path) -> None:
    reports = doctor.check(doctor.check_target("gta5", clean / "toy-sim", SPACE.name, None))

    assert {part: report.frames for part, report in reports.items()} == {"gta5": FRAMES}


def test_class_that_is_scored_and_never_learnt(clean: Path) -> None:
    # The source has no name for it.
    values = {k: v for k, v in spec_of(clean / "toy-sim").values.items() if v != "road"}
    parts = {
        "source": spec_of(clean / "toy-sim", values=values),
        "test": spec_of(clean / "toy-sim"),
    }
    (lost,) = [lost for lost in lost_classes(parts, SPACE) if lost.key == "unnamed"]

    assert lost.text.startswith("no value of data set gta5 is named road (")
    assert not lost.refused


def test_few_frames_and_limit(clean: Path) -> None:
    report = look(clean / "toy-sim", limit=3)

    assert report.frames == 3
    assert set(found(report)) == {"few-frames"}


def test_without_labels(clean: Path) -> None:
    report = examine(spec_of(clean / "toy-sim"), SPACE, labelled=False)

    assert report.labelled == 0
    assert report.class_pixels == {}
    assert report.findings == ()


def test_errors_of_the_spec_are_told(clean: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        look(clean / "nowhere")
    with pytest.raises(UserError, match="no frame"):
        look(clean / "toy-sim", images="other/{frame}", labels="labels/{frame}")


def test_quarantine_is_written_merged_and_honoured(sim: Path, tmp_path: Path) -> None:
    label(sim, 3).unlink()
    truncate(image(sim, 5))
    path = tmp_path / "quarantine.csv"

    assert write_quarantine(look(sim).quarantined(), path) == 2
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["name", "reason"],
            ["00003", "no-label"],
            ["00005", "unreadable"],
        ]
    assert write_quarantine(look(sim).quarantined(), path) == 0
    truncate(image(sim, 7))
    report = look(sim, quarantine=path)
    assert report.frames == FRAMES - 2
    assert set(found(report)) == {"unreadable"}
    assert write_quarantine(report.quarantined(), path) == 1
    samples = list_samples(spec_of(sim, quarantine=path), labelled=True)
    assert [s.name for s in samples] == [
        f"{n:05}" for n in range(1, FRAMES + 1) if n not in {3, 5, 7}
    ]
    assert found(look(sim, quarantine=path)) == {}
    path.write_text("frame;why\n")
    with pytest.raises(UserError, match="name,reason"):
        write_quarantine(report.quarantined(), path)


def test_json_and_page(clean: Path, sim: Path, tmp_path: Path) -> None:
    nasty = "<script>alert(1)<b>"
    truncate(image(sim, 3))
    image(sim, 3).rename(image(sim, 3).with_name(f"{nasty}.png"))
    label(sim, 3).rename(label(sim, 3).with_name(f"{nasty}.png"))
    target = look(clean / "toy-real", "cityscapes", split="train")

    write_check({"source": look(sim), nasty: target}, tmp_path / "out")

    data = json.loads((tmp_path / "out" / "check.json").read_text())
    assert list(data["sets"]) == ["source", nasty]
    source = data["sets"]["source"]
    assert {"name", "frames", "findings", "class_pixels", "values", "quarantined"} <= set(source)
    finding = source["findings"][0]
    assert finding["kind"] == "unreadable"
    assert finding["frames"] == [nasty]
    assert finding["examples"][0]["image"].endswith(f"{nasty}.png")
    assert {*finding} == {
        *("kind", "severity", "title", "detail", "advice", "count", "share", "quarantines"),
        *("frames", "examples"),
    }
    page = (tmp_path / "out" / "check.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in page
    assert "http://" not in page
    assert "https://" not in page


def test_a_file_name_that_is_no_utf8(
    sim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    image(sim, 3).rename(image(sim, 3).with_name(odd))
    label(sim, 3).unlink()
    reports = {"source": look(sim)}

    write_check(reports, tmp_path / "out")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    doctor.tell(reports)

    assert "caf?" in (tmp_path / "out" / "check.html").read_text()
    with pytest.raises(UserError, match=r"'caf\?' is no UTF-8"):
        write_quarantine(reports["source"].quarantined(), tmp_path / "quarantine.csv")


def test_page_in_a_browser(sim: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.sync_api")
    switches = (
        *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
        *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
    )
    truncate(image(sim, 3))
    shutil.copy(image(sim, 1), image(sim, 4))
    long = "a_very_long_name_" * 9
    image(sim, 5).rename(image(sim, 5).with_name(f"{long}.png"))
    write_check({"source": look(sim), long: look(sim, limit=5)}, tmp_path)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(switches))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("request", lambda request: problems.append(request.url[:99]))
        page.goto((tmp_path / "check.html").as_uri())
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#source-unreadable").inner_text().count("00003") >= 1
        assert page.locator("#source-no-label").locator("img").count() == 1
        assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
        browser.close()
    assert [p for p in problems if not p.startswith(("file:", "data:"))] == []


def test_every_kind_says_what_to_do() -> None:
    for kind, known in kinds().items():
        assert known.advice.endswith((".", "?")), kind
        assert known.severity in SEVERITIES, kind


def test_values_are_counted_by_runs() -> None:
    rng = np.random.default_rng(0)
    for dtype, top in (("u1", 4), ("u2", 60_000), ("u4", 1 << 24)):
        values = np.repeat(rng.integers(0, top, (9, 5)).astype(dtype), 3, axis=1)
        found, pixels = np.unique(values, return_counts=True)
        expected = dict(zip(found.tolist(), pixels.tolist(), strict=True))
        assert count_values(values) == expected


def test_between_share() -> None:
    sharp = np.repeat(np.array([[7, 7, 7, 26, 26, 26, 11, 11]], np.uint8), 4, axis=0)
    soft = np.repeat(np.array([[7, 7, 13, 20, 26, 26, 18, 11]], np.uint8), 4, axis=0)
    assert between_share(sharp) == (0, 4)
    assert between_share(soft) == (0.5, 6)
