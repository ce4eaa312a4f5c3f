"""How well criteria without labels choose, over several pairs of source and target.

    python benchmarks/selection.py RUN... [--out FILE.csv]

Each run is one pair; its report's `selection.csv` has a row a network. Of each criterion:
Spearman's rank correlation over the networks of a pair with per-pixel accuracy and mean IoU (1:
orders them as the score does), and how many points the best arm is better than the one that it
would choose. Both are computed within a pair and then averaged over the pairs that have them, each
pair counted once: scores of two pairs are not compared.
"""

import argparse
from pathlib import Path

import pandas as pd

from pipeline.csv_files import read_table, write_table
from pipeline.scoring.metrics import in_steps
from pipeline.scoring.selection import CRITERIA
from reports.selection import TABLE, Network, choices


def networks(path: Path) -> list[Network]:
    """The networks of a run, as its report's table has them."""
    keys = [*CRITERIA], [metric.key for metric in in_steps()]
    columns = ["arm", "seed", *keys[0], *keys[1]]
    rows = read_table(path, columns, f"Write it anew: `sim2real report {path.parent.parent}`.")
    return [
        Network(
            row["arm"],
            int(row["seed"]),
            *({key: float(row[key]) if row[key] else None for key in part} for part in keys),
        )
        for row in rows
    ]


def rows(pair: str, path: Path) -> list[dict[str, object]]:
    """A row for each criterion and metric of one pair."""
    return [
        {
            "pair": pair,
            "criterion": choice.criterion.title,
            "metric": metric.title,
            "networks": choice.networks,
            "chosen": choice.arm,
            "correlation": choice.correlation[metric.key],
            "points behind": behind if behind is None else 100 * behind,
        }
        for metric in in_steps()
        for choice in choices(networks(path))
        for behind in [choice.behind[metric.key]]
    ]


def averages(table: pd.DataFrame) -> pd.DataFrame:
    """Means over pairs, and how many pairs have each."""
    columns = ["correlation", "points behind"]
    values = table.astype(dict.fromkeys(columns, float))
    groups = values.groupby(["metric", "criterion"], sort=False)[columns]
    counts = groups.count().add_suffix(", pairs")
    return groups.mean().join(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, help="a CSV of all pairs")
    options = parser.parse_args()
    for table in (run / "report" / TABLE for run in options.runs):
        if not table.is_file():
            parser.error(f"no {table}: only runs with `selection` in their configuration have it")
    found = [row for run in options.runs for row in rows(str(run), run / "report" / TABLE)]
    if options.out:
        write_table(options.out, list(found[0]), found)
    table = pd.DataFrame(found)
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(table.round(3).to_string(index=False, na_rep="–"))
        print(f"\nMeans over {len(options.runs)} pair(s), each counted once:")
        print(averages(table).round(3).to_string(na_rep="–"))


if __name__ == "__main__":
    main()
