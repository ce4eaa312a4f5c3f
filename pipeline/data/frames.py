"""Frames of a folder, a video, an image or a data set; what becomes of them, written as files.

How to use it, e.g. for a verb that takes any input:

    frames = open_frames(path)                               # or data_set_frames(spec)
    check_output(path, out)
    paths = [out / "labels" / f"{name}.png" for name in frames.names]

    def work(pictures: list[UInt8]) -> list[UInt8]:          # a group through the network
        return [predict(picture) for picture in pictures]

    def write(number: int, picture: UInt8, made: UInt8) -> None:     # in a thread
        write_indices(paths[number], made, None)

    convert(frames, work, write, {"labels": paths}, out, title="prediction", threads=4)

`convert` reads ahead and writes behind in threads with bounded queues, shows progress, keeps what
is there and sound, makes the rest, and writes `manifest.csv` last. The frames of a group may differ
in size. What `work` gives for a frame goes to `write` as it is: on a GPU it may be a promise that
`write` waits for. `write_video` makes a video of pictures.
"""

import hashlib
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from pipeline.csv_files import read_table, write_table
from pipeline.data.images import SUFFIXES, UInt8, image_size, read_rgb, resize_rgb
from pipeline.data.listing import evenly, list_samples
from pipeline.data.reading import at_width, size_at
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.files import open_regular, replacing
from pipeline.progress import each, part_folder, progress

T = TypeVar("T")

GROUP = 4
"""Frames that are worked on at a time. A group is always made whole, so that a frame's neighbours
in the batch, and with them its last bit, do not depend on where an earlier run was interrupted."""
CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "FFV1"}
"""Endings of videos that are written, and how; FFV1 loses what YUV rounds alone."""
VIDEOS = (*CODECS, ".m4v", ".webm")
"""Endings of videos that are read."""
MANIFEST, JOURNAL = "manifest.csv", "frames.csv"
DONE = "done"
"""The status of a frame in the manifest, where it is not why the frame could not be read."""
_USUAL_RATE = 25.0
"""Of a video that does not say its own."""
_LOOKED_AT = 16
"""Frames whose sizes tell how much room all will take."""


@dataclass(frozen=True)
class Frames:
    """Frames in a fixed order, wherever they come from."""

    names: Sequence[str]
    """Unique, with folders: `town/0001`; of a video their numbers."""
    sources: Sequence[str]
    """The file of each, of a video with the number of the frame."""
    read: Callable[[int], UInt8]
    """Number -> (H, W, 3) uint8 RGB; `UserError` where it cannot be read."""
    size: Callable[[int], tuple[int, int]]
    """Number -> the width and height at which it is read, without reading it."""
    files: Sequence[Path]
    """All that they are read from."""
    sequential: bool = False
    """Whether they are to be read in order, by one thread."""
    rate: float | None = None
    """Frames a second, of a video."""

    def digest(self) -> str:
        """A hash of the names of frames and the sizes of files, wherever they are stored."""
        sizes = [str(file.stat().st_size) if file.exists() else "gone" for file in self.files]
        return hashlib.sha256("\n".join([*self.names, *sizes]).encode()).hexdigest()[:16]


def open_frames(path: Path, width: int | None = None) -> Frames:
    """The frames of a folder with all folders below it, of a video, or of one image.

    Args:
        width: read frames at this width, aspect kept; None: as they are.

    Raises:
        UserError: no such file or folder, one of another kind, or without a frame.
    """
    path = path.absolute()
    kind = path.suffix.lower()
    if path.is_file() and kind in VIDEOS:
        return _video_frames(path, width)
    if path.is_dir():
        files = [
            Path(place, name)
            for place, _, names in os.walk(path)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not _hidden(Path(place, name), path)
        ]
    elif path.is_file() and kind in SUFFIXES:
        files, path = [path], path.parent
    else:
        raise UserError(
            f"{path} {'is no image and no video' if path.exists() else 'does not exist'}. Give a "
            f"folder of images, an image ({', '.join(SUFFIXES)}) or a video ({', '.join(VIDEOS)})."
        )
    if not files:
        raise UserError(f"No image in {path}: no file there ends in {', '.join(SUFFIXES)}.")
    named: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(path).with_suffix("").as_posix()
        if name in named:
            raise UserError(
                f"{named[name]} and {file} are both frame {name!r}. Move one of them away."
            )
        named[name] = file
    names = sorted(named)
    return _image_frames(names, [named[name] for name in names], width)


