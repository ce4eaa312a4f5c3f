"""`sim2real check` on one data set, or on all that a configuration names."""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pipeline.config.load import is_configuration, load_config
from pipeline.config.settings import Config
from pipeline.data.labels import LabelSpace, load_label_space
from pipeline.data.spec import DatasetSpec, read_spec
from pipeline.errors import UserError
from pipeline.intake.compare import compare, compare_splits
from pipeline.intake.examine import examine, split_specs
from pipeline.intake.findings import (
    DatasetReport,
    Finding,
    Severity,
    finding,
    ordered,
    write_quarantine,
)
from pipeline.intake.lost import lost_classes
from pipeline.intake.text import printable
from pipeline.yaml_files import SUFFIXES

_STYLES: dict[Severity, str] = {"must fix": "bold red", "look": "yellow", "note": "dim"}


@dataclass(frozen=True)
class CheckTarget:
    """What is to be checked."""

    parts: dict[str, DatasetSpec]
    """Part -> its data set: those that a configuration names, or the splits of a set."""
    space: LabelSpace
    file: Path | None
    """The file that says it all; none for a data set known by name."""
    config: Config | None = None


def check_target(
    what: str, root: Path | None, label_space: str | None, settings: list[str] | None
) -> CheckTarget:
    """Find out what `what` names: a configuration, a data set's file, or a known data set.

    Args:
        root: where a data set is, if its file does not say it.
        label_space: for a data set, none is `cityscapes19`; a configuration names its own.

    Raises:
        UserError: nothing of this name, or options that do not go with it.
    """
    path = Path(what)
    if is_configuration(path):
        if root is not None:
            raise UserError(f"--root is for data sets; {path} is a configuration. Use --set.")
        config = load_config(path, settings)
        return CheckTarget(config.datasets, load_label_space(config.label_space), path, config)
    if settings:
        raise UserError(f"--set is for configurations; {what} is a data set.")
    spec = read_spec(what, **({"root": str(root.absolute())} if root else {}))
    parts = {spec.split or spec.name: spec}
    if spec.split is None:
        parts = split_specs(spec) or parts
    space = load_label_space(label_space or "cityscapes19")
    return CheckTarget(parts, space, path if path.suffix in SUFFIXES else None)


def _is_scored(split: str) -> bool:
    return split.startswith(("test", "val"))


def check(target: CheckTarget) -> dict[str, DatasetReport]:
    """Examine every part, and compare them: those of a configuration, or the splits of a set."""
    config = target.config
    trains = config and config.used_translations and config.translation.trains
    reports = {}
    for part, spec in target.parts.items():
        labelled = part != "target" or not config or part in config.labels_read
        crop = config.cyclegan.crop if config and trains and part in ("source", "target") else None
        reports[part] = examine(spec, target.space, labelled=labelled, crop=crop)
    if config:
        reports["target"] = _without_labels(config, reports["target"])
        scored = ["test"]
    else:
        reports = {
            part: report if report.spec.split else compare_splits(report, scored=_is_scored)
            for part, report in reports.items()
        }
        scored = list(filter(_is_scored, reports))
    reports = compare(reports, scored=scored, one_set=config is None)
    return _with_lost_classes(target, reports)


def _with_lost_classes(
    target: CheckTarget, reports: dict[str, DatasetReport]
) -> dict[str, DatasetReport]:
    """Add what `run` refuses, in its words; of a data set, each value once for all splits."""
    specs = {part: report.spec for part, report in reports.items() if report.labelled}
    if target.config is None:
        specs = dict(list(specs.items())[:1])
    more: dict[str, list[Finding]] = {part: [] for part in reports}
    for lost in lost_classes(specs, target.space, target.file):
        kind = finding("lost-class", 1, lost.text)
        severity: Severity = "must fix" if lost.refused else "look"
        more[lost.part] += [replace(kind, severity=severity, advice=lost.advice or kind.advice)]
    return {
        part: replace(report, findings=ordered([*report.findings, *more[part]]))
        for part, report in reports.items()
    }


def _without_labels(config: Config, target: DatasetReport) -> DatasetReport:
    """Say of a target that has no label at all which arms ask for one."""
    findings = (
        replace(found, advice=config.without_target_labels)
        if (found.kind, found.share) == ("no-label", 1)
        else found
        for found in target.findings
    )
    return replace(target, findings=tuple(findings))


def tell(reports: dict[str, DatasetReport]) -> None:
    """Print what was found: the most severe first, with what to do."""
    console = Console(soft_wrap=True)
    for part, report in reports.items():
        sizes = ", ".join(list(report.sizes)[:3]) + (", ..." if len(report.sizes) > 3 else "")
        labels = f", {report.labelled:,} labelled" if report.labelled else ""
        title = f"{part}: {report.spec.name}, {report.frames:,} frames{labels}, {sizes}"
        console.print(f"[bold]{escape(printable(title))}[/]")
        for found in report.findings:
            style = _STYLES[found.severity]
            share = f" ({found.share:.1%})" if found.share is not None else ""
            detail = found.detail or "; ".join(
                f"{example.frame}: {example.detail}" for example in found.examples[:2]
            )
            line = f"{found.title}: {found.count:,}{share}. {detail}"
            console.print(f"  [{style}]{found.severity}[/] {escape(printable(line))}")
            if found.severity != "note":
                console.print(f"      {escape(found.advice)}")
        if not any(finding.severity != "note" for finding in report.findings):
            console.print("  [green]ok[/]")


def quarantine(target: CheckTarget, reports: dict[str, DatasetReport], out: Path) -> list[str]:
    """Write the lists of frames to leave out; what was written, and what to add to the spec.

    The list of a spec that names one already is added to.
    """
    lines = []
    for part, report in reports.items():
        base = target.file.with_suffix("") if target.file else out / report.spec.name
        middle = f".{part}" if target.config else ""
        path = report.spec.quarantine or base.with_name(f"{base.name}{middle}.quarantine.csv")
        if not report.quarantined():
            continue
        added = write_quarantine(report.quarantined(), path)
        line = f"{path}: {added} frames of {part} to leave out."
        if report.spec.quarantine is None:
            where = f"`{part}`" if target.config else "the data set"
            shown = path.name if target.file else path.absolute()
            line += f" Give {where} `quarantine: {shown}`."
        lines.append(line)
    return lines or ["Nothing to quarantine."]
