"""Imports point one way, heavy libraries stay in their rooms, single stages need no Prefect."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"pipeline", "cyclegan", "segmentation", "reports", "flows"}
ALLOWED: dict[str, set[str]] = {
    "pipeline": set(),
    "pipeline.data": {"pipeline"},
    "pipeline.config": {"pipeline", "pipeline.data"},
    "pipeline.run": {"pipeline", "pipeline.config", "pipeline.runtime"},
    "pipeline.runtime": {"pipeline", "pipeline.config"},
    "pipeline.scoring": {"pipeline", "pipeline.data"},
    "pipeline.intake": {"pipeline", "pipeline.data"},
    "pipeline.toyworld": {"pipeline", "pipeline.data"},
}
"""Room -> the rooms that it may import besides itself; `pipeline` is what lies directly in it."""
PIPELINE = set(ALLOWED)
ALLOWED |= {
    "cyclegan": PIPELINE,
    "segmentation": PIPELINE,
    "reports": PIPELINE,
    "flows": PIPELINE | PACKAGES,
}
ONLY_IN = {
    "prefect": {"flows"},
    "typer": {"flows"},
    "albumentations": {"segmentation"},
    "segmentation_models_pytorch": {"segmentation"},
    "torch": {"pipeline.runtime", "cyclegan", "segmentation"},
}
LARGEST = 0.25
"""The part of all lines that a room may hold."""


def files(room: str) -> list[Path]:
    """The modules of a room."""
    folder = ROOT / room.replace(".", "/")
    return sorted(folder.glob("*.py") if room == "pipeline" else folder.rglob("*.py"))


def room_of(name: str) -> str:
    """The room of a dotted name, or the top-level package of another library's."""
    first, second, *_ = [*name.split("."), ""]
    return f"{first}.{second}" if f"{first}.{second}" in ALLOWED else first


def imported(path: Path) -> set[str]:
    """The dotted names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{a.name}" for a in node.names} if "." not in module else {module}
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_point_one_way(room: str) -> None:
    assert files(room)
    for path in files(room):
        rooms = {room_of(name) for name in imported(path)} - {room}
        ours = {other for other in rooms if other in ALLOWED}
        assert ours <= ALLOWED[room], f"{path} imports {ours - ALLOWED[room]}"
        for library, homes in ONLY_IN.items():
            assert library not in rooms or room in homes, f"{path} imports {library}"


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of ours."""
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        found[name.removesuffix(".__init__")] = path
    return found


def test_no_modules_import_each_other() -> None:
    known = modules()
    graph = {name: {i for i in imported(path) if i in known} for name, path in known.items()}
    TopologicalSorter(graph).prepare()  # raises where there is a circle


def test_no_room_is_most_of_the_house() -> None:
    lines = {
        room: sum(len(path.read_text().splitlines()) for path in files(room)) for room in ALLOWED
    }
    for room, count in lines.items():
        assert count <= LARGEST * sum(lines.values()), f"{room} holds {count} lines of {lines}"


def test_rooms_say_what_they_hold() -> None:
    for room in ALLOWED:
        text = (ROOT / room.replace(".", "/") / "__init__.py").read_text()
        assert ast.get_docstring(ast.parse(text)), room


IMPORTS = """
import sys, urllib.request
urllib.request.OpenerDirector.open = lambda *_, **__: print("a server was asked")
def absent(*names):
    print(*(name for name in names if name in sys.modules), end="")
import reports.report, flows.scoring, segmentation.score_files
absent("torch", "prefect")
import flows.plan, flows.prepare
absent("torch", "prefect", "albumentations")
import cyclegan.train, segmentation.evaluate
absent("prefect")
"""


def test_what_an_import_does_not_load_and_that_it_asks_nobody() -> None:
    """Albumentations would ask for its newest version."""
    env = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    command = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
