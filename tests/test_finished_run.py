"""A run that an earlier version finished is skipped, scored, reported and compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.plan import plan
from pipeline.config.settings import Config
from pipeline.run.folder import read_run
from pipeline.runtime.checkpoint import load_checkpoint, save_checkpoint
from reports.report import write_comparison
from segmentation.train import load_segmenter
from tests.helpers import do

FINISHED = Path(__file__).parent / "data" / "finished_run"
WAS_AT = "/data/before"
"""Where the run was made."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run, moved with its data to a folder of its own."""
    shutil.copytree(FINISHED, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace(WAS_AT, str(tmp_path)))
    return tmp_path / "run"


def continued(run: Path) -> tuple[Config, list[str]]:
    """The configuration of a run, and the names of the stages that had to be done."""
    config = read_run(run)
    stages = plan(config, run)
    names = [stage.name for stage in stages]
    return config, [n for n, done in zip(names, do(run, stages), strict=True) if done]


def arms(path: Path) -> Any:
    return json.loads(path.read_text())["arms"]


def test_its_stages_are_skipped_and_its_report_says_the_same(run: Path) -> None:
    _, done = continued(run)
    assert done == ["report"]
    before, now = arms(FINISHED / "report.json"), arms(run / "report" / "report.json")
    assert now.keys() == before.keys()
    for arm, metrics in before.items():
        for metric, value in metrics.items():
            assert now[arm][metric]["mean"] == value["mean"], (arm, metric)


def test_its_networks_are_scored(run: Path) -> None:
    shutil.rmtree(run / "evaluation")
    _, done = continued(run)
    assert done == [
        *(f"evaluation/{arm}/seed-0" for arm in ("source_only", "adapted", "oracle")),
        "report",
    ]
    for arm in ("source_only", "adapted", "oracle"):
        file = Path("evaluation", arm, "seed-0", "evaluation.json")
        before, now = (json.loads((top / file).read_text()) for top in (FINISHED / "run", run))
        assert now["confusion"] == before["confusion"]


def test_settings_that_are_no_more_do_not_matter(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "segmentation/oracle/seed-0/checkpoints/last.pt"
    state = load_checkpoint(path)
    state["config"] |= {"momentum": 0.9}
    save_checkpoint(path, state)
    load_segmenter(path)
    assert "settings of another version are ignored: momentum" in capsys.readouterr().err


def test_it_is_compared(run: Path, tmp_path: Path) -> None:
    config, _ = continued(run)
    write_comparison({"one": (config, run), "other": (config, run)}, tmp_path / "out")
    assert "per-pixel" in (tmp_path / "out" / "index.html").read_text()
