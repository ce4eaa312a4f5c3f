"""The numbers of a report, collected from the evaluations of a run. No metric is computed here."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, model_validator

from pipeline.config.settings import AFTER, BEFORE, IDEAL, Config
from pipeline.data.labels import LabelSpace, load_label_space
from pipeline.errors import UserError
from pipeline.files import explain_damage, read_json, read_record
from pipeline.run.folder import STAGE_FILE, check_results
from pipeline.scoring import bootstrap
from pipeline.scoring.confusion import ConfusionMatrix, Counts

Evaluation = dict[str, Any]
"""The content of one `evaluation.json`; with `frames` and `counts` of its `per_image.npz`, which
runs of an older version lack."""
Drawn = dict[str, bootstrap.Float]
"""Metric -> its value in each drawing of the test frames, as `bootstrap.resample` returns it."""
Summary = dict[str, Any]
"""The content of a `report.json`."""

METRICS = {
    "pixel_accuracy": "per-pixel accuracy",
    "mean_class_accuracy": "mean class accuracy",
    "mean_iou": "mean IoU",
    "frequency_weighted_iou": "frequency-weighted IoU",
}
"""Key in `evaluation.json` -> what it is called in a text."""
FURTHER = {
    "category_iou": "IoU of the categories: confusion among the classes of one is no error",
    "class_iiou": "iIoU of the classes: small instances count as much as large ones",
    "category_iiou": "iIoU of the categories",
}
"""Scores that some label spaces and data sets have -> what they are called in a text."""


def ordered_arms(config: Config) -> list[str]:
    """The arms from the lower end of the gap to its upper end."""
    return sorted(config.arms, key=lambda arm: (arm != BEFORE, arm == IDEAL))


def evaluation_folder(run: Path, arm: str, seed: int) -> Path:
    """Where the scores of one arm and seed are."""
    return run / "evaluation" / arm / f"seed-{seed}"


def read_evaluations(run: Path, config: Config) -> dict[str, list[Evaluation]]:
    """Arm -> its evaluations in the order of `config.seeds`.

    Raises:
        UserError: an arm or seed has not been scored.
    """
    files = {
        arm: [evaluation_folder(run, arm, seed) / "evaluation.json" for seed in config.seeds]
        for arm in ordered_arms(config)
    }
    missing = [str(path) for paths in files.values() for path in paths if not path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"No file {missing[0]}{more}. Run `sim2real evaluate {run}` first.")
    for arm in files:
        for seed in config.seeds:
            name = f"evaluation/{arm}/seed-{seed}"
            if (run / name / STAGE_FILE).is_file():
                check_results(run, name)
    return {arm: [_read_evaluation(path) for path in paths] for arm, paths in files.items()}


class _Record(BaseModel):
    """What must be in an `evaluation.json`, for the report to say it; there is more."""

    protocol: dict[str, Any]
    dataset: str
    split: str | None
    images: int
    seed: int
    classes: list[str]
    pictures: dict[str, str]
    confusion: list[list[int]]
    void_predictions: list[int] | None = None
    class_accuracy: dict[str, float | None]
    class_iou: dict[str, float | None]
    pixel_accuracy: float | None
    mean_class_accuracy: float | None
    mean_iou: float | None
    frequency_weighted_iou: float | None
    category_iou: dict[str, float | None] = {}
    mean_category_iou: float | None = None

    @model_validator(mode="after")
    def _of_these_classes(self) -> Self:
        sides = {len(self.confusion), *map(len, self.confusion)}
        if sides != {len(self.classes)} or not (
            set(self.classes) == self.class_accuracy.keys() == self.class_iou.keys()
        ):
            raise ValueError("counts and scores are not those of `classes`")
        if "label_space" not in self.protocol:
            raise ValueError("protocol has no label_space")
        return self


def _read_evaluation(path: Path) -> Evaluation:
    way_out = "Score the network anew with `sim2real run --force evaluation`."
    read_record(path, _Record, way_out)
    evaluation: Evaluation = read_json(path, way_out)
    counts = path.with_name("per_image.npz")
    if counts.is_file():
        side = len(evaluation["classes"])
        with explain_damage(counts, way_out), np.load(counts) as arrays:
            evaluation |= {"frames": arrays["names"].tolist(), "counts": arrays["counts"]}
            shape = len(evaluation["frames"]), side, side + 1
            if evaluation["counts"].shape != shape or evaluation["counts"].dtype.kind != "i":
                raise ValueError("it does not hold a count of each pair of classes for each frame")
    return evaluation


def summary(
    config: Config,
    evaluations: dict[str, list[Evaluation]],
    against: Mapping[str, Sequence[str]] | None = None,
) -> Summary:
    """The content of `report.json`: the same for equal runs, wherever and whenever they ran.

    Args:
        against: arm -> the arms that it is compared with frame by frame; none: each with
            `source_only` and `adapted`.
    """
    if against is None:
        against = {arm: (BEFORE, AFTER) for arm in evaluations if arm != BEFORE}
    first = first_evaluation(evaluations)
    space = load_label_space(config.label_space).averaging(config.evaluation.classes)
    drawn = _drawn(evaluations, space)
    arms = {
        arm: {
            metric: _over_seeds(scores, metric)
            | {"interval": bootstrap.interval(drawn[arm][metric]) if arm in drawn else None}
            for metric in METRICS
        }
        for arm, scores in evaluations.items()
    }
    by_class = {
        key: {
            arm: {name: _mean(s[key][name] for s in scores) for name in first["classes"]}
            for arm, scores in evaluations.items()
        }
        for key in ("class_accuracy", "class_iou")
    }
    between = [arm for arm in arms if arm not in (BEFORE, IDEAL)]
    closed = {arm: {metric: gap_closed(arms, arm, metric) for metric in METRICS} for arm in between}
    return {
        "name": config.name,
        "label_space": first["protocol"]["label_space"],
        "dataset": first["dataset"],
        "split": first["split"],
        "images": first["images"],
        "protocol": first["protocol"],
        "recipes": recipes(config),
        "arms": arms,
        "gap_closed": closed.get(AFTER, dict.fromkeys(METRICS)),
        "gap_closed_by_arm": closed,
        "gap_closed_intervals": {
            arm: {metric: _gap_interval(drawn, arm, metric) for metric in METRICS}
            for arm in between
        },
        "comparisons": {
            arm: {
                than: _compare(arms, by_class["class_iou"], drawn, arm, than)
                for than in against.get(arm, ())
                if than in drawn and than != arm
            }
            for arm in drawn
            if arm in against
        },
        "resamplings": bootstrap.RESAMPLES if drawn else None,
        # Accuracy is undefined where the ground truth has no pixel, whatever is predicted.
        "absent_classes": [name for name, v in first["class_accuracy"].items() if v is None],
        **by_class,
        **_further(evaluations),
        "void_predictions": {
            arm: sum(sum(s.get("void_predictions", [])) for s in scores)
            for arm, scores in evaluations.items()
        },
    }


def between_runs(
    config: Config, evaluations: dict[str, dict[str, list[Evaluation]]]
) -> dict[str, dict[str, Any]]:
    """Run -> arm -> how far it is above the arm of that name in the first run, on the same frames.

    Without the runs and arms that kept no counts of these frames.
    """
    (_, base), *others = evaluations.items()
    found: dict[str, dict[str, Any]] = {}
    for run, arms in others:
        pairs = {
            arm: {"here": scores, "there": base[arm]}
            for arm, scores in arms.items()
            if arm in base and _frames(scores) == _frames(base[arm]) != [None]
        }
        # The two runs' arms are the arms of a summary: what it says of arms holds for them.
        both = {f"{arm} {run}": pair[run] for arm, pair in pairs.items() for run in pair}
        against = {f"{arm} here": [f"{arm} there"] for arm in pairs}
        compared = summary(config, both, against)["comparisons"] if pairs else {}
        found[run] = {arm: compared[f"{arm} here"][f"{arm} there"] for arm in pairs}
    return {run: arms for run, arms in found.items() if arms}


def _frames(scores: list[Evaluation]) -> list[list[str] | None]:
    """The distinct lists of frames that the seeds of an arm were scored on; None: not kept."""
    lists = [evaluation.get("frames") for evaluation in scores]
    return [names for i, names in enumerate(lists) if names not in lists[:i]]


def _further(evaluations: dict[str, list[Evaluation]]) -> dict[str, Any]:
    """The scores of `FURTHER`, arm -> name -> value, and their means; None where there are none."""
    found: dict[str, Any] = {}
    for key in FURTHER:
        mean = f"mean_{key}"
        known = all(s.get(mean) is not None for scores in evaluations.values() for s in scores)
        found[key] = found[mean] = None
        if known:
            found[key] = {
                arm: {name: _mean(s[key][name] for s in scores) for name in scores[0][key]}
                for arm, scores in evaluations.items()
            }
            found[mean] = {arm: _over_seeds(scores, mean) for arm, scores in evaluations.items()}
    return found


def _drawn(evaluations: dict[str, list[Evaluation]], space: LabelSpace) -> dict[str, Drawn]:
    """Arm -> its metrics in each drawing of the test frames, where every seed kept its counts."""
    kept = {
        arm: [evaluation["counts"] for evaluation in scores]
        for arm, scores in evaluations.items()
        if all(evaluation.get("frames") for evaluation in scores)
    }
    frames = {tuple(scores["frames"]) for arm in kept for scores in evaluations[arm]}
    if len(frames) > 1:
        raise UserError(
            "The arms were scored on unlike frames, and cannot be compared frame by frame. Score "
            "them anew with `sim2real run --force evaluation`."
        )
    return {arm: bootstrap.resample(counts, space) for arm, counts in kept.items()}


def _compare(
    arms: dict[str, Any],
    class_iou: dict[str, dict[str, float | None]],
    drawn: dict[str, Drawn],
    arm: str,
    than: str,
) -> dict[str, Any]:
    """How far `arm` is above `than` on the same frames, in each metric and each class's IoU."""
    ours, theirs = drawn[arm], drawn[than]
    return {
        metric: _difference(
            (arms[arm][metric]["mean"], arms[than][metric]["mean"]), (ours[metric], theirs[metric])
        )
        for metric in METRICS
    } | {
        "class_iou": {
            name: _difference(
                (class_iou[arm][name], class_iou[than][name]),
                (ours["class_iou"][:, index], theirs["class_iou"][:, index]),
            )
            for index, name in enumerate(class_iou[arm])
        }
    }


