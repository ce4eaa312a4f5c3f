"""`sim2real evaluate --predictions`: what is scored, and how the scores are shown."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.config.load import load_config
from pipeline.data.labels import LabelSpace, load_label_space
from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.errors import UserError
from pipeline.run.folder import CONFIG_FILE
from pipeline.schema import parse
from pipeline.yaml_files import read_yaml

_METRICS = {
    "pixel_accuracy": "per-pixel accuracy",
    "mean_class_accuracy": "mean class accuracy",
    "mean_iou": "mean IoU",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "mean_category_iou": "mean category IoU",
    "mean_class_iiou": "mean class iIoU",
    "mean_category_iiou": "mean category iIoU",
}


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
    is_file = path.suffix in {".yaml", ".yml"}
    fields = read_yaml(path) if is_file else None
    if isinstance(fields, dict) and {"source", "target", "test"} & fields.keys():
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
    given = {"root": str(root.absolute())} if root else {}
    given |= {"split": split} if split else {}
    known = spec_fields(path.name, path.parent, given) if is_file else spec_fields(what, Path())
    known |= given
    if "root" not in known:
        raise UserError(f"Where is data set {what}? Give its folder: --root DIR.")
    return parse(DatasetSpec, known, what), load_label_space(label_space or "cityscapes19")


def show_scores(result: dict[str, Any], console: Console) -> None:
    """Print what an `evaluation.json` holds: a row for each class, then for each category."""
    split = f" ({result['split']})" if result["split"] else ""
    console.print(
        f"[bold]{escape(result['dataset'] + split)}[/], {result['images']} frames, label space "
        f"{escape(result['protocol']['label_space'])}",
        soft_wrap=True,
    )
    weighed = result.get("mean_class_iiou") is not None
    classes = Table("class", "share of truth", "accuracy", "IoU", *(["iIoU"] if weighed else []))
    pixels = [
        sum(row) + void
        for row, void in zip(result["confusion"], result["void_predictions"], strict=True)
    ]
    for name, count in zip(result["classes"], pixels, strict=True):
        classes.add_row(
            escape(name),
            percent(count / sum(pixels) if sum(pixels) else None),
            percent(result["class_accuracy"][name]),
            percent(result["class_iou"][name]),
            *([percent(result["class_iiou"][name])] if weighed else []),
        )
    if categories := result.get("category_iou"):
        classes.add_section()
        for name, iou in categories.items():
            iiou = [percent(result["category_iiou"][name])] if weighed else []
            classes.add_row(f"category {escape(name)}", "", "", percent(iou), *iiou)
    console.print(classes)
    scores = Table("metric", "score", "95% interval over frames")
    for key, title in _METRICS.items():
        if result.get(key) is not None:
            interval = result["intervals"].get(key)
            scores.add_row(
                title,
                percent(result[key]),
                f"{percent(interval[0])} to {percent(interval[1])}" if interval else "-",
            )
    console.print(scores)
    if absent := result["absent_classes"]:
        console.print(
            f"Not in the ground truth: {escape(', '.join(absent))}.",
            soft_wrap=True,
            highlight=False,
        )


def percent(value: float | None) -> str:
    """A fraction in percent; a dash when there is none."""
    return "-" if value is None else f"{100 * value:.2f}%"
