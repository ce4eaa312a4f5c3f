"""`sim2real translate --input`: a generator translates frames that are no part of a run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from flows.options import UNREADABLE
from flows.plan import generator_file
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import TRANSLATED, TranslationConfig
from pipeline.data.frames import (
    CODECS,
    MANIFEST,
    Frames,
    check_output,
    check_video_size,
    data_set_frames,
    open_frames,
    write_video,
)
from pipeline.data.images import read_rgb
from pipeline.data.listing import Sample, translated_path
from pipeline.data.spec import DatasetSpec, save_spec, spec_fields, translated_spec
from pipeline.errors import UserError
from pipeline.files import read_json, remove_tree, sweep, write_json
from pipeline.run.contents import sha256
from pipeline.run.folder import CONFIG_FILE, INPUTS_FILE, Inputs, differences, locked, read_run
from pipeline.run.lock import lock
from pipeline.run.stage import part_name
from pipeline.schema import parse

Format = Literal["png", "jpg", "webp"]


def translate_any(
    source: Path,
    frames: Path,
    out: Path,
    *,
    translation: str | None = None,
    format: Format | None = None,
    width: int | None = None,
    precision: Literal["32-true", "bf16-mixed"] | None = None,
    strips: Literal["auto", "always", "never"] | None = None,
    unreadable: float = UNREADABLE,
    part: tuple[int, int] | None = None,
) -> list[Path]:
    """Translate frames, labelled or not; continues where it was interrupted.

    Args:
        source: a run, RUN/TRANSLATION, or a file of weights.
        frames: a folder of images, a video, an image, or the YAML file of a data set.
        out: a folder, for `images/` and `manifest.csv`; or a video.
        translation: whose generator, of a run. Its `shifts` and `precision` count.
        format: of the images; PNG if None. The frames of a data set keep theirs.
        width: translate frames at this width; None: at their own.
        part: (i, n): part i of n alone, from 0. A call without it puts parts together.

    Returns:
        What there is when all is done, most important first; nothing for a part.

    Raises:
        UserError: no such translation, generator or frames, weights of something else, `out` holds
            something else, or more frames than `unreadable` cannot be read.
    """
    from cyclegan.translate import load_translator, write_translations

    generator, settings, compute, run_width = _generator(source, translation)
    settings = settings.model_copy(update={"precision": precision or settings.precision})
    compute = compute.model_copy(update={"strips": strips or compute.strips})
    translator = load_translator(generator, settings, compute, say=True)
    check_output(frames, out)
    spec = data_set(frames, width, format)
    found = data_set_frames(spec) if spec else open_frames(frames, width)
    with suppress(UserError):  # of a first frame that is unreadable: it is told when it is read
        if run_width and not width and run_width != (own := found.size(0)[0]):
            print(
                f"Note: the run translates frames of width {run_width}, and these have {own}. "
                f"--width {run_width} brings them to what the generator knows.",
                file=sys.stderr,
            )
    video = out if out.suffix.lower() in CODECS else None
    folder = out.with_name(f"{out.name}.frames") if video else out
    if video:
        _check_video(found, frames, video, folder)
    paths = [
        translated_path(spec, Sample(name, Path(image)), folder)
        if spec
        else folder / "images" / f"{name}.{format or 'png'}"
        for name, image in zip(found.names, found.sources, strict=True)
    ]
    made_from: Inputs = {
        "generator": sha256(generator)[:16],
        "settings": settings.model_dump(mode="json", include={"shifts", "batch_norm", "precision"}),
        "width": spec.width if spec else width,
        "frames": found.digest(),
        "files": paths[0].suffix,
    }
    with at_work(folder, "translation", made_from, part, "translations by another generator"):
        if video and _is_made(video, folder, found):
            return [video, folder / MANIFEST]
        write_translations(
            found,
            paths,
            folder,
            compute,
            translator.start,
            weights=generator,
            part=part,
            unreadable=0 if video else unreadable,
        )
        if part:
            return []
        if spec:
            save_spec(translated_spec(spec, folder), folder / "dataset.yaml")
        if video:
            assert found.rate is not None
            sweep(video.parent)
            write_video(video, (read_rgb(path) for path in paths), found.rate)
            remove_tree(folder / "images")
            return [video, folder / MANIFEST]
    made = [folder / "images", folder / MANIFEST]
    return [*made, folder / "dataset.yaml"] if spec else made


def _generator(
    source: Path, translation: str | None
) -> tuple[Path, TranslationConfig, ComputeConfig, int | None]:
    """The generator that is meant, and of a run its settings and the width of its source.

    Raises:
        UserError: there is none.
    """
    if source.is_file():
        return source, TranslationConfig(), ComputeConfig(), None
    places = (source, *source.parents[:2])
    run = next((place for place in places if (place / CONFIG_FILE).is_file()), None)
    if run is None:
        raise UserError(
            f"No generator {source}. Give a trained run, RUN/TRANSLATION, or a file of weights."
        )
    if run != source:
        translation = TRANSLATED if source.name == "cyclegan" else source.name
    translation = translation or TRANSLATED
    config = read_run(run)
    generator = generator_file(config, run, translation)
    if not generator.is_file():
        raise UserError(f"No generator {generator}. Train it: `sim2real train-cyclegan {run}`.")
    settings = config.all_translations[translation]
    if settings.source != "source":
        print(
            f"Note: {translation} learnt to translate frames of {settings.source}; others, as raw "
            "ones, come out worse.",
            file=sys.stderr,
        )
    return generator, settings, config.compute, config.source.width


def data_set(
    frames: Path, width: int | None = None, format: Format | None = None
) -> DatasetSpec | None:
    """The data set that a YAML file describes; None where `frames` is none."""
    if frames.suffix not in {".yaml", ".yml"}:
        return None
    if format:
        raise UserError("--format is for folders and videos: the frames of a data set keep theirs.")
    frames = frames.absolute()
    fields = spec_fields(frames.name, frames.parent)
    return parse(DatasetSpec, fields | ({"width": width} if width else {}), str(frames))


def _check_video(found: Frames, frames: Path, video: Path, folder: Path) -> None:
    if found.rate is None:
        raise UserError(
            f"--out {video} is a video, and {frames} is none: it has no frame rate. Give a folder."
        )
    check_video_size(video, found.size(0))
    if video.exists() and not (folder / INPUTS_FILE).is_file():
        raise UserError(f"{video} exists, and is not of this command. Give another --out.")


def _is_made(video: Path, folder: Path, found: Frames) -> bool:
    """Whether the video is whole, and its images are therefore gone."""
    if (folder / "images").exists() or not (video.is_file() and (folder / MANIFEST).is_file()):
        return False
    try:
        there = open_frames(video)
    except UserError:
        return False
    return len(there.names) == len(found.names) and there.size(0) == found.size(0)


@contextmanager
def at_work(
    out: Path,
    work: str,
    made_from: Inputs,
    part: tuple[int, int] | None,
    otherwise: str,
    pictures: str = "images",
) -> Iterator[None]:
    """Alone at work in `out`, or at a part of it; what its pictures are made from is recorded.

    Args:
        work: what it is called.
        otherwise: what would be there, if they were made from something else.
        pictures: the folder of the pictures below `out`.

    Raises:
        UserError: they are made from something else, or `out` cannot be written.
    """
    record = out / INPUTS_FILE
    with locked(out, "--out"):
        if record.is_file():
            if changed := differences(read_json(record), made_from):
                raise UserError(
                    f"{out} holds {otherwise} or of other frames:\n"
                    + "".join(f"  {line}\n" for line in changed)
                    + "Give another --out DIR, or remove it."
                )
        elif (out / pictures).exists():
            raise UserError(f"{out} holds images, and not of this command. Give another --out DIR.")
        write_json(record, made_from)
        sweep(out, below=True)
    with lock(out, part_name(work, *part) if part else work):
        yield
