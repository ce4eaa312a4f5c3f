"""What the page of a run shows besides its `report.json`: pictures, curves, costs, provenance."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pipeline.config.settings import Config
from pipeline.config.translation import TRANSLATED
from pipeline.csv_files import read_table
from pipeline.data.images import read_rgb
from pipeline.data.labels import LabelSpace, load_label_space
from pipeline.errors import UserError
from pipeline.files import explain_damage
from pipeline.run.folder import (
    RUN_FILE,
    STAGE_FILE,
    StageRecord,
    cyclegan_folder,
    gate_folder,
    network_folder,
    read_run_record,
    read_stage,
    translated_folder,
)
from pipeline.scoring import drift
from pipeline.scoring.drift import Drift as GateDrift
from pipeline.scoring.drift import FrameAgreement
from pipeline.scoring.metrics import headline, in_steps, ranking
from pipeline.yaml_files import yaml_text
from reports import logs, pictures, tables
from reports.budget import points
from reports.charts import Chart, Series, budget_chart, gap_bar, source_chart
from reports.classes import frame_count
from reports.colors import arm_colors, distinct_palette
from reports.evidence import watched
from reports.pages import environment, readable
from reports.selection import Network
from reports.sentences import main_of, ours
from reports.settings import ordered_arms
from reports.steps import Step
from reports.summary import Summary

T = TypeVar("T")

LEADERS = 5
"""Checkpoints shown of the translators' leaderboard."""


def report_page(
    config: Config,
    run: Path,
    report: Summary,
    evaluations: tables.Evaluations,
    *,
    steps: Sequence[Step],
    candidates: Sequence[Network],
    lost: Sequence[str],
) -> str:
    """The page of a run. What it shows in numbers and sentences is in `report`."""
    space = load_label_space(config.label_space)
    main = main_of(ours(report.recipes))
    names = list(config.used_translations)
    most = max(1, min(pictures.MOST, pictures.IN_ALL // max(1, len(names))))
    translations = [_translation(config, run, name, most) for name in names]
    room = pictures.BUDGET - sum(one.bytes for one in translations)
    frames = _or_reason(lambda: pictures.gallery(run, config, space, evaluations, main, room))
    budget = points(report)
    costs = list(_costs(run, config, report))
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=config.name,
            config=config,
            report=report,
            main=main,
            arms=list(report.arms),
            colors=arm_colors(list(report.arms)),
            palette=_palette(report, space),
            recolored=_recolored(space),
            gaps=[gap_bar(report, metric) for metric in headline()],
            shares={part: known for part, known in report.data.shares.items() if known},
            gallery=frames,
            data=_data(space, report, frames),
            lost=lost,
            settings=yaml_text(config.model_dump(mode="json")),
            steps=steps,
            candidates=candidates,
            budget=budget,
            source_charts=[
                source_chart(report, m) for m in in_steps() if report.data.source_points
            ],
            budget_charts=[budget_chart(report, m) for m in in_steps() if budget],
            translations=translations,
            curves=logs.segmentation_charts(config, list(logs.logs_of(config, run))),
            costs=costs,
            hosts=sorted({host for cost in costs for host in cost.hosts}),
            fingerprints=_fingerprints(costs),
            record=read_run_record(run / RUN_FILE) if (run / RUN_FILE).is_file() else None,
            networks=dict.fromkeys(
                f"{one.architecture} ({one.encoder})" for one in map(config.recipe, config.arms)
            ),
            counts={
                "source": frame_count(config.source),
                "target": frame_count(config.target),
            },
        )
    )
    return readable(page)


def _or_reason(make: Callable[[], T]) -> T | str:
    """What `make` returns, or as text why it cannot: pictures may have moved since the run."""
    try:
        return make()
    except UserError as error:
        return str(error)


def _palette(report: Summary, space: LabelSpace) -> dict[str, str]:
    """Class -> its colour in the page; grey for one that the label space no longer has."""
    colors = distinct_palette(space).tolist()
    known = {
        name: "#" + "".join(f"{channel:02x}" for channel in colors[index])
        for index, name in enumerate(space.class_names)
    }
    return {name: known.get(name, "#808080") for name in report.classes}


def _recolored(space: LabelSpace) -> list[str]:
    """The classes that the page draws in another colour than the label space."""
    own, shown = space.palette, distinct_palette(space)
    return [name for i, name in enumerate(space.class_names) if (own[i] != shown[i]).any()]


