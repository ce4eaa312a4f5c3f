"""The first spec of a folder as YAML with comments, and what was found in words."""

import json
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path

from pipeline.data.labels import VOCABULARY
from pipeline.data.listing import read_quarantine
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.files import sweep, write_text
from pipeline.intake.discover import Discovery
from pipeline.intake.encodings import Observation, Value
from pipeline.intake.findings import write_quarantine
from pipeline.intake.preview import read_pair, write_preview
from pipeline.intake.tables import PLAUSIBLE, Fit, where
from pipeline.intake.text import percent
from pipeline.schema import CONTROL, parse
from pipeline.text import count
from pipeline.yaml_files import SUFFIXES, expand, parse_yaml

_MOST_VALUES = 256
"""Raw values that a first spec lists at most."""


def describe(discovery: Discovery, out: Path | None = None) -> list[str]:
    """The findings in words, one a line, and the next step.

    Args:
        out: the spec that was written, for the next step.
    """
    pairs, observation = discovery.pairs, discovery.observation
    lines = [f"{discovery.frames:,} images: {discovery.images.pattern()}"]
    if discovery.foreign:
        lines.append(f"labels that are not read: {discovery.foreign}")
        lines.append("without them these frames are a `target` to adapt to")
    elif pairs is None or observation is None:
        lines.append("no labels: a `target` to adapt to; a source or a test set has labels")
    else:
        lines.append(f"{len(pairs.labels.paths):,} labels: {pairs.label_pattern()}")
        lines.append(f"{pairs.count:,} pairs, {len(pairs.lone_images):,} images without a label")
    if discovery.splits:
        parts = [f"{name} {count:,}" for name, count in discovery.splits.items()]
        lines.append(f"splits: {', '.join(parts)}; the spec means {discovery.split}")
    if discovery.lists:
        lines.append(f"lists of frames: {', '.join(discovery.lists.values())}")
    lines += discovery.remarks
    if observation is not None:
        lines.append(
            f"{len(observation.values)} values in {observation.files} label files, encoding "
            f"{observation.encoding}"
        )
        lines += table_lines(discovery)
        shares = {value.raw: value for value in observation.values}
        for raw, (name, why) in discovery.questions().items():
            lines.append(f"? {raw}: {name}? {_why(discovery, shares[raw], why)}")
    if discovery.same_as:
        names = " or ".join(f"`dataset: {name}`" for name in discovery.same_as)
        lines.append(f"patterns and values are built in: {names} says the same as this spec")
    if out is not None:
        asked = len(discovery.questions())
        edit = f"answer {count(asked, 'question')} in {out}, then " if asked else ""
        look = "look at the pictures, " if observation else ""
        lines.append(f"Next: {look}{edit}`sim2real check {out}`")
    return lines


def table_lines(discovery: Discovery) -> list[str]:
    """What the names rest on."""
    best = discovery.table
    if best is None:
        if not discovery.fits:
            return ["no known table: name the values yourself"]
        nearest = discovery.fits[0]
        return [f"no known table fits (the nearest is {_score(nearest)}): name the values yourself"]
    alternatives = discovery.alternatives
    if discovery.sure:
        lines = [f"names: {best.table.name}"]
    else:
        lines = [f"names: {best.table.name}? Files do not say whose table they follow: make sure"]
    if best.table.users:
        lines[0] += f" (as in {', '.join(best.table.users)})"
    others = alternatives or [fit for fit in discovery.fits[1:2] if fit.plausible > PLAUSIBLE / 2]
    return lines + [f"  {_score(fit)}" for fit in (best, *others[:3])]


def _score(fit: Fit) -> str:
    text = f"{fit.table.name}: {fit.plausible:.0%} plausible by where its names lie in the frames"
    if fit.covered < 0.9995:
        text += f", without names for {percent(1 - fit.covered)} of the pixels"
    return text + (f" ({fit.oddest})" if fit.oddest else "")


def _facts(value: Value) -> str:
    return f"{percent(value.share)} of the pixels, {where(value.height)}"


def _why(discovery: Discovery, value: Value, why: str) -> str:
    """What a person needs to answer for a value: where it lies, its colour, why it is asked."""
    color = mean_color(discovery, value)
    seen = [_facts(value), *([f"colour {color}"] if color else []), *([why] if why else [])]
    return "; ".join(seen)


def mean_color(discovery: Discovery, value: Value) -> str:
    """The mean colour of a value's pixels in the frame that has most of it, as R,G,B."""
    observation = discovery.observation
    image = {label: image for image, label in discovery.samples}[value.example]
    read = read_pair(image, value.example, observation) if observation else None
    if read is None:
        return ""
    rgb, values = read
    return ",".join(str(round(v)) for v in rgb[values == value.code].mean(axis=0))


