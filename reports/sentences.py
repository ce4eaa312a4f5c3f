"""What a run found and how its arms were trained, in words and without flattery."""

from typing import Any

from pipeline.config.settings import AFTER, BEFORE, IDEAL
from reports.tables import METRICS, Summary, percent, points

FRAMES = {
    "source": "synthetic frames as they are",
    "translated": "translated synthetic frames",
    "target": "real frames with their labels",
}
"""What an arm's network learns from -> what it is called in a text."""
NO_ORACLE = "There is no oracle arm, so the size of the gap to real training data is not known."
_HEADLINE = ("pixel_accuracy", "mean_class_accuracy", "mean_iou")


def trained_on(recipe: dict[str, Any]) -> str:
    """What an arm's network has seen, from its entry in `report.json`'s `recipes`."""
    shares = recipe["train"]
    parts = [
        f"{percent(share, 0)} {FRAMES[kind]}" if len(shares) > 1 else FRAMES[kind]
        for kind, share in shares.items()
    ]
    if recipe["self_training"]:
        parts.append("real frames without labels (self-training)")
    start = f"; starts from {recipe['start']}" if recipe["start"] else ""
    return f"{', '.join(parts)}{start}"


def ours(report: Summary) -> list[str]:
    """The arms that try to close the gap: neither its ends nor given labels of the target.

    One that starts from a network that was given them has them, too.
    """
    recipes = report["recipes"]

    def given(arm: str | None) -> bool:
        return arm in recipes and (
            "target" in recipes[arm]["train"] or given(recipes[arm]["start"])
        )

    return [arm for arm in report["arms"] if arm not in (BEFORE, IDEAL) and not given(arm)]


def result_sentences(report: Summary) -> list[str]:
    """The result of a run: every arm of ours, the best by name, and how sure all that is."""
    sure = [*_drawn_sentences(report), *_spread_sentences(report)]
    arms, metric = report["arms"], "pixel_accuracy"
    tried = ours(report)
    missing = [BEFORE] * (BEFORE not in arms) + [AFTER] * (not tried)
    if missing:
        return [f"This run has no {' and no '.join(missing)} arm: no gap can be given.", *sure]
    main = AFTER if AFTER in tried else tried[0]
    before, after = (arms[arm][metric]["mean"] for arm in (BEFORE, main))
    if before is None or after is None:
        return ["No pixel was scored."]
    change = f"{METRICS[metric]} went from {percent(before)} to {percent(after)}"
    change += f" ({points(after - before)} points)"
    if IDEAL not in arms:
        return [
            f"Against {BEFORE}, with {main} {change}.",
            *_others(report, tried, main),
            NO_ORACLE,
            *sure,
        ]
    ideal, closed = percent(arms[IDEAL][metric]["mean"]), report["gap_closed_by_arm"]
    if closed[main][metric] is None:
        return [
            f"Against {BEFORE}, with {main} {change}.",
            f"The oracle, trained on real frames, reaches {ideal}, no more than {BEFORE}: there "
            "is no gap to close.",
            *_others(report, tried, main),
            *sure,
        ]
    verdict = (
        "made it worse"
        if after < before
        else f"closes {percent(closed[main][metric], 0)} of the per-pixel gap to training on real "
        "frames"
    )
    return [
        f"{main} {verdict}: {change}; the oracle, trained on real frames, reaches {ideal}.",
        *_gaps(report, tried),
        *sure,
    ]


def left_out(report: Summary) -> str:
    """What the class tables leave out; empty where that is nothing.

    Classes without a pixel in the test set's ground truth, and pixels that were predicted void.
    """
    return " ".join([*_absent(report), *_void(report)])


def _void(report: Summary) -> list[str]:
    found = [f"{arm} {pixels:,}" for arm, pixels in report["void_predictions"].items() if pixels]
    return [f"Pixels predicted void, which count as misses: {', '.join(found)}."] if found else []


