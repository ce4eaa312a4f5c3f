"""The frames of a data set: pattern matches, splits, quarantine, and each frame's label."""

import codecs
import csv
import fnmatch
import glob
import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.csv_files import unquoted
from pipeline.data.images import LABEL_SUFFIXES, SUFFIXES
from pipeline.data.spec import DatasetSpec, below_literal, is_list, pattern_fields
from pipeline.errors import UserError
from pipeline.files import open_regular

Item = TypeVar("Item")
_FIELD = re.compile(r"\{(\w+)\}")
_LIST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Sample:
    """One frame: its name (the fields joined by '/'), its image, and its label where wanted."""

    name: str
    image: Path
    label: Path | None = None


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
    found: dict[str, Path] = {}
    for fields, path in _find(spec, _split_folder(spec)):
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
        banned = _quarantined(spec, spec.quarantine, found)
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


def _split_folder(spec: DatasetSpec) -> dict[str, str]:
    """The value of `{split}` where the spec's split is a folder.

    Raises:
        UserError: no such split.
    """
    if "split" in pattern_fields(spec.images) and spec.split not in spec.splits:
        folders = sorted({fields["split"] for fields, _ in _find(spec, {})})
        if spec.split not in folders:
            raise UserError(
                f"Data set {spec.name}: no split {spec.split!r} in {spec.root}. "
                f"Found: {', '.join([*folders, *spec.splits]) or 'none'}. Set `split`."
            )
        return {"split": str(spec.split)}
    if spec.split is not None and spec.split not in spec.splits:
        raise UserError(
            f"Data set {spec.name}: no split {spec.split!r}. "
            f"Known: {', '.join(spec.splits) or 'none; leave `split` out'}."
        )
    return {}


def _quarantined(spec: DatasetSpec, path: Path, found: Mapping[str, Path]) -> dict[str, str]:
    """The frames to leave out.

    Raises:
        UserError: a list of none of the frames found.
    """
    banned = read_quarantine(path)
    if banned and found and not banned.keys() & found.keys():
        raise UserError(
            f"Data set {spec.name}: {path} lists {next(iter(banned))!r} and so on, "
            f"and no frame has such a name; names are like {min(found)!r}. Write the list with "
            "`sim2real check --quarantine`."
        )
    return banned


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, or all, evenly spaced and always the same."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def spaced(total: int, count: int) -> list[int]:
    """At most `count` of the positions 0..total - 1, evenly spaced, none at the very ends."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


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
    if not is_list(rule):
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
            f"{', '.join(names[:3])}. Fix the split, or add the frames."
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
    return spec.root / re.sub(r"(?<=\.mat):.*", "", rule) if is_list(rule) else None


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
    given = ending.lower() in LABEL_SUFFIXES or (spec.decoder is not None and ending)

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


def digest(samples: list[Sample]) -> str:
    """A hash of the listing: frame names and file sizes in bytes, wherever they are stored."""
    lines = []
    for sample in samples:
        files = (sample.image,) if sample.label is None else (sample.image, sample.label)
        lines.append(" ".join([sample.name, *(str(file.stat().st_size) for file in files)]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def translated_path(spec: DatasetSpec, sample: Sample, folder: Path) -> Path:
    """Where the translation of one frame of `spec` is kept below `folder`."""
    literal = spec.images[: len(spec.images) - len(below_literal(spec.images))]
    return folder / "images" / sample.image.relative_to(spec.root / literal)


def pseudo_label_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Where the pseudo-label of a frame is, class indices (H, W) of all its pixels at its working
    size; and how confident the network is of each, (H, W) levels in 0..255."""
    return folder / "labels" / f"{name}.png", folder / "confidences" / f"{name}.png"
