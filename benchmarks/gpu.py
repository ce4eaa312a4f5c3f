"""All that a machine with a GPU can measure of this checkout: one command, one file of results.

    make gpu                                                   # within 25 minutes
    python benchmarks/gpu.py --only "CycleGAN step" --out FILE
    python benchmarks/gpu.py --tiny --out FILE                 # tiny sizes, for a CPU, too

Runs the tests that are marked `cuda` and the benchmarks beside this file, each in a process of its
own, and writes what they say to `results/gpu-DEVICE.md` after each. A piece that needs a package
that is not installed, or for which no time is left, is left out, and the file says why.
"""

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Piece:
    """One command; `{...}` in it are filled in by `main`."""

    title: str
    command: str
    """What follows `python`."""
    tiny: str
    """The same at a size for tests."""
    minutes: float = 3
    """After which it is stopped."""


CYCLEGAN = "benchmarks/cyclegan_step.py --blocks 9 --width 64 --peak {peak} --size"
TINY_CYCLEGAN = "benchmarks/cyclegan_step.py --blocks 1 --width 8 --size 64x48 --pairs 1"
SEGMENTATION = "benchmarks/segmentation_step.py --recipe deeplabv3plus_r101 --peak {peak}"
TINY_SEGMENTATION = "benchmarks/segmentation_step.py --size 64x64 --pairs 1"
TRANSLATION = "benchmarks/translate.py --out {scratch}/translation.json"
PIECES = [
    Piece("device", "benchmarks/device.py", "benchmarks/device.py --side 64 --calls 1"),
    Piece(
        "sums over devices",
        "-m torch.distributed.run --standalone --nproc-per-node {devices} benchmarks/device.py "
        "--collectives",
        "-m torch.distributed.run --standalone --nproc-per-node {devices} benchmarks/device.py "
        "--collectives --side 64 --calls 1",
    ),
    Piece(
        "tests", "-m pytest -q -m cuda tests/test_cuda.py", "-m pytest --co -q tests/test_cuda.py"
    ),
    *(
        Piece(f"CycleGAN step, {size}, {name}", f"{CYCLEGAN} {size} {more}", TINY_CYCLEGAN + tiny)
        for size in ("256x256", "1024x512")
        for name, more, tiny in (
            ("bf16", "--precision bf16-mixed", ""),
            ("bf16, compiled", "--precision bf16-mixed --compile", ""),
            ("fp32", "--precision 32-true", " --precision 32-true"),
        )
    ),
    Piece(
        "steps of the translators",
        "benchmarks/translators_step.py --blocks 9 --width 64 --size 256x256",
        "benchmarks/translators_step.py --blocks 1 --width 8 --size 64x48 --rounds 1",
    ),
    *(
        Piece(
            f"translation, {name}",
            f"{TRANSLATION} --frames 16 --rounds 3 --precision {precision} {more}",
            f"{TRANSLATION} --size 64 48 --frames 2 --blocks 1 --width 4 --counts 2 --many 8 "
            f"--precision {precision}",
            minutes=4,
        )
        for name, precision, more in (
            ("fp32", "32-true", ""),
            ("bf16", "bf16-mixed", "--counts 50 --many 100"),
        )
    ),
    Piece(
        "segmentation step, bf16",
        f"{SEGMENTATION} --workers {{workers}}",
        TINY_SEGMENTATION,
    ),
    Piece(
        "segmentation step, bf16, compiled",
        f"{SEGMENTATION} --workers {{workers}} --compile",
        TINY_SEGMENTATION,
        minutes=4,
    ),
    Piece(
        "evaluation of a network",
        "benchmarks/predict.py --peak {peak}",
        "benchmarks/predict.py --recipe small --size 128x64 --width 64 --pairs 1",
    ),
    Piece(
        "evaluation of files, on the CPU",
        "benchmarks/evaluate.py --rounds 3 --images 20",
        "benchmarks/evaluate.py --help",
    ),
]


@dataclass
class Result:
    """What became of a piece."""

    piece: Piece
    command: str
    outcome: str
    """`done`, `failed ...` or `left out: ...`."""
    seconds: float = 0
    output: str = ""


