"""Imports point one way, heavy libraries stay in their rooms, single stages need no Prefect."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"pipeline", "cyclegan", "segmentation", "reports", "flows"}
ALLOWED = {
    "pipeline": {"pipeline"},
    "cyclegan": {"cyclegan", "pipeline"},
    "segmentation": {"segmentation", "pipeline"},
    "reports": {"reports", "pipeline"},
    "flows": PACKAGES,
}
ONLY_IN = {
    "prefect": {"flows"},
    "typer": {"flows"},
    "albumentations": {"segmentation"},
    "segmentation_models_pytorch": {"segmentation"},
    "torch": {"pipeline", "cyclegan", "segmentation"},
}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        names = imported(path)
        assert names & PACKAGES <= ALLOWED[package], path
        for library, homes in ONLY_IN.items():
            assert library not in names or package in homes, f"{path} imports {library}"


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("reports.report", ["torch", "prefect"]),
        ("flows.scoring, segmentation.score_files", ["torch", "prefect"]),
        ("flows.stages, flows.prepare", ["torch", "prefect", "albumentations"]),
        ("cyclegan.train, segmentation.evaluate", ["prefect"]),
    ],
)
def test_what_an_import_does_not_load(modules: str, absent: list[str]) -> None:
    code = f"import sys, {modules}; print([m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
