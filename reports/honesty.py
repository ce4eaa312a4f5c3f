"""What keeps the numbers of a report from being what they seem: one table of rules.

Each rule looks at a report alone. What it finds changes the headline, by its severity: `void` takes
the share of the gap away, `doubt` goes before the result, `caution` behind it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.config.settings import BEFORE, IDEAL
from pipeline.scoring.metrics import METRICS, Metric, headline, tabled
from pipeline.text import count, listed, margins, number, percent
from reports.chance import change, sign_of
from reports.sentences import ours
from reports.summary import Finding, Summary, Training

FEW_FRAMES = 500
"""A training that was shown fewer frames has hardly begun."""
STILL_FALLING = 0.10
"""A loss whose last fifth lies so far below the fifth before has not settled."""
FEW_TEST_FRAMES = 10
"""A class that fewer test frames show has a score by chance."""
RESEMBLE = 0.3
"""Neighbouring test frames whose scores go together so far are not independent."""
NOTHING = 0.0005
"""A score below it is shown as 0.0%."""
LOST_CONTRAST, LOST_ENTROPY, LOST_AGREEMENT = 0.5, 1.5, 0.7
"""Translations have lost their content below this part of the contrast, and so many bits of the
entropy, of both source and target; or below this part of the agreement with the labels."""
SURE = 0.001
"""A teacher that was never sure of a larger share of the pixels has taught nothing."""

Severity = Literal["void", "doubt", "caution"]
SEVERITIES: tuple[Severity, ...] = ("void", "doubt", "caution")
"""The gravest first."""


@dataclass(frozen=True)
class Found:
    """What a rule has to say."""

    words: str
    """As a part of the headline."""
    text: str
    """As a sentence of its own."""
    metrics: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """When a report is not to be taken at its word."""

    severity: Severity
    condition: Callable[[Summary], Iterator[Found]]
    """What it finds; nothing where the rule is kept. Reads the fields of a report alone."""
    advice: str
    """What to do about it; RUN stands for the folder of the run."""

    @property
    def key(self) -> str:
        """The name of its condition."""
        return self.condition.__name__.removeprefix("_")


def findings(report: Summary) -> list[Finding]:
    """What the rules find in a report, the gravest first."""
    found = [
        Finding(
            rule=rule.key,
            severity=rule.severity,
            advice=rule.advice,
            **vars(one),
        )
        for rule in RULES
        for one in rule.condition(report)
    ]
    return sorted(found, key=lambda one: SEVERITIES.index(one.severity))


def without_void_shares(report: Summary) -> Summary:
    """A report in which no share of a gap is given that a rule takes away."""
    reasons: dict[str, str] = {}
    for one in report.warnings:
        for metric in one.metrics if one.severity == "void" else ():
            reasons.setdefault(metric, one.words)

    def kept(values: Mapping[str, object]) -> dict[str, object]:
        return {key: None if key in reasons else value for key, value in values.items()}

    return report.model_copy(
        update={
            "no_share": reasons,
            "gap_closed": kept(report.gap_closed),
            "gap_closed_by_arm": {a: kept(v) for a, v in report.gap_closed_by_arm.items()},
            "gap_closed_intervals": {a: kept(v) for a, v in report.gap_closed_intervals.items()},
        }
    )


def did_nothing(report: Summary) -> dict[str, str]:
    """Arm -> why its step did nothing, as the rules found it."""
    rules = ("never_sure", "equal_arms")
    return {arm: one.words for one in report.warnings if one.rule in rules for arm in one.arms}


# Whether there is a gap.


def _gap_within_noise(report: Summary) -> Iterator[Found]:
    if not {BEFORE, IDEAL} <= report.arms.keys():
        return
    gaps = change(report, IDEAL, BEFORE)
    ends = {arm: report.arms[arm] for arm in (BEFORE, IDEAL)}
    unsure = []
    for metric in tabled():
        gap = gaps.get(metric.key)
        spreads = {arm: scores[metric.key] for arm, scores in ends.items()}
        if gap is None or metric.gain(gap.difference, 0.0) <= 0:
            continue  # no gap at all, which the result says
        if sign_of(metric, gap, spreads) == 0:
            unsure.append((metric, gap.difference, gap.interval))
    if unsure:
        metric, gap_size, interval = unsure[0]
        shown = margins(interval, metric.unit)
        yield Found(
            f"the gap in {_titles(m for m, *_ in unsure)} is no larger than its noise",
            f"Between {BEFORE} and {IDEAL} the gap in {metric.title} is "
            f"{margins((gap_size, gap_size), metric.unit).split(' to ')[0]} points"
            f"{f', interval {shown}' if shown else ''}: no larger than chance, so no share of it "
            f"is given in {_titles(m for m, *_ in unsure)}.",
            tuple(m.key for m, *_ in unsure),
            (BEFORE, IDEAL),
        )


def _oracle_below_arm(report: Summary) -> Iterator[Found]:
    above: dict[str, list[str]] = {}
    arms: dict[str, None] = {}
    for metric in tabled():
        ideal = report.score(IDEAL, metric.key)
        for arm in ours(report.recipes):
            mean = report.score(arm, metric.key)
            if ideal is not None and mean is not None and metric.gain(mean, ideal) > 0:
                above.setdefault(metric.key, []).append(f"{arm} {number(mean, metric.unit)}")
                arms[arm] = None
    if above:
        titles = _titles(METRICS[key] for key in above)
        scores = "; ".join(
            f"{METRICS[key].title} {number(report.score(IDEAL, key), METRICS[key].unit)} "
            f"against {', '.join(shown)}"
            for key, shown in above.items()
        )
        yield Found(
            f"the oracle lies below {_and(arms)} in {titles}",
            f"The oracle lies below {_and(arms)} ({scores}): there it is no upper end of the gap, "
            "so no share of it is given.",
            tuple(above),
            (*arms, IDEAL),
        )


def _oracle_below_floor(report: Summary) -> Iterator[Found]:
    for metric in headline():
        floor, ideal = report.floors.get(metric.key), report.score(IDEAL, metric.key)
        if floor is not None and ideal is not None and metric.gain(ideal, floor) <= 0:
            yield Found(
                f"the oracle is no better in {metric.title} than one class everywhere",
                f"In {metric.title} the oracle ({number(ideal, metric.unit)}) is no better than to "
                f"predict the largest class everywhere ({number(floor, metric.unit)}): it has "
                "learnt nothing, and there is no gap to measure.",
                (metric.key,),
                (IDEAL,),
            )


# Whether what was trained is what was meant.


def _not_settled(report: Summary) -> Iterator[Found]:
    few = [one for one in report.trainings if one.frames < FEW_FRAMES]
    if few:
        most = max(one.frames for one in few)
        yield Found(
            f"{_trained(few)} saw at most {count(most, 'frame')} in training",
            f"In training, {_trained(few)} saw at most {count(most, 'frame')} "
            f"({count(max(one.steps for one in few), 'step')}): that is hardly a beginning.",
            arms=_arms(few),
        )
    still = [
        one for one in report.trainings if one not in few and (one.falling or 0) > STILL_FALLING
    ]
    if still:
        drop = max(one.falling or 0 for one in still)
        yield Found(
            f"the loss of {_trained(still)} was still falling",
            f"The loss of {_trained(still)} was still falling when training ended, by "
            f"{percent(drop, 0)} in the last fifth: more steps would change the scores.",
            arms=_arms(still),
        )


def _lost_content(report: Summary) -> Iterator[Found]:
    for name, content in report.translations.items():
        reasons = []
        for what, values, least in (
            ("contrast", content.contrast, LOST_CONTRAST),
            ("entropy", content.entropy, None),
        ):
            ends = [values[end] for end in ("source", "target")]
            known = [value for value in ends if value is not None]
            found = values["translated"]
            if found is None or not known:
                continue
            limit = min(known) * least if least else min(known) - LOST_ENTROPY
            if found < limit:
                have = " and ".join(f"{value:.1f}" for value in known)
                reasons.append(f"{what} {found:.1f} where source and target have {have}")
        before, after = ((content.agreement or {}).get(key) for key in ("before", "after"))
        if before is not None and after is not None and after < LOST_AGREEMENT * before:
            reasons.append(
                "a network that learnt from the source agrees with the labels in "
                f"{percent(after, 0)} of the pixels after translation, in {percent(before, 0)} "
                "before"
            )
        if reasons:
            yield Found(
                f"the translations {name} have lost their content",
                f"The translations {name} no longer show what their labels say: "
                f"{'; '.join(reasons)}.",
                arms=tuple(arm for arm, recipe in report.recipes.items() if name in recipe.train),
            )


def _never_sure(report: Summary) -> Iterator[Found]:
    taught = [one for one in report.trainings if one.confident is not None]
    idle = {
        one.name: None
        for one in taught
        if all((o.confident or 0) < SURE for o in taught if o.name == one.name)
    }
    if idle:
        yield Found(
            f"the self-training of {_and(idle)} did nothing",
            f"The teacher of {_and(idle)} was never sure of a pixel: its self-training did "
            "nothing, and its row shows none of it.",
            arms=tuple(idle),
        )


def _equal_arms(report: Summary) -> Iterator[Found]:
    arms = [arm for arm in (BEFORE, *ours(report.recipes)) if arm in report.arms]
    for position, arm in enumerate(arms):
        seeds = {key: score.seeds for key, score in report.arms[arm].items()}
        for other in arms[:position]:
            theirs = {key: score.seeds for key, score in report.arms[other].items()}
            if seeds == theirs and any(any(s.values()) for s in seeds.values()):
                yield Found(
                    f"{arm} equals {other} to the last digit",
                    f"{arm} has the scores of {other} to the last digit in every seed: what it "
                    "adds did nothing, which is no gain.",
                    arms=(arm,),
                )
                break


# How far the scores hold.


def _classes_at_zero(report: Summary) -> Iterator[Found]:
    of_arms = report.breakdowns.get("class_iou") or {}
    if not of_arms:
        return
    scored = [
        name
        for name in report.classes
        if name not in report.absent_classes and any(v[name] is not None for v in of_arms.values())
    ]
    nothing = [name for name in scored if all((v[name] or 0) < NOTHING for v in of_arms.values())]
    if nothing:
        yield Found(
            f"{len(nothing)} of {count(len(scored), 'class', 'classes')} "
            f"{'is' if len(nothing) == 1 else 'are'} at 0.0% in every arm",
            f"No arm finds a pixel of {listed(nothing, 20)}: means are low for their sake, and "
            "nothing is known of them.",
        )


def _one_seed(report: Summary) -> Iterator[Found]:
    seeds = max(
        (len(s.seeds) for scores in report.arms.values() for s in scores.values()), default=0
    )
    if seeds == 1:
        yield Found("one seed", "One seed: no spread known.")


def _few_test_frames(report: Summary) -> Iterator[Found]:
    few = {
        name: frames
        for name, frames in report.data.test_frames.items()
        if 0 < frames < FEW_TEST_FRAMES
    }
    if few:
        shown = listed([f"{name} ({frames})" for name, frames in few.items()], 20)
        yield Found(
            f"{count(len(few), 'class', 'classes')} in fewer than {FEW_TEST_FRAMES} test frames",
            f"Fewer than {FEW_TEST_FRAMES} test frames show {shown}: their scores are by chance, "
            "and are in the means.",
        )


def _frames_resemble(report: Summary) -> Iterator[Found]:
    found = report.resemblance
    if found is None or found < max(RESEMBLE, 2 / report.images**0.5):
        return
    wider = ((1 + found) / (1 - found)) ** 0.5 if found < 1 else float("inf")
    yield Found(
        "test frames resemble their neighbours",
        f"Scores of neighbouring test frames go together (correlation {found:.2f}): they are no "
        f"independent frames, and intervals should be about {wider:.1f} times as wide.",
    )


RULES = (
    Rule(
        "void",
        _gap_within_noise,
        "Score on more test frames, train more seeds, or give the oracle more labelled frames.",
    ),
    Rule(
        "void",
        _oracle_below_arm,
        "Train the oracle longer or on more labelled frames, until it is an upper end.",
    ),
    Rule(
        "void",
        _oracle_below_floor,
        "Look at the labels with `sim2real check RUN/config.yaml`, then train longer.",
    ),
    Rule(
        "doubt",
        _not_settled,
        "Train longer: raise `segmentation.steps` or the epochs of `cyclegan` in a new run.",
    ),
    Rule(
        "doubt",
        _lost_content,
        "Look at the translated frames; train the translator longer or with `cyclegan.semantics`.",
    ),
    Rule(
        "doubt",
        _never_sure,
        "Lower `self_training.confidence`, or train the network that teaches longer.",
    ),
    Rule("doubt", _equal_arms, "Look at what the arm adds: it was without effect."),
    Rule(
        "caution",
        _classes_at_zero,
        "Train longer, use `rare_class_sampling`, or group classes in a label space of your own.",
    ),
    Rule(
        "caution",
        _one_seed,
        "Add seeds; what is trained stays: `sim2real run RUN/config.yaml --run RUN --set "
        "seeds=[0,1,2]`, with the present seed first.",
    ),
    Rule("caution", _few_test_frames, "Label more test frames that show these classes."),
    Rule("caution", _frames_resemble, "Score on frames that lie further apart, or of more drives."),
)
"""In the order in which they are said, within a severity."""


def _and(names: Iterable[str]) -> str:
    return listed(names, 3)


def _titles(metrics: Iterable[Metric]) -> str:
    return ", ".join(metric.title for metric in metrics)


def _trained(trainings: Iterable[Training]) -> str:
    return _and(
        dict.fromkeys(
            f"the translator of {one.name}" if one.translator else one.name for one in trainings
        )
    )


def _arms(trainings: Iterable[Training]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.name for one in trainings if not one.translator))