def _hidden(file: Path, root: Path) -> bool:
    """Whether it is other programs', or our own and unfinished."""
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def data_set_frames(spec: DatasetSpec) -> Frames:
    """The frames of a data set at its working width; no label is looked at.

    Raises:
        UserError: as `list_samples`.
    """
    samples = list_samples(spec, labelled=False)
    return _image_frames([s.name for s in samples], [s.image for s in samples], spec.width)


def _image_frames(names: Sequence[str], files: Sequence[Path], width: int | None) -> Frames:
    def read(number: int) -> UInt8:
        return at_width(read_rgb(files[number]), width)

    def size(number: int) -> tuple[int, int]:
        return size_at(width, image_size(files[number]))

    return Frames(names, [str(file) for file in files], read, size, files)


def _video_frames(path: Path, width: int | None) -> Frames:
    _silence()
    open_regular(path).close()

    def start() -> "cv2.VideoCapture":
        return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)

    capture = start()
    said = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    rate = capture.get(cv2.CAP_PROP_FPS)
    # Counted, because many a header only estimates it.
    count = sum(1 for _ in each(iter(capture.grab, False), f"frames of {path.name}", said))
    if not count or said - count > max(2, said // 50):
        raise UserError(
            f"{path} cannot be read as a video: it tells of {said:,} frames, and {count:,} can be "
            "read. It is damaged, or of a codec that OpenCV does not know. Convert or cut it, e.g. "
            "with ffmpeg."
        )
    capture, position = start(), 0
    stored = capture.read()[1].shape
    size = size_at(width, (stored[1], stored[0]))
    capture = start()

    def read(number: int) -> UInt8:
        nonlocal capture, position
        if number < position:
            capture, position = start(), 0
        while position < number and capture.grab():
            position += 1
        there, bgr = capture.read()
        position += 1
        if not there:
            raise UserError(f"Frame {number} of {path} cannot be read any more.")
        return resize_rgb(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8), size)

    digits = max(6, len(str(count)))
    return Frames(
        [f"{i:0{digits}d}" for i in range(count)],
        [f"{path}#{i}" for i in range(count)],
        read,
        lambda _: size,
        [path],
        sequential=True,
        rate=rate if rate > 0 else _USUAL_RATE,
    )


