"""The choice without labels: what each criterion says of each network, and how well it chooses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pipeline.config.settings import Config
from pipeline.csv_files import write_table
from pipeline.errors import UserError
from pipeline.run.folder import STAGE_FILE, check_results, network_folder
from pipeline.scoring.metrics import Metric, Score, in_steps, ranking, tabled
from pipeline.scoring.selection import (
    CRITERIA,
    FILE,
    LEAST,
    Criterion,
    Unlabelled,
    agreements,
    rank_correlation,
)
from pipeline.text import count, difference
from reports.summary import Summary

TABLE = "selection.csv"


@dataclass(frozen=True)
class Network:
    """One trained network that has learnt from no label of the target."""

    arm: str
    seed: int
    criteria: Mapping[str, Score]
    """Key in `CRITERIA` -> value."""
    scores: Mapping[str, Score]
    """Key in `METRICS` -> value on the test set, by its labels."""


@dataclass(frozen=True)
class Choice:
    """What one criterion says of networks of several arms."""

    criterion: Criterion
    networks: int
    """That have a value of it."""
    arm: str | None
    """The arm that it would choose, by its mean over seeds; None of fewer than two arms."""
    behind: Mapping[str, Score]
    """Metric -> how much better the best arm is; 0 where it is the one chosen."""
    correlation: Mapping[str, Score]
    """Metric -> Spearman's rank correlation over the networks: 1 where the criterion orders them as
    the metric does, from the worst to the best."""


def read_networks(config: Config, run: Path, report: Summary) -> list[Network]:
    """The networks that a run looked at without labels, and their scores; none without `selection`.

    Raises:
        UserError: one has not been looked at, or its files are damaged.
    """
    arms = [arm for arm in report.arms if not config.sees_target_labels(arm)]
    keys = [(arm, seed) for arm in arms for seed in config.seeds]
    if config.selection is None or not keys:
        return []
    folders = [run / network_folder("selection", *key) for key in keys]
    for folder in folders:
        if not (folder / FILE).is_file():
            raise UserError(f"No file {folder / FILE}. Run `sim2real select {run}` first.")
        if (folder / STAGE_FILE).is_file():
            check_results(run, folder.relative_to(run).as_posix())
    looks = [Unlabelled.read(folder) for folder in folders]
    shares = agreements(folders, looks[0].frames)
    networks = []
    for number, ((arm, seed), look) in enumerate(zip(keys, looks, strict=True)):
        seeds = [i for i, other in enumerate(keys) if other[0] == arm and i != number]
        bases = [i for i, other in enumerate(keys) if other == (config.builds_on(arm), seed)]
        found = look.criteria | {
            "seed_agreement": fmean(shares[number, seeds]) if seeds else None,
            "base_agreement": fmean(shares[number, bases]) if bases else None,
        }
        scores = {m.key: report.arms[arm][m.key].seeds.get(str(seed)) for m in tabled()}
        networks.append(Network(arm, seed, {key: found.get(key) for key in CRITERIA}, scores))
    return networks


def choices(networks: Sequence[Network]) -> list[Choice]:
    """What each criterion says of the networks; none without any."""
    return [_choice(networks, criterion) for criterion in CRITERIA.values()] if networks else []


def _choice(networks: Sequence[Network], criterion: Criterion) -> Choice:
    def value(network: Network) -> Score:
        found = network.criteria[criterion.key]
        return found if found is None or criterion.higher_is_better else -found

    values = [value(network) for network in networks]
    means = _by_arm(networks, value)
    arm = max(means, key=means.__getitem__) if len(means) > 1 else None
    return Choice(
        criterion,
        sum(found is not None for found in values),
        arm,
        {m.key: None if arm is None else _behind(networks, m, arm) for m in in_steps()},
        {
            m.key: rank_correlation(values, [gain(network, m) for network in networks])
            for m in in_steps()
        },
    )


def gain(network: Network, metric: Metric) -> Score:
    """A score of a network, the higher the better."""
    score = network.scores[metric.key]
    return None if score is None else metric.gain(score, 0.0)


def _by_arm(networks: Sequence[Network], value: Callable[[Network], Score]) -> dict[str, float]:
    """Arm -> mean over its seeds, for the arms of which all networks have a value."""
    found: dict[str, list[Score]] = {}
    for network in networks:
        found.setdefault(network.arm, []).append(value(network))
    return {
        arm: fmean(known)
        for arm, values in found.items()
        if len(known := [v for v in values if v is not None]) == len(values)
    }


def _behind(networks: Sequence[Network], metric: Metric, arm: str) -> Score:
    gains = _by_arm(networks, lambda network: gain(network, metric))
    return max(gains.values()) - gains[arm] if arm in gains else None


def best(networks: Sequence[Network], metric: Metric) -> str | None:
    """The best arm by the labels of the test set, mean over seeds; None without a score."""
    gains = _by_arm(networks, lambda network: gain(network, metric))
    return max(gains, key=gains.__getitem__) if gains else None


def choice_sentences(networks: Sequence[Network]) -> list[str]:
    """What the criteria would choose and what that costs, in plain language."""
    metric = ranking()
    top = best(networks, metric)
    lines = []
    for choice in choices(networks):
        name, behind = choice.criterion.title, choice.behind.get(metric.key)
        if choice.arm is None or behind is None:
            continue
        if not behind:
            lines.append(f"By {name} one would choose {choice.arm}, the best in {metric.title}.")
        else:
            points = difference(behind, metric.unit).removeprefix("+")
            lines.append(
                f"By {name} one would choose {choice.arm}; the best in {metric.title} is {top}, "
                f"{points}{' points' if metric.unit == '%' else ''} better."
            )
    if len(networks) < LEAST:
        lines.append(
            f"{count(len(networks), 'network')} of arms without target labels: no rank correlation "
            f"is given for fewer than {LEAST}."
        )
    return lines


def write_networks(path: Path, networks: Sequence[Network]) -> None:
    """Write a table of one row a network: criteria and scores; shares and scores are fractions."""
    rows = [
        {
            "arm": network.arm,
            "seed": network.seed,
            **network.criteria,
            **network.scores,
        }
        for network in networks
    ]
    write_table(path, list(rows[0]), rows)
