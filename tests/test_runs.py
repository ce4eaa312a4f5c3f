"""Run folders: what counts as done, what is refused, what a force removes."""

import dataclasses
import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from flows.plan import _instance_files, _listing, plan
from flows.prepare import prepare
from pipeline.config.load import load_config
from pipeline.errors import UserError, explain
from pipeline.files import read_json, replacing, sweep, write_json
from pipeline.progress import each, progress
from pipeline.run import contents
from pipeline.run.contents import STORE, hashes
from pipeline.run.folder import check_results, differences, fingerprint, locked, stage_state
from pipeline.run.stage import (
    Settings,
    Stage,
    all_inputs,
    changes,
    check,
    is_done,
    named,
    plain,
    remove,
    reports_of_others,
    run_stage,
    scored_on_other_data,
)
from pipeline.schema import Schema
from tests.helpers import do


def stage(name: str, calls: list[str], reads: tuple[str, ...] = (), **config: Any) -> Stage:
    """A stage that writes one file and notes that it was called."""

    def work(folder: Path) -> None:
        calls.append(name)
        (folder / "result.txt").write_text("made")

    return Stage(name, name, reads, lambda: {"version": 1, "config": config}, work)


def test_done_stages_are_skipped(tmp_path: Path) -> None:
    calls: list[str] = []
    stages = [stage("a", calls), stage("b", calls, ("a",))]
    assert do(tmp_path, stages) == [True, True]
    assert do(tmp_path, stages) == [False, False]
    assert calls == ["a", "b"]
    record = json.loads((tmp_path / "b/stage.json").read_text())
    assert record["inputs"]["reads"] == {"a": fingerprint(all_inputs(stages)["a"])}


def test_interrupted_stage_goes_on(tmp_path: Path) -> None:
    calls: list[str] = []
    do(tmp_path, [stage("a", calls)])
    (tmp_path / "a/stage.json").unlink()
    (tmp_path / "a/half.txt").write_text("kept")
    assert do(tmp_path, [stage("a", calls)]) == [True]
    assert (tmp_path / "a/half.txt").is_file()


@pytest.mark.parametrize("complete", [True, False])
def test_other_settings_are_refused_and_named(tmp_path: Path, complete: bool) -> None:
    calls: list[str] = []
    do(tmp_path, [stage("a", calls, epochs=5), stage("b", calls, ("a",))])
    if not complete:
        (tmp_path / "a/stage.json").unlink()
    with pytest.raises(UserError) as error:
        do(tmp_path, [stage("a", calls, epochs=7), stage("b", calls, ("a",))])
    for part in ("config.epochs: 5 -> 7", "--run DIR", "--force a"):
        assert part in str(error.value)
    assert calls == ["a", "b"]


def test_a_change_upstream_is_found_downstream(tmp_path: Path) -> None:
    calls: list[str] = []
    do(tmp_path, [stage("a", calls, epochs=5), stage("b", calls, ("a",))])
    changed = [stage("a", calls, epochs=7), stage("b", calls, ("a",))]
    assert named(changed, ["a"]) == ["a", "b"]
    remove(tmp_path, ["a", "b"])
    assert not (tmp_path / "a").exists()
    assert do(tmp_path, changed) == [True, True]


def test_force_takes_a_folder_of_stages_and_refuses_others(tmp_path: Path) -> None:
    calls: list[str] = []
    stages = [stage("s/one", calls), stage("s/two", calls), stage("t", calls, ("s/two",))]
    do(tmp_path, stages)
    assert named(stages, ["s/two"]) == ["s/two", "t"]
    assert named(stages, ["s"]) == ["s/one", "s/two", "t"]
    remove(tmp_path, ["s/two", "t"])
    assert is_done(tmp_path, "s/one")
    assert not (tmp_path / "t").exists()
    with pytest.raises(UserError, match=r"'x': no such stage\. Stages: s/one, s/two, t"):
        named(stages, ["x"])


