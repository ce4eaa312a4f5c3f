"""The example package of docs/plug_in, installed: a data set by entry point, a decoder by name."""

import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.images import write_image
from pipeline.data.labels import load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import LabelReader, decoder_code
from pipeline.data.spec import DatasetSpec, layered, plug_ins, spec_fields
from pipeline.errors import UserError
from pipeline.schema import parse
from tests.conftest import Sim2Real
from tests.layouts import load_spec

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
    base = {"name": "more", "dataset": "hexsim", "root": hexsim}
    assert parse(DatasetSpec, layered(base, hexsim), "more").decoder == "hexsim:decode"
    named = {"name": "own", "root": hexsim, "images": "{frame}", "values": "hexsim"}
    assert DatasetSpec(**named).values == spec.values


def test_it_is_listed_on_the_command_line(
    installed: Path, sim2real: Sim2Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setenv("COLUMNS", "200")
    result = sim2real("datasets")
    assert result.status == 0, result.err
    assert "hexsim" in result.out


def own(root: Path, decoder: str) -> LabelReader:
    """A reader of hexsim's files by another decoder."""
    fields = {"images": "images/{frame}.png", "labels": "labels/{frame}.rle"}
    values = {"1": "road"}
    return LabelReader(
        DatasetSpec(name="own", root=root, decoder=decoder, values=values, **fields), SPACE
    )


def offer(folder: Path, group: str, **points: str) -> None:
    """Make `folder` hold what an installed package with these entry points leaves."""
    info = folder / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]) + "\n")


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (
            "hexsim_typo:decode",
            "cannot be imported (ModuleNotFoundError: No module named 'hexsim_typo')",
        ),
        ("os.path:no_such", "cannot be imported"),
        ("os.path:sep", "is no function"),
        ("os.path:getsize", "returned int64 values of shape ()"),
        ("os.path:isfile", "returned bool values of shape ()"),
        ("json:loads", "fails on"),
        ("tests.test_plug_ins:negative", "returned values in -1..3"),
        ("tests.test_plug_ins:partly", "is no plain function"),
    ],
)
def test_bad_decoders(
    hexsim: Path, monkeypatch: pytest.MonkeyPatch, decoder: str, message: str
) -> None:
    offer(hexsim, "sim2real.decoders", own=decoder)
    monkeypatch.syspath_prepend(str(hexsim))
    with pytest.raises(UserError) as error:
        reader = own(hexsim, decoder)
        decoder_code(decoder)
        reader.read(list_samples(reader.spec, labelled=True)[0])
    assert message in str(error.value)


@pytest.mark.parametrize("decoder", ["runpy:run_path", "os:system", "spy:decode"])
def test_a_spec_cannot_choose_what_code_is_run(
    hexsim: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    offer(hexsim, "sim2real.datasets", own=decoder)  # the group of data sets is another one
    (hexsim / "spy.py").write_text(f"open({str(hexsim / 'imported')!r}, 'w')\ndecode = open\n")
    monkeypatch.syspath_prepend(str(hexsim))
    monkeypatch.setenv("SIM2REAL_ALLOW_CODE", "1")
    for look in (lambda: own(hexsim, decoder), lambda: decoder_code(decoder)):
        with pytest.raises(UserError) as error:
            look()
        assert f"Decoder {decoder} is declared by no installed package" in str(error.value)
        assert "an entry point of 'sim2real.decoders'" in str(error.value)
        assert "FILE.py:FUNCTION" in str(error.value)
    assert not (hexsim / "imported").exists()


DECODER = """
from dataclasses import dataclass
import numpy as np

@dataclass
class Size:
    height: int = 2
    width: int = 16

def decode(path):
    assert __file__.endswith("own.py")
    return np.full((Size().height, Size().width), len(path.suffix) - 3)
"""


@pytest.fixture
def beside(hexsim: Path) -> Path:
    """A spec whose decoder is a file beside it; both below a folder of the frames."""
    (hexsim / "code").mkdir()
    (hexsim / "code" / "own.py").write_text(DECODER)
    path = hexsim / "code" / "spec.yaml"
    path.write_text(
        "name: own\nroot: ..\nimages: images/{frame}.png\nlabels: labels/{frame}.rle\n"
        "decoder: own.py:decode\nvalues: {1: road}\n"
    )
    return path


def test_a_file_beside_the_spec_is_run_when_allowed(
    beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = spec_fields("code/spec.yaml", beside.parent.parent)
    file = beside.parent / "own.py"
    assert fields["decoder"] == f"{file}:decode"
    spec = parse(DatasetSpec, fields, "spec.yaml")
    for value in (None, "0", "true"):
        monkeypatch.setenv("SIM2REAL_ALLOW_CODE", value or "")
        with pytest.raises(UserError, match="is not run unless you say so") as error:
            LabelReader(spec, SPACE)
        assert f"Read {file}, then give --allow-code" in str(error.value)
        assert "'sim2real.decoders'" in str(error.value)
    monkeypatch.setenv("SIM2REAL_ALLOW_CODE", "1")
    sample = list_samples(spec, labelled=True)[0]
    assert (LabelReader(spec, SPACE).read(sample) == SPACE.index_of("road")).all()
    before = decoder_code(fields["decoder"])
    file.write_text(DECODER.replace("- 3", "- 4"))  # of the same size
    assert decoder_code(fields["decoder"]) != before
    assert not LabelReader(spec, SPACE).raw(sample.label or file).any()
    assert not list(beside.parent.glob("__pycache__"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def decode(:", "cannot be imported (SyntaxError"),
        ("1 / 0", "cannot be imported (ZeroDivisionError"),
        ("other = 1", "cannot be imported (AttributeError"),
        ("decode = 1", "is no function"),
        (None, "cannot be imported (FileNotFoundError"),
    ],
)
def test_bad_files_of_decoders(
    beside: Path, monkeypatch: pytest.MonkeyPatch, code: str | None, message: str
) -> None:
    file = beside.parent / "own.py"
    file.unlink()
    if code is not None:
        file.write_text(code)
    monkeypatch.setenv("SIM2REAL_ALLOW_CODE", "1")
    with pytest.raises(UserError) as error:
        LabelReader(load_spec(beside), SPACE)
    assert message in str(error.value)


def test_the_command_line_allows_it(beside: Path, sim2real: Sim2Real) -> None:
    refused = sim2real("check", beside)
    assert refused.status == 2
    assert "is not run unless you say so" in refused.err
    assert "Traceback" not in refused.err
    allowed = sim2real("check", beside, "--allow-code")
    assert "2 frames, 2 labelled" in allowed.out, allowed.err
    assert "road (1) on all" in allowed.out


def negative(_: Path) -> np.ndarray:
    """A decoder that returns what no table can hold."""
    return np.array([[-1, 3]])


partly = partial(negative)


def test_a_plug_in_that_fails_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, "sim2real.datasets", bad="broken_sim:dataset", odd="os:getcwd")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"'bad' comes from broken_sim:dataset, which fails: Mod"):
        spec_fields("bad", tmp_path)
    with pytest.raises(UserError, match=r"comes from os:getcwd, which returned str; a pipeline"):
        spec_fields("odd", tmp_path)


def test_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, "sim2real.datasets", gta5="other_sim:dataset")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"other_sim:dataset offers a data set 'gta5', which is bu"):
        plug_ins()