def _silence() -> None:
    """Keep OpenCV and ffmpeg from saying in their words what is wrong with a video."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def check_output(source: Path, out: Path) -> None:
    """Raise `UserError` when what is written would become input, or `out` is no place for it."""
    source, out = source.resolve(), out.resolve()
    if out == source or (source.is_dir() and source in out.parents):
        raise UserError(
            f"--out {out} is in the input {source}: what is written would be read the next time. "
            "Give a folder beside it."
        )
    if out.suffix.lower() not in CODECS and (out.is_file() or out.suffix.lower() in VIDEOS):
        raise UserError(
            f"--out {out} is no folder, and no video that is written: {', '.join(CODECS)}. Give "
            "one of these."
        )


Outcomes = dict[int, str | None]
"""Numbers of frames -> why one could not be read; None: it was."""


def process(
    groups: Iterable[Sequence[int]],
    read: Callable[[int], UInt8],
    work: Callable[[list[UInt8]], Sequence[T]],
    write: Callable[[int, UInt8, T], None],
    *,
    readers: int,
    writers: int,
) -> Iterator[Outcomes]:
    """Read, compute and write groups of frames, each in its own threads; the outcomes in order.

    A few groups are read ahead and a few are still being written: as many as keep all threads busy,
    so memory does not grow with the number of frames.

    Args:
        work: called in this thread with the frames of a group that could be read.
        write: called in a thread with a frame's number, the frame, and what `work` made of it.
    """
    upcoming = iter(groups)
    reading: deque[tuple[Sequence[int], list[Future[UInt8]]]] = deque()
    writing: deque[tuple[Outcomes, list[Future[None]]]] = deque()

    def finished() -> Outcomes:
        outcomes, futures = writing.popleft()
        for future in futures:
            future.result()
        return outcomes

    with ThreadPoolExecutor(readers) as reads, ThreadPoolExecutor(writers) as writes:

        def read_ahead() -> None:
            while len(reading) < 1 + -(-readers // GROUP):
                if (group := next(upcoming, None)) is None:
                    return
                reading.append((group, [reads.submit(read, number) for number in group]))

        read_ahead()
        while reading:
            group, futures = reading.popleft()
            outcomes: Outcomes = dict.fromkeys(group)
            frames: list[tuple[int, UInt8]] = []
            for number, future in zip(group, futures, strict=True):
                try:
                    frames.append((number, future.result()))
                except UserError as error:
                    outcomes[number] = str(error)
            read_ahead()
            made = work([frame for _, frame in frames]) if frames else ()
            jobs = [
                writes.submit(write, number, frame, one)
                for (number, frame), one in zip(frames, made, strict=True)
            ]
            writing.append((outcomes, jobs))
            while len(writing) > -(-writers // GROUP):
                yield finished()
        while writing:
            yield finished()


def convert(
    frames: Frames,
    work: Callable[[list[UInt8]], Sequence[T]],
    write: Callable[[int, UInt8, T], None],
    outputs: Mapping[str, Sequence[Path]],
    folder: Path,
    *,
    title: str,
    threads: int,
    columns: Mapping[str, Sequence[object]] | None = None,
    part: tuple[int, int] | None = None,
    unreadable: float = 0.0,
    bytes_per_pixel: float = 3.0,
) -> None:
    """Make the outputs of all frames that are not there yet, then `manifest.csv` in `folder`.

    An output is there when it can be decoded and has its frame's size; whatever else is at its
    place is made again. The manifest has a row a frame: its name and source, its outputs below
    `folder`, `columns`, the status (`done`, or why it could not be read) and the seconds it took.

    Args:
        work, write: as of `process`.
        outputs: column of the manifest -> the picture that `write` makes of each frame.
        title: what progress calls it.
        threads: that read, and as many that write.
        columns: further columns of the manifest, a value a frame.
        part: (i, n): part i of n alone, from 0, and no manifest. Parts are made of whole groups, so
            all of them together make what one call would; a call without `part` then finds it
            there, makes what is missing and writes the manifest.
        unreadable: the share of frames that may be unreadable; they are recorded and skipped.
        bytes_per_pixel: that all outputs of a frame take, for the room on the disk.

    Raises:
        UserError: more frames than `unreadable` cannot be read, or the disk is too small.
    """
    numbers = range(len(frames.names))
    groups: list[range] = [numbers[i : i + GROUP] for i in numbers[::GROUP]]
    place = folder
    if part:
        groups = groups[part[0] :: part[1]]
        title = f"{title}, part {part[0] + 1} of {part[1]}"
        place = part_folder(folder, *part)
    total = sum(map(len, groups))
    sound = _sound(frames, outputs, [i for group in groups for i in group], threads, title)
    todo = [group for group in groups if not sound.issuperset(group)]
    _check_room(frames, [i for group in todo for i in group], folder, bytes_per_pixel)
    done = total - sum(map(len, todo))
    faults: dict[int, str] = {}
    seconds = _recorded_seconds(folder)
    place.mkdir(parents=True, exist_ok=True)
    with (
        progress(place, title, total, done=done, unit="images") as advance,
        (place / JOURNAL).open("a", encoding="utf-8", buffering=1) as journal,
    ):
        before = time.perf_counter()
        for outcomes in process(
            todo,
            frames.read,
            work,
            write,
            readers=1 if frames.sequential else threads,
            writers=threads,
        ):
            now = time.perf_counter()
            each_took, before = (now - before) / len(outcomes), now
            for number, fault in outcomes.items():
                if fault:
                    faults[number] = fault
                    if len(faults) > unreadable * total:
                        raise UserError(_too_many(faults, total, unreadable))
                    print(f"Skipped: {fault}", file=sys.stderr, flush=True)
                else:
                    seconds[number] = each_took
                    journal.write(f"{number},{each_took:.4f}\n")
            advance(len(outcomes))
    if part:
        return
    more = columns or {}
    rows = [
        {
            "name": name,
            "source": frames.sources[i],
            **{
                column: None if i in faults else str(paths[i].relative_to(folder))
                for column, paths in outputs.items()
            },
            **{column: str(values[i]) for column, values in more.items()},
            "status": faults.get(i, DONE),
            "seconds": None if i in faults or i not in seconds else f"{seconds[i]:.4f}",
        }
        for i, name in enumerate(frames.names)
    ]
    write_table(folder / MANIFEST, list(rows[0]), rows)
    for journal_file in _journals(folder):
        journal_file.unlink(missing_ok=True)


def _too_many(faults: Mapping[int, str], total: int, unreadable: float) -> str:
    first = next(iter(faults.values()))
    if unreadable == 0:
        return first
    return (
        f"{len(faults)} of {total} frames cannot be read, more than the share of {unreadable:g} "
        f"that may be. The first: {first}"
    )


def _sound(
    frames: Frames,
    outputs: Mapping[str, Sequence[Path]],
    numbers: Sequence[int],
    threads: int,
    title: str,
) -> set[int]:
    """The frames whose outputs are all there: decodable, and of the frame's size."""

    def is_sound(number: int) -> bool:
        try:
            size = frames.size(number)
            return all(read_rgb(paths[number]).shape[1::-1] == size for paths in outputs.values())
        except UserError:
            return False

    there = [i for i in numbers if all(paths[i].is_file() for paths in outputs.values())]
    with ThreadPoolExecutor(threads) as pool:
        looked = each(pool.map(is_sound, there), f"{title}: looking", len(there))
        return {number for number, sound in zip(there, looked, strict=True) if sound}


