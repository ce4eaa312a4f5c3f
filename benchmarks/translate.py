"""Translation of files end to end: ours against the usual loop.

    python benchmarks/translate.py [--size 1914 1052] [--frames 4] [--blocks 9] [--width 64]
        [--precision 32-true] [--rounds 3] [--counts 50 200 1000] [--many 25000]

Frames of the toy world, as PNG, become translated PNGs by a generator of random weights.

1. Ours and the usual loop, which reads a frame with PIL, has the reference's network (torch's own
   instance norm, no channels_last) translate it alone, and writes it with PIL; both in the same
   precision. Rounds are interleaved. Also the share of the time in which ours does not compute,
   but waits for files, and the peak memory.
2. The cost of a frame and the peak memory at several counts: small frames, a small network.
3. What listing, restarting and merging take at many tiny frames, all of which are translated.

Figures are medians (minimum to maximum). They are printed and written, with the name of the
machine, to `benchmarks/results/`.
"""

import argparse
import copy
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from cyclegan.networks import InstanceNorm, PictureConv, ResnetGenerator, initialise
from cyclegan.translate import FrameTranslator, Promise, write_translations
from pipeline.config.settings import ComputeConfig
from pipeline.data.frames import open_frames
from pipeline.data.images import UInt8, resize_rgb, write_image
from pipeline.files import write_json
from pipeline.runtime.threads import usable_cores
from pipeline.toyworld.drawing import render_scene

SMALL, TINY = (96, 64), (16, 16)
"""Sizes of the frames of parts 2 and 3."""
RESULTS = Path(__file__).parent / "results"


