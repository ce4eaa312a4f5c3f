"""The translators by name: what `method` of a translation may be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

from pipeline.data.labels import LabelSpace
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
    space: LabelSpace | None = None
    """The classes of labels, where it `reads_labels`."""
    pseudo_labels: Path | None = None
    """The folder of the target's `pseudo_label_paths`, where it `reads_labels`."""
    part: tuple[int, int] | None = None
    """(i, n): make the frames of part i of n alone, from 0. None: make what is left, and say what
    there is."""


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
    recipe: Mapping[str, object] = field(default_factory=dict)
    """Settings of `cyclegan` that the method stands for; a translation's own win over them."""
    reads_target: bool = True
    """Whether it looks at target frames while it translates."""
    reads_labels: bool = False
    """Whether it works class by class: by the source's labels, and the target's pseudo-labels of
    the arm `pseudo_labels`."""

    @property
    def learns_pairs(self) -> bool:
        """Whether it learns from the frames of another translation, its `teacher`."""
        return "teacher" in self.settings

    def load(self) -> Callable[..., None]:
        """The function that translates."""
        module, _, name = self.function.partition(":")
        function: Callable[..., None] = getattr(import_module(module), name)
        return function


STUDENT: dict[str, object] = {
    "paired": True,
    "start": None,
    "semantics": None,
    "generator": "unet",
    "downs": 4,
    "generator_width": 16,
    "upsampling": "resize",
    "residual": True,
    "discriminator": "patch",
    "feature_encoder": None,
    "label_discriminators": False,
    "matched_crops": 0,
    "discriminator_width": 16,
    "epochs": 10,
    "decay_epochs": 10,
}
"""How a student is trained. A small U-Net computes at half of the frame's size and below, and hands
detail on by skip connections; pairs say what each pixel is to be, so few epochs are enough. It
computes what is added to a frame, so that detail is there from the start."""

_trained = partial(
    Translator, function="cyclegan.translate:translate", trains=True, reads_target=False
)
_OF_TRAINED = frozenset({"cyclegan", "shifts", "precision", "pseudo_labels"})

TRANSLATORS = {
    "cyclegan": _trained(
        "CycleGAN", _OF_TRAINED | {"checkpoint", "weights", "batch_norm"}, version=2
    ),
    "student": _trained(
        "student", frozenset({"teacher", "cyclegan", "shifts", "precision"}), recipe=STUDENT
    ),
    "cut": _trained("CUT", _OF_TRAINED, recipe={"contrastive": {}}),
    "fastcut": _trained(
        "FastCUT",
        _OF_TRAINED,
        recipe={"contrastive": {"weight": 10.0, "identity": False, "flip_equivariance": True}},
    ),
    "histogram_matching": Translator(
        "histogram matching", frozenset({"seed"}), "cyclegan.statistics:translate_by_histograms"
    ),
    "class_alignment": Translator(
        "class-wise alignment",
        frozenset({"seed", "pseudo_labels", "keep", "softness"}),
        "cyclegan.alignment:translate_by_classes",
        reads_labels=True,
    ),
    "fda": Translator(
        "Fourier domain adaptation",
        frozenset({"seed", "fda_beta"}),
        "cyclegan.statistics:translate_by_amplitudes",
    ),
}
"""Name -> translator. Configuration, plan, identity, reports and estimates read this table."""
