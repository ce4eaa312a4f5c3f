"""Translators without a network: against plain restatements, and as a stage of a run."""

import csv
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

import cyclegan.statistics
from cyclegan.statistics import exchange_amplitudes, match_histograms
from flows.commands import train_cyclegan
from flows.estimate import estimate
from flows.plan import generator_file, plan
from flows.prepare import preflight
from pipeline.config.load import load_config
from pipeline.data.images import UInt8, read_rgb
from pipeline.data.listing import list_samples
from pipeline.errors import UserError
from pipeline.run.folder import write_run
from pipeline.run.stage import all_inputs, check, named, remove, run_stage
from tests.layouts import load_spec


def picture(seed: int, size: tuple[int, int], low: int = 0, high: int = 256) -> UInt8:
    """A smooth random picture, (height, width) = `size`."""
    noise = np.random.default_rng(seed).integers(low, high, (*size, 3)).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (5, 5), 0))


def plain_fourier(rgb: UInt8, model: UInt8, beta: float) -> npt.NDArray[np.float64]:
    """The paper's equation on centred spectra, one frequency at a time."""
    height, width = rgb.shape[:2]
    result = np.empty(rgb.shape)
    for channel in range(3):
        own = np.fft.fftshift(np.fft.fft2(rgb[..., channel].astype(np.float64)))
        theirs = np.fft.fftshift(np.fft.fft2(model[..., channel].astype(np.float64)))
        mixed = own.copy()
        for row in range(height):
            for column in range(width):
                distance = max(abs(row - height // 2), abs(column - width // 2))
                if distance <= np.floor(beta * min(height, width)):
                    phase = np.angle(own[row, column])
                    mixed[row, column] = np.abs(theirs[row, column]) * np.exp(1j * phase)
        result[..., channel] = np.fft.ifft2(np.fft.ifftshift(mixed)).real
    return np.clip(result, 0, 255)


@pytest.mark.parametrize("size", [(24, 36), (25, 31), (33, 20)])
@pytest.mark.parametrize("beta", [0.01, 0.05, 0.2, 0.49])
def test_amplitudes_against_the_equation(size: tuple[int, int], beta: float) -> None:
    rgb, model = picture(1, size), picture(2, size, 100, 160)
    expected = plain_fourier(rgb, model, beta)
    assert np.abs(exchange_amplitudes(rgb, model, beta) - expected).max() <= 0.5 + 1e-6


def test_below_one_frequency_the_mean_colour_is_exchanged() -> None:
    rgb, model = picture(1, (40, 60), 80, 160), picture(2, (40, 60), 90, 200)
    changed = exchange_amplitudes(rgb, model, 0.01).astype(float)
    shift = model.mean(axis=(0, 1)) - rgb.mean(axis=(0, 1))
    assert np.abs(changed - (rgb + shift)).max() <= 0.5 + 1e-6


def test_amplitudes_stay_within_a_byte() -> None:
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[:, 8:] = 255
    bright = exchange_amplitudes(rgb, np.full_like(rgb, 250), 0.05)
    assert (bright[:, 8:] == 255).all()  # 377 without the clip, and 121 when it wraps around
    assert np.abs(bright[:, :8] - 122.5).max() <= 0.5


def plain_histogram(values: UInt8, model: UInt8) -> npt.NDArray[np.float64]:
    """Matching of one channel by sorting, a pixel at a time."""
    ordered, theirs = np.sort(values.ravel()), np.sort(model.ravel())
    levels = np.unique(theirs)
    below = [np.searchsorted(theirs, level, side="right") / theirs.size for level in levels]
    result = np.empty(values.shape)
    for place in np.ndindex(values.shape):
        share = np.searchsorted(ordered, values[place], side="right") / ordered.size
        result[place] = np.interp(share, below, levels)
    return result


def test_histograms_against_sorting() -> None:
    rgb, model = picture(1, (20, 31)), picture(2, (17, 40), 30, 120)
    matched = match_histograms(rgb, model)
    for channel in range(3):
        expected = plain_histogram(rgb[..., channel], model[..., channel])
        assert np.abs(matched[..., channel] - expected).max() <= 0.5


def test_a_matched_histogram_is_that_of_the_target() -> None:
    rgb, model = picture(3, (80, 120), 0, 200), picture(4, (70, 90), 50, 255)
    matched = match_histograms(rgb, model)
    for channel in range(3):
        shares = [
            np.cumsum(np.bincount(image[..., channel].ravel(), minlength=256))
            / image[..., channel].size
            for image in (matched, model, rgb)
        ]
        assert np.abs(shares[0] - shares[1]).max() < 0.05 < np.abs(shares[2] - shares[1]).max()


def test_a_picture_matched_with_itself_stays() -> None:
    rgb = picture(5, (30, 40))
    assert (match_histograms(rgb, rgb) == rgb).all()
    assert (exchange_amplitudes(rgb, rgb, 0.2) == rgb).all()


@pytest.mark.parametrize("method", ["histogram_matching", "fda"])
def test_the_stage_and_its_resumption(
    tiny: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(tiny, [f"translation={{method: {method}, fda_beta: 0.1, seed: 3}}"])
    run = tiny.parent / "run"
    preflight(config)
    stages = plan(config, run)
    assert [stage.name for stage in stages][:2] == ["translated", "segmentation/source_only/seed-0"]
    inputs = check(run, stages)
    assert run_stage(run, stages[0], inputs["translated"])

    samples = list_samples(load_spec(run / "translated/dataset.yaml"), labelled=True)
    sources = list_samples(config.source, labelled=True)
    assert [s.label for s in samples] == [s.label for s in sources]
    with (run / "translated/manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    targets = {str(s.image) for s in list_samples(config.target, labelled=False)}
    assert {row["target"] for row in rows} <= targets
    assert len({row["target"] for row in rows}) > 1
    before = {s.image: read_rgb(s.image) for s in samples}
    for row, source in zip(rows, sources, strict=True):
        frame, model = read_rgb(source.image), read_rgb(Path(row["target"]))
        change = {
            "fda": lambda a, b: exchange_amplitudes(a, b, 0.1),
            "histogram_matching": match_histograms,
        }[method]
        pixels = before[run / "translated" / row["translated"]]
        assert (pixels == change(frame, model)).all()
        assert (pixels != frame).any()

    # A kill: some frames and the record are missing. Only these frames' groups are made again.
    (run / "translated/stage.json").unlink()
    samples[5].image.unlink()
    calls = []
    read = cyclegan.statistics.read_frame
    monkeypatch.setattr(
        "cyclegan.statistics.read_frame",
        lambda *a: calls.append(a) or read(*a),  # type: ignore[func-returns-value]
    )
    untouched = samples[0].image.stat().st_mtime_ns
    assert run_stage(run, stages[0], inputs["translated"])
    assert len(calls) == 4
    assert samples[0].image.stat().st_mtime_ns == untouched
    assert all((read_rgb(path) == pixels).all() for path, pixels in before.items())

    assert estimate(config)[0].command == "translate"
    with pytest.raises(UserError, match="which has no generator"):
        generator_file(config, run)
    remove(run, named(stages, ["translated"]))
    other = load_config(tiny, [f"translation={{method: {method}, fda_beta: 0.1, seed: 4}}"])
    stages = plan(other, run)
    run_stage(run, stages[0], check(run, stages)["translated"])
    with (run / "translated/manifest.csv").open() as file:
        assert [row["target"] for row in csv.DictReader(file)] != [row["target"] for row in rows]


def test_frames_of_another_size_than_the_targets(tiny: Path) -> None:
    setting = "translation={method: fda}"
    config = load_config(tiny, [setting, "target.width=96"])
    stages = plan(config, tiny.parent / "run")
    run_stage(tiny.parent / "run", stages[0], check(tiny.parent / "run", stages)["translated"])
    frame = next((tiny.parent / "run/translated/images").iterdir())
    assert read_rgb(frame).shape == (64, 128, 3)


@pytest.mark.parametrize(
    ("translation", "message"),
    [
        ("{method: lab}", "no method 'lab'. Known: cyclegan, student, cut"),
        ("{method: fda, weights: g.pth}", "method 'fda' does not use weights"),
        ("{method: histogram_matching, checkpoint: best}", "does not use checkpoint"),
        ("{method: fda, fda_beta: 0.5}", "translation.fda_beta"),
        ("{method: fda, fda_beta: 0}", "translation.fda_beta"),
        ("{seed: -1}", "translation.seed"),
    ],
)
def test_bad_values(tiny: Path, translation: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(tiny, [f"translation={translation}"])
    assert message in str(error.value)


def test_there_is_no_training_to_ask_for(tiny: Path) -> None:
    config = load_config(tiny, ["translation.method=fda"])
    write_run(tiny.parent / "run", config)
    with pytest.raises(UserError, match=r"no stage for train-cyclegan\. Its commands: translate, "):
        train_cyclegan(tiny.parent / "run")


def test_what_makes_a_translation_anew(tiny: Path) -> None:
    def inputs(translation: str, *more: str) -> object:
        config = load_config(tiny, [f"translation={translation}", *more])
        return all_inputs(plan(config, tiny.parent / "run"))["translated"]

    matched, fda = "{method: histogram_matching}", "{method: fda}"
    assert inputs("{}") == inputs("{seed: 5, fda_beta: 0.3}")
    assert inputs(matched) != inputs("{method: histogram_matching, seed: 1}")
    assert inputs(matched) == inputs("{method: histogram_matching, fda_beta: 0.3}")
    assert inputs(fda) != inputs("{method: fda, fda_beta: 0.3}")
    assert inputs(fda) == inputs("{method: fda, shifts: 4}", "cyclegan.epochs=9")
    assert inputs("{}") == inputs("{batch_norm: running}") != inputs("{batch_norm: batch}")
    assert "batch_norm" not in str(inputs("{}"))
    # The target's frames are read, its labels are not.
    assert inputs(fda) != inputs(fda, "target.limit=5")
    assert inputs(fda) == inputs(fda, "target.values={7: road}")
