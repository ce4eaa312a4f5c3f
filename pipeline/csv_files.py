"""Tables as CSV files that a spreadsheet opens without running what is in them.

A spreadsheet takes a text that begins with =, +, -, @, a tab or a carriage return for a formula. An
apostrophe before it says that it is text; `read_table` takes that away again.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.files import explain_damage, open_regular, replacing

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows of texts and numbers, whole or not at all; None and NaN are empty cells."""
    cells = [columns, *([row[column] for column in columns] for row in rows)]
    table = [[_quoted(cell) for cell in row] for row in cells]
    # The module leaves a carriage return bare, where it ends the row for whoever reads.
    bare = any("\r" in cell for row in table for cell in row if isinstance(cell, str))
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL
        ).writerows(table)


def read_table(path: Path, columns: Iterable[str], way_out: str) -> list[dict[str, str]]:
    """The rows of a table that `write_table` wrote, as texts.

    Args:
        columns: those that must be there.
        way_out: what to do about a damaged file, a sentence.

    Raises:
        UserError: the file is damaged or another table.
    """
    with explain_damage(path, way_out), open_regular(path) as file:
        text = io.StringIO(file.read().decode("utf-8-sig"), newline="")
        header, *rows = list(csv.reader(text, strict=True)) or [[]]
        names = [unquoted(name) for name in header]
        if missing := [column for column in columns if column not in names]:
            raise ValueError(f"no column {missing[0]!r}, only: {', '.join(names) or 'none'}")
        return [dict(zip(names, map(unquoted, row), strict=True)) for row in rows if row]


def unquoted(cell: str) -> str:
    """A cell's text as it was before it was written."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _quoted(cell: object) -> object:
    if isinstance(cell, str):
        return f"'{cell}" if _FORMULA.match(cell) else cell
    # NaN is the one number that is not equal to itself.
    return "" if cell is None or cell != cell else cell
