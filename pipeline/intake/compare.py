"""What is found only when data sets are compared: the same pictures and drives."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import PurePosixPath

from pipeline.data.listing import list_samples, not_here, split_file
from pipeline.errors import UserError
from pipeline.intake.duplicates import same_pictures
from pipeline.intake.facts import FrameFacts
from pipeline.intake.findings import (
    DatasetReport,
    Example,
    Finding,
    finding,
    frames_finding,
    ordered,
)
from pipeline.text import listed

Frames = Sequence[FrameFacts]


def compare(
    reports: Mapping[str, DatasetReport],
    *,
    scored: Iterable[str] = ("test", "val"),
    one_set: bool = False,
) -> dict[str, DatasetReport]:
    """Add what is found only when sets are seen together: shared frames and drives.

    Args:
        reports: part -> its report: `source`, `target`, `test` of a configuration, or the splits
            of one data set.
        scored: the parts that networks are scored on. A frame of another part that is in one of
            these must be taken out of that other part.
        one_set: the parts are splits of one set, which has one quarantine list for all of them:
            what it left out of one would be missing in the other.

    Returns:
        The reports with further findings, in the same order.
    """
    scored = set(scored) & reports.keys()
    more: dict[str, list[Finding]] = {part: [] for part in reports}
    for one, two in combinations(reports, 2):
        # The frame is left out of the part that is not scored on.
        mine, other = (two, one) if one in scored and two not in scored else (one, two)
        ours, theirs, held_out = reports[mine], reports[other], other in scored
        more[mine] += _shared(ours.facts, theirs.facts, other, held_out, one_set)
        if held_out and ours.spec.root == theirs.spec.root:
            more[mine] += _same_drives(ours.facts, theirs.facts, other)
    return {part: _with(report, more[part]) for part, report in reports.items()}


def compare_splits(report: DatasetReport, *, scored: Callable[[str], bool]) -> DatasetReport:
    """Compare the splits that a spec lists, all of whose frames are in one report.

    A split whose list is not there is left out; what is wrong with another becomes a finding.
    """
    frames = {facts.name: facts for facts in report.facts}
    splits: dict[str, list[FrameFacts]] = {}
    more: list[Finding] = []
    for split in report.spec.splits:
        spec = report.spec.model_copy(update={"split": split, "limit": None})
        if (file := split_file(spec)) and not file.exists():
            continue
        try:
            names = [sample.name for sample in list_samples(spec, labelled=False)]
        except UserError as error:
            more.append(finding("split-unusable", 1, str(error)))
            continue
        if seen := not_here(spec):
            more.append(finding("listed-absent", 1, seen))
        splits[split] = [frames[name] for name in names if name in frames]
    for one, other in permutations(splits, 2):
        mine, theirs = splits[one], splits[other]
        # What holds all of the other, as trainval holds val, is meant to.
        whole = {facts.name for facts in theirs} <= {facts.name for facts in mine}
        if scored(other) and not scored(one) and not whole:
            found = [*_shared(mine, theirs, other, True, True), *_same_drives(mine, theirs, other)]
            more += [replace(item, detail=f"{one}: {item.detail}") for item in found]
    return _with(report, more)


def _with(report: DatasetReport, more: Iterable[Finding]) -> DatasetReport:
    return replace(report, findings=ordered([*report.findings, *more]))


def _shared(
    mine: Frames, theirs: Frames, other: str, held_out: bool, one_set: bool
) -> Iterator[Finding]:
    """Frames that the other part has, too."""
    names: list[str] = []
    examples: list[Example] = []
    for facts, like, rms in same_pictures(mine, theirs):
        how = "the same as" if rms == 0 else f"within {rms:.1f} grey levels of"
        seen = f"{how} {other} frame {like.name}"
        names.append(facts.name)
        examples.append(Example.of(facts, seen, like.sample.image))
    if not names:
        return
    kind = "shared-frames" if held_out else "shared-unscored"
    found = frames_finding(kind, len(mine), names, examples, f"also in {other}")
    if one_set and held_out:
        advice = "Take them out of one of the two splits; the set's quarantine leaves both alone."
        found = replace(found, advice=advice, quarantines=False)
    yield found


def _same_drives(mine: Frames, theirs: Frames, other: str) -> Iterator[Finding]:
    """Drives by the first part of the file names, as in `0001TP_006690`, within one data set."""
    ours, others = _drives(mine), _drives(theirs)
    both = sorted(ours.keys() & others.keys())
    if both and len(ours.keys() | others.keys()) > 1:
        seen = [f"{drive} ({ours[drive]} frames, {others[drive]} in {other})" for drive in both]
        yield finding("same-drive", len(both), f"also in {other}: {listed(seen, 6)}")


def _drives(frames: Frames) -> Counter[str]:
    stems = [PurePosixPath(facts.name).name for facts in frames]
    return Counter(stem.split("_")[0] for stem in stems if "_" in stem)