def write_first_spec(discovery: Discovery, out: Path) -> list[Path]:
    """Write the spec as YAML with comments, and pictures into `NAME.preview/` beside it.

    Images without a label are written into `NAME.quarantine.csv`, which the spec leaves out.

    Returns:
        What was written: the spec, the pictures' folder and the quarantine list, where made.

    Raises:
        UserError: a file is already there, `out` is no YAML file name, or a name that a spec
            cannot hold.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out} does not end in .yaml. Give the spec another name with --out.")
    _check_names(_root(discovery, out), discovery.name, out.name)
    quarantine = out.with_name(f"{out.stem}.quarantine.csv")
    preview = out.with_name(f"{out.stem}.preview")
    lone = discovery.pairs.lone_images if discovery.pairs else ()
    reasons = {"/".join(key): "no label" for key in lone}
    # A list of the same frames is left by a call that was killed before it wrote the spec.
    other = quarantine.exists() and read_quarantine(quarantine) != reasons
    for path, taken in ((out, out.exists()), (quarantine, bool(lone) and other)):
        if taken:
            raise UserError(f"{path} is there already. Remove it, or name another with --out.")
    written = [out]
    text = spec_text(discovery, out, quarantine.name if lone else None)
    parse(DatasetSpec, expand(parse_yaml(text), "", []), str(out))
    sweep(out.parent)
    if discovery.observation is not None:
        asked = discovery.questions()
        names = discovery.names() | {raw: f"{name}?" for raw, (name, _) in asked.items()}
        values = [value for value in discovery.observation.values if value.raw in asked]
        sweep(preview)
        write_preview(preview, discovery.samples, discovery.observation, names, values)
        written.append(preview)
    if lone:
        write_quarantine(reasons, quarantine)
        written.append(quarantine)
    write_text(out, text)  # last: where the spec is, all of it is
    return written


def _root(discovery: Discovery, out: Path) -> str:
    """The folder as the spec says it, relative to the spec."""
    return os.path.relpath(discovery.folder.absolute(), out.absolute().parent)


def _check_names(*names: str) -> None:
    for name in names:
        if CONTROL.search(name):
            raise UserError(
                f"A spec cannot hold {name!r}: it is plain UTF-8 text. Rename the folder, link to "
                "it under another name, or name another --out."
            )


def spec_text(discovery: Discovery, out: Path, quarantine: str | None) -> str:
    """The YAML text of the first spec that is to stand at `out`."""
    pairs, observation = discovery.pairs, discovery.observation
    preview = f"{out.stem}.preview"
    lines = [f"# First spec of {discovery.frames:,} frames, made by looking at the folder."]
    if observation is not None:
        lines.append(f"# Compare the names with {preview}/frames.png, answer what ends in ?, then:")
    lines.append(f"#   sim2real check {out.name}")
    lines += [f"name: {quoted(discovery.name)}", f"root: {quoted(_root(discovery, out))}"]
    lines.append(f"images: {quoted(discovery.images.pattern())}")
    if discovery.foreign:
        lines += [f"# {line}" for line in _wrapped([f"Labels not read: {discovery.foreign}."])]
    if pairs is not None and observation is not None:
        lines.append(f"labels: {quoted(pairs.label_pattern())}")
        lines.append(f"encoding: {observation.encoding}")
        if observation.encoding == "channel":
            lines.append(f"channel: {observation.channel}")
        if observation.divide != 1:
            lines.append(f"divide: {observation.divide}  # class * {observation.divide} + number")
        if discovery.label_scale != 1:
            lines.append(
                f"label_scale: {discovery.label_scale:.6g}  # labels' size by frames' size"
            )
    if discovery.split is not None:
        known = ", ".join(f"{name} {count:,}" for name, count in discovery.splits.items())
        lines.append(f"split: {quoted(discovery.split)}" + (f"  # of {known}" if known else ""))
    if discovery.lists:
        lines.append("splits:")
        lines += [
            f"  {json.dumps(k, ensure_ascii=False)}: {quoted(path)}"
            for k, path in discovery.lists.items()
        ]
    if quarantine is not None:
        assert pairs is not None
        lines.append(f"quarantine: {quoted(quarantine)}  # {len(pairs.lone_images):,} unlabelled")
    if observation is not None:
        words = table_lines(discovery)
        if discovery.questions():
            words.append(
                f"A name that ends in ? was guessed: remove the ?, or write another name. {preview}"
                "/value-*.png show the values asked about. Names: "
                f"{', '.join(sorted(VOCABULARY))}; or your own, DATASET/NAME."
            )
        lines += [f"# {line}" for line in _wrapped(words)]
        lines += _value_lines(discovery, observation, preview)
    return "\n".join(lines) + "\n"


def _value_lines(discovery: Discovery, observation: Observation, preview: str) -> list[str]:
    table = discovery.table.table if discovery.table else None
    seen = {value.raw: value for value in observation.values[:_MOST_VALUES]}
    rest = [raw for raw in (table.values if table else {}) if raw not in seen]
    rows: list[tuple[str, str]] = []
    asked = discovery.questions()
    for raw in sorted([*seen, *rest], key=lambda raw: [int(n) for n in raw.split(",")]):
        name = table.values.get(raw) if table else None
        notes = [_facts(seen[raw])] if raw in seen else ["not in the sample"]
        if raw in asked:
            guess, why = asked[raw]
            name, notes = f"{guess}?", [_why(discovery, seen[raw], why)]
        if table and raw in table.remarks:
            notes.append(table.remarks[raw])
        key = quoted(raw) if "," in raw else raw
        rows.append((f"  {key}: {name or 'unlabeled'}", "; ".join(notes)))
    width = max(len(entry) for entry, _ in rows)
    lines = ["values:", *(f"{entry:<{width}}  # {note}" for entry, note in rows)]
    if len(observation.values) > _MOST_VALUES:
        more = len(observation.values) - _MOST_VALUES
        lines.append(f"  # and {more:,} rarer values: are these labels, or ids of instances?")
    return lines


def quoted(text: object) -> str:
    """A value as YAML takes it whatever it holds: JSON's strings are YAML's, but for `$`."""
    return json.dumps(str(text).replace("$", "$$"), ensure_ascii=False)


def _wrapped(lines: Iterable[str]) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line.strip(), 96)]
