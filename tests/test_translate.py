"""`translate --input`: any folder, video or image, without labels or configuration."""

import csv
import multiprocessing
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cyclegan import translate as module
from cyclegan.checkpoints import export_generator
from cyclegan.networks import ResidualGenerator, ResnetGenerator, UnetGenerator, initialise
from cyclegan.strips import in_strips
from cyclegan.translate import FrameTranslator, load_translator
from cyclegan.weights import AffineInstanceNorm
from flows.commands import translate as command
from flows.frames import translate_any
from flows.options import Shard
from pipeline.config.settings import ComputeConfig
from pipeline.data.frames import JOURNAL, MANIFEST, open_frames, write_video
from pipeline.data.images import UInt8, read_rgb, write_image
from pipeline.errors import UserError
from pipeline.files import PART, REMOVED
from pipeline.runtime.checkpoint import save_checkpoint
from tests.conftest import Sim2Real
from tests.helpers import made_files


def generator(network: type[nn.Module] = ResnetGenerator, *arguments: Any, **how: Any) -> nn.Module:
    """A generator of random weights that changes pictures much, in evaluation mode."""
    torch.manual_seed(0)
    made = network(*(arguments or (1, 4)), **how)
    initialise(made)
    for weight in made.parameters():
        weight.data *= 5
    return made.eval()


