"""What is found only when frames are compared: the same pictures, drives and classes."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import PurePosixPath

import numpy as np

from pipeline.data.listing import list_samples, not_here, split_file
from pipeline.errors import UserError
from pipeline.intake.common import some
from pipeline.intake.findings import (
    EXAMPLES,
    DatasetReport,
    Example,
    Finding,
    FrameTable,
    fact,
    finding,
    ordered,
)

NEAR_RMS = 1.25
"""Thumbnails (grey levels, root mean square) this near show one picture: JPEG at quality 60 and
resizing stay below .7, different synthetic frames above 8."""
NEAR_RATIO = 0.03
"""The same as a share of the thumbnail's contrast, so that two frames of fog or night, near in
grey levels for want of contrast, are not taken for one picture."""
_ROWS = 512  # thumbnails compared with all others at once


def nearest(
    frames: FrameTable, others: FrameTable, *, earlier: bool = False
) -> dict[int, tuple[int, float]]:
    """For each frame that shows the picture of one of the others: which, and how far (RMS).

    Thumbnails are compared by matrix products, a block of frames with all others at once: 25,000
    frames with each other take seconds and a block's memory.

    Args:
        earlier: compare only with others of a lower position, for a set and itself.
    """
    a, b = np.flatnonzero(frames.signed), np.flatnonzero(others.signed)
    if not len(a) or not len(b):
        return {}
    columns = others.signatures[b].astype(np.float32)
    mean = columns.mean(axis=0)  # near zero, float32 loses less
    columns -= mean
    column_norms = (columns**2).sum(axis=1)
    found: dict[int, tuple[int, float]] = {}
    for start in range(0, len(a), _ROWS):
        rows = frames.signatures[a[start : start + _ROWS]].astype(np.float32)
        limit = np.minimum(NEAR_RMS, NEAR_RATIO * rows.std(axis=1))
        rows -= mean
        width = min(start + _ROWS, len(b)) if earlier else len(b)
        squares = rows @ columns[:width].T
        squares *= -2
        squares += column_norms[:width]
        squares += (rows**2).sum(axis=1)[:, None]
        if earlier:
            squares[a[start : start + _ROWS, None] <= b[None, :width]] = np.inf
        best = squares.argmin(axis=1)
        rms = np.sqrt(np.maximum(squares[np.arange(len(rows)), best], 0) / columns.shape[1])
        for i in np.flatnonzero(rms <= limit):
            found[int(a[start + i])] = int(b[best[i]]), float(rms[i])
    return found


def compare(
    reports: Mapping[str, DatasetReport],
    *,
    scored: Iterable[str] = ("test", "val"),
    one_set: bool = False,
) -> dict[str, DatasetReport]:
    """Add what is found only when sets are seen together: shared frames, drives and classes.

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
    parts = list(reports)
    for i, one in enumerate(parts):
        for two in parts[i + 1 :]:
            # The frame is left out of the part that is not scored on.
            mine, other = (two, one) if one in scored and two not in scored else (one, two)
            held_out = other in scored
            more[mine] += _shared(reports[mine], reports[other], other, held_out, one_set)
            more[mine] += _same_drives(reports[mine], reports[other], other, held_out)
    for part in parts:
        if part in scored and "source" in reports:
            more[part] += _never_learnt(reports["source"], reports[part])
    return {
        part: replace(report, findings=ordered([*report.findings, *more[part]]))
        for part, report in reports.items()
    }


