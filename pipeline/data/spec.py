"""A data set is a value: where its frames are, how its labels are encoded, which part is meant.

A spec is a YAML file. File patterns hold fields in braces; an image and a label belong together
when their fields are equal:

    images: leftImg8bit/{split}/{city}/{frame}_leftImg8bit
    labels: gtFine/{split}/{city}/{frame}_gtFine_labelIds

A pattern without a file name ending matches any common image format.
"""

import os
import re
from collections.abc import Collection
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.data.labels import ASKED, TABLES, LabelSpace, check_name, meaning
from pipeline.errors import UserError, short
from pipeline.schema import Located, Schema, Side, located, near, parse
from pipeline.yaml_files import SUFFIXES, read_settings, write_yaml

Fields = dict[str, object]
"""The fields of a data set as YAML gives them."""
_BUILT_IN = Path(__file__).parent / "specs"
PLUG_INS = "sim2real.datasets"
"""The entry-point group in which packages offer data sets: name -> function without arguments that
returns a `DatasetSpec`."""
DECODERS = "sim2real.decoders"
"""The entry-point group in which packages declare functions that a spec may name as `decoder`."""


def _table(values: object) -> object:
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
    root: Annotated[Path, Located()]
    """The folder that the patterns start from."""
    images: str
    """Pattern of the image files below `root`; fields in braces, ending optional."""
    labels: str | None = None
    """Pattern of the label files, with the same fields; none for unlabelled frames."""
    label_root: Annotated[Path | None, Located()] = None
    """The folder that `labels` starts from, where it is not `root`."""
    instances: str | None = None
    """Pattern of files that tell single objects apart, with the same fields and below the same
    folder as `labels`: Cityscapes' 16-bit `instanceIds`. Only instance scores read them."""
    encoding: Literal["ids", "rgb", "channel"] = "ids"
    """How a label file stores its values: one value a pixel (palette index or grey value), an
    RGB colour, or one channel of a colour image."""
    channel: int = Field(0, ge=0, le=3)
    """Which channel holds the value when `encoding` is `channel`: 0 is red."""
    divide: int = Field(1, ge=1, le=65535)
    """For ids that hold the number of an object, too: values from this on are divided by it. 1000
    reads class * 1000 + number, 256 what KITTI's `instance` files hold."""
    label_scale: float = Field(1.0, gt=0, le=16)
    """How many times as wide as its frame a label is: 0.5 for masks of half the size. It is resized
    (nearest) to the frame, or with `width` both to that; scores are taken at the label's size."""
    decoder: Annotated[str | None, Located((".py",))] = Field(
        None, pattern=r"^([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*$"
    )
    """For label files that no encoding describes, `package.module:function` that an installed
    package declares as an entry point of `sim2real.decoders`, or `FILE.py:function`, relative to
    the file that says it and run only with `--allow-code`. Called with a label file's path, it
    returns raw values as (H, W) integers in 0..65535. Several threads may call it at once."""
    values: Annotated[dict[str, str], BeforeValidator(_table)] = Field(default_factory=dict)
    """Raw value -> name. Colours are written `"R,G,B"`. A word stands for a table: the name of a
    known data set for its own, `cityscapes_ids` or `cityscapes_train_ids`. A name that ends in `?`
    was guessed: `run` refuses it until a person has answered."""
    splits: dict[str, str] = Field(default_factory=dict)
    """Further splits: name -> a wildcard over frame names, a `.txt` list below `root`, or
    `FILE.mat:KEY`, the frame numbers (from 1) in a MATLAB file below `root`."""
    split: str | None = None
    """The split that is meant: a folder that `{split}` matches, or a key of `splits`."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many frames, evenly spaced."""
    quarantine: Annotated[Path | None, Located()] = None
    """A table (`.csv`, columns `name` and `reason`) of frames to leave out, as `sim2real check
    --quarantine` writes it; relative to the file that says it."""
    width: Side | None = None
    """Working width in pixels: frames and labels are resized to it when read, aspect kept;
    none leaves them as they are."""
    confirmed: tuple[str, ...] = ()
    """What is meant to be lost: classes, names or values, as `check` and `run` call them when they
    refuse labels in which a class falls to nothing."""
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
        lists = [rule for rule in self.splits.values() if is_list(rule)]
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
        if self.divide != 1 and self.encoding != "ids":
            raise ValueError(f"`divide` is for `encoding: ids`, not {self.encoding!r}")
        owner: dict[int, str] = {}
        for raw, name in self.values.items():
            check_name(name.removesuffix(ASKED))
            value = raw_value(raw, self.encoding)
            if value in owner:
                raise ValueError(_named_twice(raw, owner[value], name, self.encoding))
            owner[value] = name
        return self

    def names(self) -> set[str]:
        """The vocabulary names that labels of this set can decode to."""
        return {meaning(name) for name in self.values.values()}


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


