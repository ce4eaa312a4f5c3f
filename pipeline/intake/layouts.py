"""Folders of unknown layout: which files form a series, under which pattern, which series pair.

A series is what one file pattern of a `DatasetSpec` can say: literal folders, folders that vary,
and a file name with a literal beginning and end. Series are made from names alone and then joined
where their pixels are of one kind, because no name tells `town1/`, `town2/` from `rgb/`, `seg/`.
"""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.data.images import LABEL_SUFFIXES
from pipeline.errors import UserError
from pipeline.intake.encodings import Kind
from pipeline.intake.text import printable
from pipeline.schema import CONTROL

FEW = 12
"""More sibling folders, or endings of names in one folder, than this are values of a field."""
MOST_SERIES = 120
"""Of more series than this, only the largest are looked at."""
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")

_SPLIT = re.compile(
    rf"(?P<before>[\w-]+[_-])?(?P<split>{'|'.join(sorted(SPLITS, key=len, reverse=True))})"
    r"(?P<after>annot\w*|[_-][\w-]+)?",
    re.IGNORECASE,
)
_CONTENT_WORDS = re.compile(
    r"label|lbl|seg|mask|annot|semantic|class|colou?r|rgb|image|img|photo|frame|picture|depth|"
    r"disp|normal|flow|instance|panoptic|(?<![a-z])(gt|ss|raw|ids?)(?![a-z])"
)
_ILLEGAL = re.compile(rf"[{{}}\[\]*?]|{CONTROL.pattern}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # Python's stand-in for a byte that is no UTF-8
_SEPARATED = r"[_\-. ]"

Key = tuple[str, ...]
"""The values of a series' fields: one a varying folder, then the frame."""
Rows = list[tuple[tuple[str, ...], str]]
"""The folders still ahead of each path, and the path."""


@dataclass(frozen=True)
class Part:
    """One folder of a pattern: literal text, or a field between literal texts."""

    before: str
    field: str = ""
    after: str = ""


@dataclass(frozen=True)
class Series:
    """Files of one pattern. `paths` are relative to the folder that was searched."""

    folders: tuple[Part, ...]
    head: str
    tail: str
    ending: str
    """File name ending, or empty where several occur."""
    paths: tuple[str, ...]
    kind: Kind = "many"
    """What its files show."""

    @property
    def fields(self) -> list[str]:
        """The proposed names of the varying folders, made unique."""
        names: list[str] = []
        for part in self.folders:
            if part.field:
                same = sum(name.rstrip("23456789") == part.field for name in names)
                names.append(part.field + (str(same + 1) if same else ""))
        return names

    @property
    def text(self) -> str:
        """The literal text of the pattern, lower case, camelCase parted by '_'."""
        folders = [part.before + "_" + part.after for part in self.folders]
        return plain("/".join([*folders, self.head + "_" + self.tail]))

    @cached_property
    def keys(self) -> dict[Key, str]:
        """Field values -> path, for every file."""
        found = {}
        for path in self.paths:
            *folders, name = path.split("/")
            values = [
                value[len(part.before) : len(value) - len(part.after)]
                for part, value in zip(self.folders, folders, strict=True)
                if part.field
            ]
            stem = name[: name.rindex(".")]
            found[(*values, stem[len(self.head) : len(stem) - len(self.tail)])] = path
        return found

    def pattern(self, fields: Sequence[str] | None = None) -> str:
        """The file pattern of a `DatasetSpec`, with names for the varying folders."""
        names = iter(self.fields if fields is None else fields)
        folders = [
            f"{part.before}{{{next(names)}}}{part.after}" if part.field else part.before
            for part in self.folders
        ]
        return "/".join([*folders, f"{self.head}{{frame}}{self.tail}{self.ending}"])


@dataclass(frozen=True)
class Listing:
    """What one walk through a folder found, relative to it."""

    images: list[str]
    lists: list[str]
    """`.txt` files."""
    others: list[str]
    """Files of other kinds."""


@dataclass(frozen=True)
class Pairs:
    """Images and labels that belong together, and those that stand alone."""

    images: Series
    labels: Series
    order: tuple[int, ...]
    """Which varying folder of the images each one of the labels is."""
    files: tuple[tuple[str, str], ...]
    """Image and label of each pair, sorted."""
    lone_images: tuple[Key, ...]
    lone_labels: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return len(self.files)

    def label_pattern(self) -> str:
        """The label pattern, in the names of the images' fields."""
        return self.labels.pattern([self.images.fields[i] for i in self.order])


def plain(text: str) -> str:
    """Lower case, with camelCase parted by '_'."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()


def walk(folder: Path) -> Listing:
    """List a folder once, through links to folders but never round in a circle.

    Hidden files and folders are left out.

    Raises:
        UserError: a folder cannot be listed, or a name is no UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}).") from error

    images, lists, others = [], [], []
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = os.path.relpath(place, folder).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        for name in sorted(files):
            if name.startswith("."):
                continue
            ending = os.path.splitext(name)[1].lower()
            if ending in {*LABEL_SUFFIXES, ".txt"} and _SURROGATE.search(prefix + name):
                raise UserError(
                    f"The name of {printable(str(folder / (prefix + name)))} is no UTF-8 (what "
                    "is not is shown as ?), which no spec and no list of frames can hold. Rename "
                    "it, for example with `convmv`."
                )
            if ending in LABEL_SUFFIXES:
                images.append(prefix + name)
            elif ending == ".txt":
                lists.append(prefix + name)
            else:
                others.append(prefix + name)
    return Listing(images, lists, others)