def _absent(report: Summary) -> list[str]:
    absent = report["absent_classes"]
    if not absent:
        return []
    classes = next(iter(report["class_iou"].values()))
    falsely = [
        name
        for name in absent
        if any(iou[name] is not None for iou in report["class_iou"].values())
    ]
    text = (
        f"{len(absent)} of {len(classes)} classes "
        f"{'is' if len(absent) == 1 else 'are'} absent from the ground truth of the test set, and "
        f"left out of the means: {', '.join(absent)}."
    )
    if falsely:
        text += f" Where one is predicted all the same ({', '.join(falsely)}), its IoU counts as 0."
    return [text]


def _gaps(report: Summary, tried: list[str]) -> list[str]:
    """The share of the gap that each arm closes, and which closes most."""
    closed = report["gap_closed_by_arm"]
    metrics = [m for m in _HEADLINE if all(closed[arm][m] is not None for arm in tried)]
    if not metrics:
        return []
    shares = "; ".join(
        f"{arm} {' / '.join(percent(closed[arm][metric], 0) for metric in metrics)}"
        for arm in tried
    )
    lines = [f"Gap closed in {' / '.join(METRICS[metric] for metric in metrics)}: {shares}."]
    if any(closed[arm][metric] < 0 for arm in tried for metric in metrics):
        lines[0] += " A negative share means that the gap has grown."
    return [*lines, *_best(report, tried)]


def _others(report: Summary, tried: list[str], main: str) -> list[str]:
    """The per-pixel accuracy of our other arms, where no gap is known."""
    values = [
        f"{arm} {percent(report['arms'][arm]['pixel_accuracy']['mean'])}"
        for arm in tried
        if arm != main
    ]
    return [f"The other arms: {', '.join(values)}.", *_best(report, tried)] if values else []


def _best(report: Summary, tried: list[str]) -> list[str]:
    """Which arm of several is best, said as the choice that it is."""
    means = {arm: report["arms"][arm]["mean_iou"]["mean"] for arm in tried}
    if len(tried) < 2 or None in means.values():
        return []
    best = max(tried, key=lambda arm: means[arm])
    return [
        f"By the labels of the test frames, {best} is the best of these in mean IoU "
        f"({percent(means[best])}); a score by which an arm is chosen is a little too high."
    ]


def _drawn_sentences(report: Summary) -> list[str]:
    """How often each arm of ours is better than the one before it, on the frames of a drawing."""
    pairs = [
        (arm, others[than], than)
        for arm in ours(report)
        if (others := report["comparisons"].get(arm))
        for than in [AFTER if AFTER in others else BEFORE]
    ]
    lines = []
    for metric in ("mean_iou", "pixel_accuracy") if len(pairs) == 1 else ("mean_iou",):
        shares = [
            f"{arm} is better than {than} in {percent(found[metric]['better'])}"
            for arm, found, than in pairs
            if found[metric] and found[metric]["better"] is not None
        ]
        if shares:
            lines.append(f"In {METRICS[metric]}, {', '.join(shares)} of the resamplings.")
    if not lines:
        return []
    return [
        f"The test frames were resampled {report['resamplings']} times. {' '.join(lines)} That "
        "weighs the choice of frames alone, not what another training or translator would give."
    ]


def _spread_sentences(report: Summary) -> list[str]:
    arms, metric = report["arms"], "pixel_accuracy"
    seeds = max(len(scores[metric]["seeds"]) for scores in arms.values())
    if seeds == 1:
        return ["One seed: no spread known."]
    lines = [f"Values are means over {seeds} seeds ± their standard deviation."]
    for arm in ours(report) if BEFORE in arms else []:
        pair = [arms[name][metric] for name in (BEFORE, arm)]
        if any(score["std"] is None for score in pair):
            continue
        if abs(pair[1]["mean"] - pair[0]["mean"]) < max(score["std"] for score in pair):
            lines.append(
                f"The difference of {arm} in {METRICS[metric]} is smaller than the spread of the "
                "seeds: take it as no difference."
            )
    return lines
