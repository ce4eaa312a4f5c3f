"""`sim2real translate --input`: a generator translates frames that are no part of a run."""

import hashlib
import sys
from pathlib import Path

from cyclegan.translate import translate
from flows.plan import generator_file
from pipeline.config.settings import ComputeConfig
from pipeline.config.translation import TranslationConfig
from pipeline.config.translators import TranslationInputs
from pipeline.data.listing import digest, list_samples
from pipeline.data.spec import DatasetSpec, spec_fields
from pipeline.errors import UserError
from pipeline.files import read_json, sweep, write_json
from pipeline.run.contents import hashes
from pipeline.run.folder import INPUTS_FILE, Inputs, differences, locked, read_run
from pipeline.schema import parse


def translate_frames(source: Path, translation: str, frames: Path, out: Path) -> None:
    """Translate frames, labelled or not, into `out/images`; continues where it was interrupted.

    Args:
        source: a run, or a file of weights.
        translation: whose generator, of a run. Its `shifts` count, and the run's `width`.
        frames: a folder of images, or the YAML file of a data set.

    Raises:
        UserError: no such translation, generator or frames, or `out` holds something else.
    """
    generator, settings, compute, width = source, TranslationConfig(), ComputeConfig(), None
    if source.is_dir():
        config = read_run(source)
        generator = generator_file(config, source, translation)
        settings, compute = config.all_translations[translation], config.compute
        width = config.source.width
        if settings.source != "source":
            print(f"Note: {translation} translates frames of {settings.source}.", file=sys.stderr)
    if not generator.is_file():
        raise UserError(f"No generator {generator}. Give a trained run, or a file of weights.")
    spec = _dataset(frames.absolute(), width)
    samples = list_samples(spec, labelled=False)
    with locked(out, "--out"):
        content, *contents = hashes([generator, *(s.image for s in samples)], out, "frames")
        made_from: Inputs = {
            "generator": content[:16],
            "settings": settings.model_dump(mode="json", include={"shifts", "batch_norm"}),
            "width": spec.width,
            "frames": digest(samples),
            "content": hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16],
        }
        _begin(out, made_from)
        sweep(out, below=True)
        # Its generator looks at no target frames.
        translate(settings, TranslationInputs(spec, spec, generator), out, compute)


def _dataset(frames: Path, width: int | None) -> DatasetSpec:
    fields: dict[str, object] = {"name": frames.name, "root": frames, "images": "{frame}"}
    if frames.suffix in {".yaml", ".yml"}:
        fields = spec_fields(frames.name, frames.parent)
    return parse(DatasetSpec, {"width": width, **fields}, str(frames))


def _begin(out: Path, made_from: Inputs) -> None:
    """Record what the pictures in `out` are made from, unless they are made from something else."""
    record = out / INPUTS_FILE
    if (out / "images").exists():
        if not record.is_file():
            raise UserError(f"{out} holds images, and not of this command. Give another --out DIR.")
        if changed := differences(read_json(record), made_from):
            raise UserError(
                f"{out} holds translations by another generator or of other frames:\n"
                + "".join(f"  {line}\n" for line in changed)
                + "Give another --out DIR, or remove it."
            )
    write_json(record, made_from)