def noise(number: int, size: tuple[int, int] = (40, 28)) -> UInt8:
    small = np.random.default_rng(number).integers(0, 256, (7, 10, 3)).astype(np.uint8)
    rows = np.linspace(0, 6, size[1]).round().astype(int)
    return small[rows][:, np.linspace(0, 9, size[0]).round().astype(int)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "G.pth"
    export_generator(generator(), path)  # type: ignore[arg-type]
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames of odd and mixed sizes, two of them in a folder below."""
    for i, name in enumerate(["a.png", "b.jpg", "c.png", "d.png", "e.bmp", "deep/f.png"]):
        write_image(tmp_path / "in" / name, noise(i, (41 + i % 2, 27)))
    write_image(tmp_path / "in/deep/g.png", noise(9))
    return tmp_path / "in"


def test_three_lines_of_python(weights: Path) -> None:
    """As docs/translators.md says."""
    translate = load_translator(weights)
    frame = noise(0, (41, 27))
    picture = translate(frame)
    assert (picture.shape, picture.dtype) == (frame.shape, np.uint8)
    assert np.abs(picture.astype(int) - frame).mean() > 5
    text = Path(__file__).parents[1].joinpath("docs/translators.md").read_text()
    assert "translate = load_translator(" in text
    assert "picture = translate(frame)" in text


def test_a_folder_becomes_a_folder_of_the_same_sizes(weights: Path, folder: Path) -> None:
    out = folder.parent / "out"
    made = translate_any(weights, folder, out)
    assert made == [out / "images", out / MANIFEST]
    translate = load_translator(weights)
    with (out / MANIFEST).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "b", "c", "d", "deep/f", "deep/g", "e"]
    for row in rows:
        frame, picture = read_rgb(Path(row["source"])), read_rgb(out / row["translated"])
        assert row["translated"] == f"images/{row['name']}.png"
        assert np.array_equal(picture, translate(frame))
        assert (row["status"], len(row["weights"])) == ("done", 16)
        assert float(row["seconds"]) >= 0
    before = made_files(out)
    translate_any(weights, folder, out)
    assert made_files(out) == before
    translate_any(weights, folder, folder.parent / "jpg", format="jpg", width=20)
    assert read_rgb(folder.parent / "jpg/images/deep/f.jpg").shape == (13, 20, 3)


def test_shards_make_the_same_set(weights: Path, folder: Path) -> None:
    whole, out = folder.parent / "whole", folder.parent / "out"
    translate_any(weights, folder, whole)
    for part in (1, 0):
        assert translate_any(weights, folder, out, part=(part, 2)) == []
    translate_any(weights, folder, out)
    assert {k: v for k, v in made_files(out).items() if "progress" not in k} == made_files(whole)


def test_a_video_of_ten_seconds(weights: Path, tmp_path: Path) -> None:
    video, out = tmp_path / "drive.mp4", tmp_path / "real.mp4"
    write_video(video, (noise(i // 10, (32, 16)) for i in range(100)), 10)
    for _ in range(2):  # the second time it is there
        assert translate_any(weights, video, out) == [out, tmp_path / "real.mp4.frames" / MANIFEST]
        made = open_frames(out)
        assert (len(made.names), made.rate, made.size(0)) == (100, 10, (32, 16))
    assert sorted(p.name for p in (tmp_path / "real.mp4.frames").iterdir()) == [
        *["inputs.json", MANIFEST, "progress.json"]
    ]
    data = out.read_bytes()
    out.write_bytes(data[: len(data) // 2])
    translate_any(weights, video, out)
    assert out.read_bytes() == data
    # A video as images, of which one is read again as a frame.
    translate_any(weights, video, tmp_path / "images")
    assert len(list((tmp_path / "images/images").iterdir())) == 100
    picture = read_rgb(tmp_path / "images/images/000050.png")
    assert np.array_equal(picture, load_translator(weights)(open_frames(video).read(50)))
    shown, first = made.read(50).astype(int), read_rgb(tmp_path / "images/images/000000.png")
    assert np.abs(shown - picture).mean() < 0.7 * np.abs(shown - first).mean()  # but for MPEG-4


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.soak)])
@pytest.mark.parametrize("input_kind", ["folder", "video"])
def test_killed_at_random_moments(weights: Path, folder: Path, input_kind: str, kills: int) -> None:
    place = folder.parent
    frames, out, whole = folder, place / "out", place / "whole"
    if input_kind == "video":
        frames, out, whole = place / "in.mp4", place / "out.mp4", place / "whole.mp4"
        write_video(frames, (noise(i, (32, 16)) for i in range(40)), 25)
    begun = time.monotonic()
    translate_any(weights, frames, whole)
    seconds = time.monotonic() - begun
    chance, context = random.Random(0), multiprocessing.get_context("fork")
    for _ in range(kills):
        if kills > 4 and chance.random() < 0.1:  # from the start now and then
            for made in (out, place / f"{out.name}.frames"):
                shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
        child = context.Process(target=translate_any, args=(weights, frames, out))
        child.start()
        time.sleep(chance.uniform(0, seconds))
        child.kill()
        child.join()
    translate_any(weights, frames, out)
    if input_kind == "video":
        assert out.read_bytes() == whole.read_bytes()
        out, whole = place / "out.mp4.frames", place / "whole.mp4.frames"
    assert made_files(out) == made_files(whole)
    assert not [p for p in place.rglob("*") if p.name.startswith((PART, REMOVED, JOURNAL))]


@pytest.mark.parametrize(
    "network",
    [
        generator(ResnetGenerator, 2, 4, dropout=True),
        generator(ResnetGenerator, 1, 4, upsampling="resize"),
        generator(UnetGenerator, 5, 4),
        generator(UnetGenerator, 4, 4, upsampling="resize", skips=False),
        ResidualGenerator(generator(ResnetGenerator, 1, 4)).eval(),  # type: ignore[arg-type]
    ],
    ids=["resnet", "resize", "unet", "encoder_decoder", "residual"],
)
def test_strips_make_the_pictures_of_whole_frames(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A patch of its own statistics: norms within strips would be far off.
    frame = noise(0, (34, 42))
    frame[:9] = 255
    monkeypatch.setattr(module, "STRIP", 1)  # strips of 8 rows
    for shifts in (1, 4):
        whole = FrameTranslator(network, shifts)(frame)
        strips = FrameTranslator(network, shifts, strips="always")(frame)
        assert np.abs(whole.astype(int) - strips).max() <= 1
        assert whole.std() > 5


def test_strips_know_the_norms_of_foreign_weights() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 1, 1), AffineInstanceNorm(6), nn.LeakyReLU(), nn.BatchNorm2d(6)
    )
    network[1].weight.data.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    network[1].bias.data.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    network[3].running_mean.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    network.eval()
    x = torch.rand(1, 3, 20, 9)
    with torch.inference_mode():
        torch.testing.assert_close(in_strips(network, x, 3), network(x), atol=1e-5, rtol=0)
        with pytest.raises(TypeError, match="PixelShuffle is no layer that works in strips"):
            in_strips(nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2)), x, 3)


def test_memory_chooses_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = generator()
    rows: list[int] = []
    monkeypatch.setattr(
        module, "in_strips", lambda network, x, height: rows.append(height) or network(x)
    )
    whole = FrameTranslator(network, strips="auto")(noise(0))
    assert (rows, capsys.readouterr().err) == ([], "")
    monkeypatch.setattr(module, "free_memory", lambda _: 10_000)
    translate = FrameTranslator(network, strips="auto")
    for _ in range(2):
        assert np.array_equal(translate(noise(0)), whole)
    assert len(rows) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"Frames of 40x28 are translated in strips of rows: whole they take", line)


def test_bf16_is_near(weights: Path) -> None:
    exact = load_translator(weights)
    near = FrameTranslator(exact.network, precision="bf16-mixed")
    apart = np.abs(exact(noise(0)).astype(int) - near(noise(0)))
    assert 0 < apart.mean() < 3


def test_what_cannot_be_translated(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    (tmp_path / "empty").mkdir()
    save_checkpoint(tmp_path / "seg.pt", {"step": 1, "classes": ["road"], "model": {}})
    write_video(tmp_path / "in.mp4", [noise(0, (32, 16))] * 3, 25)
    write_video(tmp_path / "there.mp4", [noise(0, (32, 16))] * 3, 25)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "in.mp4").read_bytes()[:300])
    for source, frames, out, message in [
        (tmp_path / "seg.pt", folder, new, "checkpoint of a segmentation network, which names"),
        (folder / "a.png", folder, new, r"a\.png cannot be read\. Expected the weights of a Cy"),
        (tmp_path / "nothing", folder, new, "No generator .*nothing. Give a trained run"),
        (weights, tmp_path / "empty", new, "No image in .*empty"),
        (weights, tmp_path / "cut.mp4", new, "cannot be read as a video"),
        (weights, folder, folder / "out", "is in the input"),
        (weights, folder, folder, "is in the input"),
        (weights, folder, weights, "is no folder, and no video that is written"),
        (weights, folder, tmp_path / "new.mp4", "is a video, and .*in is none"),
        (weights, tmp_path / "in.mp4", tmp_path / "there.mp4", "exists, and is not of this"),
    ]:
        with pytest.raises(UserError, match=message):
            translate_any(source, frames, out)
    assert not new.exists()
    assert not (folder / "out").exists()
    translate_any(weights, folder, tmp_path / "out", unreadable=0)
    shutil.copy(folder / "a.png", folder / "z.png")
    with pytest.raises(UserError, match=r"by another generator or of other frames:\n  frames: "):
        translate_any(weights, folder, tmp_path / "out")
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("pipeline.data.frames.shutil.disk_usage", lambda _: full)
    with pytest.raises(UserError, match=r"8 frames need about .* Make room"):
        translate_any(weights, folder, new)
    assert not (new / "images").exists()


def test_the_command(
    weights: Path, folder: Path, sim2real: Sim2Real, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "d.png").write_bytes(b"damaged")
    out = folder.parent / "out"
    command(weights, folder, out, shard=Shard(1, 2))
    assert "Shard 2/2 is done. When all are, the same command without" in capsys.readouterr().out
    told = sim2real("translate", weights, "--input", folder, "--out", "out", "--unreadable", "0.2")
    assert told.status == 0, told.err
    assert "Skipped: " in told.err
    assert f"Translated: {Path('out/images')}" in told.out
    assert len(list(out.rglob("images/**/*.png"))) == 6
    with pytest.raises(UserError, match="Cannot write to /proc/nowhere"):
        command(weights, folder, Path("/proc/nowhere"))
    for options in ({"frames": folder}, {"out": out}, {"shard": Shard(0, 2)}):
        with pytest.raises(UserError, match=r"go with --input FRAMES and|go together"):
            command(weights, **options)


@pytest.mark.parametrize("shard", ["", "0/2", "3/2", "2", "a/b", "-1/2", "1/" + "9" * 5000])
def test_shards_that_are_none(shard: str, sim2real: Sim2Real) -> None:
    told = sim2real("translate", "r", "--input", "f", "--out", "o", f"--shard={shard}")
    assert told.status == 2
    assert re.search(r"'--shard': '.* is not I/N with 1 <= I <= N\. Give it so: 2/4\.", told.err)
    assert Shard.parse("2/4") == (1, 4)
    assert ComputeConfig().strips == "auto"