def _difference(
    values: tuple[float | None, float | None], drawn: tuple[bootstrap.Float, bootstrap.Float]
) -> dict[str, Any] | None:
    """First minus second, and what the drawings say of it; None where one has no value."""
    if values[0] is None or values[1] is None:
        return None
    return {
        "difference": values[0] - values[1],
        "interval": bootstrap.interval(drawn[0] - drawn[1]),
        "better": bootstrap.share_better(*drawn),
    }


def _gap_interval(drawn: dict[str, Drawn], arm: str, metric: str) -> tuple[float, float] | None:
    """None where the arms have no counts, or a drawing has no gap: its share is then anything."""
    if not {BEFORE, arm, IDEAL} <= drawn.keys():
        return None
    before, after, ideal = (drawn[name][metric] for name in (BEFORE, arm, IDEAL))
    if not (ideal > before).all():
        return None
    return bootstrap.interval((after - before) / (ideal - before))


def gap_closed(arms: dict[str, Any], arm: str, metric: str) -> float | None:
    """(arm - source_only) / (oracle - source_only), of the means over seeds.

    None when one of the three is missing or the oracle is not better than source_only.
    """
    before, after, ideal = (
        arms[name][metric]["mean"] if name in arms else None for name in (BEFORE, arm, IDEAL)
    )
    if before is None or after is None or ideal is None or ideal <= before:
        return None
    return float((after - before) / (ideal - before))