def find_series(paths: Iterable[str]) -> list[Series]:
    """Group files into series by their names, the largest first."""
    rows = [(tuple(path.split("/")[:-1]), path) for path in paths]
    found = sorted(_descend(rows, ()), key=lambda series: -len(series.paths))
    return found[:MOST_SERIES]


def _descend(rows: Rows, above: tuple[Part, ...]) -> Iterator[Series]:
    files = [path for folders, path in rows if not folders]
    if files:
        yield from _split_names(files, above)
    below: dict[str, Rows] = defaultdict(list)
    for folders, path in rows:
        if folders:
            below[folders[0]].append((folders[1:], path))
    for part, names in _parts(list(below)):
        yield from _descend([row for name in names for row in below[name]], (*above, part))


def _parts(names: list[str]) -> Iterator[tuple[Part, list[str]]]:
    """Which sibling folders are values of one field, and which stand for themselves."""
    splits: dict[Part, list[str]] = defaultdict(list)
    shapes: dict[str, list[str]] = defaultdict(list)
    rest: list[str] = []
    for name in names:
        match = _SPLIT.fullmatch(name)
        if match and (match["split"] == name or _names_content(name)):
            splits[Part(match["before"] or "", "split", match["after"] or "")].append(name)
        elif _names_content(name):
            yield Part(name), [name]
        else:
            shapes[re.sub(r"\d+", "#", name)].append(name)
    yield from splits.items()
    for alike in shapes.values():
        if len(alike) > 1:
            yield Part("", field_name(alike)), alike
        else:
            rest += alike
    if len(rest) > FEW:
        yield Part("", field_name(rest)), rest
    else:
        yield from ((Part(name), [name]) for name in rest)


def field_name(names: Sequence[str]) -> str:
    """A name for what folders differ in: the letters that they all begin with, or 'folder'."""
    word = re.sub(r"[^A-Za-z].*", "", names[0])
    while not all(name.startswith(word) for name in names):
        word = word[:-1]
    word = word.lower()
    return word if len(word) > 2 and word not in {"frame", "split"} else "folder"


def _split_names(paths: list[str], folders: tuple[Part, ...]) -> Iterator[Series]:
    """Part the files of one place by file name ending and by the ends and beginnings of names."""
    stems = [path[path.rindex("/") + 1 if "/" in path else 0 : path.rindex(".")] for path in paths]
    places = [path.rpartition("/")[0] for path in paths]
    tails = _accepted([_tail(stem) for stem in stems], stems, places, at_end=True)
    bare = [stem[: len(stem) - len(tail)] for stem, tail in zip(stems, tails, strict=True)]
    heads = _accepted([_head(stem) for stem in bare], bare, places, at_end=False)
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for path, head, tail in zip(paths, heads, tails, strict=True):
        groups[head, tail, path[path.rindex(".") :]].append(path)
    for (head, tail, ending), members in groups.items():
        yield Series(folders, head, tail, ending, tuple(members))