def test_a_stage_waits_for_what_it_reads(tmp_path: Path) -> None:
    stages = [stage("a", []), stage("b", [], ("a",))]
    with pytest.raises(UserError, match="reads a, which is not complete"):
        run_stage(tmp_path, stages[1], all_inputs(stages)["b"])


def test_differences_are_named() -> None:
    old, new = {"a": {"b": 1, "c": [1, 2]}, "d": 0}, {"a": {"b": 2, "c": [1, 2]}, "e": 3}
    assert differences(old, new) == ["a.b: 1 -> 2", "d: 0 -> None", "e: None -> 3"]


class Part(Schema):
    weight: float = 1.0
    color: float = 0.2


class Recipe(Schema):
    steps: int = 10
    crop: tuple[int, int] = (64, 48)
    part: Part | None = None
    file: Path | None = None


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        ({}, Recipe(), []),
        ({"steps": 10, "crop": [64, 48], "part": None}, Recipe(), []),  # all fields, as once
        ({"gone": 3}, Recipe(), []),  # a setting that there is no more
        ({"part": {"weight": 1.0, "color": 0.5}}, Recipe(part=Part(color=0.5)), []),
        ({"part": {"color": 0.5}}, Recipe(part=Part(color=0.5)), []),
        ({}, Recipe(steps=12), ["config.steps: 10 -> 12"]),
        ({"steps": 12}, Recipe(), ["config.steps: 12 -> 10"]),
        ({"crop": [32, 32]}, Recipe(), ["config.crop: [32, 32] -> [64, 48]"]),
        ({}, Recipe(part=Part()), ["config.part: None -> {}"]),
        ({"part": {"weight": 2}}, Recipe(part=Part()), ["config.part.weight: 2 -> 1.0"]),
        ({"file": "abc"}, Recipe(file=Path("x")), ["config.file: 'abc' -> 'def'"]),
    ],
)
def test_settings_at_their_defaults_are_no_part_of_identity(
    before: dict[str, Any], now: Recipe, lines: list[str]
) -> None:
    content = {"file": "def"} if now.file else {}
    made = {"config": Settings(now, instead=content)}
    assert changes({"config": before}, made) == lines
    assert changes(plain(made), made) == []
    changed = {key for key in Recipe.model_fields if getattr(now, key) != getattr(Recipe(), key)}
    assert plain(made)["config"].keys() == changed


def test_plan_of_a_run(tiny: Path, tmp_path: Path) -> None:
    stages = plan(load_config(tiny, ["seeds=[0, 1]"]), tmp_path)
    names = [s.name for s in stages]
    assert names[:2] == ["cyclegan", "translated"]
    assert names[-1] == "report"
    assert len(names) == 2 + 2 * 3 * 2 + 1
    for position, item in enumerate(stages):
        assert all(name in names[:position] for name in item.reads)
    without = plan(load_config(tiny, ["arms={source_only: source, oracle: target}"]), tmp_path)
    assert "cyclegan" not in [s.name for s in without]


