"""Training steps a second, alone and beside busy processes, by thread count and wait policy.

    python benchmarks/threads.py [--rounds 3] [--seconds 6]

Threads of OpenMP that wait for each other spin by default. When another program has a core, one
thread spins for the other's share of time as well, at every one of thousands of waits a second.
Each row is a process of its own that trains the demo's generator; rounds are interleaved, and every
figure is a ratio to one thread alone in the same round: median (minimum to maximum).
"""

import argparse
import os
import statistics
import subprocess
import sys

STEP = """
import sys, time, torch
from cyclegan.networks import build_generator
from pipeline.config import CycleGANConfig
network = build_generator(CycleGANConfig(blocks=4, generator_width=16))
adam = torch.optim.Adam(network.parameters())
batch = torch.rand(1, 3, 64, 128)
def step():
    adam.zero_grad()
    network(batch).square().mean().backward()
    adam.step()
step()
start, steps = time.perf_counter(), 0
while time.perf_counter() < start + float(sys.argv[1]):
    step()
    steps += 1
print(steps / (time.perf_counter() - start))
"""
ROWS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "passive, some spinning": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"},
}
BUSY = "while True: pass"


def rate(row: dict[str, str], seconds: float, busy: int) -> float:
    """Steps a second of a process with the settings of `row` beside `busy` other processes."""
    unset = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    env = {k: v for k, v in os.environ.items() if k not in unset} | row
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        command = [sys.executable, "-c", STEP, str(seconds)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    loads = {"alone": 0, "1 busy process": 1, f"{cores} busy processes": cores}
    ratios: dict[tuple[str, str], list[float]] = {}
    for _ in range(given.rounds):
        whole = rate(ROWS["1 thread"], given.seconds, 0)
        for load, busy in loads.items():
            for name, row in ROWS.items():
                found = rate(row, given.seconds, busy) / whole
                ratios.setdefault((load, name), []).append(found)
    for (load, name), found in ratios.items():
        low, high = min(found), max(found)
        print(f"{load:18} {name:24} {statistics.median(found):5.2f}  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
