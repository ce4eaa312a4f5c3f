"""The cache of decoded frames: the same pixels, built once, refused when it is not whole."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.cache import class_reader, frame_reader
from pipeline.data.labels import load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.schema import parse

SPACE = load_label_space("cityscapes19")


@pytest.fixture
def spec(tmp_path: Path) -> DatasetSpec:
    """Three frames, one of another size than the others."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for name, size in (("a", (20, 40)), ("b", (24, 32)), ("c", (20, 40))):
        rgb = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(rgb).save(tmp_path / f"data/images/{name}.png")
        label = rng.integers(5, 14, size, np.uint8)
        Image.fromarray(label).save(tmp_path / f"data/labels/{name}.png")
    fields = {"images": "images/{frame}", "labels": "labels/{frame}", "width": 16}
    root = tmp_path / "data"
    return parse(
        DatasetSpec, {"name": "x", "root": root, "values": "cityscapes_ids", **fields}, "x"
    )


def test_the_same_pixels_and_no_file_is_read_again(spec: DatasetSpec, tmp_path: Path) -> None:
    samples = list_samples(spec, labelled=True)
    plain = frame_reader(spec, samples, None), class_reader(spec, samples, SPACE, None)
    expected = [[read(i) for i in range(3)] for read in plain]
    for _ in range(2):
        frames = frame_reader(spec, samples, tmp_path / "cache")
        classes = class_reader(spec, samples, SPACE, tmp_path / "cache")
        for i in (2, 0, 1):
            assert (frames(i) == expected[0][i]).all()
            assert (classes(i) == expected[1][i]).all()
        made = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
        assert len(made) == 4
    # Content of the same length and time: only a cache can still know the old one.
    stat = samples[0].image.stat()
    samples[0].image.write_bytes(bytes(stat.st_size))

    os.utime(samples[0].image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (frame_reader(spec, samples, tmp_path / "cache")(0) == expected[0][0]).all()


def test_what_is_read_cannot_spoil_the_file(spec: DatasetSpec, tmp_path: Path) -> None:
    frame = frame_reader(spec, list_samples(spec, labelled=False), tmp_path / "cache")(0)
    with pytest.raises(ValueError, match="read-only"):
        frame[:] = 0


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": "channel"},
        {"channel": 1},
        {"strict": True},
        {"values": {"7": "road"}},
        {"decoder": f"{__file__}:constant"},
    ],
)
def test_labels_decoded_in_another_way_make_another_cache(
    spec: DatasetSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
) -> None:
    monkeypatch.setenv("SIM2REAL_ALLOW_CODE", "1")
    samples = list_samples(spec, labelled=True)
    class_reader(spec, samples, SPACE, tmp_path / "cache")
    other = spec.model_copy(update=change)
    with suppress(UserError):  # the files are no colour images: what matters is that they are read
        class_reader(other, samples, SPACE, tmp_path / "cache")
        assert len(list((tmp_path / "cache").glob("*.json"))) == 2
        return
    assert change == {"encoding": "channel"}


def constant(path: Path) -> np.ndarray:
    """A decoder that sees road everywhere."""
    with Image.open(path) as image:
        return np.full(image.size[::-1], 7)


def test_other_files_or_decoding_make_another_cache(spec: DatasetSpec, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    samples = list_samples(spec, labelled=True)
    frame_reader(spec, samples, cache)
    class_reader(spec, samples, SPACE, cache)
    wider = spec.model_copy(update={"width": 32})
    assert frame_reader(wider, samples, cache)(0).shape == (16, 32, 3)
    class_reader(spec, samples, load_label_space("camvid11"), cache)
    frame_reader(spec, samples[:2], cache)
    assert len(list(cache.glob("*.json"))) == 5
    # Another picture in a file of the same size: its time tells.
    before = samples[0].image.stat()
    Image.new("RGB", (40, 20), (1, 2, 3)).save(samples[0].image)
    with samples[0].image.open("ab") as file:
        file.write(bytes(before.st_size - samples[0].image.stat().st_size))
    os.utime(samples[0].image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert samples[0].image.stat().st_size == before.st_size
    old = frame_reader(spec, samples[1:], cache)
    (cache / "mine.json").write_text("[1]")  # not ours, and not looked at
    assert (frame_reader(spec, samples, cache)(0) == [1, 2, 3]).all()
    (cache / "mine.json").unlink()
    # What was made of the old picture is gone; what is made of other files or sizes is not.
    assert len(list(cache.glob("*.json"))) == len(list(cache.glob("*.bin"))) == 6
    assert (frame_reader(wider, samples, cache)(0) == [1, 2, 3]).all()
    assert len(list(cache.glob("*.bin"))) == 6
    assert old(0).shape == (12, 16, 3)


def test_a_frame_that_cannot_be_read_leaves_nothing(spec: DatasetSpec, tmp_path: Path) -> None:
    samples = list_samples(spec, labelled=False)
    samples[1].image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png cannot be read as an image"):
        frame_reader(spec, samples, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cut_file_is_refused(spec: DatasetSpec, tmp_path: Path) -> None:
    samples = list_samples(spec, labelled=False)
    frame_reader(spec, samples, tmp_path / "cache")
    (data,) = (tmp_path / "cache").glob("*.bin")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is not whole. Remove it"):
        frame_reader(spec, samples, tmp_path / "cache")


def test_a_full_disk_is_said_before(
    spec: DatasetSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"needs 0\.0 GB .*leave compute\.cache out"):
        frame_reader(spec, list_samples(spec, labelled=False), tmp_path / "cache")
