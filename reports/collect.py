"""The whole content of a `report.json`: scores, what they are worth, and what to do next."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.settings import AFTER, BEFORE, IDEAL, Config
from pipeline.errors import UserError
from pipeline.run.folder import CONFIG_FILE, read_run
from pipeline.scoring.evaluation import FILE
from reports import classes, evidence, honesty, sentences
from reports.logs import logs_of
from reports.published import published
from reports.summary import Summary
from reports.tables import (
    Evaluations,
    evaluation_folder,
    first_evaluation,
    space_of,
    summary,
    summed_confusion,
)

GO_ON = {
    "compare": "Compare it with other runs: `sim2real compare RUN OTHER --out DIR`.",
    "budget": "Ask what that is worth in labelled frames: `sim2real run RUN/config.yaml --budget "
    "4,16,64`.",
    "worse": "Score another translation or network, and put both into one report: `sim2real "
    "compare RUN OTHER --out DIR`.",
}
"""The next commands of a run that no rule finds fault with."""


def report_of(config: Config, run: Path, evaluations: Evaluations) -> Summary:
    """The content of `report.json`: the same for equal runs, wherever and whenever they ran.

    Args:
        config: the arms and seeds that the report is about.
    """
    space = space_of(config)
    first = first_evaluation(evaluations)
    report = summary(config, evaluations)
    tried = sentences.ours(report.recipes)

    def add(**fields: object) -> Summary:
        return report.model_copy(update=fields)

    report = add(classes_worse=classes.worse(report), lost_iou=classes.lost_iou(report, space))
    if first.classes == space.class_names:
        report = add(
            confusions={
                arm: classes.confusions(summed_confusion(seeds), space)
                for arm, seeds in evaluations.items()
            },
            floors=classes.floors(first.table, space),
        )
    report = add(
        confusion={arm: summed_confusion(seeds).tolist() for arm, seeds in evaluations.items()},
        resemblance=classes.resemblance(evaluations, sentences.main_of(tried)),
        trainings=[evidence.training(config, log) for log in logs_of(config, run)],
        translations=evidence.contents(config, run),
    )
    found, source_frames = classes.data(config, space, report, first)
    report = add(data=found, published=published(config, report, source_frames))
    report = add(missing=missing(config, run, report))
    report = add(warnings=honesty.findings(report))
    report = honesty.without_void_shares(report)
    report = add(
        headline=sentences.result_headline(report), sentences=sentences.result_sentences(report)
    )
    return add(advice=advice(report))


def missing(config: Config, run: Path, report: Summary) -> list[str]:
    """What was not measured, in sentences."""
    lines = []
    whole = read_run(run) if (run / CONFIG_FILE).is_file() else config
    left = [arm for arm in whole.arms if arm not in config.arms]
    if left:
        lines.append(f"Not scored, and in no table: {', '.join(left)}.")
    seeds = [str(seed) for seed in whole.seeds if seed not in config.seeds]
    if seeds:
        lines.append(f"Not scored in all arms, and in no mean: seed {', '.join(seeds)}.")
    if BEFORE not in report.arms:
        lines.append(f"There is no {BEFORE} arm, so nothing is known of what adaptation changed.")
    if IDEAL not in report.arms:
        lines.append(sentences.NO_ORACLE)
    if not config.used_translations:
        lines.append("No arm is trained on translated frames.")
    gone = [name for name in config.used_translations if name not in report.translations]
    if gone:
        lines.append(
            f"Contrast and entropy of the translations {', '.join(gone)} were not measured: their "
            "pictures, or those of source or target, are not there."
        )
    for name in ("source", "target"):
        if report.data.shares.get(name) is None:
            unread = name == "target" and name not in config.labels_read
            reason = "no arm reads its labels" if unread else "its labels are not there"
            lines.append(f"The shares of the classes in the {name} were not counted: {reason}.")
    return lines


def advice(report: Summary) -> str:
    """The next sensible step: what the gravest finding asks for, or what the result allows."""
    if report.warnings:
        return report.warnings[0].advice
    main = sentences.main_of(sentences.ours(report.recipes))
    if main is None or BEFORE not in report.arms:
        return f"Give the run the arms {BEFORE} and {AFTER}."
    gain = sentences.helped(report)
    few = any("target" in recipe.frames for recipe in report.recipes.values())
    return GO_ON["worse" if not gain else "compare" if few else "budget"]


def scored_part(config: Config, run: Path) -> Config:
    """The arms and seeds of a run that have been scored, as a configuration of these alone.

    Seeds are those that every arm with a score has; where there are none, those of the first arm
    with one, and the arms that have them.

    Raises:
        UserError: nothing has been scored.
    """
    done = {
        arm: [s for s in config.seeds if (evaluation_folder(run, arm, s) / FILE).is_file()]
        for arm in config.arms
    }
    some = [seeds for seeds in done.values() if seeds]
    if not some:
        raise UserError(
            f"Nothing in {run} has been scored. Continue it: sim2real run {run}/{CONFIG_FILE} "
            f"--run {run}"
        )
    shared: Sequence[int] = [seed for seed in some[0] if all(seed in each for each in some)]
    seeds = shared or some[0]
    arms = {arm: own for arm, own in config.arms.items() if set(seeds) <= set(done[arm])}
    return config.model_copy(update={"arms": arms, "seeds": tuple(seeds)})
