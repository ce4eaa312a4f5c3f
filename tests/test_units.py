"""Units of work: the graph that workers do, whatever its names; translations made in parts."""

from pathlib import Path

import pytest

from flows.plan import plan
from flows.units import Unit, do, left, units
from pipeline.config.load import load_config
from pipeline.data.frames import MANIFEST
from pipeline.run.folder import write_run
from pipeline.run.stage import all_inputs
from tests.helpers import without_seconds


def graph(tiny: Path, settings: list[str], parts: int = 1) -> dict[str, Unit]:
    config = load_config(tiny, settings)
    return {unit.name: unit for unit in units(plan(config, tiny.parent / "run"), parts)}


def test_the_graph_of_the_usual_arms(tiny: Path) -> None:
    found = graph(tiny, ["seeds=[0, 1]"], parts=2)
    assert list(found)[:4] == ["cyclegan", "translated 1 of 2", "translated 2 of 2", "translated"]
    assert found["translated 2 of 2"].reads == ("cyclegan",)
    assert found["translated 2 of 2"].part == (1, 2)
    assert found["translated"].reads == ("translated 1 of 2", "translated 2 of 2")
    adapted = found["segmentation/adapted/seed-1"]
    assert adapted.reads == ("translated",)
    assert adapted.stages == ("segmentation/adapted/seed-1", "evaluation/adapted/seed-1")
    assert found["segmentation/oracle/seed-0"].reads == ()
    assert set(found["report"].reads) == {name for name in found if name.startswith("segm")}
    assert {name for name, unit in found.items() if unit.light} == {"translated", "report"}
    assert {name for name, unit in found.items() if unit.urgent} == set(list(found)[:4])


def test_names_make_the_graph(tiny: Path) -> None:
    found = graph(
        tiny,
        [
            "arms={plain: source, mine: colours, more: {train: colours, start: mine}}",
            "translations={colours: {method: class_alignment, pseudo_labels: plain}}",
            "selection={frames: 2}",
        ],
        parts=2,
    )
    assert list(found) == [
        "segmentation/plain/seed-0",
        "pseudo_labels/plain/seed-0",
        "translations/colours 1 of 2",
        "translations/colours 2 of 2",
        "translations/colours",
        "segmentation/mine/seed-0",
        "segmentation/more/seed-0",
        "report",
    ]
    # The target is labelled once, and all parts of the translation wait for it.
    labels = found["pseudo_labels/plain/seed-0"]
    assert labels.reads == ("segmentation/plain/seed-0",)
    assert (labels.part, labels.light) == (None, False)
    for part in (1, 2):
        assert found[f"translations/colours {part} of 2"].reads == (labels.name,)
    assert found["segmentation/plain/seed-0"].stages[1:] == (
        "evaluation/plain/seed-0",
        "selection/plain/seed-0",
    )
    assert set(found["segmentation/more/seed-0"].reads) == {
        "translations/colours",
        "segmentation/mine/seed-0",
    }
    urgent = [name for name, unit in found.items() if unit.urgent]
    assert urgent == list(found)[:6]


@pytest.mark.parametrize("method", ["histogram_matching", "fda"])
def test_parts_make_what_one_call_makes(method: str, tiny: Path, tmp_path: Path) -> None:
    settings = ["arms={adapted: translated}", f"translation={{method: {method}}}"]
    config = load_config(tiny, settings)
    runs = {parts: tmp_path / f"run-{parts}" for parts in (1, 3)}
    for parts, run in runs.items():
        write_run(run, config)
        stages = plan(config, run)
        inputs = all_inputs(stages)
        mine = [unit for unit in units(stages, parts) if unit.stages == ("translated",)]
        assert len(mine) == (parts + 1 if parts > 1 else 1)
        for unit in reversed(mine[:-1]):
            assert left(run, unit)
            do(run, stages, unit, inputs)
            assert not left(run, unit)
        if parts > 1:
            assert len(list(run.glob("translated/images/*.png"))) == 10
            times = {p: p.stat().st_mtime_ns for p in run.glob("translated/images/*.png")}
        assert do(run, stages, mine[-1])
        assert not left(run, mine[-1])
    whole, made = (
        {
            path.relative_to(run): without_seconds(path.read_bytes())
            if path.name == MANIFEST
            else path.read_bytes()
            for path in (run / "translated").rglob("*")
            if path.suffix in (".png", ".csv", ".json") and "progress" not in path.name
        }
        for run in runs.values()
    )
    kept = {name: content for name, content in made.items() if name.name != "stage.json"}
    assert kept == {name: content for name, content in whole.items() if name.name != "stage.json"}
    assert times == {p: p.stat().st_mtime_ns for p in times}, "putting together makes none anew"
