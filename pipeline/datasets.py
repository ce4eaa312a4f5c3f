"""A data set is a value: where its frames are, how its labels are encoded, which part is meant.

A spec is a YAML file. File patterns hold fields in braces; an image and a label belong together
when their fields are equal:

    images: leftImg8bit/{split}/{city}/{frame}_leftImg8bit
    labels: gtFine/{split}/{city}/{frame}_gtFine_labelIds

A pattern without a file name ending matches any common image format.
"""

import codecs
import csv
import fnmatch
import glob
import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from pipeline.csv_files import unquoted
from pipeline.errors import UserError
from pipeline.files import open_regular, read_settings, short, write_yaml
from pipeline.images import (
    SUFFIXES,
)
from pipeline.labels import TABLES, LabelSpace, check_name
from pipeline.schema import Schema, Side, near

Item = TypeVar("Item")

_BUILT_IN = Path(__file__).parent / "specs"
PLUG_INS = "sim2real.datasets"
"""The entry-point group in which packages offer data sets: name -> function without arguments that
returns a `DatasetSpec`."""
DECODERS = "sim2real.decoders"
"""The entry-point group in which packages declare functions that a spec may name as `decoder`."""
PATHS = ("root", "label_root", "quarantine")
"""The fields that hold paths, relative to the file that says them."""
_FIELD = re.compile(r"\{(\w+)\}")
_LIST_BYTES = 64 * 1024 * 1024


def _table(values: Any) -> Any:
    """Look up a named table; write keys as text, as they come back from JSON."""
    if isinstance(values, str) and values in TABLES:
        values = TABLES[values]
    elif isinstance(values, str):
        if values not in (names := [*TABLES, *built_in_specs(), *plug_ins()]):
            raise ValueError(
                f"no table {values!r}.{near(values, names)} Give a mapping, or the name of a known "
                f"table or data set: {', '.join(names)}"
            )
        return _table(spec_fields(values, Path()).get("values"))
    return {str(k): v for k, v in values.items()} if isinstance(values, dict) else values


class About(Schema):
    """What one wants to know of a published data set before one gets it."""

    kind: Literal["synthetic", "real"]
    frames: int | None = Field(None, ge=1)
    """Frames in all that the spec describes; none where each user records their own."""
    size: str = Field(pattern=r"^\d+x\d+$|^various$")
    """Width x height of the frames in pixels."""
    licence: str
    url: str
    """Where to get it."""
    table: str
    """Where its table of label values comes from."""
    unverified: tuple[str, ...] = ()
    """What could not be verified in a public source."""


