"""The reference implementation's names of networks, and which files of its folders are taken.

Needs no torch: what a stage is made from is told without it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pipeline.errors import UserError
from pipeline.text import listed

T = TypeVar("T")

REFERENCE_NAMES = {
    "source_to_target": "G_A",
    "target_to_source": "G_B",
    # The reference names a discriminator after the generator that it is trained against.
    "target_discriminator": "D_A",
    "source_discriminator": "D_B",
}
"""Network of a training checkpoint -> its name in the reference implementation."""
ONE_WAY_NAMES = {"source_to_target": "G", "discriminator": "D"}
"""The same for paired training, which is pix2pix there, and for contrastive training, CUT's."""
_EARLIER_NAMES = {
    "target_critic": "target_discriminator",
    "source_critic": "source_discriminator",
    "critic": "discriminator",
    "critics": "discriminators",
}
"""Name in earlier checkpoints -> name."""
GENERATORS = ("source_to_target", "target_to_source")


def current_names(by_name: Mapping[str, T]) -> dict[str, T]:
    """Networks or optimisers of a checkpoint by their names today, whatever its age."""
    return {_EARLIER_NAMES.get(name, name): value for name, value in by_name.items()}


def reference_files(folder: Path, *, one_way: bool) -> dict[str, Path]:
    """Network -> its file, of those that a training can start from in a folder of the reference.

    All are of one epoch: `latest`, else the highest that has a generator. A `G` alone, as
    generators are published, is taken for `G_A`; training `one_way` takes a `G_A` for its `G`.

    Raises:
        UserError: no generator is there.
    """
    names, others = REFERENCE_NAMES, ONE_WAY_NAMES
    if one_way:
        names, others = others, names
    shorts = [("source_to_target", others["source_to_target"]), *names.items()]
    epochs = {
        match[1]
        for path in folder.iterdir()
        if (match := re.fullmatch(r"(latest|[0-9]+)_net_G(_A|_B)?\.pth", path.name))
    }
    for epoch in sorted(epochs, key=lambda e: float("inf" if e == "latest" else e), reverse=True):
        files = {
            name: path
            for name, short in shorts
            if (path := folder / f"{epoch}_net_{short}.pth").is_file()
        }
        if not files.keys().isdisjoint(GENERATORS):
            return files
    found = sorted(path.name for path in folder.iterdir())
    raise UserError(
        f"cyclegan.start: {folder} holds no generator for this training. Expected "
        f"latest_net_{names['source_to_target']}.pth or 20_net_{names['source_to_target']}.pth "
        "beside the others of the reference implementation; found "
        f"{listed(found, 3) or 'nothing'}. Give the folder that holds them, or a "
        "`checkpoints/last.pt` of ours."
    )