def _data(
    space: LabelSpace,
    report: Summary,
    frames: pictures.Gallery | str,
) -> dict[str, object]:
    """What the page's script reads."""
    arms = list(report.arms)
    shown = [] if isinstance(frames, str) else frames.frames
    colors = arm_colors(arms)
    return {
        "arms": [{"name": arm, "color": colors[arm]} for arm in arms],
        "classes": [
            {"name": name, "color": color} for name, color in _palette(report, space).items()
        ],
        "measures": [
            {"key": m.key, "title": m.title, "unit": m.unit}
            for m in sorted(in_steps(), key=lambda metric: metric != ranking())
        ],
        "confusion": report.confusion,
        "frames": [
            {
                "name": one.name,
                "photo": one.photo,
                "truth": one.truth,
                "predictions": [one.predictions[arm] for arm in arms],
                "scores": {
                    m.key: [one.scores.get(arm, {}).get(m.key) for arm in arms] for m in in_steps()
                },
                "iou": [one.class_iou.get(arm) for arm in arms],
            }
            for one in shown
        ],
    }


@dataclass(frozen=True)
class Translation:
    """What the page shows of one translation; texts say why something is not shown."""

    name: str
    method: str
    source: str
    origin: str
    """Seeds and weights, as a text."""
    columns: str
    """What the columns of its grids are."""
    pairs: list[pictures.Pair] | str
    grids: list[pictures.Grid] | str = ""
    drift: "Drift | None" = None
    gate: "Gate | None" = None
    charts: Sequence[Chart] = ()

    @property
    def bytes(self) -> int:
        """The size of its pictures in a page."""
        shown = [] if isinstance(self.pairs, str) else self.pairs
        grids = [] if isinstance(self.grids, str) else self.grids
        return (
            sum(len(pair.source) + len(pair.translated) for pair in shown)
            + sum(len(grid.picture) for grid in grids)
            + sum(len(strip) for _, strip in (self.gate.worst if self.gate else ()))
        )


def _translation(config: Config, run: Path, name: str, most: int) -> Translation:
    """What the page shows of one translation.

    Args:
        most: pictures of a kind.
    """
    settings, recipe = config.all_translations[name], config.cyclegan_recipe(name)
    title, stage = settings.translator.title, translated_folder(name)
    title += f" of {settings.teacher}" if settings.teacher else ""
    columns = (
        "source, translated, what it learns to make"
        if recipe.paired
        else "source, translated, a frame of the target"
        if recipe.one_way
        else "source, translated, back to source; target, translated to source, back to target. "
        "The closer “back” is to its original, the better the content has been kept"
    )
    shown = Translation(
        name,
        title,
        settings.source,
        f"{title}, seed {settings.seed}",
        columns,
        _or_reason(lambda: pictures.translated_pairs(run, stage, most)),
        gate=_gate(run, name, most),
    )
    if settings.weights is not None:
        return replace(shown, origin=f"generator {settings.weights.name}")
    if not settings.trains:
        return shown
    folder = run / cyclegan_folder(name)
    start = f", from the networks of {recipe.start.name}" if recipe.start else ""
    which = title if name == TRANSLATED else f"{title} {name}"
    chance = "cross-entropy: 0.69" if recipe.adversarial_loss == "vanilla" else "squares: 0.25"
    return replace(
        shown,
        origin=f"{title} trained once, with seed {recipe.seed}{start}",
        grids=_or_reason(lambda: pictures.sample_grids(folder, most)),
        drift=_drift(config, run, name),
        charts=logs.translator_charts(
            logs.table_of(list(logs.entries(folder / "log.jsonl"))),
            which,
            "Losses over steps; of a discriminator that cannot tell real from translated, "
            f"{chance}.",
        ),
    )


@dataclass(frozen=True)
class Gate:
    """What a frozen segmenter saw in all frames of a translation."""

    found: GateDrift
    data: dict[str, object]
    """Its confusion matrices, as the page's script reads them."""
    worst: list[tuple[FrameAgreement, str]]
    """Frames with their strips of pictures, worst first."""


def _gate(run: Path, name: str, most: int) -> Gate | None:
    """Of a gate that has looked at a translation; strips that are gone are left out."""
    folder = run / gate_folder(name)
    if not (folder / drift.FILE).is_file():
        return None
    found = GateDrift.read(folder)
    strips = [(one, run / one.picture) for one in found.worst if one.picture]
    worst = [
        (one, pictures.photo(read_rgb(path), pictures.GRID_WIDTH))
        for one, path in strips[:most]
        if path.is_file()
    ]
    return Gate(found, _matrices(found.classes, found.before, found.after), worst)


@dataclass(frozen=True)
class Drift:
    """What translations keep, where a frozen segmenter looked at them."""

    step: int
    features: str
    agreement: tuple[float, float]
    """The share of the pixels in which it agrees with the labels, before and after."""
    flips: list[tuple[str, str, float]]
    """As of `tables.flips`."""
    data: dict[str, object]
    """Its two confusion matrices, as the page's script reads them."""
    leaderboard: list[dict[str, float]]
    charts: list[Chart]