def test_identity_is_not_where_the_data_is_nor_how_fast(
    tiny: Path, tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = all_inputs(plan(load_config(tiny), tmp_path))
    moved = tmp_path / "moved"
    moved.symlink_to(world)
    monkeypatch.setenv("WORLD", str(moved))
    assert all_inputs(plan(load_config(tiny, ["compute.workers=2"]), tmp_path)) == before
    other = all_inputs(plan(load_config(tiny, ["source.limit=5"]), tmp_path))
    assert other["cyclegan"] != before["cyclegan"]
    assert other["segmentation/oracle/seed-0"] == before["segmentation/oracle/seed-0"]


def test_state_through_json(tmp_path: Path) -> None:
    inputs = {"crop": (1, 2)}
    assert stage_state(tmp_path, "a", inputs) == "absent"
    write_json(tmp_path / "a/inputs.json", inputs)
    assert stage_state(tmp_path, "a", inputs) == "begun"


def test_done_stages_speak_for_themselves_where_another_is_wanted(tmp_path: Path) -> None:
    calls: list[str] = []
    do(tmp_path, [stage("a", calls), stage("b", calls, ("a",))])

    def gone() -> dict[str, Any]:
        raise UserError("the data is gone")

    stages = [Stage("a", "a", (), gone, lambda folder: None), stage("b", calls, ("a",))]
    with pytest.raises(UserError, match="gone"):
        check(tmp_path, stages)
    assert check(tmp_path, stages, only=lambda s: s.command == "b")["b"]["reads"]["a"]


def test_a_force_need_not_agree_but_the_rest_must(tmp_path: Path) -> None:
    calls: list[str] = []
    do(tmp_path, [stage("a", calls, epochs=5), stage("b", calls, epochs=5)])
    changed = [stage("a", calls, epochs=7), stage("b", calls, epochs=7)]
    with pytest.raises(UserError, match="force b"):
        check(tmp_path, changed, forced=["a"])
    check(tmp_path, changed, forced=["a", "b"])


def test_files_of_unknown_origin_are_not_continued(tmp_path: Path) -> None:
    (tmp_path / "a/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no inputs\.json"):
        do(tmp_path, [stage("a", [])])


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    calls: list[str] = []
    (tmp_path / "b/deep").mkdir(parents=True)
    (tmp_path / "config.yaml").touch()
    (tmp_path / "b/deep/.part-0123456789ab.png").write_text("half")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.part-0123456789ab.json").write_text(
        "half of inputs.json, the first file of a stage"
    )
    for folder in (".removed-abcd_123/a", "evaluation/.taken-abcd_123/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_text("old")
    with locked(tmp_path):
        assert do(tmp_path, [stage("a", calls)]) == [True]
    left = [path.name for path in tmp_path.rglob(".*") if path.name != STORE]
    assert left == []


def test_what_is_not_ours_is_not_swept(tmp_path: Path) -> None:
    own, parts = tmp_path / "papers", (".part-of-my-thesis.tex", ".part-0123456789ab.pt")
    (own / ".removed-notes").mkdir(parents=True)
    (tmp_path / parts[0]).touch()
    (own / parts[1]).touch()
    with locked(tmp_path):  # a folder that is no run
        pass
    (tmp_path / "config.yaml").touch()
    (own / "config.yaml").touch()  # another run, with processes of its own
    with locked(tmp_path):
        pass
    assert (tmp_path / parts[0]).exists()
    assert (own / ".removed-notes").exists()
    assert (own / parts[1]).exists()


def test_what_another_process_writes_is_not_swept(tmp_path: Path) -> None:
    with replacing(tmp_path / "file.json") as part:
        part.write_text("half")
        abandoned = tmp_path / ".part-0123456789ab.json"
        abandoned.write_text("half")
        sweep(tmp_path)
        assert part.exists()
        assert not abandoned.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_files_are_as_open_to_others_as_the_user_wants(tmp_path: Path) -> None:
    for mask, mode in ((0o077, 0o600), (0o022, 0o644), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            write_json(tmp_path / "file.json", 1)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == mode


def test_identity_holds_labels_and_weights(tiny: Path, own_world: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")

    def inputs() -> dict[str, Any]:
        _listing.cache_clear()
        config = load_config(tiny, [f"segmentation.encoder_weights={weights}"])
        return all_inputs(plan(config, tmp_path))

    before = inputs()
    weights.write_bytes(b"two")
    other_weights = inputs()
    with (own_world / "toy-sim/labels/00001.png").open("ab") as file:
        file.write(b"more")
    other_labels = inputs()
    name = "segmentation/source_only/seed-0"
    assert before[name] != other_weights[name] != other_labels[name]
    assert before["cyclegan"] == other_weights["cyclegan"] == other_labels["cyclegan"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, 1)
    with pytest.raises(OSError, match="disk"), replacing(path) as part:
        part.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_progress_may_count_in_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.progress._LINE_SECONDS", 0)
    monkeypatch.setattr("pipeline.progress._FIRST_LINE_SECONDS", 0)
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: next(clock))
    with progress(tmp_path, "CycleGAN", 10, images_per_unit=8) as advance:
        advance(1)
        advance(1)
    assert capsys.readouterr().err.splitlines()[-1].startswith("CycleGAN: 2/10 steps, ")
    with progress(tmp_path, "CycleGAN", 10, images_per_unit=8) as advance:
        advance(5)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "images/s" in line
    assert line.endswith(" left")


def test_logs_have_lines_and_no_blank_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, lines in ((30.0, 0), (0.0, 3)):
        monkeypatch.setattr("pipeline.progress._LINE_SECONDS", seconds)
        monkeypatch.setattr("pipeline.progress._FIRST_LINE_SECONDS", seconds)
        assert list(each(range(3), "labels read", 3)) == [0, 1, 2]
        with progress(tmp_path, "work", 3):
            pass
        said = capsys.readouterr().err.splitlines()
        assert [line.split(",")[0] for line in said] == [
            *(f"labels read: {n + 1}/3 images" for n in range(lines)),
            "work: 3 steps",
        ]


def test_progress_is_recorded_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress(tmp_path, "work", 10) as advance:
        advance(4)
    first = json.loads((tmp_path / "progress.json").read_text())
    assert (first["done"], first["total"], first["unit"]) == (4, 10, "steps")
    write_json(tmp_path / "progress.json", first | {"seconds": 100.0})
    with progress(tmp_path, "work", 10, done=4) as advance:
        advance(6)
    assert "work: continued at step 4 of 10\n" in capsys.readouterr().err
    last = json.loads((tmp_path / "progress.json").read_text())
    assert last["done"] == 10
    assert last["seconds"] >= 100


def test_instance_files_are_a_part_of_what_is_scored(
    tiny: Path, own_world: Path, tmp_path: Path
) -> None:

    def changed(space: str) -> list[str]:
        config = load_config(tiny, [f"label_space={space}"])
        before = all_inputs(plan(config, tmp_path))
        label = next(own_world.rglob("val/*/*_labelIds.png"))
        file = label.with_name(label.name.replace("labelIds", "instanceIds"))
        file.write_bytes(b"instances")
        _instance_files.cache_clear()
        after = all_inputs(plan(config, tmp_path))
        file.unlink()
        _instance_files.cache_clear()
        return [name for name in before if before[name] != after[name]]

    arms = ("source_only", "adapted", "oracle")
    assert changed("cityscapes19") == [*(f"evaluation/{arm}/seed-0" for arm in arms), "report"]
    assert changed("synthia16") == []


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("label_space=synthia13", {"evaluation"}),
        ("source.about={kind: real, licence: x, url: x, table: x, size: 1x1}", set()),
        ("source.splits={some: '0000[1-9]'}", set()),
        ("source.values={7: road}", {"segmentation"}),
        (f"source.decoder={__file__}:constant", {"segmentation"}),
        ("source.width=64", {"cyclegan", "translated", "segmentation"}),
        ("compute.cache=somewhere", set()),
    ],
)
def test_what_a_setting_makes_anew(tiny: Path, setting: str, changed: set[str]) -> None:
    run = tiny.parent
    plain = all_inputs(plan(load_config(tiny, ["label_space=synthia16"]), run))
    other = all_inputs(plan(load_config(tiny, ["label_space=synthia16", setting]), run))
    own = {
        name.split("/")[0]
        for name, inputs in plain.items()
        if {**inputs, "reads": {}} != {**other[name], "reads": {}}
    }
    assert own == changed