def _check_room(
    frames: Frames, numbers: Sequence[int], folder: Path, bytes_per_pixel: float
) -> None:
    sizes = []
    for number in evenly(numbers, _LOOKED_AT):
        with suppress(UserError):  # it is told when it is read
            sizes.append(frames.size(number))
    if not sizes:
        return
    pixels = sum(width * height for width, height in sizes) / len(sizes)
    needed = pixels * bytes_per_pixel * len(numbers)
    place = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{len(numbers):,} frames need about {needed / 1e9:.1f} GB in {folder}, where "
            f"{free / 1e9:.1f} GB are free. Make room, or give another folder."
        )


def _journals(folder: Path) -> list[Path]:
    return [folder / JOURNAL, *folder.glob(f"parts/*/{JOURNAL}")]


def _recorded_seconds(folder: Path) -> dict[int, float]:
    """What frames took that were made earlier, by number, for as far as it is known."""
    found: dict[int, float] = {}
    if (folder / MANIFEST).is_file():
        way_out = "Remove it: it is written again."
        rows = read_table(folder / MANIFEST, ["seconds"], way_out)
        found = {i: float(row["seconds"]) for i, row in enumerate(rows) if row["seconds"]}
    for journal in _journals(folder):
        if journal.is_file():
            for line in journal.read_text(encoding="utf-8").splitlines():
                number, _, took = line.partition(",")
                with suppress(ValueError):  # a kill leaves the last line torn
                    found[int(number)] = float(took)
    return found


def write_video(path: Path, pictures: Iterable[UInt8], rate: float) -> None:
    """Write pictures (H, W, 3) uint8 of one size as a video of `CODECS`, whole or not at all.

    Args:
        rate: frames a second.

    Raises:
        UserError: sides are odd, which the colours of videos are not made for.
    """
    _silence()
    upcoming = iter(pictures)
    first = next(upcoming)
    check_video_size(path, (first.shape[1], first.shape[0]))
    with replacing(path) as part:
        codec = cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()])
        video = cv2.VideoWriter(str(part), cv2.CAP_FFMPEG, codec, rate, first.shape[1::-1])
        if not video.isOpened():
            raise OSError(f"could not write {path}")
        for picture in chain([first], upcoming):
            video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        video.release()


def check_video_size(path: Path, size: tuple[int, int]) -> None:
    """Raise `UserError` when a video cannot have this width and height."""
    if size[0] % 2 or size[1] % 2:
        raise UserError(
            f"{path} would be {size[0]}x{size[1]}, and videos have even sides. Give a folder as "
            "--out: its images keep the size."
        )
