"""Networks as files: the reference implementation's, our checkpoints, ONNX."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from cyclegan.networks import (
    Generator,
    ResidualGenerator,
    UnetLevel,
    build_discriminator,
    build_generator,
)
from cyclegan.onnx_files import export_onnx
from cyclegan.reference import (
    GENERATORS,
    ONE_WAY_NAMES,
    REFERENCE_NAMES,
    current_names,
    reference_files,
)
from cyclegan.weights import (
    EXPECTED,
    AffineInstanceNorm,
    BatchNorm,
    State,
    discriminator_settings,
    fill,
    fit_norms,
    generator_settings,
    looks_at_more,
    norms,
    plain_state,
    read_weights,
)
from pipeline.config.translation import CycleGANConfig
from pipeline.errors import UserError
from pipeline.files import sweep
from pipeline.runtime.checkpoint import save_checkpoint
from pipeline.text import listed

_NORMALISED: dict[BatchNorm, str] = {
    "running": "They use the running statistics of its training, as the reference's test script "
    "does with --eval; translation.batch_norm: batch uses those of each frame, as without.",
    "batch": "They use the statistics of each frame, as the reference's test script does without "
    "--eval; translation.batch_norm: running uses those of its training, as with it.",
}
Direction = Literal["source_to_target", "target_to_source"]


def load_generator(
    path: Path,
    direction: Direction = "source_to_target",
    batch_norm: BatchNorm = "running",
    *,
    say: bool = False,
) -> Generator:
    """Build a generator from a file of weights, in evaluation mode on the CPU. Runs no code of it.

    Known are the reference's ResNet and U-Net generators of any depth and width, with or without
    dropout, normalised by instance (affine or not) or by batch, and our training checkpoints (the
    averaged weights, where there are any). Running statistics that the reference stored beside
    instance norms until 2018 are dropped, as are the prefixes of DataParallel and torch.compile.
    A U-Net's weights do not tell whether it has dropout: it is built without.

    Args:
        direction: which generator of a training checkpoint; a file of the reference holds one.
        batch_norm: what batch norms normalise by (`TranslationConfig`).
        say: name on standard error what they do, where there are any.

    Returns:
        (N, 3, H, W) in [-1, 1] -> the same.

    Raises:
        UserError: no such file, a damaged one, one of something else, or of a network that cannot
            be told from its weights.
    """
    content = read_weights(path)
    if (networks := _networks(content)) is None:
        return _generator(content, path, batch_norm, say=say)
    if direction not in networks:
        found = listed(networks, 3)
        raise UserError(f"{path} holds no {direction} network, only: {found}. {EXPECTED}.")
    return _generator(networks[direction], path, batch_norm, say=say)


def load_start(config: CycleGANConfig, *, say: bool = False) -> dict[str, State]:
    """The weights at `config.start` that the networks of a training start from.

    Of a checkpoint of ours these are the averaged generators where there are any, which also
    translate and are exported. Networks that are not there start anew, as do discriminators that
    look at more than pixels.

    Args:
        say: name on standard error what is taken.

    Returns:
        Network -> its weights, on the CPU, complete and finite.

    Raises:
        UserError: no generator is there; a file is damaged or of something else; networks are
            others than `config` says (names every field) or than training builds.
    """
    assert config.start is not None
    weights: dict[str, State] = {}
    taken: list[str] = []
    others: dict[tuple[str, object], list[str]] = {}
    for name, (path, content) in _start_contents(config.start, one_way=config.one_way).items():
        where = f"{path} ({name})"
        state = plain_state(content, where)
        translates = name in GENERATORS
        if not translates and (not config.plain_discriminators or looks_at_more(state)):
            continue
        theirs = (generator_settings if translates else discriminator_settings)(state, where)
        with torch.device("meta"):
            network = build_generator(theirs) if translates else build_discriminator(theirs)
        if (kind := norms(network, state, where)) != "instance":
            raise UserError(
                f"{where} has {kind} norms; training builds instance norms without weights. Start "
                "from networks that were trained with --norm instance. A generator with other "
                "norms can translate: translation.weights."
            )
        fill(network, state, where)
        weights[name] = network.state_dict()
        taken.append(f"{path.name} ({name})")
        for field, value in theirs.model_dump(exclude_unset=True).items():
            if getattr(config, field) != value:
                others.setdefault((field, value), []).append(name)
    if others:
        raise UserError(
            f"cyclegan.start: {config.start} does not fit the configuration:"
            + "".join(
                f"\n  cyclegan.{field} is {_yaml(getattr(config, field))}, the file has "
                f"{_yaml(value)} ({', '.join(names)}): set cyclegan.{field}: {_yaml(value)}"
                for (field, value), names in others.items()
            )
        )
    if say:
        names = ONE_WAY_NAMES if config.one_way else REFERENCE_NAMES
        anew = [name for name in names if name not in weights]
        rest = f"; anew: {', '.join(anew)}" if anew else ""
        print(
            f"CycleGAN starts from {config.start}: {', '.join(taken)}{rest}",
            file=sys.stderr,
            flush=True,
        )
    return weights


def _start_contents(start: Path, *, one_way: bool) -> dict[str, tuple[Path, object]]:
    """Network -> the file it is in, and what is to be its weights."""
    if start.is_dir():
        files = reference_files(start, one_way=one_way)
        return {name: (path, read_weights(path)) for name, path in files.items()}
    if not start.is_file():
        raise UserError(
            f"cyclegan.start: no file or folder {start}. Correct the path, or leave it out."
        )
    content = read_weights(start)
    if (networks := _networks(content)) is None:
        raise UserError(
            f"cyclegan.start: {start} is no training checkpoint of ours: a dictionary with "
            f"'networks' was expected, found {listed(content, 3)}. Of the reference "
            "implementation, give the folder that its files are in."
        )
    if networks.keys().isdisjoint(GENERATORS):
        raise UserError(f"cyclegan.start: {start} holds no generator, only: {listed(networks, 3)}.")
    names = ONE_WAY_NAMES if one_way else REFERENCE_NAMES
    return {name: (start, networks[name]) for name in names if name in networks}


def export_generator(generator: Generator, path: Path) -> None:
    """Write a generator as the reference implementation does, whole or not at all.

    Raises:
        UserError: the reference has no such network.
    """
    lacks = ""
    levels = [module for module in generator.modules() if isinstance(module, UnetLevel)]
    if levels and not any(level.joins for level in levels):
        lacks = "U-Net without skip connections"
    for module in generator.modules():
        if isinstance(module, ResidualGenerator):
            lacks = "residual: true"
        elif isinstance(module, nn.Upsample):
            lacks = "upsampling: resize"
        elif isinstance(module, AffineInstanceNorm):
            lacks = "instance norms with weights"
    if lacks:
        raise UserError(
            f"{path} is not written: the reference implementation has no {lacks}. Export to ONNX "
            "(.onnx), which holds any generator."
        )
    weights = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in generator.state_dict().items()
    }
    save_checkpoint(path, weights)


def export_reference(checkpoint: Path, folder: Path) -> list[Path]:
    """Write the networks of a training checkpoint under the reference's names; their paths.

    `latest_net_G_A.pth` translates source to target, `latest_net_D_A.pth` is trained against it. Of
    paired or contrastive training these are `latest_net_G.pth` and `latest_net_D.pth`, as pix2pix
    and CUT have them.
    Discriminators at several scales, or of more than pixels, have no counterpart and are left out.

    Raises:
        UserError: `checkpoint` is not ours, or the reference has no such generator.
    """
    content = read_weights(checkpoint)
    if (networks := _networks(content)) is None:
        raise UserError(
            f"{checkpoint} is not a training checkpoint of ours: a dictionary with 'networks' was "
            f"expected, found {listed(content, 3)}. Give the `checkpoints/last.pt` of a run."
        )
    paths = []
    names = REFERENCE_NAMES if "target_to_source" in networks else ONE_WAY_NAMES
    for name, short in names.items():
        if name not in networks:
            continue
        weights = plain_state(networks[name], checkpoint)
        if any(key.startswith("scales.") for key in weights) or looks_at_more(weights):
            continue
        path = folder / f"latest_net_{short}.pth"
        if name in GENERATORS:
            export_generator(_generator(weights, checkpoint), path)
        else:
            save_checkpoint(path, {key: value.contiguous() for key, value in weights.items()})
        paths.append(path)
    return paths


def export(
    source: Path,
    out: Path,
    direction: Direction = "source_to_target",
    batch_norm: BatchNorm = "running",
) -> str:
    """Write a generator as `out` says: `.pth`, `.onnx`, or a folder for all networks of `source`.

    Args:
        source: a file that `load_generator` reads; for a folder, a training checkpoint of ours.
        batch_norm: as `load_generator`, for ONNX; weights are the same either way.

    Returns:
        What was written, for the user.

    Raises:
        UserError: `source` cannot be read or `out` not hold it.
    """
    sweep(out.parent if out.suffix else out)
    if out.suffix == ".onnx":
        difference = export_onnx(load_generator(source, direction, batch_norm), out)
        return f"{out}: differs from torch by {difference:.1g} at most, of [-1, 1]"
    if out.suffix == ".pth":
        export_generator(load_generator(source, direction), out)
        return f"{out}: weights as the reference implementation stores them"
    if out.suffix:
        raise UserError(f"{out}: give a file *.pth or *.onnx, or a folder without suffix.")
    return ", ".join(str(path) for path in export_reference(source, out))


def _networks(content: Mapping[str, object]) -> dict[str, object] | None:
    """The networks of a training checkpoint, averaged where that was on; None: it is none."""
    networks, averages = content.get("networks"), content.get("averages")
    if not isinstance(networks, dict):
        return None
    return {**current_names(networks), **(averages if isinstance(averages, dict) else {})}


def _generator(
    content: object, path: Path, batch_norm: BatchNorm = "running", *, say: bool = False
) -> Generator:
    """The generator of a dictionary of weights; `path` is for messages."""
    state = plain_state(content, path)
    # On the meta device nothing is allocated and no random number is drawn.
    with torch.device("meta"):
        network = build_generator(generator_settings(state, path))
        kind = fit_norms(network, state, path, batch_norm)
    fill(network, state, path)
    if say and kind == "batch":
        print(f"{path} has batch norms. {_NORMALISED[batch_norm]}", file=sys.stderr, flush=True)
    return network.eval()


def _yaml(value: object) -> str:
    """A setting as it is written in a configuration."""
    return str(value).lower()
