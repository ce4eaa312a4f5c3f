"""`sim2real evaluate --predictions`: what is scored, and how the scores are shown."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.config.load import is_configuration, load_config
from pipeline.data.labels import LabelSpace, load_label_space
from pipeline.data.spec import DatasetSpec, read_spec
from pipeline.errors import UserError
from pipeline.run.folder import CONFIG_FILE
from pipeline.scoring.evaluation import Evaluation
from pipeline.scoring.metrics import BREAKDOWNS, METRICS
from pipeline.text import bounds, count, number, percent


def ground_truth(
    what: str,
    label_space: str | None,
    root: Path | None,
    split: str | None,
    settings: list[str] | None,
) -> tuple[DatasetSpec, LabelSpace]:
    """The labelled frames that `what` names, and the classes that they are scored in.

    Args:
        what: a run, a configuration (of both, `test`), a data set's file, or a known data set.
        label_space: for a data set; none is `cityscapes19`.
        root: where a data set is, if its file does not say it.
        split: which part of a data set is meant, if its file does not say it.
        settings: for a run or a configuration.

    Raises:
        UserError: nothing of this name, or options that do not go with it.
    """
    path = Path(what)
    if path.is_dir():
        path = path / CONFIG_FILE
        if not path.is_file():
            raise UserError(
                f"{what} is no run folder: it has no {CONFIG_FILE}. Give a run, a configuration or "
                "a data set."
            )
    if is_configuration(path):
        for option, value in (("--label-space", label_space), ("--root", root), ("--split", split)):
            if value is not None:
                raise UserError(
                    f"{option} is for data sets; {what} says it itself. Use --set, e.g. --set "
                    f"{'label_space' if option == '--label-space' else 'test.' + option[2:]}="
                    f"{value}."
                )
        config = load_config(path, settings)
        space = load_label_space(config.label_space)
        return config.test, space.averaging(config.evaluation.classes)
    if settings:
        raise UserError(
            f"--set is for runs and configurations; {what} is a data set. Use --root and --split, "
            "or a YAML file of its own."
        )
    given = {"root": root and str(root.absolute()), "split": split}
    spec = read_spec(what, **{key: value for key, value in given.items() if value})
    return spec, load_label_space(label_space or "cityscapes19")


def show_scores(evaluation: Evaluation) -> None:
    """Print scores: a row for each class, then for each category; then each metric."""
    console = Console()
    console.print(
        f"[bold]{escape(evaluation.scored_on)}[/], {count(evaluation.images, 'frame')}, label "
        f"space {escape(str(evaluation.protocol['label_space']))}",
        soft_wrap=True,
    )
    console.print(_parts(evaluation))
    scores = Table("metric", "score", "95% interval over frames")
    for key, value in evaluation.scores.items():
        if value is not None:
            unit, interval = METRICS[key].unit, evaluation.intervals.get(key)
            scores.add_row(
                METRICS[key].title, number(value, unit, 2), bounds(interval, unit, 2) or "–"
            )
    console.print(scores)
    if absent := evaluation.absent_classes:
        print(f"Not in the ground truth: {', '.join(absent)}.")


def _parts(evaluation: Evaluation) -> Table:
    """The scores of classes and categories."""
    known = [
        breakdown
        for key, breakdown in BREAKDOWNS.items()
        if key in evaluation.breakdowns and evaluation.scores.get(breakdown.mean) is not None
    ]
    titles = list(dict.fromkeys(breakdown.title for breakdown in known))
    table = Table("class", "share of truth", *titles)
    pixels = evaluation.table.sum(axis=1)
    shares = [percent(share, 2) for share in pixels / max(1, pixels.sum())]

    def add(of: str, names: list[str], prefix: str, shares: list[str]) -> None:
        columns = {b.title: evaluation.breakdowns[b.key] for b in known if b.of == of}
        for name, share in zip(names, shares, strict=True):
            cells = [
                percent(columns[title].get(name), 2) if title in columns else "" for title in titles
            ]
            table.add_row(f"{prefix}{escape(name)}", share, *cells)

    add("classes", evaluation.classes, "", shares)
    of_categories = [evaluation.breakdowns[b.key] for b in known if b.of == "categories"]
    if of_categories:
        table.add_section()
        names = list(of_categories[0])
        add("categories", names, "category ", [""] * len(names))
    return table
