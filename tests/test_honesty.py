"""The rules of honesty: each with a report that breaks it and one that does not."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.scoring.metrics import tabled
from reports.honesty import RULES, SEVERITIES, did_nothing, findings, without_void_shares
from reports.sentences import result_headline, result_sentences
from reports.summary import Comparison, Content, Data, Difference, Recipe, Spread, Summary, Training

KEYS = [metric.key for metric in tabled()]
MEANS = {"source_only": 0.5, "adapted": 0.6, "oracle": 0.8}


def spread(mean: float, seeds: int = 2, std: float | None = 0.01) -> Spread:
    values: dict[str, float | None] = {str(seed): mean + seed / 100 for seed in range(seeds)}
    return Spread(mean=mean, std=std, seeds=values, interval=(mean - 0.02, mean + 0.02))


def compared(gap: float, margin: float = 0.02) -> Comparison:
    found = Difference(difference=gap, interval=(gap - margin, gap + margin), better=1.0)
    return Comparison(scores=dict.fromkeys(KEYS, found), breakdowns={})


def training(name: str, **changes: Any) -> Training:
    fields: dict[str, Any] = {"name": name, "translator": False, "seed": 0, "steps": 4000}
    return Training(**fields | {"frames": 32000, "falling": 0.02} | changes)


def made(**changes: Any) -> Summary:
    """A report in which every rule is kept."""
    means = {arm: dict.fromkeys(KEYS, mean) for arm, mean in MEANS.items()}
    arms = {arm: {key: spread(mean) for key, mean in of.items()} for arm, of in means.items()}
    kinds = {"source_only": "source", "adapted": "translated", "oracle": "target"}
    fields: dict[str, Any] = {
        "recipes": {arm: Recipe(train={kind: 1}, start=None) for arm, kind in kinds.items()},
        "arms": arms,
        "images": 100,
        "gap_closed": dict.fromkeys(KEYS, 1 / 3),
        "gap_closed_by_arm": {"adapted": dict.fromkeys(KEYS, 1 / 3)},
        "gap_closed_intervals": {"adapted": dict.fromkeys(KEYS, (0.3, 0.4))},
        "comparisons": {
            "adapted": {"source_only": compared(0.1)},
            "oracle": {"source_only": compared(0.3)},
        },
        "resamplings": 1000,
        "absent_classes": [],
        "breakdowns": {"class_iou": {arm: {"road": 0.9, "car": 0.2} for arm in MEANS}},
        "floors": dict.fromkeys(KEYS, 0.3),
        "resemblance": 0.1,
        "data": Data(shares={}, test_frames={"road": 100, "car": 40}),
        "trainings": [training("translated", translator=True), training("adapted", confident=0.5)],
        "translations": {
            "translated": Content(
                frames=12,
                contrast={"source": 50, "translated": 45, "target": 40},
                entropy={"source": 4.5, "translated": 4.4, "target": 5},
                agreement={"before": 0.9, "after": 0.8, "flipped": 0.15},
            )
        },
    }
    return Summary.model_construct(**fields | changes)


def with_arm(arm: str, mean: float, **fields: Any) -> dict[str, Any]:
    return {"arms": made().arms | {arm: dict.fromkeys(KEYS, spread(mean, **fields))}}


def content(**changes: Any) -> dict[str, Any]:
    whole = made().translations["translated"]
    return {"translations": {"translated": whole.model_copy(update=changes)}}


def fog(contrast: float, entropy: float) -> dict[str, Any]:
    whole = made().translations["translated"]
    return content(
        contrast=whole.contrast | {"translated": contrast},
        entropy=whole.entropy | {"translated": entropy},
    )


def of_gap(gap: float, margin: float) -> dict[str, Any]:
    return {"comparisons": made().comparisons | {"oracle": {"source_only": compared(gap, margin)}}}


def classes(*values: float) -> dict[str, Any]:
    return {
        "breakdowns": {
            "class_iou": dict(zip(MEANS, ({"road": 0.9, "car": v} for v in values), strict=True))
        }
    }


EQUAL = {"arms": made().arms | {"adapted": made().arms["source_only"]}}
ONE = {"arms": {arm: dict.fromkeys(KEYS, spread(mean, 1, None)) for arm, mean in MEANS.items()}}

BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("gap_within_noise", of_gap(0.3, 0.31), "the gap in per-pixel accuracy"),
    ("gap_within_noise", with_arm("oracle", 0.8, std=0.4), "no larger than its noise"),
    ("oracle_below_arm", with_arm("adapted", 0.81), "the oracle lies below adapted in per-pixel"),
    ("oracle_below_floor", {"floors": dict.fromkeys(KEYS, 0.8)}, "than one class everywhere"),
    ("not_settled", {"trainings": [training("adapted", frames=40)]}, "saw at most 40 frames"),
    (
        "not_settled",
        {"trainings": [training("translated", translator=True, falling=0.2)]},
        "the loss of the translator of translated was still falling",
    ),
    ("lost_content", fog(19, 4.4), "the translations translated have lost their content"),
    ("lost_content", fog(45, 2.9), "have lost their content"),
    ("lost_content", content(agreement={"before": 0.9, "after": 0.6}), "have lost their content"),
    (
        "never_sure",
        {"trainings": [training("adapted", confident=0.0)]},
        "the self-training of adapted did nothing",
    ),
    ("equal_arms", EQUAL, "adapted equals source_only to the last digit"),
    ("classes_at_zero", classes(0.0, 0.0004, 0.0), "1 of 2 classes is at 0.0% in every arm"),
    ("one_seed", ONE, "one seed"),
    (
        "few_test_frames",
        {"data": Data(shares={}, test_frames={"road": 100, "car": 9})},
        "1 class in fewer than 10 test frames",
    ),
    ("frames_resemble", {"resemblance": 0.5}, "test frames resemble their neighbours"),
]
KEPT: list[tuple[str, dict[str, Any]]] = [
    ("gap_within_noise", of_gap(0.3, 0.29)),
    ("oracle_below_arm", with_arm("adapted", 0.8)),
    ("oracle_below_floor", {"floors": dict.fromkeys(KEYS, 0.79)}),
    ("not_settled", {"trainings": [training("adapted", frames=500, falling=0.1)]}),
    ("not_settled", {"trainings": [training("adapted", falling=None)]}),
    ("lost_content", fog(21, 3.1)),
    ("lost_content", content(agreement={"before": 0.9, "after": 0.64, "flipped": 0.3})),
    ("lost_content", {"translations": {}}),
    ("never_sure", {"trainings": [training("adapted"), training("x", confident=0.01)]}),
    (
        "never_sure",
        {
            "trainings": [
                training("adapted", confident=sure, seed=s) for s, sure in ((0, 0), (1, 1))
            ]
        },
    ),
    ("equal_arms", with_arm("adapted", 0.5001)),
    ("classes_at_zero", classes(0.0, 0.001, 0.0)),
    ("few_test_frames", {"data": Data(shares={}, test_frames={"road": 10, "car": 0})}),
    ("frames_resemble", {"resemblance": 0.29}),
    ("frames_resemble", {"resemblance": 0.5, "images": 12}),
    ("frames_resemble", {"resemblance": None}),
]


def test_a_sound_report_has_no_warning() -> None:
    assert findings(made()) == []
    headline = result_headline(made())
    assert headline.startswith("adapted closes 33% (30 to 40%) of the per-pixel gap")
    assert "(+10.0 points, interval +8.0 to +12.0)" in headline
    assert "With care" not in headline
    assert "Not to be relied on" not in headline


@pytest.mark.parametrize(("rule", "changes", "words"), BROKEN)
def test_a_broken_rule_changes_the_headline(rule: str, changes: dict[str, Any], words: str) -> None:
    report = made(**changes)
    found = [one for one in findings(report) if one.rule == rule]
    assert found
    assert found[0].advice
    told = without_void_shares(report.model_copy(update={"warnings": findings(report)}))
    headline = result_headline(told)
    assert words in headline
    assert headline != result_headline(made())
    severity = found[0].severity
    assert headline.startswith("Not to be relied on yet") == any(
        one.severity == "doubt" for one in told.warnings
    )
    if severity == "void":
        assert found[0].metrics
        for metric in found[0].metrics:
            assert told.gap_closed_by_arm["adapted"][metric] is None
            assert told.gap_closed[metric] is None
            assert told.no_share[metric] in found[0].words
        said = " ".join([headline, *result_sentences(told)])
        assert "33%" not in said
        assert "closes" not in said


@pytest.mark.parametrize(("rule", "changes"), KEPT)
def test_a_rule_that_is_kept_says_nothing(rule: str, changes: dict[str, Any]) -> None:
    assert rule not in [one.rule for one in findings(made(**changes))]


def test_every_rule_is_tested() -> None:
    rules = [rule.key for rule in RULES]
    assert len(set(rules)) == len(rules)
    assert {rule for rule, *_ in BROKEN} == set(rules)


def test_the_gravest_comes_first() -> None:
    report = made(**ONE, resemblance=0.9, trainings=[training("adapted", frames=1)])
    found = [one.severity for one in findings(report)]
    assert found == sorted(found, key=SEVERITIES.index)
    assert found[0] == "doubt"


@pytest.mark.parametrize(
    "changes", [{"trainings": [training("adapted", confident=0.0)]}, EQUAL], ids=["unsure", "equal"]
)
def test_the_row_of_a_step_that_did_nothing_says_so(changes: dict[str, Any]) -> None:
    report = made(**changes)
    assert list(did_nothing(report.model_copy(update={"warnings": findings(report)}))) == [
        "adapted"
    ]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: of_gain(0.01, 0.02), "adapted made no difference beyond chance"),
        (lambda: of_gain(-0.1, 0.02), "adapted made it worse"),
        (lambda: without("adapted"), "This run has no adapted arm: no gap can be given"),
        (lambda: without("source_only"), "no source_only arm: no gap can be given"),
        (lambda: without("oracle"), "no share of a gap is given: there is no oracle arm"),
    ],
)
def test_the_headline_says_what_was_found(make: Callable[[], Summary], said: str) -> None:
    headline = result_headline(make())
    assert said in headline
    assert "closes" not in headline


def of_gain(gain: float, margin: float) -> Summary:
    arms = with_arm("adapted", 0.5 + gain)["arms"]
    gaps = made().comparisons | {"adapted": {"source_only": compared(gain, margin)}}
    return made(arms=arms, comparisons=gaps)


def without(arm: str) -> Summary:
    report = made()
    keep = [name for name in report.arms if name != arm]
    return made(
        arms={name: report.arms[name] for name in keep},
        recipes={name: report.recipes[name] for name in keep},
        gap_closed_by_arm={"adapted": dict.fromkeys(KEYS)},
    )
