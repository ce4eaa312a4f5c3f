"""What all YAML models share: paths that are relative to the file that says them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.schema import Located, Schema, located

Folder = Annotated[Path, Located()]


class Frames(Schema):
    root: Folder
    labels: Folder | None = None
    decoder: Annotated[str | None, Located((".py",))] = None
    pattern: str = "{frame}"


class Run(Schema):
    source: Frames
    target: Annotated[Frames | None, Field(description="unlabelled")] = None
    others: dict[str, Frames] = Field(default_factory=dict)
    lists: tuple[Folder, ...] = ()
    start: Annotated[str, Located((".yaml", ".pt"))] | None = None
    epochs: Annotated[int | str, Field(description="or all")] = 1


def test_paths_start_from_the_folder_of_the_file_that_says_them(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "source": {"root": "a", "labels": None, "decoder": "code/d.py:read", "pattern": "x.py"},
        "target": {"root": "/b", "labels": "../b", "decoder": "package.py_names:read"},
        "others": {"c": {"root": ""}},
        "lists": ["d.txt", "/e.txt"],
        "start": "f.pt",
        "epochs": "all",
    }
    kept = {key: str(value) for key, value in fields.items()}
    found = located(Run, fields, tmp_path)
    assert kept == {key: str(value) for key, value in fields.items()}, "the input is left alone"
    assert found == {
        "source": {
            "root": f"{tmp_path}/a",
            "labels": None,
            "decoder": f"{tmp_path}/code/d.py:read",
            "pattern": "x.py",
        },
        "target": {
            "root": "/b",
            "labels": f"{tmp_path}/../b",
            "decoder": "package.py_names:read",
        },
        "others": {"c": {"root": str(tmp_path)}},
        "lists": [f"{tmp_path}/d.txt", "/e.txt"],
        "start": f"{tmp_path}/f.pt",
        "epochs": "all",
    }
    assert located(Run, found, Path("/elsewhere")) == found
    assert Run.model_validate(found).source.root == tmp_path / "a"


def test_names_stay_and_a_relative_base_starts_where_the_user_stands() -> None:
    assert located(Run, {"start": "imagenet"}, Path("x")) == {"start": "imagenet"}
    assert located(Run, {"start": "a.yaml"}, Path("x")) == {"start": str(Path.cwd() / "x/a.yaml")}


def test_what_no_field_expects_is_left_for_the_validation_to_refuse(tmp_path: Path) -> None:
    odd: dict[str, Any] = {
        "source": "a",
        "others": ["b"],
        "lists": "c",
        "start": 1,
        "unknown": {"root": "d"},
        "target": {"root": 3, "labels": ["e"], 4: "f"},
    }
    assert located(Run, odd, tmp_path) == odd
