"""The translators by name: what `method` of a translation may be."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pipeline.data.spec import DatasetSpec


@dataclass(frozen=True)
class TranslationInputs:
    """What a translator works on."""

    source: DatasetSpec
    """The frames to translate."""
    target: DatasetSpec
    """Frames of the target; only those with `reads_target` look at them."""
    generator: Path | None = None
    """The weights to translate with, where it `trains` or is given some."""


@dataclass(frozen=True)
class Translator:
    """A way to make source frames look like the target's."""

    title: str
    """What tables and reports call it."""
    settings: frozenset[str]
    """The fields of `TranslationConfig` that it uses, besides `method` and `source`."""
    function: str
    """`module:function`, imported when frames are translated. It is called with the translation's
    settings, a `TranslationInputs`, the folder to fill, and the settings of `compute`."""
    version: int = 1
    """Raise it when the same settings give other pictures."""
    trains: bool = False
    """Whether networks of `cyclegan` are trained for it, unless `weights` are given."""
    reads_target: bool = True
    """Whether it looks at target frames while it translates."""

    def load(self) -> Callable[..., None]:
        """The function that translates."""
        module, _, name = self.function.partition(":")
        function: Callable[..., None] = getattr(import_module(module), name)
        return function


TRANSLATORS = {
    "cyclegan": Translator(
        "CycleGAN",
        frozenset({"cyclegan", "checkpoint", "weights", "batch_norm", "shifts"}),
        "cyclegan.translate:translate",
        version=2,
        trains=True,
        reads_target=False,
    ),
    "histogram_matching": Translator(
        "histogram matching", frozenset({"seed"}), "cyclegan.statistics:translate_by_histograms"
    ),
    "fda": Translator(
        "Fourier domain adaptation",
        frozenset({"seed", "fda_beta"}),
        "cyclegan.statistics:translate_by_amplitudes",
    ),
}
"""Name -> translator. Configuration, plan, identity, reports and estimates read this table."""
