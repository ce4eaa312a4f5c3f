"""What a run found and how its arms were trained, in words and without flattery."""

from collections.abc import Mapping, Sequence

from pipeline.config.settings import AFTER, BEFORE, IDEAL
from pipeline.config.translation import TRANSLATED
from pipeline.scoring.metrics import class_columns, headline, in_steps, ranking
from pipeline.text import bounds, count, difference, margins, number, percent
from reports.chance import change, sign
from reports.summary import Recipe, Summary

FRAMES = {
    "source": "synthetic frames as they are",
    TRANSLATED: "translated synthetic frames",
    "target": "real frames with their labels",
}
"""What an arm's network learns from -> what it is called in a text."""


def called(frames: str, number: int | None = None) -> str:
    """What labelled frames of a name, or so many of them, are called in a text."""
    if number and frames == "target":
        return f"{count(number, 'labelled frame')} of the target"
    name = FRAMES.get(frames, f"{FRAMES[TRANSLATED]} ({frames})")
    return f"{count(number)} {name}" if number else name


NO_ORACLE_SHORT = "there is no oracle arm"
NO_ORACLE = "There is no oracle arm, so the size of the gap to real training data is not known."


def trained_on(recipe: Recipe) -> str:
    """What an arm's network has seen."""
    shares = recipe.train
    parts = []
    for kind, share in shares.items():
        frames = recipe.frames.get(kind)
        part = f"{percent(share, 0)} {'from ' if frames else ''}" if len(shares) > 1 else ""
        parts.append(f"{part}{called(kind, frames)}")
    if recipe.self_training:
        parts.append("real frames without labels (self-training)")
    start = f"; starts from {recipe.start}" if recipe.start else ""
    return f"{', '.join(parts)}{start}"


def ours(recipes: Mapping[str, Recipe]) -> list[str]:
    """The arms that try to close the gap: neither its ends nor given labels of the target.

    One that starts from a network that was given them has them, too. One that learns from plain
    source frames alone does not try.
    """

    def plain(recipe: Recipe) -> bool:
        return set(recipe.train) == {"source"} and not recipe.self_training and not recipe.start

    def given(arm: str | None) -> bool:
        recipe = recipes.get(arm or "")
        return recipe is not None and ("target" in recipe.train or given(recipe.start))

    return [
        arm
        for arm in recipes
        if arm not in (BEFORE, IDEAL) and not given(arm) and not plain(recipes[arm])
    ]


def main_of(tried: Sequence[str]) -> str | None:
    """The arm of ours that stands for the adaptation: `adapted`, or else the first."""
    return AFTER if AFTER in tried else next(iter(tried), None)


def result_headline(report: Summary) -> str:
    """Did adaptation help, by how much, and is that certain.

    What `reports.honesty` finds stands in it: a doubt before the result, a restriction behind it,
    and a sentence in place of a share of the gap that cannot be given.
    """
    by = {
        severity: [one.words for one in report.warnings if one.severity == severity]
        for severity in ("void", "doubt", "caution")
    }
    before = f"Not to be relied on yet ({'; '.join(by['doubt'])}): " if by["doubt"] else ""
    result = _result(report)
    care = [words for words in (*by["void"], *by["caution"]) if words not in result]
    behind = f" With care: {'; '.join(care)}." if care else ""
    return f"{before}{result}.{behind}"


def helped(report: Summary) -> bool:
    """Whether the arm that stands for the adaptation is better than `source_only` beyond chance."""
    main = main_of(ours(report.recipes))
    ends = main is not None and BEFORE in report.arms
    return ends and sign(report, headline()[0], str(main), BEFORE) == 1


def _result(report: Summary) -> str:
    """The result of the arm that stands for the adaptation, without its full stop."""
    arms, metric = report.arms, headline()[0]
    main = main_of(ours(report.recipes))
    missing = [BEFORE] * (BEFORE not in arms) + [AFTER] * (main is None)
    if missing or main is None:
        return f"This run has no {' and no '.join(missing)} arm: no gap can be given"
    before, after = (arms[arm][metric.key].mean for arm in (BEFORE, main))
    if before is None or after is None:
        return "No pixel was scored"
    moved = change(report, main, BEFORE)[metric.key]
    shown = margins(moved.interval, metric.unit) if moved else ""
    how = f"{metric.title} went from {number(before, metric.unit)} to "
    how += f"{number(after, metric.unit)} ({difference(after - before, metric.unit)}"
    how += " points" if metric.unit == "%" else ""
    how += f", interval {shown})" if shown else ")"
    if sign(report, metric, main, BEFORE) == 0:
        return f"{main} made no difference beyond chance: {how}"
    if metric.gain(after, before) < 0:
        return f"{main} made it worse: {how}"
    closed = report.gap_closed_by_arm.get(main, {}).get(metric.key)
    if closed is None:
        why = NO_ORACLE_SHORT if IDEAL not in arms else report.no_share.get(metric.key)
        why = why or f"the oracle is no better than {BEFORE}, so there is no gap to close"
        return f"Against {BEFORE}, with {main} {how}; no share of a gap is given: {why}"
    ends = bounds(report.gap_closed_intervals.get(main, {}).get(metric.key), digits=0)
    ideal = number(arms[IDEAL][metric.key].mean, metric.unit)
    return (
        f"{main} closes {percent(closed, 0)}{f' ({ends})' if ends else ''} of the {metric.name} "
        f"gap to training on real frames: {how}; the oracle, trained on real frames, reaches "
        f"{ideal}"
    )


