"""Write the README's table and picture from one run of the demo: `make readme`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- numbers -->", "<!-- /numbers -->"
METRICS = {"pixel_accuracy": "per-pixel accuracy", "mean_iou": "mean IoU"}


def main(report: Path) -> None:
    """Put the scores of `report`, a folder with `report.json` and `index.html`, into the README."""
    found = json.loads((report / "report.json").read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    readme.write_text(f"{head}{BEGIN}\n{table(found)}{END}{tail}", encoding="utf-8")
    picture(report / "index.html", ROOT / "docs" / "report.png")


def table(report: dict[str, Any]) -> str:
    """A table in Markdown: a row for each metric, a column for each arm."""
    arms = report["arms"]
    lines = [["", *arms, "gap closed"], ["---"] * (len(arms) + 2)]
    for metric, title in METRICS.items():
        scores = [arm[metric] for arm in arms.values()]
        cells = [
            f"{100 * s['mean']:.1f} [{', '.join(f'{100 * v:.1f}' for v in s['interval'])}]"
            for s in scores
        ]
        lines.append([title, *cells, f"{100 * report['gap_closed'][metric]:.0f}%"])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def picture(page: Path, out: Path) -> None:
    """Photograph the top of a page with Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("The picture needs chromium; install it and call this again.")
    subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--window-size=1180,1800", f"--screenshot={out}", page.absolute().as_uri()),
        ],
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
