"""A table of classes as papers print it: a row a method, a column a class, mean IoU last."""

import re
from collections.abc import Sequence

from pipeline.scoring.metrics import Score
from reports.comparison import Row
from reports.summary import Published

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return "".join(_SPECIAL.get(sign, sign) for sign in re.sub(r"\s+", " ", text))


def class_table(rows: Sequence[Row], title: str, published: Sequence[Published] = ()) -> str:
    """LaTeX of a table that needs the packages booktabs and graphicx.

    IoU in percent, means over the seeds. Bold: the best without labels of the target. What others
    have published has the mean alone, and says whose it is.

    Args:
        rows: one or more.
        title: what was scored, for the caption.
    """
    names = list(rows[0].classes)
    runs = len({row.run for row in rows}) > 1
    able = [row for row in rows if not row.target_labels]
    best = [_best([row.classes[name].mean for row in able]) for name in names]
    best.append(_best([row.mean.mean for row in able]))
    heads = [rf"\rotatebox{{90}}{{{escaped(name)}}}" for name in names]
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{IoU in \% on {escaped(title)}. Bold: best without labels of the target.}}",
        rf"\begin{{tabular}}{{l|{'c' * len(names)}|c}}",
        r"\toprule",
        " & ".join(["method", *heads, r"mIoU"]) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        values = [*(row.classes[name].mean for name in names), row.mean.mean]
        cells = [
            _cell(value, bold=not row.target_labels and value is not None and _shown(value) == top)
            for value, top in zip(values, best, strict=True)
        ]
        method = f"{row.run}: {row.arm}" if runs else row.arm
        lines.append(" & ".join([escaped(method), *cells]) + r" \\")
    others = [one for one in published if one.metric == "mean_iou"]
    if others:
        lines.append(r"\midrule")
        lines.append(
            rf"\multicolumn{{{len(names) + 2}}}{{l}}{{published by others; their networks}} \\"
        )
        for one in others:
            method = escaped(f"{one.method} ({one.network}; {one.source})")
            lines.append(f"{method}{' &' * (len(names) + 1)} {_cell(one.adapted)} \\\\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table*}"]
    return "\n".join(lines) + "\n"


def _shown(value: float) -> str:
    return f"{100 * value:.1f}"


def _best(values: Sequence[Score]) -> str | None:
    known = [value for value in values if value is not None]
    return _shown(max(known)) if known else None


def _cell(value: Score, *, bold: bool = False) -> str:
    if value is None:
        return "--"
    return rf"\textbf{{{_shown(value)}}}" if bold else _shown(value)