def test_a_decoder_s_file_is_known_by_its_content(tiny: Path, tmp_path: Path) -> None:
    def inputs(file: Path) -> object:
        config = load_config(tiny, [f"source.decoder={file}:decode"])
        return all_inputs(plan(config, tmp_path))["segmentation/source_only/seed-0"]

    for folder, code in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(code)  # hashed, not run
    assert inputs(tmp_path / "a/own.py") == inputs(tmp_path / "b/own.py")
    assert inputs(tmp_path / "a/own.py") != inputs(tmp_path / "c/own.py")


def test_a_quarantined_frame_makes_all_that_reads_the_set_anew(tiny: Path, world: Path) -> None:
    path = tiny.parent / "bad.csv"
    path.write_text("name,reason\n00003,blank\n")
    plain = all_inputs(plan(load_config(tiny), tiny.parent))
    fewer = all_inputs(plan(load_config(tiny, [f"source.quarantine={path}"]), tiny.parent))
    assert plain["cyclegan"] != fewer["cyclegan"]
    assert differences(plain["cyclegan"], fewer["cyclegan"]) != []
    path.write_text("name,reason\n00003,another reason\n")
    _listing.cache_clear()
    again = all_inputs(plan(load_config(tiny, [f"source.quarantine={path}"]), tiny.parent))
    assert again == fewer


