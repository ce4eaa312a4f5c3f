"""Tables: what is read is what was written, and a spreadsheet runs nothing of it."""

import csv
import math
from pathlib import Path

import pytest

from pipeline.csv_files import read_table, write_table
from pipeline.data.listing import read_quarantine
from pipeline.errors import UserError
from pipeline.intake.findings import write_quarantine

TEXTS = [
    *["plain", "", "=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "'=x", "''=x", "'quoted'", "'"],
    *["a,b", 'say "x"', "two\nlines", "a\rb", "é/ü", "a-b", "=cmd|' /C calc'!A0"],
]


def test_texts_come_back_and_none_is_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, ["=name", "n"], [{"=name": text, "n": 1} for text in TEXTS])
    assert [row["=name"] for row in read_table(path, ["=name", "n"], "")] == TEXTS
    with path.open(newline="", encoding="utf-8") as file:
        cells = [row[0] for row in csv.reader(file)]
    assert [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")] == []


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    values = [-0.5, 1e-20, -3, 0, None, math.nan]
    write_table(path, ["value", "x"], [{"value": value, "x": 1} for value in values])
    assert path.read_text() == "value,x\n-0.5,1\n1e-20,1\n-3,1\n0,1\n,1\n,1\n"


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes(b"name,source\r\n-1,/data/-1.png\r\n=a,b\r\n")
    rows = read_table(path, ["name"], "")
    assert [row["name"] for row in rows] == ["-1", "=a"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "name\n1,2\n", 'name\n"1\n', "\x00"])
def test_other_files_are_one_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"table\.csv is damaged.* Fix it\."):
        read_table(path, ["name"], "Fix it.")


def test_quarantined_names_are_those_of_the_frames(tmp_path: Path) -> None:
    reasons = {"-1": "blank", "=a": "+damaged", "a": "-"}
    assert write_quarantine(reasons, tmp_path / "list.csv") == 3
    assert read_quarantine(tmp_path / "list.csv") == reasons
    assert write_quarantine(reasons, tmp_path / "list.csv") == 0