def draw(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """A folder of so many frames, of which eight differ."""
    for i in range(min(count, 8)):
        rng = np.random.default_rng(i)
        drawn = tuple(np.clip(size, (64, 32), (2048, 1024)).tolist())
        picture = resize_rgb(render_scene(rng, drawn, "sim")[0], size)
        # With the grain of a camera: flat areas are no test of an encoder.
        grain = rng.integers(0, 8, picture.shape, np.uint8)
        picture = np.minimum(picture, 247) + grain
        write_image(folder / f"{i:06d}.png", picture)
    for i in range(8, count):
        shutil.copy(folder / f"{i % 8:06d}.png", folder / f"{i:06d}.png")
    return folder


def generator(blocks: int, width: int, device: torch.device) -> ResnetGenerator:
    """A generator of random weights, as it translates."""
    made = ResnetGenerator(blocks, width)
    initialise(made)
    return made.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def usual_network(ours: nn.Module) -> nn.Module:
    """The same weights in the layers of the reference."""
    network = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    channels = 0
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                module.register_module(name, nn.InstanceNorm2d(channels))
            elif isinstance(child, PictureConv):
                plain = nn.Conv2d(child.in_channels, child.out_channels, child.kernel_size)
                plain.load_state_dict(child.state_dict())
                module.register_module(name, plain.to(child.weight.device))
            elif isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
                channels = child.out_channels
    return network


@torch.no_grad()
def usual_loop(network: nn.Module, frames: Path, out: Path, precision: str) -> None:
    """A frame at a time, by the libraries' defaults."""
    out.mkdir()
    device = next(network.parameters()).device
    half = precision == "bf16-mixed"
    for path in sorted(frames.iterdir()):
        rgb = np.array(Image.open(path).convert("RGB"))
        height, width = rgb.shape[:2]
        x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float().to(device) / 127.5 - 1
        x = nn.functional.pad(x, (0, -width % 4, 0, -height % 4), mode="reflect")
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            y = network(x)
        y = ((y.float()[0, :, :height, :width] + 1) * 127.5).round().clamp(0, 255)
        picture = y.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        Image.fromarray(picture).save(out / path.name)


def ours(
    start: Callable[[list[UInt8]], list[Promise]],
    frames: Path,
    out: Path,
    part: tuple[int, int] | None = None,
) -> None:
    """As `sim2real translate --input` does it."""
    found = open_frames(frames)
    paths = [out / "images" / f"{name}.png" for name in found.names]
    write_translations(found, paths, out, ComputeConfig(), start, part=part)


def peak_memory(
    device: torch.device, work: Callable[..., object], *arguments: object
) -> tuple[float, float]:
    """Seconds and gigabytes that some work takes: of the GPU, or of this process."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    work(*arguments)
    seconds = time.perf_counter() - start
    if gpu:
        return seconds, torch.cuda.max_memory_allocated(device) / 1e9
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return seconds, int(found[1]) * 1024 / 1e9


def figure(values: list[float], digits: int = 2) -> str:
    """Median (minimum to maximum)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def end_to_end(
    options: argparse.Namespace, folder: Path, device: torch.device
) -> dict[str, object]:
    """Part 1."""
    network = generator(options.blocks, options.width, device)
    usual = usual_network(network)
    translator = FrameTranslator(network, precision=options.precision, strips="auto")
    frames = draw(folder / "frames", options.frames, tuple(options.size))
    measured: dict[str, list[float]] = {
        name: [] for name in ("usual", "ours", "waiting", "usual_gb", "ours_gb")
    }
    computing: list[float] = []

    def start(pictures: list[UInt8]) -> list[Promise]:
        begun = time.perf_counter()
        promises = translator.start(pictures)
        computing.append(time.perf_counter() - begun)
        return promises

    for round_ in range(options.rounds + 1):
        computing.clear()
        seconds, memory = peak_memory(device, ours, start, frames, folder / "ours")
        usual_seconds, usual_memory = peak_memory(
            device, usual_loop, usual, frames, folder / "usual", options.precision
        )
        if round_ == 0:
            apart = [
                np.abs(
                    np.asarray(Image.open(path)).astype(int)
                    - np.asarray(Image.open(folder / "usual" / path.name))
                ).max()
                for path in (folder / "ours/images").iterdir()
            ]
            print(f"largest difference of a pixel: {max(apart)} grey levels")
        else:  # the first one warms up
            for name, value in {
                "usual": options.frames / usual_seconds,
                "ours": options.frames / seconds,
                "waiting": 1 - sum(computing) / seconds,
                "usual_gb": usual_memory,
                "ours_gb": memory,
            }.items():
                measured[name].append(value)
        shutil.rmtree(folder / "ours")
        shutil.rmtree(folder / "usual")
    ratios = [a / b for a, b in zip(measured["ours"], measured["usual"], strict=True)]
    result: dict[str, object] = {
        "frames": options.frames,
        "size": options.size,
        "network": f"resnet, {options.blocks} blocks, width {options.width}",
        "precision": options.precision,
        "usual loop, frames/s": figure(measured["usual"], 3),
        "ours, frames/s": figure(measured["ours"], 3),
        "ours / usual loop": figure(ratios),
        "share waiting for files": figure(measured["waiting"], 3),
        "usual loop, peak GB": figure(measured["usual_gb"]),
        "ours, peak GB": figure(measured["ours_gb"]),
        "largest difference, grey levels": int(max(apart)),
    }
    return result


def at_counts(options: argparse.Namespace, folder: Path, device: torch.device) -> dict[str, object]:
    """Part 2."""
    translator = FrameTranslator(generator(1, 8, device))
    result: dict[str, object] = {"size": SMALL, "network": "resnet, 1 block, width 8"}
    for count in [options.counts[0], *options.counts]:  # the first one warms up
        frames = draw(folder / f"frames-{count}", count, SMALL)
        seconds, memory = peak_memory(device, ours, translator.start, frames, folder / "out")
        result[f"{count} frames"] = f"{1e3 * seconds / count:.2f} ms a frame, {memory:.2f} GB"
        shutil.rmtree(folder / "out")
    return result


def many(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Part 3."""
    frames, out = draw(folder / "many", options.many, TINY), folder / "out"

    def same(pictures: list[UInt8]) -> list[Promise]:
        return [lambda picture=picture: picture for picture in pictures]  # type: ignore[misc]

    seconds = {}
    for name, work in {
        "listing": lambda: open_frames(frames),
        "shard 1 of 2": lambda: ours(same, frames, out, part=(0, 2)),
        "shard 2 of 2": lambda: ours(same, frames, out, part=(1, 2)),
        "merging": lambda: ours(same, frames, out),
        "restart of what is whole": lambda: ours(same, frames, out),
    }.items():
        start = time.perf_counter()
        work()  # type: ignore[no-untyped-call]
        seconds[name] = f"{time.perf_counter() - start:.1f} s"
    return {"frames": options.many, "size": TINY, **seconds}


def machine(device: torch.device) -> str:
    """The name of what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    cores = usable_cores()
    return f"{found[1] if found else 'unknown CPU'}, {cores} cores"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--size", type=int, nargs=2, default=[1914, 1052])
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--many", type=int, default=25_000)
    parser.add_argument("--out", type=Path, help="file of the result [in benchmarks/results]")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, object] = {
        "machine": machine(device),
        "threads of torch": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        result["end to end"] = end_to_end(options, place / "1", device)
        result["counts"] = at_counts(options, place / "2", device)
        result["many"] = many(options, place / "3")
    for part, values in result.items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            print(f"{part}{', ' if name else ''}{name}: {value}")
    slug = re.sub(r"[^a-z0-9]+", "-", str(result["machine"]).lower()).strip("-")
    size = "x".join(map(str, options.size))
    kind = f"{size}-{options.blocks}-blocks-of-{options.width}-{options.precision}"
    path = options.out or RESULTS / f"translate-{slug}-{kind}.json"
    write_json(path, result)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