def _tail(stem: str) -> str:
    """The end of a name that says what it shows: `_gtFine_labelIds` of `a_000019_gtFine_labelIds`.

    It is the pieces behind the last one that ends in a digit, or else the last piece.
    """
    match = re.search(rf"({_SEPARATED}[^_\-. ]*[^\d_\-. ])+$", stem)
    if match is None or match.start() == 0:
        return ""
    if not stem[match.start() - 1].isdigit():
        return stem[max(stem.rfind(separator) for separator in "_-. ") :]
    return match[0]


def _head(stem: str) -> str:
    """The letters in front of the first number: `rgb_` of `rgb_0001`."""
    match = re.match(rf"[A-Za-z]+({_SEPARATED}[A-Za-z]+)*{_SEPARATED}?(?=\d)", stem)
    return match[0] if match else ""


def _accepted(
    affixes: list[str], stems: list[str], places: list[str], *, at_end: bool
) -> list[str]:
    """The affixes, where they are one constant or several over the same frames; else none."""
    distinct = set(affixes)
    if len(distinct) == 1:
        return affixes
    cores = {
        (place, stem[: len(stem) - len(affix)] if at_end else stem[len(affix) :])
        for place, stem, affix in zip(places, stems, affixes, strict=True)
    }
    if len(distinct) <= FEW and len(cores) <= 0.7 * len(set(zip(places, stems, strict=True))):
        return affixes
    return [""] * len(affixes)


def join_alike(series: list[Series]) -> list[Series]:
    """Join series that differ in folders or ends of names and show the same kind of pixels.

    A part that names what is shown (`rgb`, `depth`, ...) is never made a field.
    """
    current = list(series)
    while (joined := _join_once(current)) is not None:
        current = joined
    return sorted(current, key=lambda one: -len(one.paths))


def _join_once(series: list[Series]) -> list[Series] | None:
    def without(one: Series, place: str) -> tuple[object, ...]:
        """What stays of a name without the parts that may become fields."""
        folders = [None if place == "folders" and _may_vary(p) else p for p in one.folders]
        # Ends of names often repeat a folder (aachen/aachen_000019): they go with it.
        ends = [end if _names_content(end) else "" for end in (one.head, one.tail)]
        return (tuple(folders), *ends, "" if place == "ending" else one.ending, one.kind)

    for place in ("ending", "names", "folders"):
        groups: dict[tuple[object, ...], list[Series]] = defaultdict(list)
        for one in series:
            groups[without(one, place)].append(one)
        for members in groups.values():
            if len(members) < 2 or (place == "ending" and _overlap(members)):
                continue
            folders = []
            for i, part in enumerate(members[0].folders):
                same = all(one.folders[i] == part for one in members)
                names = [one.paths[0].split("/")[i] for one in members]
                folders.append(part if same else Part("", field_name(names)))
            union = Series(
                tuple(folders),
                _common(one.head for one in members),
                _common(one.tail for one in members),
                _common(one.ending for one in members),
                tuple(sorted(path for one in members for path in one.paths)),
                members[0].kind,
            )
            return [*(one for one in series if one not in members), union]
    return None


def _may_vary(part: Part) -> bool:
    """Whether a folder that stands for itself may be a value of a field."""
    return part.field != "split" and not _names_content(part.before + part.after)


def _names_content(text: str) -> bool:
    """Whether part of a name says what is shown."""
    return bool(_CONTENT_WORDS.search(plain(text)))


def _common(texts: Iterable[str]) -> str:
    """The text that all are, or none."""
    distinct = set(texts)
    return distinct.pop() if len(distinct) == 1 else ""