def _drift(config: Config, run: Path, name: str) -> Drift | None:
    """What a segmentation network saw in the translations of a CycleGAN, where one watched it."""
    if (seen := watched(config, run, name)) is None:
        return None
    features, one = seen
    folder = run / cyclegan_folder(name)
    anew = f"Make the stage anew with `sim2real run --force {cyclegan_folder(name)}`."
    board = folder / "leaderboard.csv"
    rows = read_table(board, ["step", "agreement_after", "distance", "score"], anew)
    with explain_damage(board, anew):
        leaderboard = [{key: float(value) for key, value in row.items()} for row in rows]
    with explain_damage(folder / "drift.json", anew):
        before, after = one.matrices
        return Drift(
            one.step,
            features,
            (before.pixel_accuracy, after.pixel_accuracy),
            tables.flips(before, after, one.classes),
            _matrices(one.classes, one.before, one.after),
            leaderboard[:LEADERS],
            _over_time(leaderboard),
        )


def _matrices(
    classes: Sequence[str], before: list[list[int]], after: list[list[int]]
) -> dict[str, object]:
    return {
        "classes": [{"name": name} for name in classes],
        "arms": [{"name": "source frames"}, {"name": "their translations"}],
        "confusion": {"source frames": before, "their translations": after},
    }


def _over_time(leaderboard: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Agreement and distance of all checkpoints, by their steps."""
    rows = sorted(leaderboard, key=lambda row: row["step"])
    steps = [row["step"] for row in rows]
    return [
        Chart(
            title,
            [Series(title, color, steps, [scale * row[key] for row in rows], points=True)],
            unit=unit,
        )
        for title, key, color, scale, unit in (
            ("Agreement with the labels after translation", "agreement_after", "#0072b2", 100, "%"),
            ("Distance from the target", "distance", "#d55e00", 1, ""),
        )
    ]


@dataclass(frozen=True)
class StageCost:
    """What a stage took, all seeds together."""

    title: str
    seconds: float
    device_seconds: float | None
    memory: int | None
    gpu_memory: int | None
    images: int | None
    """Images that it worked on; one that came twice counts twice."""
    hosts: frozenset[str] = frozenset()
    records: tuple[StageRecord, ...] = ()

    @property
    def rate(self) -> float | None:
        """Images a second."""
        return self.images / self.seconds if self.images and self.seconds else None


def _costs(run: Path, config: Config, report: Summary) -> Iterator[StageCost]:
    """What the complete stages of a run took."""
    shown = {(one.translator, one.name): 0 for one in report.trainings}
    for one in report.trainings:
        shown[one.translator, one.name] += one.frames
    for name, settings in config.used_translations.items():
        which = "" if name == TRANSLATED else f" {name}"
        title = f"{settings.translator.title}{which}"
        manifest = run / translated_folder(name) / "manifest.csv"
        anew = f"Translate anew with `sim2real run --force {translated_folder(name)}`."
        frames = len(read_table(manifest, ["name"], anew)) if manifest.is_file() else None
        yield from _cost(run, title, [cyclegan_folder(name)], shown.get((True, name)))
        yield from _cost(run, f"translation{which}", [translated_folder(name)], frames)
        yield from _cost(run, f"gate{which}", [gate_folder(name)], frames)
    for stage in ("segmentation", "pseudo_labels", "evaluation", "selection"):
        for arm in ordered_arms(config):
            images = {
                "segmentation": shown.get((False, arm)),
                "evaluation": report.images * len(config.seeds),
            }
            seeds = config.seeds[:1] if stage == "pseudo_labels" else config.seeds
            folders = [network_folder(stage, arm, seed) for seed in seeds]
            title = f"{stage.replace('_', '-')} {arm}"
            yield from _cost(run, title, folders, images.get(stage))


def _cost(run: Path, title: str, folders: Sequence[str], images: int | None) -> Iterator[StageCost]:
    """Of the stages in these folders together, where all are complete."""
    if not all((run / folder / STAGE_FILE).is_file() for folder in folders):
        return
    records = [read_stage(run, folder) for folder in folders]
    costs = [record.cost for record in records if record.cost]
    known = len(costs) == len(records)
    yield StageCost(
        title,
        sum(record.seconds for record in records),
        sum(cost.device_seconds for cost in costs) if known else None,
        max((cost.peak_memory for cost in costs if cost.peak_memory), default=None),
        max((cost.peak_gpu_memory for cost in costs if cost.peak_gpu_memory), default=None),
        images,
        frozenset(cost.host for cost in costs),
        tuple(records),
    )


def _fingerprints(costs: Sequence[StageCost]) -> list[tuple[object, ...]]:
    """What identifies the content of every data set that these stages have read.

    Its name and split, a hash of the frames' names and the files' sizes, and one of what is in the
    files; None where an earlier version recorded none.
    """
    found: dict[tuple[object, ...], None] = {}

    def walk(inputs: object) -> None:
        if not isinstance(inputs, dict):
            return
        if isinstance(samples := inputs.get("samples"), str) and "name" in inputs:
            found[inputs["name"], inputs.get("split"), samples, inputs.get("content")] = None
        for value in inputs.values():
            walk(value)

    for record in (record for cost in costs for record in cost.records):
        walk(record.inputs)
    return list(found)