def compare_splits(report: DatasetReport, *, scored: Callable[[str], bool]) -> DatasetReport:
    """Compare the splits that a spec lists, all of whose frames are in one report.

    A split whose list is not there is left out; what is wrong with another becomes a finding.
    """
    places = {files.name: i for i, files in enumerate(report.table.files)}
    splits: dict[str, list[int]] = {}
    more: list[Finding] = []
    for split in report.spec.splits:
        spec = report.spec.model_copy(update={"split": split, "limit": None})
        if (file := split_file(spec)) and not file.exists():
            continue
        try:
            names = [sample.name for sample in list_samples(spec, labelled=False)]
        except UserError as error:
            more.append(fact("split-unusable", 1, str(error)))
            continue
        if seen := not_here(spec):
            more.append(fact("listed-absent", 1, seen))
        splits[split] = [places[name] for name in names if name in places]
    for one, other in permutations(splits, 2):
        # What holds all of the other, as trainval holds val, is meant to.
        if scored(one) or not scored(other) or {*splits[other]} <= {*splits[one]}:
            continue
        mine, theirs = (_part(report, splits[split]) for split in (one, other))
        for found in (
            *_shared(mine, theirs, other, True, True),
            *_same_drives(mine, theirs, other, True),
        ):
            more.append(replace(found, detail=f"{one}: {found.detail}"))
    return replace(report, findings=ordered([*report.findings, *more]))


def _part(report: DatasetReport, places: Sequence[int]) -> DatasetReport:
    """Some frames of a report, for comparing."""
    table = report.table
    part = FrameTable(
        tuple(table.files[i] for i in places),
        tuple(table.hashes[i] for i in places),
        table.signatures[places],
        table.signed[places],
    )
    return replace(report, frames=len(places), table=part)


def _shared(
    mine: DatasetReport, theirs: DatasetReport, other: str, held_out: bool, one_set: bool
) -> list[Finding]:
    positions = {digest: j for j, digest in enumerate(theirs.table.hashes) if digest}
    pairs = {i: (j, rms) for i, (j, rms) in nearest(mine.table, theirs.table).items()}
    for i, digest in enumerate(mine.table.hashes):
        if digest in positions and mine.table.signed[i]:
            pairs[i] = positions[digest], 0.0
    if not pairs:
        return []
    frames: list[str] = []
    examples: list[Example] = []
    for i, (j, rms) in sorted(pairs.items()):
        files = mine.table.files[i]
        frames.append(files.name)
        how = "the same as" if rms == 0 else f"within {rms:.1f} grey levels of"
        detail = f"{how} {other} frame {theirs.table.files[j].name}"
        if len(examples) < EXAMPLES:
            beside = theirs.table.files[j].image
            examples.append(Example(files.name, files.image, files.label, detail, beside))
    kind = "shared-frames" if held_out else "shared-unscored"
    found = replace(finding(kind, mine.frames, frames, examples), detail=f"also in {other}")
    if one_set and held_out:
        advice = "Take them out of one of the two splits; the set's quarantine leaves both alone."
        found = replace(found, advice=advice, quarantines=False)
    return [found]


def _same_drives(
    mine: DatasetReport, theirs: DatasetReport, other: str, held_out: bool
) -> list[Finding]:
    """Drives by the first part of the file names, as in `0001TP_006690`, within one data set."""
    if not held_out or mine.spec.root != theirs.spec.root:
        return []
    drives = [
        Counter(
            stem.split("_")[0]
            for files in report.table.files
            if "_" in (stem := PurePosixPath(files.name).name)
        )
        for report in (mine, theirs)
    ]
    both = sorted(drives[0].keys() & drives[1].keys())
    if not both or len(drives[0].keys() | drives[1].keys()) < 2:
        return []
    seen = [f"{drive} ({drives[0][drive]} frames, {drives[1][drive]} in {other})" for drive in both]
    return [fact("same-drive", len(both), f"also in {other}: {some(seen, 6)}")]


def _never_learnt(source: DatasetReport, scored: DatasetReport) -> list[Finding]:
    if not source.class_pixels or not scored.class_pixels:
        return []
    shares = scored.class_shares
    only = [
        f"{name} ({shares[name]:.2%} of the pixels)"
        for name, pixels in scored.class_pixels.items()
        if pixels and not source.class_pixels.get(name)
    ]
    return [fact("class-only-scored", len(only), some(only, 12))] if only else []