def _overlap(members: list[Series]) -> bool:
    """Whether some frame is there in two file formats."""
    keys = [set(one.keys) for one in members]
    return sum(len(some) for some in keys) > len(set().union(*keys))


def pair(images: Series, labels: Series) -> Pairs | None:
    """Pair two series over equal fields, whichever literal ends of names that takes.

    Returns:
        The way that pairs most, or None when none pairs anything.
    """
    best: Pairs | None = None
    for one, other in itertools.product(_readings(images), _readings(labels)):
        found = _pair(one, other)
        if found is not None and (best is None or found.count > best.count):
            best = found
    if best is not None and (best.images.head, best.images.tail) != ("", ""):
        best = _simpler(best)
    return best


def _readings(series: Series) -> list[Series]:
    """A series as it is, and with the ends of its names taken as part of the frame's name."""
    found = [series]
    if series.head or series.tail:
        found.append(replace(series, head="", tail=""))
    # A folder that has one value may be there for images or labels alone.
    folders = [
        Part(names.pop())
        if part.field and len(names := {path.split("/")[i] for path in series.paths}) == 1
        else part
        for i, part in enumerate(series.folders)
    ]
    if tuple(folders) != series.folders:
        found += [replace(one, folders=tuple(folders)) for one in found]
    return found


def _simpler(pairs: Pairs) -> Pairs:
    """The same pairs without ends of names that images and labels share."""
    images, labels = pairs.images, pairs.labels
    for end in ("head", "tail"):
        if getattr(images, end) == getattr(labels, end):
            images = replace(images, **{end: ""})  # type: ignore[arg-type]
            labels = replace(labels, **{end: ""})  # type: ignore[arg-type]
    found = _pair(images, labels)
    return found if found is not None and found.count == pairs.count else pairs


def _pair(images: Series, labels: Series) -> Pairs | None:
    width = len(images.fields)
    if width != len(labels.fields) or width > 5:
        return None
    ours, theirs = images.keys, labels.keys
    values = [({key[i] for key in ours}, {key[i] for key in theirs}) for i in range(width)]
    best: tuple[set[Key], tuple[int, ...], dict[Key, str]] = set(), (), {}
    for order in itertools.permutations(range(width)):
        if any(not values[i][0] & values[j][1] for j, i in enumerate(order)):
            continue
        back = [order.index(i) for i in range(width)]
        turned = {(*(key[i] for i in back), key[-1]): path for key, path in theirs.items()}
        common = turned.keys() & ours.keys()
        if len(common) > len(best[0]):
            best = common, order, turned
    common, order, turned = best
    if not common:
        return None
    return Pairs(
        images,
        labels,
        order,
        files=tuple(sorted((ours[key], turned[key]) for key in common)),
        lone_images=tuple(sorted(ours.keys() - common)),
        lone_labels=tuple(sorted(turned[key] for key in turned.keys() - common)),
    )


def padding_differs(images: Series, labels: Series) -> tuple[str, str] | None:
    """Two files that would pair if their numbers had the same leading zeros, if there are."""

    def numbered(series: Series) -> dict[Key, str]:
        found = {}
        for (*folders, frame), path in series.keys.items():
            found[(*folders, re.sub(r"\d+", lambda m: str(int(m[0])), frame))] = path
        return found

    ours, theirs = numbered(images), numbered(labels)
    common = sorted(set(ours) & set(theirs))
    return (ours[common[0]], theirs[common[0]]) if common else None


def check_literals(series: Series) -> None:
    """Refuse literal text that a pattern cannot hold.

    Raises:
        UserError: names the characters and the way out.
    """
    literal = [text for part in series.folders for text in (part.before, part.after)]
    found = {c for text in (*literal, series.head, series.tail) for c in _ILLEGAL.findall(text)}
    if found:
        raise UserError(
            f"The names of files such as {series.paths[0]!r} hold "
            f"{' '.join(map(repr, sorted(found)))}, which a file pattern cannot hold (braces, "
            "brackets, * and ? have a meaning there, and it is plain UTF-8 text). Rename the "
            "folder or the files, or link to them under another name."
        )
