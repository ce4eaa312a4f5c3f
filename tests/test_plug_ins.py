"""The example package of docs/plug_in, installed: a data set by entry point, a decoder by name."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import DatasetSpec, list_samples, plug_ins, spec_fields
from pipeline.errors import UserError
from pipeline.images import write_image
from pipeline.labels import load_label_space
from pipeline.reading import LabelReader
from pipeline.schema import parse

SPACE = load_label_space("cityscapes19")
EXAMPLE = Path(__file__).parent.parent / "docs" / "plug_in"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what installing the example's wheel puts there."""
    home = tmp_path_factory.mktemp("plug_in")
    shutil.copytree(EXAMPLE, home / "source")
    subprocess.run(
        [sys.executable, "-c", BUILD, str(home)],
        cwd=home / "source",
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home / "site")
    return home / "site"


@pytest.fixture
def hexsim(tmp_path: Path) -> Path:
    """Two frames as the simulator writes them."""
    for i in (1, 2):
        write_image(tmp_path / f"images/{i}.png", np.full((2, 16, 3), 90, np.uint8))
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{i}.rle").write_text("4*16\n1*10 5*6\n")
    return tmp_path


def test_a_package_offers_a_data_set(
    installed: Path, hexsim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "hexsim" not in plug_ins()
    monkeypatch.syspath_prepend(str(installed))
    assert plug_ins()["hexsim"] == "hexsim:dataset"
    spec = parse(DatasetSpec, {**spec_fields("hexsim", hexsim), "root": hexsim}, "hexsim")
    first, _ = list_samples(spec, labelled=True)
    classes = LabelReader(spec, SPACE).read(first)
    names = np.array(SPACE.class_names)[classes]
    assert names.tolist() == [["sky"] * 16, ["road"] * 10 + ["car"] * 6]


def test_it_is_listed_on_the_command_line(installed: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "flows.cli", "datasets"],
        env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"},
        cwd=EXAMPLE.parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "hexsim" in result.stdout


def own(root: Path, decoder: str) -> LabelReader:
    """A reader of hexsim's files by another decoder."""
    fields = {"images": "images/{frame}.png", "labels": "labels/{frame}.rle"}
    values = {"1": "road"}
    return LabelReader(
        DatasetSpec(name="own", root=root, decoder=decoder, values=values, **fields), SPACE
    )


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (
            "hexsim_typo:decode",
            "cannot be imported (ModuleNotFoundError: No module named 'hexsim_typo')",
        ),
        ("os.path:no_such", "cannot be imported"),
        ("a..b:f", "cannot be imported"),
        ("os.path:sep", "is no function"),
        ("os.path:getsize", "returned int64 values of shape ()"),
        ("os.path:isfile", "returned bool values of shape ()"),
        ("json:loads", "fails on"),
        ("tests.test_plug_ins:negative", "returned values in -1..3"),
    ],
)
def test_bad_decoders(hexsim: Path, decoder: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        reader = own(hexsim, decoder)
        reader.read(list_samples(reader.spec, labelled=True)[0])
    assert message in str(error.value)


def negative(_: Path) -> np.ndarray:
    """A decoder that returns what no table can hold."""
    return np.array([[-1, 3]])


def test_a_plug_in_that_fails_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    entries = "bad = broken_sim:dataset\nodd = os:getcwd\n"
    (info / "entry_points.txt").write_text(f"[sim2real.datasets]\n{entries}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"'bad' comes from broken_sim:dataset, which fails: Mod"):
        spec_fields("bad", tmp_path)
    with pytest.raises(UserError, match=r"comes from os:getcwd, which returned str; a pipeline"):
        spec_fields("odd", tmp_path)


def test_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sim2real.datasets]\ngta5 = other_sim:dataset\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"other_sim:dataset offers a data set 'gta5', which is bu"):
        plug_ins()