class DatasetSpec(Schema):
    """A labelled or unlabelled set of frames, or a part of one."""

    name: str
    """Shown in tables and reports."""
    root: Path
    """The folder that the patterns start from."""
    images: str
    """Pattern of the image files below `root`; fields in braces, ending optional."""
    labels: str | None = None
    """Pattern of the label files, with the same fields; none for unlabelled frames."""
    label_root: Path | None = None
    """The folder that `labels` starts from, where it is not `root`."""
    instances: str | None = None
    """Pattern of files that tell single objects apart, with the same fields and below the same
    folder as `labels`: Cityscapes' 16-bit `instanceIds`. Only instance scores read them."""
    encoding: Literal["ids", "rgb", "channel"] = "ids"
    """How a label file stores its values: one value a pixel (palette index or grey value), an
    RGB colour, or one channel of a colour image."""
    channel: int = Field(0, ge=0, le=3)
    """Which channel holds the value when `encoding` is `channel`: 0 is red."""
    decoder: str | None = Field(None, pattern=r"^([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*$")
    """For label files that no encoding describes, `package.module:function` that an installed
    package declares as an entry point of `sim2real.decoders`, or `FILE.py:function`, relative to
    the file that says it and run only with `--allow-code`. Called with a label file's path, it
    returns raw values as (H, W) integers in 0..65535. Several threads may call it at once."""
    values: Annotated[dict[str, str], BeforeValidator(_table)] = Field(default_factory=dict)
    """Raw value -> name. Colours are written `"R,G,B"`. A word stands for a table: the name of a
    known data set for its own, `cityscapes_ids` or `cityscapes_train_ids`."""
    splits: dict[str, str] = Field(default_factory=dict)
    """Further splits: name -> a wildcard over frame names, a `.txt` list below `root`, or
    `FILE.mat:KEY`, the frame numbers (from 1) in a MATLAB file below `root`."""
    split: str | None = None
    """The split that is meant: a folder that `{split}` matches, or a key of `splits`."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many frames, evenly spaced."""
    quarantine: Path | None = None
    """A table (`.csv`, columns `name` and `reason`) of frames to leave out, as `sim2real check
    --quarantine` writes it; relative to the file that says it."""
    width: Side | None = None
    """Working width in pixels: frames and labels are resized to it when read, aspect kept;
    none leaves them as they are."""
    strict: bool = False
    """Raise when a label file holds a value without a name, rather than ignore its pixels."""
    about: About | None = None
    """For lists of data sets; no effect on how it is read."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        fields = pattern_fields(self.images)
        if not fields:
            raise ValueError(
                f"images pattern {self.images!r} has no field in braces; e.g. images/{{frame}}"
            )
        lists = [rule for rule in self.splits.values() if _is_list(rule)]
        for pattern in (self.images, self.labels or "", self.instances or "", *lists):
            if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
                raise ValueError(f"path {pattern!r} leaves the root; write it relative to root")
        for what, beside in (("labels", self.labels), ("instances", self.instances)):
            if beside is not None and set(pattern_fields(beside)) != set(fields):
                raise ValueError(
                    f"images {self.images!r} and {what} {beside!r} must have the same fields"
                )
        if self.labels is not None and not self.values:
            raise ValueError("labels are given but `values` names none of their raw values")
        if self.decoder is not None and self.encoding != "ids":
            raise ValueError(
                f"`decoder` returns ids, and `encoding` is {self.encoding!r}; leave it out"
            )
        owner: dict[int, str] = {}
        for raw, name in self.values.items():
            check_name(name)
            value = raw_value(raw, self.encoding)
            if value in owner:
                raise ValueError(_named_twice(raw, owner[value], name, self.encoding))
            owner[value] = name
        return self

    def names(self) -> set[str]:
        """The vocabulary names that labels of this set can decode to."""
        return set(self.values.values())


@dataclass(frozen=True)
class Sample:
    """One frame: its name (the fields joined by '/'), its image, and its label where wanted."""

    name: str
    image: Path
    label: Path | None = None


def pattern_fields(pattern: str) -> list[str]:
    """The fields of a pattern, each once, in the order in which a frame's name joins them.

    Raises:
        ValueError: a field is no plain word, or follows another without anything between; or the
            pattern is a wildcard.
    """
    if wildcard := re.search(r"[*?]", pattern):
        raise ValueError(
            f"pattern {pattern!r} holds {wildcard[0]!r}, and is no wildcard; write a field in "
            "braces for what varies, e.g. images/{frame}"
        )
    fields = re.findall(r"\{(.*?)\}", pattern)
    bad = [field for field in fields if not re.fullmatch(r"[A-Za-z_]\w*", field, re.ASCII)]
    if bad or re.search(r"\}\{", pattern) or len(fields) != pattern.count("{"):
        what = f"field {{{bad[0]}}}" if bad else "its braces"
        raise ValueError(
            f"pattern {pattern!r}: {what} cannot be read; write words in braces with something "
            "between them, e.g. images/{town}/{frame}.png"
        )
    return list(dict.fromkeys(fields))


def _is_list(rule: str) -> bool:
    return rule.endswith(".txt") or ".mat:" in rule


def _named_twice(raw: str, one: str, other: str, encoding: str) -> str:
    message = f"value {raw!r} is named both {one!r} and {other!r}"
    if encoding != "rgb":
        return f"{message}; keep one"
    return (
        f"{message}: this colour does not tell them apart. Where the set has label ids, read those "
        "(`encoding: ids`); else keep the name that is trained on, knowing that the other's pixels "
        "are learnt as it, or name the colour 'unlabeled' to ignore both"
    )


def raw_value(raw: str, encoding: str) -> int:
    """The key of `values` as a number: ids as they are, colours as R * 65536 + G * 256 + B."""
    if encoding == "rgb":
        parts = raw.split(",")
        if len(parts) != 3 or not all(
            re.fullmatch(r"\s*[0-9]{1,3}\s*", p) and int(p) < 256 for p in parts
        ):
            raise ValueError(f'value {raw!r} is not a colour; write "R,G,B" with 0..255 each')
        red, green, blue = (int(p) for p in parts)
        return red << 16 | green << 8 | blue
    if not re.fullmatch("[0-9]{1,5}", raw) or int(raw) > 65535:
        raise ValueError(f"value {raw!r} is not an id; write a whole number in 0..65535")
    return int(raw)


def built_in_specs() -> dict[str, Path]:
    """Name -> file of every data set that is known without being told."""
    return {path.stem: path for path in sorted(_BUILT_IN.glob("*.yaml"))}


def plug_ins() -> dict[str, str]:
    """Name -> `package.module:function` of every data set that an installed package offers.

    Raises:
        UserError: two packages, or a package and sim2real itself, use one name.
    """
    offered: dict[str, str] = {}
    for point in entry_points(group=PLUG_INS):
        if (other := offered.get(point.name, point.value)) != point.value or (
            point.name in built_in_specs()
        ):
            holder = "built in" if point.name in built_in_specs() else f"offered by {other}"
            raise UserError(
                f"{point.value} offers a data set {point.name!r}, which is {holder}. Rename it in "
                "its package, or uninstall that."
            )
        offered[point.name] = point.value
    return offered


def _from_plug_in(name: str) -> dict[str, Any]:
    (point, *_) = entry_points(group=PLUG_INS, name=name)
    try:
        spec = point.load()()
    except Exception as error:  # a stranger's code: whatever it raises is its author's to mend
        raise UserError(
            f"Data set {name!r} comes from {point.value}, which fails: {type(error).__name__}: "
            f"{error}. Mend or uninstall that package."
        ) from error
    if not isinstance(spec, DatasetSpec):
        raise UserError(
            f"Data set {name!r} comes from {point.value}, which returned {type(spec).__name__}; "
            "a pipeline.datasets.DatasetSpec was expected."
        )
    return spec.model_dump(mode="json", exclude_defaults=True)


def spec_fields(name_or_path: str, base: Path, said: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a data set: built in or of a plug-in by name, else of a `.yaml` file.

    Args:
        base: the folder that a relative `.yaml` file is looked for in.
        said: fields that are given elsewhere, and not wanted.

    Raises:
        UserError: no such data set, or as `layered`.
    """
    return layered({"dataset": name_or_path}, base, said)


