"""Translations by name: the graph that a configuration makes of them, and the table of methods."""

from pathlib import Path

import pytest
import yaml

from flows.plan import plan
from pipeline.config.load import load_config
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import TranslationConfig
from pipeline.config.translators import TRANSLATORS, TranslationInputs, Translator
from pipeline.data.images import UInt8
from pipeline.errors import UserError
from pipeline.run.stage import check, is_done
from tests.conftest import TINY
from tests.helpers import do

STACK = {
    "arms": {"source_only": "source", "coloured": "colours", "stacked": "gan", "oracle": "target"},
    "translations": {
        "gan": {"source": "colours", "cyclegan": {"seed": 3, "semantics": {"probe_frames": 2}}},
        "colours": {"method": "histogram_matching", "seed": 4},
        "unused": {"method": "fda"},
    },
}


def configured(folder: Path, **settings: object) -> Path:
    """A tiny configuration with other settings, as a file."""
    path = folder / "named.yaml"
    path.write_text(yaml.safe_dump(TINY | settings))
    return path


def test_the_plan_is_the_graph_of_the_names(
    tmp_path: Path, named_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(configured(tmp_path, **STACK))
    reads = {stage.name: set(stage.reads) for stage in plan(config, tmp_path / "run")}
    watching = "segmentation/source_only/seed-0"
    assert reads["translations/colours"] == set()
    assert reads["cyclegans/gan"] == {"translations/colours", watching}
    assert reads["translations/gan"] == {"translations/colours", "cyclegans/gan"}
    assert reads["segmentation/stacked/seed-0"] == {"translations/gan"}
    assert reads["segmentation/coloured/seed-0"] == {"translations/colours"}
    order = list(reads)
    assert all(order.index(below) < order.index(name) for name in reads for below in reads[name])
    assert not {"translated", "cyclegan", "translations/unused"} & reads.keys()


def test_a_stack_runs_and_only_what_changed_is_made_anew(
    tmp_path: Path, named_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = tmp_path / "run", configured(tmp_path, **STACK)
    stages = plan(load_config(path), run)
    read = ("translations/", "cyclegans/", "segmentation/source_only", "segmentation/stacked")
    do(run, [stage for stage in stages if stage.name.startswith(read)])
    manifest = (run / "translations/gan/manifest.csv").read_text()
    assert str(run / "translations" / "colours" / "images") in manifest
    other = plan(load_config(path, ["translations.gan.shifts=4"]), run)
    with pytest.raises(UserError, match=r"translations/gan was made .*\n  config\.shifts: 1 -> 4"):
        check(run, other)
    check(run, [stage for stage in other if stage.name.endswith(("colours", "source_only"))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": {"a": "gans"}, "translations": {"gan": {}}}, r"no frames 'gans'.* mean 'gan'"),
        (
            {"arms": {"a": "x"}, "translations": {"x": {"source": "y"}, "y": {"source": "x"}}},
            r"in a circle: .*Translations: translated from source; x from y; y from x",
        ),
        ({"translations": {"x": {"source": "nothing"}}}, r"translations\.x\.source: no frames"),
        ({"translations": {"source": {}}}, r"translations\.source: this name has a meaning"),
        (
            {"arms": {"a": "x"}, "translations": {"x": {"cyclegan": {"blocs": 3}}}},
            r"translations\.x\.cyclegan: .*(?s:.)*blocs: unknown key\. Did you mean 'blocks'",
        ),
        (
            {"arms": {"a": "x"}, "translations": {"x": {"checkpoint": "best"}}},
            r"translations\.x\.checkpoint is 'best', and no segmentation network",
        ),
        (
            {
                "arms": {
                    "s": "source",
                    "a": {"train": "source", "start": "b"},
                    "b": {"train": "x", "start": "a"},
                },
                "translations": {"x": {"method": "class_alignment", "pseudo_labels": "a"}},
            },
            r"in a circle|start is 'b'",
        ),
        ({"arms": {"a": {"train": "source", "base": "a"}, "b": "source"}}, r"base is 'a'; .* b"),
        ({"translations": {"x": {"method": "cyclegn"}}}, "no method 'cyclegn'. Did you mean"),
        (
            {"arms": {"a": "x"}, "translations": {"x": {"cyclegan": {"semantics": {"arm": "a"}}}}},
            r"cyclegan\.semantics\.arm is 'a'; it must be an arm that trains on `source` alone",
        ),
    ],
)
def test_names_that_cannot_work(tiny: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(configured(tiny.parent, **settings))


def test_every_translator_can_be_loaded_and_uses_known_settings() -> None:
    for translator in TRANSLATORS.values():
        assert callable(translator.load())
        assert translator.settings <= set(TranslationConfig.model_fields)


def negative(
    config: TranslationConfig, given: TranslationInputs, folder: Path, compute: ComputeConfig
) -> None:
    """Each frame's negative."""
    from cyclegan.translate import translate_frames

    def each(_: int, frame: UInt8) -> UInt8:
        return 255 - frame

    translate_frames(given.source, folder, compute, each=each)


def test_a_translator_is_added_by_the_table_alone(
    tmp_path: Path, named_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Translator("negative", frozenset(), f"{__name__}:negative", reads_target=False)
    monkeypatch.setitem(TRANSLATORS, "negative", entry)
    arms = {"adapted": "translated"}
    path = configured(tmp_path, arms=arms, translation={"method": "negative"})
    config, run = load_config(path), tmp_path / "run"
    stages = plan(config, run)
    do(run, stages)
    assert all(is_done(run, stage.name) for stage in stages)
    assert "by negative" in (run / "report" / "index.html").read_text()
