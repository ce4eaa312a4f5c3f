"""How many threads a process gets, and how they wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime.threads import usable_cores


@pytest.fixture
def cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four processors that are two cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("nonsense", 2), (None, 2)],
)
def test_cores_of_a_container(cpus: Path, quota: str | None, cores: int) -> None:
    file = cpus / "cpu.max"
    if quota is not None:
        file.write_text(quota)
    assert usable_cores(cpus, file) == cores


def test_every_processor_is_a_core_where_nothing_is_known(cpus: Path, tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 4


SEEN = """
import os, sys
from flows.cli import main
sys.argv = ["sim2real", "datasets"]
try:
    main()
finally:
    print(os.environ["OMP_WAIT_POLICY"], int(os.environ["OMP_NUM_THREADS"]) >= 1)
"""


@pytest.mark.parametrize(
    ("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_the_command_line_chooses_unless_the_user_has(given: dict[str, str], policy: str) -> None:
    unset = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    env = {k: v for k, v in os.environ.items() if k not in unset} | given
    done = subprocess.run([sys.executable, "-c", SEEN], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [f"{policy} True"], done.stderr