def layered(
    fields: dict[str, Any], base: Path, said: Collection[str] = (), chain: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The fields of a data set on top of those of the one that its `dataset` names.

    A relative path starts at the file that says it.

    Args:
        fields: with environment variables in place.
        base: the folder of the file that says them.
        said: fields that are said on top of these, and not wanted.
        chain: the files that led here, each starting from the next.

    Raises:
        UserError: no such data set, one that starts from itself, or a variable that is not set.
    """
    own = {key: from_folder(key, value, base) for key, value in fields.items()}
    if (named := own.pop("dataset", None)) is None:
        return own
    known, name = built_in_specs(), str(named)
    if name.endswith((".yaml", ".yml")):
        path = Path(os.path.normpath(base.absolute() / name))
    elif name in known:
        path = known[name]
    elif name in (offered := plug_ins()):
        return _from_plug_in(name) | own
    else:
        names = [*known, *offered]
        folder = base / name
        hint = f" `sim2real new-dataset {folder}` writes one." if os.path.isdir(folder) else ""
        raise UserError(
            f"No data set {short(name)}.{near(name, names)} Known: {', '.join(names)}; or give the "
            f"path of a .yaml file.{hint}"
        )
    if str(path) in chain:
        raise UserError(
            f"Data sets start from one another in a circle: {' -> '.join([*chain, str(path)])}. "
            "Take `dataset` out of one."
        )
    said = {*said, *own}
    under = read_settings(path, "the fields of a data set", said)
    return layered(under, path.parent, said, (*chain, str(path))) | own


def from_folder(key: str, value: Any, base: Path) -> Any:
    """The value of a field, absolute where it is a path: one of `PATHS` or a decoder's file."""
    is_path = key in PATHS or (key == "decoder" and code_file(str(value)))
    return str(base.absolute() / value) if is_path and isinstance(value, str) else value


def code_file(decoder: str) -> str:
    """The file of a decoder `FILE.py:function`; empty where it is one of a package."""
    file, _, _ = decoder.rpartition(":")
    return file if file.endswith(".py") else ""


def save_spec(spec: DatasetSpec, path: Path) -> None:
    """Write a spec beside its frames: `root` relative to the file, so that the folder can move."""
    fields = spec.model_dump(mode="json", exclude_defaults=True)
    fields["root"] = os.path.relpath(spec.root, path.parent)
    if spec.quarantine is not None:
        fields["quarantine"] = os.path.relpath(spec.quarantine, path.parent)
    write_yaml(path, fields)


def list_samples(spec: DatasetSpec, *, labelled: bool) -> list[Sample]:
    """The frames of a data set, ordered by name.

    Args:
        labelled: find each frame's label file too. Without it `Sample.label` is None, so that
            code which must not see labels cannot.

    Raises:
        UserError: no such root or split, no frame, two images of one name, images without label.
    """
    if not spec.root.is_dir():
        raise UserError(
            f"Data set {spec.name}: no folder {spec.root}. Set its `root` to where the data is."
        )
    fixed = {}
    if "split" in pattern_fields(spec.images) and spec.split not in spec.splits:
        folders = sorted({fields["split"] for fields, _ in _find(spec, {})})
        if spec.split not in folders:
            raise UserError(
                f"Data set {spec.name}: no split {spec.split!r} in {spec.root}. "
                f"Found: {', '.join([*folders, *spec.splits]) or 'none'}. Set `split`."
            )
        fixed = {"split": spec.split}
    elif spec.split is not None and spec.split not in spec.splits:
        raise UserError(
            f"Data set {spec.name}: no split {spec.split!r}. "
            f"Known: {', '.join(spec.splits) or 'none; leave `split` out'}."
        )
    found: dict[str, Path] = {}
    for fields, path in _find(spec, fixed):
        name = "/".join(fields.values())
        if name in found:
            raise UserError(
                f"Data set {spec.name}: {found[name]} and {path} are both frame {name!r}. "
                "Remove one, or give the pattern a file name ending."
            )
        found[name] = path
    names = sorted(found)
    if names and spec.split in spec.splits:
        images = {name: found[name].relative_to(spec.root) for name in names}
        names = _members(spec, spec.splits[spec.split], images)
    if spec.quarantine is not None:
        banned = read_quarantine(spec.quarantine)
        if banned and not banned.keys() & found.keys():
            raise UserError(
                f"Data set {spec.name}: {spec.quarantine} lists {next(iter(banned))!r} and so on, "
                f"and no frame has such a name; names are like {names[0]!r}. Write the list with "
                "`sim2real check --quarantine`."
            )
        names = [name for name in names if name not in banned]
    if not names:
        raise UserError(
            f"Data set {spec.name}: no frame"
            f"{f' in split {spec.split!r}' if spec.split else ''} matches {spec.images!r} below "
            f"{spec.root}. Check `root`, `images`, `split`"
            f"{' and `quarantine`' if spec.quarantine else ''}."
        )
    if spec.limit is not None and spec.limit < len(names):
        names = evenly(names, spec.limit)
    if not labelled:
        return [Sample(name, found[name]) for name in names]
    return _with_labels(spec, {name: found[name] for name in names})


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, or all, evenly spaced and always the same."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _find(spec: DatasetSpec, fixed: dict[str, str]) -> list[tuple[dict[str, str], Path]]:
    """Every frame that the pattern matches: its fields in order, and its path."""
    any_suffix = Path(spec.images).suffix.lower() not in SUFFIXES
    expression = _expression(spec.images)
    matches = []
    for path in spec.root.glob(pattern_glob(spec.images, fixed) + (".*" if any_suffix else "")):
        below = path.relative_to(spec.root)
        match = re.fullmatch(expression, below.as_posix())
        # What is hidden is other programs', or our own and unfinished.
        hidden = any(part.startswith(".") for part in below.parts)
        if match and path.suffix.lower() in SUFFIXES and not hidden:
            matches.append((match.groupdict(), path))
    if spec.labels is None or spec.label_root not in (None, spec.root):
        return matches
    # Where labels lie among the frames, the pattern may match them, too.
    label = re.compile(_expression(spec.labels))
    names = {tuple(sorted(fields.items())) for fields, _ in matches}
    frames = []
    for fields, path in matches:
        match = label.fullmatch(path.relative_to(spec.root).as_posix())
        owner = match.groupdict() if match else fields
        if owner == fields or tuple(sorted(owner.items())) not in names:
            frames.append((fields, path))
    return frames


def pattern_glob(pattern: str, fixed: Mapping[str, str]) -> str:
    """A wildcard that finds what a pattern may match; `fixed` are the values of some fields."""
    parts = re.split(r"\{(\w+)\}", pattern)
    parts[::2] = map(glob.escape, parts[::2])
    parts[1::2] = (glob.escape(fixed[field]) if field in fixed else "*" for field in parts[1::2])
    return "".join(parts)


def _expression(pattern: str) -> str:
    """A regular expression of the paths that a pattern means, with its fields as groups."""
    parts = re.split(r"\{(\w+)\}", pattern)
    expression = re.escape(parts[0])
    for field, literal in zip(parts[1::2], parts[2::2], strict=True):
        first = f"(?P<{field}>" not in expression
        expression += (f"(?P<{field}>[^/]+)" if first else f"(?P={field})") + re.escape(literal)
    return expression + ("" if Path(pattern).suffix.lower() in SUFFIXES else r"\.\w+")


def _members(spec: DatasetSpec, rule: str, images: dict[str, Path]) -> list[str]:
    """The names that a split's rule selects: a wildcard, or a list in a file.

    Args:
        images: name -> image below the root.

    Raises:
        UserError: a rule that selects nothing, or a line of a list that is no frame.
    """
    names = list(images)
    if not _is_list(rule):
        chosen = {name for name in names if fnmatch.fnmatchcase(name, rule)}
        what, wanted, missing = f"wildcard {rule!r}", 1, [] if chosen else [rule]
    elif ".mat:" in rule:
        numbers = _matlab_numbers(_list_file(spec), rule.partition(".mat:")[2])
        last = {name: name.rsplit("/", 1)[-1] for name in names}
        chosen = {n for n in names if last[n].isdecimal() and int(last[n]) in numbers}
        what, wanted = f"list {rule}", len(numbers)
        # Who unpacked a part of the frames has no other list: what is missing is told elsewhere.
        missing = [] if chosen else sorted(map(str, numbers))
    else:
        path = _list_file(spec)
        lines = [line.strip() for line in read_list(path).split("\n")]
        lines = [line for line in lines if line and not line.startswith("#")]
        what, wanted = f"list {path}", len(lines)
        chosen, missing = _match_lines(lines, images)
    if missing or not chosen:
        seen = ", ".join(entry[:80] for entry in missing[:3]) or "it is empty"
        raise UserError(
            f"Data set {spec.name}, split {spec.split!r}: {len(missing):,} of {wanted:,} entries "
            f"of {what} match no frame: {seen}. Frames are like "
            f"{', '.join(names[:3])}. Mend the split, or add the frames."
        )
    return [name for name in names if name in chosen]


def _match_lines(lines: Sequence[str], images: Mapping[str, Path]) -> tuple[set[str], list[str]]:
    """The names of the frames that the lines of a list mean, and the lines that mean none.

    A line is a frame's name or its image's path, or the end of either; or a path that ends in the
    image's, as on the machine where the list was made. Further columns, as of labels, are left out.
    """
    paths = {_plain_parts(image): name for name, image in images.items()}
    spellings = [*paths.items(), *((tuple(name.split("/")), name) for name in images)]
    columns = [(line, re.split(r"[\t,;]| +", line)[0]) for line in lines]
    asked = [[_plain_parts(Path(text.replace("\\", "/"))) for text in both] for both in columns]
    lengths = {len(parts) for both in asked for parts in both}
    ends: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for parts, name in spellings:
        for length in lengths & set(range(1, len(parts) + 1)):
            ends[parts[-length:]].add(name)
    chosen: set[str] = set()
    missing = []
    for (line, _), both in zip(columns, asked, strict=True):
        longer = ({paths[p[i:]]} for p in both for i in range(1, len(p)) if p[i:] in paths)
        found = next((ends[parts] for parts in both if parts in ends), next(longer, set()))
        chosen |= found
        if not found:
            missing.append(line)
    return chosen, missing


def split_file(spec: DatasetSpec) -> Path | None:
    """The file that lists the spec's split, if one does."""
    rule = spec.splits.get(spec.split or "", "")
    return spec.root / re.sub(r"(?<=\.mat):.*", "", rule) if _is_list(rule) else None


def _list_file(spec: DatasetSpec) -> Path:
    path = split_file(spec)
    assert path is not None
    if not path.exists():
        raise UserError(f"Data set {spec.name}: split {spec.split!r} is listed in {path}: no file.")
    return path


def read_list(path: Path) -> str:
    """A list or table that others wrote: UTF-8, or UTF-16 with its mark.

    Raises:
        UserError: no text, or too large for a list of frames.
    """
    with open_regular(path) as file:
        data = file.read(_LIST_BYTES + 1)
    if len(data) > _LIST_BYTES:
        raise UserError(f"{path} has more than {_LIST_BYTES:,} bytes: it is no list of frames.")
    try:
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read as a list of frames: {error}. Save it as UTF-8."
        ) from error


