"""One worker against two: the wall time of 2 arms x 2 seeds, each worker on a core of its own.

A server and workers on this machine, as `docs/workers.md` starts them. In turn one and two workers
do a run of four units that nothing waits for; the ratio of their times is what the second worker
is worth, of which 2 is the most. Also the seconds of each unit outside its training: scheduling,
start of the process, imports, evaluation.

`--imports` measures instead what each kind of unit imports, without server and workers: a tiny unit
is done, and then a fresh process, which does nothing else, imports what that one has.

    python benchmarks/workers.py [--rounds 1] [--steps 100] [--imports]
"""

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from flows.plan import plan
from flows.prepare import prepare
from flows.units import units
from pipeline.config.load import load_config
from pipeline.run.folder import read_run, read_stage
from pipeline.toyworld.writing import write_toy_world

CODE = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "flows.cli"]

DO = """
import sys
from pathlib import Path
import prefect.engine
from flows.work import do, plan, read_run, units
run = Path(sys.argv[1])
stages = plan(read_run(run), run)
(unit,) = (unit for unit in units(stages) if unit.name == sys.argv[2])
do(run, stages, unit)
print(*sys.modules)
"""
"""Does a unit as a worker's process does, and says which modules that took, in their order."""
IMPORT = """
import importlib, sys, time
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception:  # names that libraries made up
        pass
print(time.process_time())
"""


def settings(world: Path, steps: int) -> dict[str, object]:
    """A run of trainings alone, with the demo's network."""
    demo = yaml.safe_load((CODE / "flows/demo.yaml").read_text())
    data = {
        part: demo[part] | {"root": str(world / Path(demo[part]["root"]).name)}
        for part in ("source", "target", "test")
    }
    return data | {
        "name": "workers",
        "label_space": demo["label_space"],
        "segmentation": demo["segmentation"] | {"steps": steps},
        "arms": {"source_only": "source", "oracle": "target"},
        "seeds": [0, 1],
        "compute": {"accelerator": "cpu"},
    }


@contextlib.contextmanager
def started(env: dict[str, str], log: Path, core: int, *arguments: str) -> Iterator[None]:
    """A command in the background, on one core."""
    with log.open("ab") as said:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=env,
            stdout=said,
            stderr=said,
            preexec_fn=partial(os.sched_setaffinity, 0, {core}),
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_for(address: str) -> None:
    for _ in range(120):
        with contextlib.suppress(URLError), urlopen(f"{address}/health"):
            return
        time.sleep(0.5)
    sys.exit(f"no server at {address} after a minute")


def measure(env: dict[str, str], place: Path, run: Path, workers: int) -> tuple[float, float]:
    """Seconds of a run, and of its four trainings together."""
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        for i in range(workers):
            arguments = ["worker", "--pool", "gpu", "--name", f"worker-{i}", "--root", str(place)]
            stack.enter_context(started(env, place / f"{i}.log", cores[i % len(cores)], *arguments))
        time.sleep(15)  # until they ask for work
        begin = time.monotonic()
        subprocess.run(
            [*COMMAND, "run", str(place / "run.yaml"), "--run", str(run), "--workers"],
            env=env,
            check=True,
            capture_output=True,
        )
        seconds = time.monotonic() - begin
    trained = [
        read_stage(run, path.parent.relative_to(run).as_posix()).seconds
        for path in run.glob("segmentation/*/*/stage.json")
    ]
    return seconds, sum(trained)


def imports(place: Path, rounds: int) -> None:
    """Print the CPU seconds of imports of each kind of unit: the least of some rounds."""
    demo = settings(place / "data", 1)
    layout = demo["segmentation"] | {"crop": [64, 32], "batch_size": 2}
    tiny = {"blocks": 1, "generator_width": 4, "discriminator_width": 4, "crop": [64, 32]}
    tiny |= {"steps_per_epoch": 1, "epochs": 1, "decay_epochs": 0}
    arms = {"arms": {"source_only": "source", "adapted": "translated"}, "seeds": [0]}
    chain = {"cyclegan": tiny, "translation": {"gate": {"threshold": 1}}, "segmentation": layout}
    (place / "run.yaml").write_text(yaml.safe_dump(demo | arms | chain))
    run = place / "run"
    prepare(load_config(place / "run.yaml"), run, [], None)
    stages = plan(read_run(run), run)
    commands = {stage.name: stage.command for stage in stages}
    measured = set()
    for unit in units(stages):
        python = [sys.executable, "-c"]
        done = subprocess.run(
            [*python, DO, str(run), unit.name], check=True, capture_output=True, text=True
        )
        modules = done.stdout.splitlines()[-1].split()
        if (kind := commands[unit.name]) not in measured:
            replay = [*python, IMPORT, *modules]
            times = [float(subprocess.check_output(replay)) for _ in range(rounds)]
            packages = {name.partition(".")[0] for name in modules}
            print(f"{kind}: {min(times):.1f} CPU s, {len(packages)} packages", flush=True)
            measured.add(kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--imports", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        place = Path(folder)
        if options.imports:
            write_toy_world(place / "data", sim_frames=4, real_train_frames=4, real_val_frames=2)
            imports(place, options.rounds)
            return
        write_toy_world(place / "data")
        (place / "run.yaml").write_text(yaml.safe_dump(settings(place / "data", options.steps)))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        env = {
            **os.environ,
            "PYTHONPATH": str(CODE),
            "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(place / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        }
        with started(env, place / "server.log", 0, "server", "--port", str(port)):
            wait_for(env["PREFECT_API_URL"])
            subprocess.run([*COMMAND, "deploy"], env=env, check=True, capture_output=True)
            ratios = []
            for number in range(options.rounds):
                one, trained = measure(env, place, place / f"one-{number}", 1)
                two, side_by_side = measure(env, place, place / f"two-{number}", 2)
                ratios.append(one / two)
                print(
                    f"one worker {one:.0f} s (training {trained:.0f} s, "
                    f"{(one - trained) / 4:.1f} s a unit besides), two {two:.0f} s "
                    f"(training {side_by_side:.0f} s): {one / two:.2f} times",
                    flush=True,
                )
        print(
            f"median {statistics.median(ratios):.2f} times "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {options.rounds} rounds)"
        )


if __name__ == "__main__":
    main()