def test_runs_of_earlier_versions_go_on(tiny: Path, own_world: Path, tmp_path: Path) -> None:
    """They recorded names and sizes of files, and no results."""
    run = tmp_path / "run"

    def without(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: without(v) for k, v in value.items() if k not in ("content", "reads")}

    def found() -> dict[str, Any]:
        _listing.cache_clear()
        return check(run, stages)

    stages = plan(load_config(tiny), run)
    recorded: dict[str, Any] = {}
    for item in stages:
        reads = {name: fingerprint(recorded[name]) for name in item.reads}
        inputs = {**without(plain(item.inputs())), "reads": reads}
        recorded[item.name] = inputs
        write_json(run / item.name / "inputs.json", inputs)
        record = {"fingerprint": fingerprint(inputs), "seconds": 1, "inputs": inputs}
        write_json(run / item.name / "stage.json", record)
    (run / "cyclegan/stage.json").unlink()
    assert found() == recorded
    assert stage_state(run, "cyclegan", recorded["cyclegan"]) == "begun"
    check_results(run, "translated")
    # What is made anew records the contents; what reads it must be made anew, too.
    remove(run, named(stages, ["translated"]))
    anew = found()
    assert "content" in anew["translated"]["source"]
    assert anew["segmentation/oracle/seed-0"] == recorded["segmentation/oracle/seed-0"]
    label = next(own_world.rglob("train/*/*_labelIds.png"))
    label.write_bytes(label.read_bytes() + b"more")
    with pytest.raises(UserError, match=r"(?s)train\.target\.dataset\.samples: .*--force"):
        found()