def not_here(spec: DatasetSpec) -> str | None:
    """How many frames that a MATLAB file lists for the spec's split are not there, if any."""
    rule = spec.splits.get(spec.split or "", "")
    if ".mat:" not in rule:
        return None
    path = _list_file(spec)
    listed = len(_matlab_numbers(path, rule.partition(".mat:")[2]))
    whole = spec.model_copy(update={"limit": None, "quarantine": None})
    here = len(list_samples(whole, labelled=False))
    if here >= listed:
        return None
    return f"{path} lists {listed:,} frames of split {spec.split}, and {here:,} of them are here"


def _plain_parts(path: Path) -> tuple[str, ...]:
    """The parts of a path without its image format's ending."""
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).parts


def _matlab_numbers(path: Path, key: str) -> set[int]:
    from scipy.io import loadmat

    try:
        with open_regular(path) as file:
            table = loadmat(file)
    except UserError:
        raise
    except Exception as error:  # scipy raises whatever its parser meets in a damaged file
        raise UserError(f"{path} cannot be read as a MATLAB file: {error}") from error
    if key not in table:
        keys = ", ".join(k for k in table if not k.startswith("_"))
        raise UserError(f"{path} has no {key!r}; it has {keys or 'nothing'}.")
    numbers = np.asarray(table[key]).ravel()
    if numbers.dtype.kind not in "iuf" or not (
        (numbers >= 0).all() and (numbers < 1e15).all() and (numbers % 1 == 0).all()
    ):
        raise UserError(f"{path}: {key!r} holds no numbers of frames.")
    return set(numbers.astype(int).tolist())