def first_evaluation(evaluations: dict[str, list[Evaluation]]) -> Evaluation:
    """Any evaluation: what does not depend on the arm is equal in all of them."""
    return next(iter(evaluations.values()))[0]


def summed_confusion(evaluations: list[Evaluation]) -> Counts:
    """(K, K + 1) pixel counts of all seeds together, void predictions in the last column."""
    return np.asarray(sum(_counts(evaluation) for evaluation in evaluations))


def _counts(evaluation: Evaluation) -> Counts:
    void = evaluation.get("void_predictions")  # runs of an older version lack it
    return ConfusionMatrix.from_counts(evaluation["confusion"], void).table


def per_class(report: Summary, evaluations: dict[str, list[Evaluation]]) -> pd.DataFrame:
    """One row a class: its share of the scored pixels, accuracy and IoU of each arm."""
    first = first_evaluation(evaluations)
    counts = _counts(first)
    table = pd.DataFrame({"class": first["classes"]})
    for arm in evaluations:
        for column, key in (("accuracy", "class_accuracy"), ("iou", "class_iou")):
            values = report[key][arm]
            table[f"{column}_{arm}"] = pd.array([values[c] for c in first["classes"]], "Float64")
    table["share_of_truth"] = counts.sum(axis=1) / max(1, int(counts.sum()))
    return table


def recipes(config: Config) -> dict[str, Any]:
    """Arm -> how its network was trained.

    `train` (share of the draws by kind of frames), `start` (an arm or the name of a file, or None),
    `self_training`, and `settings`: those in which the arms are not alike, as text.
    """
    settings = {arm: _flat(config.recipe(arm).model_dump(mode="json")) for arm in config.arms}
    taught = {
        arm: _flat({"self_training": own.self_training.model_dump(mode="json")})
        for arm, own in config.arms.items()
        if own.self_training
    }
    differing = _differing(settings) | _differing(taught)
    return {
        arm: {
            "train": {kind: part / sum(own.train.values()) for kind, part in own.train.items()},
            "start": _file_name(own.start) if own.start else None,
            "self_training": own.self_training is not None,
            "settings": {
                key: _file_name(values.get(arm, "–")) for key, values in differing.items()
            },
        }
        for arm, own in ((arm, config.arms[arm]) for arm in ordered_arms(config))
    }


