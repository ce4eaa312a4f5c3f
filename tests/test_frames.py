"""Frames of folders, videos and images, and what is written of them."""

import csv
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import frames as module
from pipeline.data.frames import (
    JOURNAL,
    MANIFEST,
    Frames,
    check_output,
    convert,
    open_frames,
    process,
    write_video,
)
from pipeline.data.images import UInt8, read_rgb, write_image
from pipeline.errors import UserError


def picture(number: int, size: tuple[int, int] = (32, 24)) -> UInt8:
    """A picture that tells its number, also after the compression of a video."""
    return np.full((size[1], size[0], 3), 20 + 3 * number, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten frames in two folders, one of another size."""
    for i in range(10):
        size = (33, 17) if i == 7 else (32, 24)
        write_image(tmp_path / f"in/{'ab'[i % 2]}/{i:02d}.png", picture(i, size))
    return tmp_path / "in"


def invert(
    frames: Frames, out: Path, before: Callable[[int], object] = lambda _: None, **how: Any
) -> None:
    paths = [out / f"images/{name}.png" for name in frames.names]

    def write(number: int, _: UInt8, made: UInt8) -> None:
        before(number)
        write_image(paths[number], made)

    def work(pictures: list[UInt8]) -> Sequence[UInt8]:
        return [255 - one for one in pictures]

    convert(frames, work, write, {"made": paths}, out, title="inverted", threads=2, **how)


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.png")}


def rows(out: Path) -> list[dict[str, str]]:
    with (out / MANIFEST).open() as file:
        return list(csv.DictReader(file))


def test_a_folder_is_converted_and_only_what_is_not_sound_is_made_again(
    folder: Path, tmp_path: Path
) -> None:
    frames, out = open_frames(folder), tmp_path / "out"
    assert frames.names[:2] == ["a/00", "a/02"]
    assert len(frames.names) == 10
    invert(frames, out, columns={"weights": ["abc"] * 10})
    assert (255 - read_rgb(out / "images/b/07.png") == picture(7, (33, 17))).all()
    assert [(r["name"], r["made"], r["weights"], r["status"]) for r in rows(out)][:1] == [
        ("a/00", "images/a/00.png", "abc", "done")
    ]
    assert all(row["seconds"] for row in rows(out))
    whole = content(out)
    damaged = out / "images/a/02.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    write_image(out / "images/b/09.png", picture(9, (16, 12)))
    written: list[int] = []
    invert(frames, out, written.append)
    # The groups of four in which they are, and the row of every frame keeps its seconds.
    assert sorted(written) == [0, 1, 2, 3, 8, 9]
    assert content(out) == whole
    assert all(row["seconds"] for row in rows(out))
    assert {p.name for p in out.iterdir()} == {"images", MANIFEST, "progress.json"}


def test_parts_in_any_order_make_the_whole(folder: Path, tmp_path: Path) -> None:
    frames = open_frames(folder)
    invert(frames, tmp_path / "whole")
    for part in (1, 0):
        invert(frames, tmp_path / "out", part=(part, 2))
        assert not (tmp_path / "out" / MANIFEST).exists()
    missing = tmp_path / "out/images/a/08.png"
    missing.unlink()
    written: list[int] = []
    invert(frames, tmp_path / "out", written.append)
    assert 4 in written
    assert len(written) == 4
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert all(row["seconds"] for row in rows(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob(JOURNAL))


def test_unreadable_frames_are_recorded_up_to_a_share(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a/04.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"04\.png cannot be read as an image"):
        invert(open_frames(folder), tmp_path / "none")
    invert(open_frames(folder), tmp_path / "out", unreadable=0.1)
    row = rows(tmp_path / "out")[2]
    assert (row["name"], row["made"], row["seconds"]) == ("a/04", "", "")
    assert "04.png cannot be read as an image" in row["status"]
    assert "Skipped: " in capsys.readouterr().err
    assert len(content(tmp_path / "out")) == 9
    (folder / "a/06.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 of 10 frames .* share of 0\.1 that may be"):
        invert(open_frames(folder), tmp_path / "more", unreadable=0.1)


def test_queues_are_bounded_and_errors_of_threads_arrive() -> None:
    """While one frame is written for ever, few others are read."""
    stuck, read = threading.Event(), []

    def write(number: int, frame: UInt8, made: UInt8) -> None:
        stuck.wait()
        if number == 3:
            raise OSError("disk on fire")

    def note(number: int) -> UInt8:
        read.append(number)
        return picture(0)

    groups = [[i] for i in range(1000)]
    outcomes = process(groups, note, lambda x: x, write, readers=1, writers=1)
    threading.Timer(0.2, stuck.set).start()
    with pytest.raises(OSError, match="disk on fire"):
        list(outcomes)
    assert len(read) < 15


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "mov"])
def test_a_video_keeps_frames_size_and_rate(tmp_path: Path, ending: str) -> None:
    path, rate = tmp_path / f"in.{ending}", 30000 / 1001
    write_video(path, (picture(i) for i in range(60)), rate)
    frames = open_frames(path)
    assert len(frames.names) == 60
    assert frames.names[59] == "000059"
    assert frames.size(0) == (32, 24)
    assert frames.rate == pytest.approx(rate, rel=1e-3)
    for number in (0, 1, 30, 59, 5):  # also back
        assert abs(frames.read(number).mean() - picture(number).mean()) < 3
    assert open_frames(path, width=16).read(3).shape == (12, 16, 3)
    again = tmp_path / f"again.{ending}"
    write_video(again, (picture(i) for i in range(60)), rate)
    if ending != "mkv":  # which holds a random number
        assert again.read_bytes() == path.read_bytes()


def test_inputs_and_outputs_that_cannot_be(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no frame")
    (tmp_path / "broken.mp4").write_bytes(bytes(5000))
    write_image(tmp_path / "two/a.png", picture(0))
    write_image(tmp_path / "two/a.jpg", picture(0))
    for name, message in {
        "nothing": "does not exist",
        "empty": r"No image in .*empty: no file there ends in \.png, ",
        "text.txt": r"is no image and no video\. Give a folder",
        "broken.mp4": "tells of 0 frames, and 0 can be read",
        "two": "are both frame 'a'",
    }.items():
        with pytest.raises(UserError, match=message):
            open_frames(tmp_path / name)
    write_video(tmp_path / "cut.avi", (picture(i) for i in range(60)), 25)
    data = (tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"tells of 60 frames, and \d+ can be read"):
        open_frames(tmp_path / "cut.avi")
    assert open_frames(folder / "a/00.png").names == ["00"]
    with pytest.raises(UserError, match="is in the input"):
        check_output(folder, folder / "a/out")
    with pytest.raises(
        UserError, match=r"text\.txt is no folder, and no video that is written: \.mp4"
    ):
        check_output(folder, tmp_path / "text.txt")
    check_output(folder / "a/00.png", folder / "out")
    with pytest.raises(UserError, match="33x17, and videos have even sides"):
        write_video(tmp_path / "odd.mp4", [picture(0, (33, 17))], 25)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"10 frames need about .* GB are free"):
        invert(open_frames(folder), tmp_path / "full")
    assert not list((tmp_path / "full").rglob("*.png"))