def read_quarantine(path: Path) -> dict[str, str]:
    """Frame name -> reason, from a table with columns `name` and `reason`.

    Raises:
        UserError: no such file, or not such a table.
    """
    if not path.is_file():
        raise UserError(
            f"No quarantine list {path}. Write it with `sim2real check --quarantine`, or leave "
            "`quarantine` out."
        )
    try:
        rows = csv.DictReader(io.StringIO(read_list(path), newline=""), strict=True)
        if rows.fieldnames != ["name", "reason"]:
            raise UserError(
                f"{path} begins with the columns {rows.fieldnames}; name,reason were expected."
            )
        return {unquoted(row["name"]): unquoted(row["reason"] or "") for row in rows}
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from error


def _with_labels(spec: DatasetSpec, found: dict[str, Path]) -> list[Sample]:
    if spec.labels is None:
        raise UserError(f"Data set {spec.name} has no labels, and labels are needed here.")
    samples, orphans = [], []
    label_files = label_finder(spec)
    for name, image in found.items():
        labels = label_files(name)
        if len(labels) > 1:
            raise UserError(
                f"Data set {spec.name}: frame {name!r} has two labels: {labels[0]} and "
                f"{labels[1]}. Remove one, or give the pattern a file name ending."
            )
        if not labels:
            orphans.append(str(image))
        samples.append(Sample(name, image, next(iter(labels), None)))
    if orphans:
        raise UserError(
            f"Data set {spec.name}: {len(orphans)} of {len(samples)} images have no label, first "
            f"{orphans[0]}. Add the labels, or leave these images out: `sim2real check "
            "--quarantine` lists them for the spec's `quarantine`."
        )
    return samples