def is_list(rule: str) -> bool:
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


def _from_plug_in(name: str) -> Fields:
    (point, *_) = entry_points(group=PLUG_INS, name=name)
    try:
        spec = point.load()()
    except Exception as error:  # code of a plug-in: it may raise anything
        raise UserError(
            f"Data set {name!r} comes from {point.value}, which fails: {type(error).__name__}: "
            f"{error}. Fix or uninstall that package."
        ) from error
    if not isinstance(spec, DatasetSpec):
        raise UserError(
            f"Data set {name!r} comes from {point.value}, which returned {type(spec).__name__}; "
            "a pipeline.data.spec.DatasetSpec was expected."
        )
    return spec.model_dump(mode="json", exclude_defaults=True)


def read_spec(name_or_path: str | Path, **given: object) -> DatasetSpec:
    """A data set: built in or of a plug-in by name, else of a `.yaml` file.

    Args:
        given: fields that win over its own.

    Raises:
        UserError: as `spec_fields`; its fields do not fit, or do not say where it is.
    """
    fields = spec_fields(str(name_or_path), Path(), given) | given
    if "root" not in fields:
        raise UserError(f"Where is data set {name_or_path}? Give its folder: --root DIR.")
    return parse(DatasetSpec, fields, str(name_or_path))


def spec_fields(name_or_path: str, base: Path, given: Collection[str] = ()) -> Fields:
    """The fields of a data set: built in or of a plug-in by name, else of a `.yaml` file.

    Args:
        base: the folder that a relative `.yaml` file is looked for in.
        given: fields that are given elsewhere, and left out.

    Raises:
        UserError: no such data set, or as `layered`.
    """
    return layered({"dataset": name_or_path}, base, given)


def layered(
    fields: Fields, base: Path, given: Collection[str] = (), chain: tuple[str, ...] = ()
) -> Fields:
    """The fields of a data set on top of those of the one that its `dataset` names.

    A relative path starts at the file that says it.

    Args:
        fields: with environment variables in place.
        base: the folder of the file that says them.
        given: fields that are given on top of these, and left out.
        chain: the files that led here, each starting from the next.

    Raises:
        UserError: no such data set, one that starts from itself, or a variable that is not set.
    """
    own = located(DatasetSpec, fields, base)
    if (named := own.pop("dataset", None)) is None:
        return own
    known, name = built_in_specs(), str(named)
    if name.endswith(SUFFIXES):
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
    given = {*given, *own}
    under = read_settings(path, "the fields of a data set", given)
    return layered(under, path.parent, given, (*chain, str(path))) | own


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


def missing_classes(spec: DatasetSpec, space: LabelSpace) -> list[str]:
    """The classes of a label space that no label of the data set can decode to."""
    return [c.name for c in space.classes if not spec.names() & set(c.names)]


def limited(spec: DatasetSpec, frames: int | None) -> DatasetSpec:
    """So many frames of a data set, evenly spaced; None: as it is."""
    return spec if frames is None else spec.model_copy(update={"limit": frames})


def translated_spec(spec: DatasetSpec, folder: Path) -> DatasetSpec:
    """The spec of a translation of `spec`: new images below `folder`, the original labels.

    Image files keep their names: the pattern's leading literal folder is dropped, so that
    `images/{frame}` is found in `folder/images/{frame}`.
    """
    return spec.model_copy(
        update={
            "name": f"{spec.name} (translated)",
            "root": folder,
            "images": f"images/{below_literal(spec.images)}",
            "label_root": spec.label_root or spec.root,
            "limit": None,
            "quarantine": None,
            "about": None,
            # A wildcard or list has done its work: what was selected is what is there.
            "splits": {spec.split: "*"} if spec.split in spec.splits else {},
        }
    )


def below_literal(pattern: str) -> str:
    """A pattern without its leading folders that have no field."""
    literal = pattern[: pattern.index("{")]
    return pattern[literal.rfind("/") + 1 :]