def result_sentences(report: Summary) -> list[str]:
    """What follows the headline: every arm of ours, the best by name, and how sure all that is."""
    sure = [*_drawn_sentences(report), *_spread_sentences(report)]
    arms, tried = report.arms, ours(report.recipes)
    main = main_of(tried)
    if main is None or BEFORE not in arms:
        return sure
    if IDEAL not in arms:
        return [*_others(report, tried, main), *_worse(report), *sure]
    gaps = _gaps(report, tried)
    return [*(gaps or _others(report, tried, main)), *_worse(report), *sure]


def _worse(report: Summary) -> list[str]:
    """The classes that got worse, by name."""
    named = [f"{arm}: {', '.join(names)}" for arm, names in report.classes_worse.items() if names]
    if named:
        return [f"Worse than {BEFORE} in IoU beyond chance: {'; '.join(named)}."]
    if report.classes_worse:
        return [f"No class got worse than {BEFORE} in IoU beyond chance."]
    return []


def left_out(report: Summary) -> str:
    """What the class tables leave out; empty where that is nothing.

    Classes without a pixel in the test set's ground truth, and pixels that were predicted void.
    """
    return " ".join([*_absent(report), *_void(report)])


def _void(report: Summary) -> list[str]:
    found = [f"{arm} {count(pixels)}" for arm, pixels in report.void_predictions.items() if pixels]
    return [f"Pixels predicted void, which count as misses: {', '.join(found)}."] if found else []


def _absent(report: Summary) -> list[str]:
    absent = report.absent_classes
    if not absent:
        return []
    # Only what counts false finds is defined for a class without truth.
    defined = {
        name
        for breakdown in class_columns()
        for of_arm in (report.breakdowns[breakdown.key] or {}).values()
        for name, value in of_arm.items()
        if value is not None
    }
    falsely = [name for name in absent if name in defined]
    text = (
        f"{len(absent)} of {len(report.classes)} classes "
        f"{'is' if len(absent) == 1 else 'are'} absent from the ground truth of the test set, and "
        f"left out of the means: {', '.join(absent)}."
    )
    if falsely:
        text += f" Where one is predicted all the same ({', '.join(falsely)}), its IoU counts as 0."
    return [text]


def _gaps(report: Summary, tried: list[str]) -> list[str]:
    """The share of the gap that each arm closes, and which closes most."""
    closed = {
        metric.title: {arm: report.gap_closed_by_arm[arm][metric.key] for arm in tried}
        for metric in headline()
    }
    known = {title: of_arm for title, of_arm in closed.items() if None not in of_arm.values()}
    if not known:
        return []
    shares = "; ".join(
        f"{arm} {' / '.join(percent(of_arm[arm], 0) for of_arm in known.values())}" for arm in tried
    )
    line = f"Gap closed in {' / '.join(known)}: {shares}."
    if any((share or 0) < 0 for of_arm in known.values() for share in of_arm.values()):
        line += " A negative share means that the gap has grown."
    return [line, *_best(report, tried)]


def _others(report: Summary, tried: list[str], main: str) -> list[str]:
    """The first metric of our other arms, where no gap is known."""
    metric = headline()[0]
    values = [
        f"{arm} {number(report.arms[arm][metric.key].mean, metric.unit)}"
        for arm in tried
        if arm != main
    ]
    return [f"The other arms: {', '.join(values)}.", *_best(report, tried)] if values else []


def _best(report: Summary, tried: list[str]) -> list[str]:
    """Which arm of several is best, said as the choice that it is."""
    metric = ranking()
    means = {arm: report.arms[arm][metric.key].mean for arm in tried}
    known = {arm: mean for arm, mean in means.items() if mean is not None}
    if len(tried) < 2 or len(known) < len(tried):
        return []
    best = max(known, key=lambda arm: metric.gain(known[arm], 0.0))
    return [
        f"By the labels of the test frames, {best} is the best of these in {metric.title} "
        f"({number(known[best], metric.unit)}); a score by which an arm is chosen is a little too "
        "high."
    ]


def _drawn_sentences(report: Summary) -> list[str]:
    """How often each arm of ours is better than the one before it, on the frames of a drawing."""
    pairs = [
        (arm, others[than], than)
        for arm in ours(report.recipes)
        if (others := report.comparisons.get(arm))
        for than in [AFTER if AFTER in others else BEFORE]
    ]
    lines = []
    more = [metric for metric in in_steps() if metric != ranking()] if len(pairs) == 1 else []
    for metric in (ranking(), *more):
        shares = [
            f"{arm} is better than {than} in {percent(found.better)}"
            for arm, compared, than in pairs
            if (found := compared.scores[metric.key]) and found.better is not None
        ]
        if shares:
            lines.append(f"In {metric.title}, {', '.join(shares)} of the resamplings.")
    if not lines:
        return []
    return [
        f"The test frames were resampled {report.resamplings} times. {' '.join(lines)} That "
        "weighs the choice of frames alone, not what another training or translator would give."
    ]


def _spread_sentences(report: Summary) -> list[str]:
    arms, metric = report.arms, headline()[0]
    seeds = max(len(scores[metric.key].seeds) for scores in arms.values())
    if seeds == 1:
        return []  # which a rule of `reports.honesty` says
    lines = [f"Values are means over {seeds} seeds ± their standard deviation."]
    for arm in ours(report.recipes) if BEFORE in arms else []:
        before, after = (arms[name][metric.key] for name in (BEFORE, arm))
        if before.mean is None or after.mean is None or before.std is None or after.std is None:
            continue
        if abs(after.mean - before.mean) < max(before.std, after.std):
            lines.append(
                f"The difference of {arm} in {metric.title} is smaller than the spread of the "
                "seeds: take it as no difference."
            )
    return lines
