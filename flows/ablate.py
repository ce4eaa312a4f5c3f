"""The ladder of `sim2real run --ablate`: what each step of an adaptation brings on one's own data.

A ladder is a folder of ordinary runs, one for each row of its table. A stage that another row made
from the same inputs is taken over from it, not computed again.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.prepare import preflight, prepare
from flows.stages import check, is_done, plan
from pipeline.config.settings import AFTER, BEFORE, IDEAL, Config
from pipeline.errors import UserError
from pipeline.files import TAKEN
from pipeline.run.folder import (
    CONFIG_FILE,
    check_results,
    fingerprint,
    locked,
    read_stage,
    stage_state,
)
from pipeline.schema import parse
from reports.ladder import Row, write_ladder

Settings = dict[str, Any]

OFF: Settings = {
    "cyclegan": {"semantics": None},
    "translation": {"method": "cyclegan", "checkpoint": "last"},
    "segmentation": {"rare_class_sampling": None},
}
"""What rows go without, unless they are there to show it."""
PLAIN: Settings = {"scale": [1, 1], "flip": False, "color": 0, "hue": 0, "blur": 0, "noise": 0}
"""Augmentation that leaves frames as they are, but for the random crop."""
FIRST = ("no_augmentation", "source_only", "oracle")
"""Rows that are computed first: with them, every later row tells what it closed of the gap."""


def ladder(config: Config) -> list[Row]:
    """The rows for a configuration, from the bottom to the oracle.

    Data sets, networks and recipes are the configuration's. Its settings of semantic consistency,
    and its first arm with self-training on translated frames and on no label of the target, with
    rare class sampling and masking, are those of the rows that add them; without any, these rows
    take the defaults. Left out are semantic consistency for pairs and given weights, and the oracle
    where no arm may see the target's labels.
    """
    own = config.model_dump(mode="json")
    rows: list[Row] = []

    def add(name: str, title: str, base: str | None, arms: Settings, settings: Settings) -> None:
        data = _over(_over(own, OFF), settings) | {"name": f"{config.name}-{name}", "arms": arms}
        shown = list(arms)[-1]
        rows.append(Row(name, title, base, shown, parse(Config, data, f"row {name}")))

    source, translated = {BEFORE: "source"}, {AFTER: "translated"}
    plain = {"segmentation": {"augmentation": PLAIN}}
    add("no_augmentation", "source only, without augmentation", None, source, plain)
    add("source_only", "source only", "no_augmentation", source, {})
    for method, title in (
        ("histogram_matching", "histogram matching"),
        ("fda", "Fourier domain adaptation"),
    ):
        add(method, title, "source_only", translated, _by(method))

    weights, semantics = config.translation.weights, own["cyclegan"]["semantics"] or {}
    title = f"generator {weights.name}" if weights else "CycleGAN"
    add("cyclegan", title, "source_only", translated, {})
    below, judged = {}, {}
    if weights is None and not config.cyclegan.paired:
        weight = semantics.get("consistency") or 1
        judged = {
            "cyclegan": {"semantics": {**semantics, "consistency": weight}},
            "translation": {"checkpoint": config.translation.checkpoint},
        }
        below = source  # the judge
        add(
            *("semantic_consistency", "+ semantic consistency", "cyclegan"),
            *(source | translated, judged),
        )

    name = "self_trained"
    arm: Settings = {"train": "translated", "self_training": {}, "segmentation": {}}
    for found in own["arms"]:
        chain = _starts(own["arms"], found)
        labels = {frames for link in chain.values() for frames in link["train"]}
        if chain[found]["self_training"] and "translated" in labels and "target" not in labels:
            name, arm = found, chain.pop(found)
            below = below | chain
            break
    rare = arm["segmentation"].get("rare_class_sampling")
    rare = rare or own["segmentation"]["rare_class_sampling"] or {}
    masked = arm["self_training"].get("masked_weight") or 1
    arm = _over(arm, {"segmentation": {"rare_class_sampling": None}})
    arm = _over(arm, {"self_training": {"masked_weight": 0}})
    for step, title, added in (
        ("self_training", "self-training", {}),
        (
            "rare_class_sampling",
            "rare class sampling",
            {"segmentation": {"rare_class_sampling": rare}},
        ),
        (
            "masked_consistency",
            "masked consistency",
            {"self_training": {"masked_weight": masked}},
        ),
    ):
        arm = _over(arm, added)
        add(step, f"+ {title}", rows[-1].name, below | {name: arm}, judged)
    if "target" in config.labels_read:
        add("oracle", "oracle", None, {IDEAL: "target"}, {})
    return rows


def _by(method: str) -> Settings:
    return {"translation": {"method": method, "weights": None}}


def _over(under: Settings, over: Settings) -> Settings:
    """`under` with the values of `over`, which may be as deeply nested."""
    return under | {
        key: _over(under[key], value)
        if isinstance(value, dict) and isinstance(under.get(key), dict)
        else value
        for key, value in over.items()
    }


def _starts(arms: Settings, name: str | None) -> Settings:
    """The arm `name`, after those that it starts from; nothing when it is a file or none."""
    if name not in arms:
        return {}
    return _starts(arms, arms[name]["start"]) | {name: arms[name]}


def ablate(
    config: Config, folder: Path, run_row: Callable[[Path], None], *, others: Sequence[Path] = ()
) -> None:
    """Run every row of the ladder in a folder of its own below `folder`, and write their table.

    The table is there from the beginning and grows with every row; a second call continues.

    Args:
        run_row: does what is left of the run in a folder.
        others: runs outside the ladder to take stages over from, too, if they are there.

    Raises:
        UserError: some row cannot work, found before any work; or the folder holds a plain run, or
            rows that were made with other settings.
    """
    if (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} holds a run, and a ladder is a folder of runs. Give another one with --run."
        )
    rows = ladder(config)
    runs = [folder / row.name for row in rows]
    with locked(folder):
        if not all(is_done(run, "report") for run in runs):
            preflight(_together(rows))
        for row, run in zip(rows, runs, strict=True):
            prepare(row.config, run, [], looked_at=True)
        write_ladder(config.name, rows, folder, seconds_by_row(rows, folder))
        for row in sorted(rows, key=lambda row: row.name not in FIRST):
            run = folder / row.name
            if is_done(run, "report"):
                continue
            print(f"Row {rows.index(row) + 1} of {len(rows)}: {row.title}", file=sys.stderr)
            if taken := take_over(row.config, run, [*runs, *others]):
                print(f"  taken over: {', '.join(taken)}", file=sys.stderr, flush=True)
            run_row(run)
            write_ladder(config.name, rows, folder, seconds_by_row(rows, folder))


def _together(rows: Sequence[Row]) -> Config:
    """A configuration with all that the rows read and build: the fullest row with every arm."""
    fullest = [row.config for row in rows if row.config.translates][-1]
    arms = {name: arm for row in rows for name, arm in row.config.arms.items()}
    return fullest.model_copy(update={"arms": arms})


def take_over(config: Config, run: Path, others: Sequence[Path]) -> list[str]:
    """Give a run the stages that it has not begun and that one of `others` made from equal inputs.

    Files are linked, or copied where the file system has no links: no stage changes them once it
    is done. A stage's folder appears whole or not at all.

    Returns:
        The names of the stages.
    """
    stages = plan(config, run)
    inputs = check(run, stages)
    taken = []
    for stage in stages:
        if stage_state(run, stage.name, inputs[stage.name]) != "absent":
            continue
        wanted = fingerprint(inputs[stage.name])
        for other in others:
            done = is_done(other, stage.name)
            if done and read_stage(other, stage.name).fingerprint == wanted:
                check_results(other, stage.name)
                _link_tree(other / stage.name, run / stage.name)
                taken.append(stage.name)
                break
    return taken


def _link_tree(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=TAKEN, dir=place.parent))
    shutil.copytree(source, part / place.name, copy_function=_link)
    os.replace(part / place.name, place)
    part.rmdir()


def _link(source: str, place: str) -> None:
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)


def seconds_by_row(rows: Sequence[Row], folder: Path) -> dict[str, float | None]:
    """Seconds of computation that each row needs by itself, shared stages included; None: not done.

    Counted are all seeds of the arm that it shows, its evaluations, and the stages they read.
    """
    seconds: dict[str, float | None] = {}
    for row in rows:
        run = folder / row.name
        reads = {stage.name: stage.reads for stage in plan(row.config, run)}
        todo = [f"evaluation/{row.arm}/seed-{seed}" for seed in row.config.seeds]
        needed: set[str] = set()
        while todo:
            needed.add(todo[-1])
            todo.extend(name for name in reads[todo.pop()] if name not in needed)
        seconds[row.name] = (
            sum(read_stage(run, name).seconds for name in needed)
            if is_done(run, "report")
            else None
        )
    return seconds
