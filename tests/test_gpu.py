"""`make gpu`: pieces in processes of their own, a file after each, reasons for what is left out."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers import assert_gone

ROOT = Path(__file__).parent.parent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    return module


SCRIPTS = {
    "measures": "print('bf16 matrix product, 64: 7.6 TFLOP/s')",
    "told": "import sys; print('peak', sys.argv[1])",
    "fails": "import sys; sys.exit(3)",
    "needs": "import no_such_package",
    "hangs": "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); "
    "time.sleep(60)",
}


def test_every_outcome_is_in_the_file(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, code in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(code)
    pieces = [gpu.Piece(n, f"{tmp_path}/{n}.py {{peak}}", "") for n in SCRIPTS]
    pieces[-1] = replace(pieces[-1], minutes=0.05)
    pieces.append(gpu.Piece("absent", "benchmarks/no_such_file.py", ""))
    monkeypatch.setattr(gpu, "PIECES", pieces)
    monkeypatch.setattr(gpu, "devices", lambda: ("Some GPU 80GB", 1))
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    assert gpu.main([]) == 1
    (path,) = (tmp_path / "results").iterdir()
    assert path.name == "gpu-some-gpu-80gb.md"
    text = path.read_text()
    assert "| measures | done |" in text
    assert "peak 8" in text  # what is measured is handed on
    assert "| fails | failed with status 3 |" in text
    assert "| needs | left out: needs no_such_package, which is not installed |" in text
    assert "| absent | left out: this checkout has no benchmarks/no_such_file.py |" in text
    assert "| hangs | stopped after 3 s |" in text
    child = int(text.split("hangs.py 8`")[1].split("```")[1])
    assert_gone([child])
    assert gpu.main(["--only", "told", "--minutes", "0", "--out", str(tmp_path / "x.md")]) == 0
    assert "left out: no time was left" in (tmp_path / "x.md").read_text()
    assert gpu.main(["--only", "nothing"]) == 2


def test_without_a_gpu_it_says_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "devices", lambda: ("CPU", 0))
    assert gpu.main([]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_every_piece_works_on_a_cpu(gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "all.md"
    assert gpu.main(["--tiny", "--out", str(out)]) == 0, out.read_text()
    assert "left out" not in out.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "outcomes"),
    [
        (
            ["segmentation_models_pytorch", "albumentations", "prefect"],
            {
                "CycleGAN step, 256x256, fp32": "done",
                "segmentation step, bf16": "left out: needs (segmentation_mod|albumentations)",
            },
        ),
        (
            ["pydantic"],
            {"device": "done", "CycleGAN step, 256x256, fp32": "left out: needs pydantic"},
        ),
    ],
)
def test_what_is_not_installed_leaves_out_what_needs_it(
    hidden: list[str],
    outcomes: dict[str, str],
    gpu: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name in {hidden}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for title, outcome in outcomes.items():
        out = tmp_path / "out.md"
        assert gpu.main(["--tiny", "--only", title, "--out", str(out)]) == 0, out.read_text()
        assert re.search(rf"\| {title} \| {outcome}", out.read_text()), out.read_text()
