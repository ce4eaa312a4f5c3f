"""`sim2real predict`: a segmentation network looks at frames that are no part of a run."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from flows.frames import at_work, data_set
from flows.options import UNREADABLE
from flows.segmenters import ArmOfRun, arm_of_run
from pipeline.config.settings import ComputeConfig
from pipeline.data.frames import (
    CODECS,
    MANIFEST,
    Frames,
    check_output,
    convert,
    data_set_frames,
    open_frames,
    write_video,
)
from pipeline.data.images import UInt8, read_rgb, write_image, write_indices
from pipeline.errors import UserError
from pipeline.run.contents import sha256
from pipeline.run.folder import Inputs

Form = Literal["color", "train_ids", "label_ids"]
LABELS, OVERLAYS, VIDEO = "predictions", "overlays", "overlays.mp4"


def predict_any(
    source: Path,
    given: Path,
    out: Path,
    *,
    save: Form = "color",
    overlays: bool = False,
    width: int | None = None,
    unreadable: float = UNREADABLE,
    part: tuple[int, int] | None = None,
) -> list[Path]:
    """Predict the classes of frames at their own size; continues where it was interrupted.

    Writes `out/predictions/NAME.png`: class indices drawn in the classes' colours (`color`), the
    same in grey (`train_ids`), or Cityscapes label ids. Networks see frames as evaluations show
    them: at the width of the run's test set, with its windows, scales and mirrored views.

    Args:
        source: RUN/ARM, RUN/ARM/seed-N, or a checkpoint.
        given: a folder of images, a video, an image, or the YAML file of a data set.
        overlays: write also `out/overlays/NAME.jpg`, and of a video `overlays.mp4`.
        width: show frames to the network at this width; None: at that of the run or checkpoint.
        unreadable: the share of frames that may be unreadable.
        part: (i, n): part i of n alone, from 0. A call without it puts parts together.

    Returns:
        What there is when all is done; nothing for a part.

    Raises:
        UserError: no such network or frames, `out` holds something else, or more frames than
            `unreadable` cannot be read.
    """
    from segmentation.predict import overlay
    from segmentation.predictor import load_predictor
    from segmentation.scores import label_ids

    arm = arm_of_run(source)
    if arm:
        arm.check()
    checkpoint = arm.checkpoint if arm else source
    compute = arm.config.compute if arm else ComputeConfig()
    predictor = load_predictor(checkpoint, compute, arm.space if arm else None)
    if arm:
        predictor = replace(predictor, width=arm.config.test.width, views=arm.config.evaluation)
    predictor = replace(predictor, width=width or predictor.width)
    palette = predictor.space.palette
    ids = label_ids(predictor.space) if save == "label_ids" else None
    if out.suffix.lower() in CODECS:
        raise UserError(f"--out {out} is a video. Give a folder: --overlay writes a video there.")
    check_output(given, out)
    # At their own size: what the network is shown is its own affair.
    spec = data_set(given)
    frames = (
        data_set_frames(spec.model_copy(update={"width": None})) if spec else open_frames(given)
    )
    if arm and predictor.width is None:
        _note_scale(arm, frames)
    paths = {"prediction": [out / LABELS / f"{name}.png" for name in frames.names]}
    if overlays:
        paths["overlay"] = [out / OVERLAYS / f"{name}.jpg" for name in frames.names]

    def work(pictures: list[UInt8]) -> list[UInt8]:
        return list(map(predictor, pictures))

    def write(number: int, picture: UInt8, classes: UInt8) -> None:
        if overlays:
            write_image(paths["overlay"][number], overlay(picture, classes, palette))
        values = classes if ids is None else ids[classes]
        write_indices(paths["prediction"][number], values, palette if save == "color" else None)

    network = sha256(checkpoint)[:16]
    views = predictor.views.model_dump(mode="json", include={"window", "overlap", "flip", "scales"})
    made_from: Inputs = {
        "network": network,
        "settings": {"save": save, "width": predictor.width, **views},
        "frames": frames.digest(),
    }
    otherwise = "predictions by another network or in another form"
    with at_work(out, "prediction", made_from, part, otherwise, LABELS):
        convert(
            frames,
            work,
            write,
            paths,
            out,
            title="prediction",
            threads=max(2, compute.workers),
            columns={"weights": [network] * len(frames.names)},
            part=part,
            unreadable=unreadable,
            bytes_per_pixel=1.5 if overlays else 0.5,
        )
        if part:
            return []
        made = [out / LABELS, *([out / OVERLAYS] if overlays else []), out / MANIFEST]
        if overlays and frames.rate is not None:
            made += _video(out / VIDEO, paths["overlay"], frames.rate)
    return made


def _note_scale(arm: ArmOfRun, frames: Frames) -> None:
    """Say that frames are much larger or smaller than those of a run that has no width."""
    seen = arm.test_frame()
    with suppress(UserError):  # of a first frame that is unreadable: it is told when it is read
        own = frames.size(0)[0]
        if seen is not None and not 0.8 < own / seen.shape[1] < 1.25:
            print(
                f"Note: the run's test frames are {seen.shape[1]} pixels wide, and these {own}. "
                f"--width {seen.shape[1]} shows them to the network at the scale that it knows.",
                file=sys.stderr,
            )


def _video(path: Path, pictures: Sequence[Path], rate: float) -> list[Path]:
    """Write the overlays of a video as a video; where it cannot be one, say so."""
    try:
        write_video(path, map(read_rgb, pictures), rate)
    except UserError as error:
        print(f"No video of the overlays: {error}", file=sys.stderr)
        return []
    return [path]