def settings_by_arm(report: Summary) -> dict[str, dict[str, str]]:
    """Setting -> arm -> value, for those in which the arms' recipes are not alike."""
    keys = next(iter(report["recipes"].values()))["settings"]
    return {
        key: {arm: recipe["settings"][key] for arm, recipe in report["recipes"].items()}
        for key in keys
    }


def settings_that_differ(configs: dict[str, Config]) -> dict[str, dict[str, str]]:
    """Setting -> run -> value, for the settings in which the runs are not alike.

    An arm that some runs lack is one entry, the frames that it trains on; its settings follow where
    the runs that have it are not alike.
    """
    flat = {run: _flat(config.model_dump(mode="json")) for run, config in configs.items()}
    changed = {
        key: values
        for key, values in _differing(flat).items()
        if key != "name" and not key.startswith(("compute.", "arms."))
    }
    for arm in dict.fromkeys(arm for config in configs.values() for arm in config.arms):
        place = f"arms.{arm}"
        having = {run: config.arms[arm] for run, config in configs.items() if arm in config.arms}
        if len(having) < len(configs):
            changed[place] = {
                run: " + ".join(having[run].train) if run in having else "–" for run in configs
            }
        settings = {
            run: _flat({"arms": {arm: own.model_dump(mode="json")}}) for run, own in having.items()
        }
        for key, values in _differing(settings).items():
            changed[key] = {run: values.get(run, "–") for run in configs}
    return changed


def _differing(flat: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Setting -> name -> value, for the settings that are not equal for all names."""
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    table = {key: {name: flat[name].get(key, "–") for name in flat} for key in keys}
    return {key: values for key, values in table.items() if len(set(values.values())) > 1}


def _file_name(value: str) -> str:
    """A path without the folders of this machine; other texts stay."""
    return Path(value).name if Path(value).is_absolute() else value


def _flat(value: Any, place: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{place}.{key}").items()
        }
    return {place.removeprefix("."): str(value)}


def scored_on(report: Summary) -> str:
    """The name of the test set, with its split."""
    return f"{report['dataset']} ({report['split']})" if report["split"] else report["dataset"]


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent; a dash when there is none."""
    if value is None:
        return "–"
    return f"{100 * value:.{digits}f}%".replace("-", "−")


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def spread(score: dict[str, Any]) -> str:
    """Mean ± standard deviation in percent."""
    text = percent(score["mean"])
    return text if score["std"] is None else f"{text[:-1]} ± {100 * score['std']:.1f}%"


def bounds(interval: tuple[float, float] | None, digits: int = 1) -> str:
    """An interval of fractions in percent."""
    if interval is None:
        return ""
    low, high = (percent(end, digits) for end in interval)
    return f"{low[:-1]} to {high}"


def margins(interval: tuple[float, float] | None) -> str:
    """An interval of a difference in percentage points."""
    return f"{points(interval[0])} to {points(interval[1])}" if interval else ""


def hours(seconds: float | None) -> str:
    """Seconds as hours of two digits or more."""
    if seconds is None:
        return "–"
    return f"{seconds / 3600:.3f}" if seconds < 360 else f"{seconds / 3600:.2f}"


def class_value(value: Any) -> str:
    """A class's value in percent; `absent` when no seed has one."""
    return "absent" if value is None or pd.isna(value) else percent(float(value))


def share(value: float) -> str:
    """A share of the pixels in percent that tells few from none."""
    return "–" if value == 0 else "<0.1%" if value < 0.001 else percent(value)


def _over_seeds(evaluations: list[Evaluation], metric: str) -> dict[str, Any]:
    seeds = {str(evaluation["seed"]): evaluation[metric] for evaluation in evaluations}
    present = [value for value in seeds.values() if value is not None]
    return {
        "mean": _mean(present),
        "std": stdev(present) if len(present) > 1 else None,
        "seeds": seeds,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def flips(
    before: ConfusionMatrix, after: ConfusionMatrix, names: Sequence[str], most: int = 4
) -> list[dict[str, Any]]:
    """The classes that translation changes most in a judge's eyes, by pixels.

    Returns:
        `label`, what it is `seen` as, and by how much `more` of the label's pixels than before, a
        fraction; only where that is 1% or more.
    """
    gained = (after.counts - before.counts).astype(float)
    np.fill_diagonal(gained, 0)
    truth = before.counts.sum(axis=1)
    found = []
    for position in np.argsort(gained, axis=None)[::-1][:most]:
        row, column = np.unravel_index(position, gained.shape)
        if truth[row] and (more := gained[row, column] / truth[row]) >= 0.01:
            found.append({"label": names[row], "seen": names[column], "more": float(more)})
    return found