def label_finder(spec: DatasetSpec) -> Callable[[str], list[Path]]:
    """A function from a frame's name to every file that is its label: one, if all is well."""
    assert spec.labels is not None
    return _finder(spec, spec.labels)


def instance_finder(spec: DatasetSpec) -> Callable[[str], Path | None]:
    """A function from a frame's name to the file that tells its objects apart, if there is one."""
    if not spec.instances:
        return lambda name: None
    find = _finder(spec, spec.instances)
    return lambda name: next(iter(find(name)), None)


def _finder(spec: DatasetSpec, pattern: str) -> Callable[[str], list[Path]]:
    """A function from a frame's name to the files that `pattern` means; lists each folder once."""
    fields = pattern_fields(spec.images)
    root = spec.label_root or spec.root
    ending = Path(pattern).suffix
    given = ending.lower() in SUFFIXES or (spec.decoder is not None and ending)

    @cache
    def beside(folder: Path) -> dict[str, list[Path]]:
        """Name without ending -> the images of a folder, as `SUFFIXES` are ordered."""
        named: dict[str, list[Path]] = defaultdict(list)
        try:
            with os.scandir(folder) as entries:
                found = [folder / entry.name for entry in entries if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            found = []
        for path in sorted(p for p in found if p.suffix.lower() in SUFFIXES):
            named[path.stem].append(path)
        for paths in named.values():
            paths.sort(key=lambda path: SUFFIXES.index(path.suffix.lower()))
        return named

    def find(name: str) -> list[Path]:
        values = dict(zip(fields, name.split("/"), strict=True))
        path = root / _FIELD.sub(lambda match: values[match[1]], pattern)
        if given:
            return [path] if path.is_file() else []
        return beside(path.parent).get(path.name, [])

    return find


def missing_classes(spec: DatasetSpec, space: LabelSpace) -> list[str]:
    """The classes of a label space that no label of the data set can decode to."""
    return [c.name for c in space.classes if not spec.names() & set(c.names)]


def digest(samples: list[Sample]) -> str:
    """A hash of the listing: frame names and file sizes in bytes, wherever they are stored."""
    lines = []
    for sample in samples:
        files = (sample.image,) if sample.label is None else (sample.image, sample.label)
        lines.append(" ".join([sample.name, *(str(file.stat().st_size) for file in files)]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def translated_spec(spec: DatasetSpec, folder: Path) -> DatasetSpec:
    """The spec of a translation of `spec`: new images below `folder`, the original labels.

    Image files keep their names: the pattern's leading literal folder is dropped, so that
    `images/{frame}` is found in `folder/images/{frame}`.
    """
    return spec.model_copy(
        update={
            "name": f"{spec.name} (translated)",
            "root": folder,
            "images": f"images/{_below_literal(spec.images)}",
            "label_root": spec.label_root or spec.root,
            "limit": None,
            "quarantine": None,
            "about": None,
            # A wildcard or list has done its work: what was selected is what is there.
            "splits": {spec.split: "*"} if spec.split in spec.splits else {},
        }
    )


def translated_path(spec: DatasetSpec, sample: Sample, folder: Path) -> Path:
    """Where the translation of one frame of `spec` is kept below `folder`."""
    literal = spec.images[: len(spec.images) - len(_below_literal(spec.images))]
    return folder / "images" / sample.image.relative_to(spec.root / literal)


def _below_literal(pattern: str) -> str:
    """A pattern without its leading folders that have no field."""
    literal = pattern[: pattern.index("{")]
    return pattern[literal.rfind("/") + 1 :]