def test_a_file_of_the_same_size_with_other_content_is_seen(
    tiny: Path, own_world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stages = plan(load_config(tiny), run)

    def inputs() -> dict[str, Any]:
        _listing.cache_clear()
        return all_inputs(stages)

    before = inputs()
    label = own_world / "toy-sim/labels/00001.png"
    content = label.read_bytes()
    os.utime(label, (1, 1))
    assert inputs() == before  # touched only
    label.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = {name for name, found in inputs().items() if found != before[name]}
    assert changed == {
        *[f"{kind}/source_only/seed-0" for kind in ("segmentation", "evaluation")],
        *[f"{kind}/adapted/seed-0" for kind in ("segmentation", "evaluation")],
        "report",
    }


def test_mended_test_labels_are_scored_anew(tiny: Path, own_world: Path, tmp_path: Path) -> None:
    """By the command that scores; a change of anything else is refused as ever."""
    run = tmp_path / "run"
    stages = plan(load_config(tiny), run)
    scored = [stage for stage in stages if stage.command == "evaluate"]
    for stage in scored:
        write_json(run / stage.name / "inputs.json", {**plain(stage.inputs()), "reads": {}})

    def outdated() -> list[str]:
        _listing.cache_clear()
        _instance_files.cache_clear()
        return scored_on_other_data(run, stages)

    assert outdated() == []
    label = next((own_world / "toy-real/gtFine/val").rglob("*_labelIds.png"))
    content = label.read_bytes()
    label.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert outdated() == [stage.name for stage in scored]
    first = run / scored[0].name / "inputs.json"
    other = read_json(first)
    write_json(first, {**other, "config": {**other["config"], "flip": True}})
    assert outdated() == [stage.name for stage in scored[1:]]


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("compute.workers=2", []),
        ("seeds=[0, 1]", ["report"]),
        ("arms={source_only: source, oracle: target}", ["report"]),
        ("evaluation.pictures=9", ["report"]),
        ("evaluation.flip=true", []),
    ],
)
def test_a_report_of_other_arms_or_seeds_makes_way(
    tiny: Path, tmp_path: Path, setting: str, found: list[str]
) -> None:
    """What it was made from stays, and is refused where it differs."""
    run, scored = tmp_path / "run", "evaluation/oracle/seed-0"
    made = all_inputs(plan(load_config(tiny), run))
    for name in ("report", scored):
        write_json(run / name / "inputs.json", made[name])
    config = load_config(tiny, [setting])
    assert reports_of_others(run, plan(config, run)) == found
    if "flip" in setting:
        with pytest.raises(UserError, match=f"{scored} was made with other .*\n *config.flip"):
            prepare(config, run, [])
    else:
        prepare(config, run, [])
    assert (run / "report").exists() != bool(found)
    assert (run / scored).exists()


def test_contents_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, run = tmp_path / "data", tmp_path / "run"
    file.write_bytes(b"one")
    os.utime(file, (1, 1))
    one = hashlib.sha256(b"one").hexdigest()
    assert hashes([file, file], run, "x") == [one, one]
    looks: list[str] = []
    look = contents._look
    monkeypatch.setattr(contents, "_look", lambda path: (looks.append(path), look(path))[1])
    for forget in (False, True):  # as another process would
        if forget:
            contents._STORES.clear()
            contents._SEEN.clear()
        assert hashes([file], run, "x") == [one]
    assert looks == []
    for damaged in ("", "{}", "[1]", '{"a": 1}', "\x00"):
        (run / STORE).write_text(damaged)
        contents._STORES.clear()
        contents._SEEN.clear()
        assert hashes([file], run, "x") == [one]
    file.write_bytes(b"two")
    assert hashes([file], run, "x") != [one]


def test_what_has_just_changed_is_looked_at_again(tmp_path: Path) -> None:
    """Two changes within a tick of the file system's clock leave the same time."""
    file = tmp_path / "data"
    file.write_bytes(b"one")
    hashes([file], tmp_path / "run", "x")
    assert json.loads((tmp_path / "run" / STORE).read_text()) == {}


def test_damaged_and_missing_results_are_noticed(tmp_path: Path) -> None:
    calls: list[str] = []
    first = dataclasses.replace(stage("a", calls), results=("*.txt",))
    last = stage("b", calls, ("a",))
    do(tmp_path, [first, last])
    for damage in (lambda path: path.write_text("mode"), Path.unlink):
        damage(tmp_path / "a/result.txt")
        remove(tmp_path, ["b"])
        with pytest.raises(UserError, match=r"result\.txt.*--force a`"):
            do(tmp_path, [first, last])


@pytest.mark.parametrize("silent", [RuntimeError("unexpected pos"), OSError("could not write")])
def test_a_full_disk_is_said_where_a_library_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: Exception
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space") as error, replacing(tmp_path / "last.pt"):
        raise silent
    assert list(tmp_path.iterdir()) == []
    said = explain(error.value)
    assert said.startswith(f"The disk is full: {tmp_path / 'last.pt'} could not be written. Make")
    assert "quota" in explain(OSError(errno.EDQUOT, "", "x"))
    assert "may be read" in explain(OSError(errno.EACCES, "Permission denied", "x"))
