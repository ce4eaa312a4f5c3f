"""Translators without a network: a source frame takes on statistics of a target frame."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from cyclegan.translate import translate_frames
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import TranslationConfig
from pipeline.config.translators import TranslationInputs
from pipeline.data.images import UInt8, resize_rgb
from pipeline.data.listing import list_samples
from pipeline.data.reading import read_frame


def translate_by_histograms(
    config: TranslationConfig, given: TranslationInputs, folder: Path, compute: ComputeConfig
) -> None:
    """Translate with `match_histograms`; otherwise as `translate_by_statistics`."""
    translate_by_statistics(config, given, folder, compute, match_histograms)


def translate_by_amplitudes(
    config: TranslationConfig, given: TranslationInputs, folder: Path, compute: ComputeConfig
) -> None:
    """Translate with `exchange_amplitudes`; otherwise as `translate_by_statistics`."""
    change = partial(exchange_amplitudes, beta=config.fda_beta)
    translate_by_statistics(config, given, folder, compute, change)


def translate_by_statistics(
    config: TranslationConfig,
    given: TranslationInputs,
    folder: Path,
    compute: ComputeConfig,
    change: Callable[[UInt8, UInt8], UInt8],
) -> None:
    """Translate every source frame into `folder/images`, each after one frame of the target.

    The frame of the target is a function of (`config.seed`, number of the source frame);
    `manifest.csv` names it. Otherwise as `cyclegan.translate.translate`.

    Args:
        change: a function (source frame, target frame) -> translated frame.

    Raises:
        UserError: a frame that cannot be read.
    """
    count = len(list_samples(given.source, labelled=False))
    models = list_samples(given.target, labelled=False)
    chosen = [
        models[int(np.random.default_rng([config.seed, i]).integers(len(models)))]
        for i in range(count)
    ]

    def translated(number: int, frame: UInt8) -> UInt8:
        return change(frame, read_frame(given.target, chosen[number]))

    columns = {"target": [model.image for model in chosen]}
    translate_frames(
        given.source,
        folder,
        compute,
        each=translated,
        columns=columns,
        part=given.part,
        unreadable=config.unreadable,
    )


def match_histograms(rgb: UInt8, model: UInt8) -> UInt8:
    """Give each colour channel of `rgb` the histogram of that of `model`.

    A level takes the level of `model` below which the same share of pixels lies, interpolated
    between the levels that `model` has (Gonzalez and Woods, Digital Image Processing, 3.3).

    Args:
        rgb: (H, W, 3) uint8.
        model: (h, w, 3) uint8, of any size.
    """
    matched = np.empty_like(rgb)
    for channel in range(3):
        own = np.cumsum(np.bincount(rgb[..., channel].ravel(), minlength=256))
        counts = np.bincount(model[..., channel].ravel(), minlength=256)
        levels = np.flatnonzero(counts)
        theirs = np.cumsum(counts)
        table = np.interp(own / own[-1], theirs[levels] / theirs[-1], levels)
        matched[..., channel] = np.rint(table).astype(np.uint8)[rgb[..., channel]]
    return matched


def exchange_amplitudes(rgb: UInt8, model: UInt8, beta: float) -> UInt8:
    """Fourier domain adaptation (Yang and Soatto, CVPR 2020, equation 3), clipped to [0, 255].

    Each channel's spectrum keeps its phase and takes on the amplitudes of `model` at the
    frequencies of at most `beta` times the shorter side, as in the authors' code. Where that is
    less than 1, the mean colour alone is exchanged.

    Args:
        rgb: (H, W, 3) uint8.
        model: (h, w, 3) uint8, resized to the size of `rgb`.
    """
    height, width = rgb.shape[:2]
    reach = int(beta * min(height, width))
    spectrum = np.fft.rfft2(rgb, axes=(0, 1))
    theirs = np.fft.rfft2(resize_rgb(model, (width, height)), axes=(0, 1))
    # A real picture's spectrum is symmetric, and its half holds no negative columns.
    low = np.ix_(np.arange(-reach, reach + 1), np.arange(reach + 1))
    spectrum[low] = np.abs(theirs[low]) * np.exp(1j * np.angle(spectrum[low]))
    changed = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
    return np.asarray(np.rint(changed.clip(0, 255)), np.uint8)
