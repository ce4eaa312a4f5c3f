"""What stands beside an exported network: what it reads, what it puts out, how well it does."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.data.labels import LabelSpace
from pipeline.scoring.evaluation import Evaluation
from pipeline.scoring.metrics import METRICS, class_columns
from pipeline.text import bounds, count, number, percent

_USE = """\
## Use

With sim2real, on frames of any size (it resizes, and gives classes at each frame's own size):

```bash
sim2real predict model.pt --input FOLDER --out DIR --overlay
```

```python
from segmentation.predictor import load_predictor
predictor = load_predictor("model.pt")
classes = predictor(frame)               # (H, W, 3) uint8 RGB -> (H, W) uint8
```

With torch alone, on frames of {width}x{height}:

```python
import torch
network = torch.export.load("model.pt2").module()
classes = network(frames).argmax(1)      # (N, {height}, {width}, 3) uint8 RGB
```

Resize frames of another size before, and the logits (bilinear, `align_corners=False`) to the
frame's own size before `argmax`.
"""


def model_card(
    title: str,
    about: Mapping[str, Any],
    config: Mapping[str, Any],
    space: LabelSpace,
    evaluation: Evaluation | None,
) -> str:
    """A model card in Markdown.

    Args:
        about: what `segmentation.export.description` says.
        config: the recipe that the network was trained by.
        evaluation: its scores, where it has been scored.
    """
    network = f"{config['architecture']}, encoder {config['encoder']}"
    facts = {
        "network": network,
        "trained for": f"{count(config['steps'], 'step')} of {config['batch_size']} crops of "
        f"{config['crop'][0]}x{config['crop'][1]}",
        "input": about["input"],
        "normalisation": f"{about['normalisation']}; mean {_numbers(about['mean'])}, std "
        f"{_numbers(about['std'])}",
        "output": about["output"],
    }
    return "\n".join(
        [
            f"# {_line(title)}\n",
            f"A network for semantic segmentation: {len(space.classes)} classes of label space "
            f"{_line(space.name)}.\n",
            *_table(("", ""), facts.items()),
            "## Scores\n",
            *(_scores(evaluation) if evaluation else ["Not scored.\n"]),
            "## Classes\n",
            *_classes(space, evaluation),
            _USE.format(**about),
        ]
    )


def _scores(evaluation: Evaluation) -> list[str]:
    rows = [
        (METRICS[key].title, number(value, METRICS[key].unit), bounds(interval, METRICS[key].unit))
        for key, value in evaluation.scores.items()
        for interval in [evaluation.intervals.get(key)]
        if value is not None
    ]
    protocol = (f"{key}: {value}" for key, value in evaluation.protocol.items())
    return [
        f"On {count(evaluation.images, 'frame')} of {_line(evaluation.scored_on)}, which say "
        "nothing of other cameras, places and weathers.\n",
        *_table(("metric", "score", "95% over the frames"), rows),
        f"Protocol: {_line('; '.join(protocol))}.\n",
    ]


def _classes(space: LabelSpace, evaluation: Evaluation | None) -> list[str]:
    breakdowns = [
        b for b in class_columns() if evaluation is not None and b.key in evaluation.breakdowns
    ]
    rows = [
        (
            str(index),
            c.name,
            "#{:02x}{:02x}{:02x}".format(*c.color),
            *(percent(evaluation.breakdowns[b.key].get(c.name)) for b in breakdowns if evaluation),
        )
        for index, c in enumerate(space.classes)
    ]
    return _table(("index", "class", "colour", *(b.title for b in breakdowns)), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(_line(cell) for cell in line)} |" for line in lines] + [""]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _line(text: str) -> str:
    """Text of whatever origin as Markdown of one line that begins nothing."""
    plain = " ".join(text.split())
    return "".join(f"\\{c}" if c in "|<>[]`\\" else c for c in plain)
