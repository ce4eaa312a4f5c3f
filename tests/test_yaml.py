"""YAML as people mean it: plain values as they look, everything else refused with its line."""

import os
import random
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.yaml_files import (
    MAX_YAML_BYTES,
    expand,
    parse_yaml,
    read_settings,
    read_yaml,
    write_yaml,
    yaml_text,
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("011", "write 11, or '011' in quotes"),
        ("007", "write 7, or '007' in quotes"),
        ("08", "write 8, or '08' in quotes"),
        ("-01", "write -1, or '-01' in quotes"),
        ("01.5", "write 1.5, or '01.5' in quotes"),
        ("0o17", "write '0o17' in quotes"),
        ("1_000", "write 1000, or '1_000' in quotes"),
        ("1_0.5", "write 10.5, or '1_0.5' in quotes"),
        ("0x1_0", "write 0x10, or '0x1_0' in quotes"),
        ("0b1", "write '0b1' in quotes"),
        ("0b_", "write '0b_' in quotes"),
        ("0x_", "write '0x_' in quotes"),
        ("12:30", "write '12:30' in quotes"),
        ("190:20:30.15", "write '190:20:30.15' in quotes"),
        ("yes", "write true, or 'yes' in quotes"),
        ("No", "write false, or 'No' in quotes"),
        ("on", "write true, or 'on' in quotes"),
        ("OFF", "write false, or 'OFF' in quotes"),
        ("2024-01-05", "write '2024-01-05' in quotes"),
        ("2024-13-45", "write '2024-13-45' in quotes"),
        ("!!bool foo", "'foo' cannot be read as bool"),
        ("!!int 011", "'011' cannot be read as int"),
        ("9" * 5000, "(5,002 characters) cannot be read as int"),
        ("0x" + "f" * 5000, "(5,004 characters) cannot be read as int"),
        ("!!map x", "a mapping was expected"),
        ("!!map [x]", "a mapping was expected"),
        ("!!python/name:os.system", "tag 'tag:yaml.org,2002:python/name:os.system' is not supp"),
        ("!!binary aGk=", "tag 'tag:yaml.org,2002:binary' is not supported"),
        ("!!set {a}", "tag 'tag:yaml.org,2002:set' is not supported"),
        ("!own x", "tag '!own' is not supported"),
        ("!misread [1]", "tag '!misread' is not supported"),
        ("{<<: {a: 1}, <<: 2}", "key '<<' is given twice"),
        ('"\\U00110000"', "chr() arg not in range"),
        ("[" * 40 + "]" * 40, "nested deeper than 32"),
    ],
)
def test_what_is_not_as_it_looks_is_refused_with_its_line(
    tmp_path: Path, text: str, plain: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"first: 1\nsecond: {text}\n")
    with pytest.raises(UserError) as error:
        read_yaml(path)
    assert f"{path} is not readable as YAML: " in str(error.value)
    assert plain in str(error.value)
    assert f'in "{path}", line 2, column ' in str(error.value)
    if " " not in text:
        path.write_text(f"first: 1\n{text}: road\n")
        with pytest.raises(UserError, match="line 2"):
            read_yaml(path)


def test_a_directive_with_a_huge_number() -> None:
    with pytest.raises(yaml.YAMLError, match="line 1"):
        parse_yaml(f"%YAML 1.{'9' * 5000}\n--- 1\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("4e4", 4e4),
        ("1.0e-3", 1e-3),
        ("-.5", -0.5),
        ("+7", 7),
        ("0", 0),
        ("0x0b", 11),
        ("-.inf", float("-inf")),
        ("True", True),
        ("~", None),
        ("", None),
        ("'011'", "011"),
        ("!!str 011", "011"),
        ("!!float 3", 3.0),
        ("y", "y"),
        ("=", "="),
        ("{<<: {a: 1}}", {"<<": {"a": 1}}),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
        ("2024-1-5", "2024-1-5"),
        ("0a1", "0a1"),
        ("Town01", "Town01"),
    ],
)
def test_plain_values(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_whatever_is_written_is_read_back(tmp_path: Path) -> None:
    draw = random.Random(0)
    pieces = [
        *"019_.:-+eEx#&*!|>'\"%@` ~{}[]?,$=\\/",
        "${HOME}",
        "yes",
        "null",
        "é",
        "😀",
        "\u2028",
    ]
    texts = ["".join(draw.choices(pieces, k=draw.randint(0, 7))) for _ in range(3000)]
    texts += ["011", "08", "1e-4", "yes", "0o17", "12:30", "2024-01-05", "=", "<<", "$$", "a\nb"]
    value = {"texts": texts, "numbers": [1e-5, 3e300, 0, -7, 1.5, True, None]}
    write_yaml(tmp_path / "c.yaml", value)
    assert read_settings(tmp_path / "c.yaml", "it") == value


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"YAML files of at most 262,144 bytes are read"):
        write_yaml(tmp_path / "c.yaml", {"values": ["x" * 100] * 3000})
    assert not list(tmp_path.iterdir())


def test_size_is_looked_at_before_the_content(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: " + "x" * (MAX_YAML_BYTES - 3))
    assert len(read_yaml(path)["a"]) == MAX_YAML_BYTES - 3
    path.write_text("a: " + "x" * (MAX_YAML_BYTES - 2))
    with pytest.raises(UserError, match=r"has 262,145 bytes; a YAML file of at most 262,144"):
        read_yaml(path)


def test_pipes_and_names_that_cannot_be(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, message in (
        (tmp_path / "pipe.yaml", "is no regular file"),
        (tmp_path, "is no regular file"),
        (tmp_path / "none.yaml", "No file"),
        (tmp_path / "a\0.yaml", "cannot be read"),
        (tmp_path / "a\ud800.yaml", "cannot be read"),
        (tmp_path / ("a" * 500), "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            read_yaml(path)


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data/$HOME")
    monkeypatch.delenv("NOWHERE", raising=False)
    problems: list[str] = []
    value = {"a": ["${WHERE}/$WHERE.x", "$$WHERE", 3], "$WHERE": "$$$$"}
    expanded = {"a": ["/data/$HOME//data/$HOME.x", "$WHERE", 3], "$WHERE": "$$"}
    assert expand(value, "", problems) == expanded
    assert expand(parse_yaml(yaml_text(expanded)), "", problems) == expanded
    assert problems == []
    for text in ("$NOWHERE", "${NOWHERE}"):
        expand({"a": [text]}, "source", problems)
        assert "source.a: environment variable NOWHERE is not set" in problems.pop()
    for text in ("5$", "${WHERE", "${WHERE:-x}", "${}"):
        expand(text, "root", problems)
        assert "root: `$` names no variable" in problems[0]
        assert "write $$ for a plain $" in problems.pop(0)
        problems.clear()
