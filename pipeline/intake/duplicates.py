"""Frames that show one picture, found by hashes of their files and by grey thumbnails."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.intake.facts import FrameFacts

NEAR_RMS = 1.25
"""Thumbnails (grey levels, root mean square) this near show one picture: JPEG at quality 60 and
resizing stay below .7, different synthetic frames above 8."""
NEAR_RATIO = 0.03
"""The same as a fraction of the thumbnail's contrast, so that two frames of fog or night, near in
grey levels for want of contrast, are not taken for one picture."""
APART_RATIO = 1.15
"""How much stronger edges must be on a label's borders than on those of the flipped label. In
sets that belong together it is above 1.4, with labels of other frames below 1.1."""
_ROWS = 512  # thumbnails compared with all others at once

Thumbnails = npt.NDArray[np.uint8]
"""(N, 256) grey."""


def nearest(
    frames: Thumbnails, others: Thumbnails, *, earlier: bool = False
) -> dict[int, tuple[int, float]]:
    """For each thumbnail that shows the picture of one of the others: which, and how far (RMS).

    Thumbnails are compared by matrix products, a block of frames with all others at once: 25,000
    frames with each other take seconds and a block's memory.

    Args:
        earlier: compare only with others of a lower position, for a set and itself.
    """
    if not len(frames) or not len(others):
        return {}
    columns = others.astype(np.float32)
    mean = columns.mean(axis=0)  # near zero, float32 loses less
    columns -= mean
    column_norms = (columns**2).sum(axis=1)
    found: dict[int, tuple[int, float]] = {}
    for start in range(0, len(frames), _ROWS):
        rows = frames[start : start + _ROWS].astype(np.float32)
        limit = np.minimum(NEAR_RMS, NEAR_RATIO * rows.std(axis=1))
        rows -= mean
        width = min(start + _ROWS, len(others)) if earlier else len(others)
        squares = rows @ columns[:width].T
        squares *= -2
        squares += column_norms[:width]
        squares += (rows**2).sum(axis=1)[:, None]
        if earlier:
            squares[np.arange(start, start + len(rows))[:, None] <= np.arange(width)] = np.inf
        best = squares.argmin(axis=1)
        rms = np.sqrt(np.maximum(squares[np.arange(len(rows)), best], 0) / columns.shape[1])
        for i in np.flatnonzero(rms <= limit):
            found[start + int(i)] = int(best[i]), float(rms[i])
    return found


def same_pictures(
    frames: Sequence[FrameFacts], others: Sequence[FrameFacts]
) -> list[tuple[FrameFacts, FrameFacts, float]]:
    """Each frame that is among the others too, that other, and how far apart they are (RMS)."""
    mine, theirs = _with_picture(frames), _with_picture(others)
    near = nearest(_thumbnails(mine), _thumbnails(theirs))
    pairs = {i: (theirs[j], rms) for i, (j, rms) in near.items()}
    known = {facts.image_hash: facts for facts in others if facts.image_hash}
    pairs |= {i: (known[f.image_hash], 0.0) for i, f in enumerate(mine) if f.image_hash in known}
    return [(mine[i], *pair) for i, pair in sorted(pairs.items())]


def add_duplicate_faults(frames: Sequence[FrameFacts]) -> None:
    """Find frames that show what an earlier one shows, and labels copied from another frame."""
    seen = _with_picture(frames)
    first: dict[bytes, FrameFacts] = {}
    copies: set[int] = set()
    for i, facts in enumerate(seen):
        other = first.setdefault(facts.image_hash, facts)
        if other is facts:
            continue
        copies.add(i)
        one, two = _label_hash(other), _label_hash(facts)
        if one and two and one != two:
            facts.faults["duplicates-disagree"] = f"the image of {other.name}, with another label"
        else:
            facts.faults["duplicate-frames"] = f"the same file as {other.name}"
            facts.twin = other.sample.image
    thumbnails = _thumbnails(seen)
    for i, (j, rms) in nearest(thumbnails, thumbnails, earlier=True).items():
        if i not in copies:
            like = f"like {seen[j].name} (differs by {rms:.1f} grey levels)"
            seen[i].faults["near-duplicates"] = like
            seen[i].twin = seen[j].sample.image
    _add_shared_labels(seen)


def _with_picture(frames: Sequence[FrameFacts]) -> list[FrameFacts]:
    """The frames that have a thumbnail: not the blank, not the unreadable."""
    return [facts for facts in frames if facts.signature is not None]


def _thumbnails(frames: Sequence[FrameFacts]) -> Thumbnails:
    return np.array([facts.signature for facts in frames], np.uint8)


def _label_hash(facts: FrameFacts) -> bytes:
    """The hash of a label that says something; any two constant labels are alike."""
    plain = facts.faults.keys() & {"constant-label", "ignored-label"}
    return b"" if plain else facts.label_hash


def _add_shared_labels(frames: Sequence[FrameFacts]) -> None:
    """Find frames of different pictures whose labels are the same."""
    groups: dict[bytes, list[FrameFacts]] = defaultdict(list)
    for facts in frames:
        if digest := _label_hash(facts):
            groups[digest].append(facts)
    for first, *rest in groups.values():
        apart = [facts for facts in rest if _distance(facts, first) > 4 * NEAR_RMS]
        members = [first, *apart] if apart else []
        # One view in two weathers shares a label, and follows it.
        owners = [facts for facts in members if label_follows(facts)]
        wrong = [facts for facts in members if owners and label_follows(facts) is False]
        for facts in wrong:
            seen = f"the label of {owners[0].name}, whose edges it follows"
            facts.faults["copied-label"] = seen
        one, *more = [facts for facts in members if "copied-label" not in facts.faults] or [first]
        for facts in [one, *more] if more else []:
            other = one if facts is not one else more[0]
            facts.faults["shared-label"] = f"the label of {other.name}"


def _distance(one: FrameFacts, other: FrameFacts) -> float:
    """Root mean square of the difference of two thumbnails, in grey levels."""
    a, b = _thumbnails([one, other]).astype(np.float32)
    return float(np.sqrt(np.mean((a - b) ** 2)))


def label_follows(facts: FrameFacts) -> bool | None:
    """Whether a frame's edges are where its label's borders are; None where neither can tell."""
    if facts.alignment is None:
        return None
    own, *flipped = facts.alignment
    return own > APART_RATIO * max(flipped)