def run(piece: Piece, command: str, seconds: float) -> Result:
    """Do a piece in a process of its own; what it starts ends with it.

    Args:
        seconds: after which it is stopped.
    """
    script = next((word for word in command.split() if word.endswith(".py")), None)
    if script and not (ROOT / script).is_file():
        return Result(piece, command, f"left out: this checkout has no {script}")
    if seconds < 1:
        return Result(piece, command, "left out: no time was left")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    stopped = False
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        stopped = True
    finally:
        with suppress(ProcessLookupError):  # also when this one is interrupted
            os.killpg(process.pid, signal.SIGKILL)
    if stopped:
        output, _ = process.communicate()
    outcome = "done"
    missing = re.findall(r"No module named '?([\w.]+)", output)
    if stopped:
        outcome = f"stopped after {seconds:.0f} s"
    elif process.returncode and missing:
        outcome = f"left out: needs {missing[-1]}, which is not installed"
    elif process.returncode:
        outcome = f"failed with status {process.returncode}"
    return Result(piece, command, outcome, time.monotonic() - begun, output)


def written(device: str, results: Sequence[Result]) -> str:
    """The file of results."""
    rows = "\n".join(f"| {r.piece.title} | {r.outcome} | {r.seconds:.0f} |" for r in results)
    parts = "\n".join(
        f"\n## {r.piece.title}\n\n`python {r.command}`\n\n```\n{r.output.strip() or r.outcome}\n```"
        for r in results
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return (
        f"# {device}\n\n{datetime.now(UTC):%Y-%m-%d}, commit {commit or 'unknown'}, Python "
        f"{platform.python_version()}, {os.cpu_count()} CPU cores. Ratios above 1: ours is faster."
        f"\n\n| piece | outcome | seconds |\n| --- | --- | --- |\n{rows}\n{parts}\n"
    )


def devices() -> tuple[str, int]:
    """The name of the GPUs and how many there are; of a CPU, 1. Raises SystemExit without torch."""
    code = (
        "import torch; n = torch.cuda.device_count(); "
        "print(torch.cuda.get_device_name() if n else 'CPU', n, sep='\\n')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"Error: torch does not start, without which nothing is measured: {found.stderr}")
    name, number = found.stdout.splitlines()[-2:]
    return name, int(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all pieces, and say where the results are; the status is 1 where a piece failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25, help="for all of it")
    parser.add_argument("--only", metavar="TITLE", help="pieces whose titles begin so")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, also without a GPU")
    parser.add_argument("--out", type=Path, help="the file [benchmarks/results/gpu-DEVICE.md]")
    given = parser.parse_args(arguments)
    device, number = devices()
    if not number and not given.tiny:
        print("Error: torch sees no GPU. --tiny tries all pieces on a CPU.", file=sys.stderr)
        return 2
    pieces = [piece for piece in PIECES if piece.title.startswith(given.only or "")]
    if not pieces:
        titles = "; ".join(piece.title for piece in PIECES)
        print(f"Error: --only {given.only!r}: no such piece. Pieces: {titles}.", file=sys.stderr)
        return 2
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    out = given.out or RESULTS / f"gpu-{slug}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    filled = {
        "devices": max(1, number),
        "workers": min(12, len(os.sched_getaffinity(0))),
        "peak": 790,  # TFLOP/s in bf16, until it is measured
    }
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        for piece in pieces:
            command = piece.tiny if given.tiny else piece.command
            command = command.format(**filled, scratch=scratch)
            print(f"{piece.title} ...", end=" ", flush=True)
            same = next((result for result in results if result.command == command), None)
            if same:  # among tiny ones
                results.append(replace(same, piece=piece, seconds=0))
                print("as before")
                continue
            results.append(run(piece, command, min(60 * piece.minutes, end - time.monotonic())))
            print(f"{results[-1].outcome} ({results[-1].seconds:.0f} s)", flush=True)
            if measured := re.search(r"bf16 matrix product.*: ([\d.]+) TFLOP", results[-1].output):
                filled["peak"] = max(1, round(float(measured[1])))
            part = out.with_name(f"{out.name}.part")
            part.write_text(written(device, results), encoding="utf-8")
            part.replace(out)
    print(f"Results: {out}")
    return int(any(result.outcome.startswith(("failed", "stopped")) for result in results))


if __name__ == "__main__":
    sys.exit(main())
