"""The settings of a run, as frozen values."""

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.translators import TRANSLATORS, Translator
from pipeline.data.spec import DatasetSpec
from pipeline.errors import UserError
from pipeline.schema import Located, Schema, Side, near, parse

Size = tuple[Side, Side]
"""Width and height in pixels."""
FilePath = Annotated[Path, Located()]
FILES = (".yaml", ".yml", ".pth", ".pt")
NameOrFile = Annotated[str, Located(FILES)]
"""A name, or the path of a file, which ends in one of `FILES`."""


class ComputeConfig(Schema):
    """Where and how precisely to compute; no part of a stage's identity."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU when there is one."""
    devices: int = Field(1, ge=1, le=1024)
    """GPUs of this machine (on a CPU: processes) that train one network together, each on an equal
    part of every batch: each `batch_size` is that of all together and a multiple of this. No effect
    on results but for rounding and what is drawn in a step: dropout, and self-training's mixtures.
    Translation and evaluation use one. Under torchrun its processes are the
    devices, and this number is not read."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """`auto`: bf16-mixed on a GPU, 32-true on a CPU. Losses are always fp32."""
    compile: bool = False
    """Let torch.compile fuse networks for training: a minute or more before the first step, then
    faster ones that round differently. Needs a C++ compiler."""
    workers: int = Field(0, ge=0, le=1024)
    """Processes that read frames ahead, for each data set that is read; 0 reads in the training
    process. No effect on results. With several `devices`, for each of them."""
    cache: FilePath | None = None
    """Folder in which frames and labels are kept decoded at their working size, so that training
    does not wait for large PNGs; 3 bytes a pixel and 1 for its label. No effect on results."""


class SemanticsConfig(Schema):
    """Whether translations keep what they show, as a frozen segmentation network sees it: that of
    an arm that trains on `source`, with the first seed. No label of the target is read."""

    arm: str | None = None
    """The arm of the network; none: the first that trains on `source` alone."""

    consistency: float = Field(0.0, ge=0)
    """Weight of the network's cross-entropy on translated source frames against their labels
    (CyCADA: Hoffman et al., ICML 2018, with weight 1). 0 only watches."""
    target_consistency: float = Field(0.0, ge=0)
    """The same for translated target frames, against its pseudo-labels of the frames themselves:
    only as true as the network is on the target."""
    probe_frames: int = Field(50, ge=2)
    """Frames of each domain on which every checkpoint is scored, evenly spaced."""


class CycleGANConfig(Schema):
    """CycleGAN (Zhu et al., ICCV 2017); defaults are those of the reference implementation.

    What differs: frames keep their aspect and are cropped at the data set's `width`, where the
    reference resizes to 286x286 first.
    """

    seed: int = Field(0, ge=0)
    """Seed of weights, crops and image pool."""
    start: FilePath | None = None
    """Start from these networks: a checkpoint of another run, or a folder of the reference
    implementation with `latest_net_G_A.pth` (source -> target) and what else it has of `G_B`, `D_A`
    and `D_B`, of the highest epoch if none is `latest`; for `paired`, `G` and `D`. What is missing
    starts anew, as do optimisers and learning rate. None: random weights."""
    paired: bool = False
    """For a simulator that re-renders real scenes: frames of equal name in `source` and `target`
    are pairs of one size, and one translator learns from them (pix2pix: Isola et al., CVPR 2017).
    The recipe of that paper is `generator: unet`, `dropout: true`, `adversarial_loss: vanilla`."""
    generator: Literal["resnet", "unet", "encoder_decoder"] = "resnet"
    """`resnet` works at a quarter of the size; `unet` sees the whole crop and hands detail on by
    skip connections; `encoder_decoder` is the U-Net without them, free to change shapes
    (DiscoGAN: Kim et al., ICML 2017)."""
    blocks: int = Field(9, ge=1, le=32)
    """Residual blocks of a `resnet` generator."""
    downs: int = Field(8, ge=4, le=10)
    """Halvings of the other generators, 8 and 7 in unet_256 and unet_128, 4 or 5 in DiscoGAN; sides
    of the crop are multiples of 2 ** downs."""
    generator_width: int = Field(64, ge=4)
    """Channels after the generator's first convolution."""
    dropout: bool = False
    """Drop half of the activations in the middle of the generators during training."""
    upsampling: Literal["transposed", "resize"] = "transposed"
    """`resize` repeats pixels and convolves: no chequerboard in translated frames, at a little more
    work. `transposed` loads the reference's weights."""
    discriminator: Literal["patch", "pixel"] = "patch"
    """`patch` looks at overlapping patches (PatchGAN); `pixel` at single pixels' colours."""
    discriminator_width: int = Field(64, ge=4)
    """Channels after the discriminator's first convolution."""
    discriminator_layers: int = Field(3, ge=1, le=5)
    """Strided layers of the PatchGAN; 3 see 70x70 pixels."""
    discriminator_scales: int = Field(1, ge=1, le=4)
    """Discriminators of each domain, each on frames of half the size of the one before
    (pix2pixHD); more look at layout besides texture. Their losses are averaged."""
    adversarial_loss: Literal["least_squares", "vanilla"] = "least_squares"
    """`vanilla` is the cross-entropy of Goodfellow et al., 2014."""
    crop: Size = (256, 256)
    """Width and height of the random crops, multiples of 4; of 2 ** downs without `resnet`."""
    batch_size: int = Field(1, ge=1)
    """Crops of each domain a step, over all `compute.devices`."""
    learning_rate: float = Field(2e-4, gt=0)
    """Adam's, with betas (0.5, 0.999)."""
    cycle_weight: float = Field(10.0, ge=0)
    """Weight of the L1 cycle loss (lambda)."""
    identity_weight: float = Field(0.5, ge=0)
    """Weight of the identity loss, as a multiple of `cycle_weight`; 0 skips it."""
    paired_weight: float = Field(100.0, ge=0)
    """Weight of the L1 loss between a translation and its pair (`paired`)."""
    pool_size: int = Field(50, ge=0)
    """Translated images of each domain kept to train the discriminators; 0 uses the newest, as
    paired training always does."""
    generator_average: float = Field(0.0, ge=0, lt=1)
    """Translate with a moving average of the generators' weights over the steps; this is the part
    of the old average that each step keeps, e.g. 0.999. 0 uses the weights as they are."""
    semantics: SemanticsConfig | None = None
    """Have a segmentation network watch over the translations; none: nobody does. It makes the
    training of that network come first."""
    epochs: int = Field(100, ge=1)
    """Epochs at the full learning rate."""
    decay_epochs: int = Field(100, ge=0)
    """Further epochs in which the learning rate falls linearly towards 0."""
    steps_per_epoch: int | None = Field(None, ge=1)
    """Steps an epoch; none: as many as the larger set needs to be seen once."""
    log_every: int = Field(20, ge=1)
    """Steps between two entries of the log."""
    sample_every: int = Field(1000, ge=1)
    """Steps between two grids of sample pictures."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between two checkpoints: the most that a kill can lose."""

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.paired and self.semantics:
            raise ValueError(
                "semantics is for unpaired training; pairs say themselves what is shown"
            )
        multiple = 4 if self.generator == "resnet" else 2**self.downs
        if any(side % multiple for side in self.crop):
            hint = "" if self.generator == "resnet" else ", or lower downs"
            raise ValueError(
                f"crop {list(self.crop)} must be multiples of {multiple} for the {self.generator} "
                f"generator; take {[max(1, round(s / multiple)) * multiple for s in self.crop]}"
                f"{hint}"
            )
        if (self.generator, self.upsampling) == ("encoder_decoder", "resize") and (
            max(self.crop) == multiple
        ):
            raise ValueError(
                f"an encoder_decoder of {self.downs} downs makes a crop of {list(self.crop)} a "
                "single pixel, and resizing that gives pictures without content; lower downs"
            )
        return self


class TranslationConfig(Schema):
    """A translation of source frames, by one of the `TRANSLATORS`."""

    method: str = "cyclegan"
    """`cyclegan` trains networks, or takes those of `weights`. `histogram_matching` gives each
    colour channel the histogram of a target frame; `fda` takes on a target frame's lowest
    frequencies (Fourier domain adaptation: Yang and Soatto, CVPR 2020). These two train nothing:
    they take seconds for a hundred frames and know no shapes. `class_alignment` gives each class
    the colours that it has in the target, where pseudo-labels find it (Ma et al., CVPR 2021)."""
    source: str = "source"
    """The frames to translate: `source`, or the name of another translation."""
    cyclegan: dict[str, object] = Field(default_factory=dict)
    """Settings that win over those of `cyclegan` for this translation alone (`cyclegan`)."""
    checkpoint: Literal["last", "best"] = "last"
    """`best` is the one that the network of `cyclegan.semantics` scores best (`cyclegan`)."""
    weights: FilePath | None = None
    """Train no CycleGAN and translate with this generator: a `.pth` file of the reference
    implementation, or a checkpoint of another run (`cyclegan`)."""
    batch_norm: Literal["running", "batch"] = "running"
    """What batch norms of a generator in `weights` normalise by: the `running` statistics of its
    training, or those of each frame by itself, the `batch` of one that the reference's test script
    has unless told `--eval`. The pictures may differ much. `running` treats a colour alike in all
    frames, and is how networks with batch norms are usually evaluated (`cyclegan`)."""
    shifts: Literal[1, 4, 8, 16] = 1
    """Translations to average, each of the frame shifted by up to 3 pixels (cycle spinning: Coifman
    and Donoho, 1995). Transposed convolutions leave a grid of period 4 in translated frames, other
    for each class, which a segmentation network learns instead of the scene; it cancels in the
    mean. 4 remove most of it, 16 all of it, at as many times the work (`cyclegan`)."""
    seed: int = Field(0, ge=0)
    """Seed of the choice of a target frame for each source frame (`histogram_matching`, `fda`)."""
    pseudo_labels: str | None = None
    """The arm whose network, of the first seed, labels the target's frames (`class_alignment`)."""
    keep: float = Field(0.5, gt=0, le=1)
    """The part of each class's pseudo-labelled pixels that counts, the most confident first
    (class-balanced thresholds: Zou et al., ECCV 2018) (`class_alignment`)."""
    softness: float = Field(1.5, ge=0, le=64)
    """Standard deviation in pixels of the blend between regions of two classes; 0 for hard borders
    (`class_alignment`)."""
    fda_beta: float = Field(0.01, gt=0, lt=0.5)
    """Highest frequency that `fda` exchanges, as a part of the shorter side; the authors take .01,
    .05 and .09. More brings more of the target's look, and ghosts of its shapes."""

    @property
    def translator(self) -> Translator:
        """The entry of the table that `method` names."""
        return TRANSLATORS[self.method]

    @property
    def trains(self) -> bool:
        """Whether a CycleGAN is trained for it."""
        return self.translator.trains and self.weights is None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.method not in TRANSLATORS:
            raise ValueError(
                f"no method {self.method!r}.{near(self.method, TRANSLATORS)} "
                f"Known: {', '.join(TRANSLATORS)}"
            )
        for name in ("cyclegan", "checkpoint", "weights", "pseudo_labels"):
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if name not in self.translator.settings and getattr(self, name) != default:
                users = [key for key, entry in TRANSLATORS.items() if name in entry.settings]
                raise ValueError(
                    f"method {self.method!r} does not use {name}; leave {name} out, or set method "
                    f"to {' or '.join(map(repr, users))}"
                )
        if self.translator.reads_labels and self.pseudo_labels is None:
            raise ValueError(
                f"method {self.method!r} needs pseudo_labels: the arm whose network labels the "
                "target's frames, e.g. source_only"
            )
        if self.cyclegan and not self.trains:
            raise ValueError("with weights no CycleGAN is trained; leave cyclegan out, or weights")
        return self


class AugmentationConfig(Schema):
    """What every arm's training frames go through after decoding."""

    scale: tuple[float, float] = (0.7, 1.5)
    """Range of the random scale before the crop."""
    flip: bool = True
    """Mirror left and right in half of the draws."""
    color: float = Field(0.4, ge=0, le=1)
    """Strength of the colour jitter in brightness, contrast and saturation; 0 switches it off."""
    hue: float = Field(0.05, ge=0, le=0.5)
    """Strength of the hue jitter, as a part of the colour circle."""
    blur: float = Field(0.3, ge=0, le=1)
    """Share of the draws that are blurred."""
    noise: float = Field(0.2, ge=0, le=1)
    """Share of the draws that get sensor-like noise."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0.1 <= self.scale[0] <= self.scale[1] <= 4:
            raise ValueError(f"scale {list(self.scale)} must be [low, high] within 0.1..4")
        return self


class RareClassConfig(Schema):
    """Rare class sampling (DAFormer: Hoyer et al., CVPR 2022, eq. 10 and 11).

    A class is drawn with probability ~ exp((1 - frequency) / temperature), then a frame that shows
    it, then a crop in which it has pixels enough.
    """

    temperature: float = Field(0.01, gt=0)
    """Lower prefers rare classes more; the published value is for 19 classes of full frames."""
    crop_share: float = Field(0.01, ge=0, le=1)
    """Share of the crop that the class is to have; the best of ten crops is taken if none has. A
    class that fills no frame so far is left to chance."""


class SelfTrainingConfig(Schema):
    """Learning from the target's frames without their labels.

    A mean teacher labels them (Tarvainen and Valpola, NeurIPS 2017); half of the classes of a
    labelled frame are pasted over each (ClassMix: Olsson et al., WACV 2021; DACS: Tranheden et al.,
    WACV 2021); the pasted frames are trained on, weighted by the share of pixels of which the
    teacher is sure.
    """

    weight: float = Field(1.0, ge=0)
    """Weight of the loss on mixed frames."""
    confidence: float = Field(0.968, ge=0, le=1)
    """A pixel counts as sure when the teacher gives its class more than this."""
    teacher_average: float = Field(0.999, ge=0, lt=1)
    """The part of the old average of weights that each step keeps."""
    class_mix: bool = True
    """Paste classes of labelled frames; without it target frames are trained on as they are."""
    color: float = Field(0.2, ge=0, le=1)
    """Strength of the colour jitter on mixed frames in brightness, contrast, saturation and, a
    quarter of it, hue; 0 switches it off."""
    blur: float = Field(0.5, ge=0, le=1)
    """Share of the mixed frames that are blurred."""
    ignore_top: float = Field(0.0, ge=0, lt=1)
    """Share of the target frames' height, from the top, in which the teacher is not believed."""
    ignore_bottom: float = Field(0.0, ge=0, lt=1)
    """The same from the bottom, where a camera sees its own car."""
    masked_weight: float = Field(0.0, ge=0)
    """Weight of masked consistency (MIC: Hoyer et al., CVPR 2023): the teacher's labels are also to
    be found in target frames of which most is masked out. The published weight is 1."""
    mask_block: int = Field(64, ge=1)
    """Side of the masked squares in pixels."""
    mask_share: float = Field(0.7, ge=0, lt=1)
    """Share of the squares that are masked."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.ignore_top + self.ignore_bottom >= 1:
            raise ValueError(
                f"ignore_top {self.ignore_top} and ignore_bottom {self.ignore_bottom} leave "
                "nothing of a frame; their sum must be below 1"
            )
        return self


class SegmentationConfig(Schema):
    """Training of the segmentation network: the recipe of every arm that does not say otherwise."""

    architecture: str = "deeplabv3plus"
    """Any architecture of segmentation-models-pytorch, by name."""
    encoder: str = "resnet50"
    """Any encoder of segmentation-models-pytorch, by name."""
    encoder_weights: NameOrFile = "imagenet"
    """`imagenet` (from the local cache or the hub), `none`, or the path of a state_dict."""
    options: dict[str, object] = Field(default_factory=dict)
    """Further arguments of the architecture, e.g. `decoder_channels`."""
    crop: Size = (512, 512)
    """Width and height of the random training crops."""
    batch_size: int = Field(8, ge=1)
    """Frames a step."""
    steps: int = Field(40_000, ge=1)
    """Training steps; the last checkpoint is the result."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW's, at its highest."""
    encoder_learning_rate_factor: float = Field(1.0, gt=0)
    """The encoder learns at this multiple of `learning_rate`."""
    weight_decay: float = Field(1e-2, ge=0)
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises linearly from 0."""
    poly_power: float = Field(0.9, ge=0)
    """The learning rate falls as (1 - step / steps) ** poly_power: 1 is linear, 0 not at all."""
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict
    )
    """Weight of a class's pixels in the cross-entropy, by its name; 1 where none is given.
    `balanced`: inverse to the class's share of the labelled pixels that the arm trains on."""
    hard_pixels: float = Field(1.0, gt=0, le=1)
    """Learn from this share of each frame's labelled pixels, those of the greatest cross-entropy
    (online hard example mining)."""
    dice_weight: float = Field(0.0, ge=0)
    """Weight of a Dice loss that is added to the cross-entropy. This and the two before are about
    labelled frames; what a self-training teacher says is learned by plain cross-entropy."""
    rare_class_sampling: RareClassConfig | None = None
    """Show rare classes more often; none: every frame equally often."""
    augmentation: AugmentationConfig = AugmentationConfig()
    log_every: int = Field(20, ge=1)
    """Steps between two entries of the log."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between two checkpoints: the most that a kill can lose."""


TRANSLATED = "translated"
"""The name of the translation that is written as `translation`."""


class ArmConfig(Schema):
    """What one network is trained on, and how, where that differs from `segmentation`."""

    train: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Labelled frames -> their weight in the mixture, in any unit: `source`, `target` (with the
    target's own labels), `translated`, or one of `translations`. A name alone is all of them."""
    start: NameOrFile | None = None
    """Start from the network of this arm, listed before this one, of the same seed; or from a
    checkpoint, the path of a `.pt` file. None: from `encoder_weights`."""
    self_training: SelfTrainingConfig | None = None
    """Learn from the target's frames, too, without their labels."""
    segmentation: dict[str, object] = Field(default_factory=dict)
    """Settings that win over those of `segmentation` for this arm alone."""
    title: str | None = None
    """What tables call it; none: its name."""
    base: str | None = None
    """The arm that this one adds a step to: the report compares the two in its table of steps."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        """`translated` is `{train: translated}` is `{train: {translated: 1}}`."""
        if isinstance(value, str):
            value = {"train": value}
        if isinstance(value, dict) and isinstance(value.get("train"), str):
            value = {**value, "train": {value["train"]: 1}}
        return value

    @property
    def only(self) -> str | None:
        """The kind of frames that it is trained on, where there is one kind and nothing else."""
        if self.self_training or self.start or len(self.train) > 1:
            return None
        return next(iter(self.train))


class EvaluationConfig(Schema):
    """Scoring on the labelled frames of `test`."""

    pictures: int = Field(6, ge=0)
    """Frames shown in the report with all predictions, evenly spaced; those with the worst scores
    are shown besides. 0 keeps no predictions as pictures."""
    classes: tuple[str, ...] | None = Field(None, min_length=1)
    """The classes of the label space that means count; none: those that it says itself."""
    window: Size | None = None
    """Width and height of a window that slides over the frame, in pixels of the working size, where
    the network is to see frames as large as its training crops; none: the whole frame at once.
    Logits are averaged where windows overlap."""
    overlap: float = Field(0.33, ge=0, lt=1)
    """The least share of a window's side that the next window covers, too."""
    flip: bool = False
    """Predict the mirrored frame as well; twice the work."""
    scales: tuple[Annotated[float, Field(ge=0.25, le=4)], ...] = Field((1.0,), min_length=1)
    """Predict the frame at these multiples of its working size. With several, or `flip`, the class
    probabilities of all views are averaged."""
    save: Literal["none", "label_ids", "train_ids"] = "none"
    """Keep every prediction below `predictions_ids/` as a PNG: of Cityscapes label ids, as its
    server and scripts take them, or of class indices (for `cityscapes19` its trainIds)."""
    overlays: bool = False
    """Keep every frame with its prediction drawn over it, below `overlays/`."""


BEFORE, AFTER, IDEAL = "source_only", "adapted", "oracle"
"""The usual arms; the gap is that between the first and the last."""

WITHOUT_TARGET_LABELS = {BEFORE: "source", AFTER: TRANSLATED}
"""What the usual arms learn from, but for the oracle."""


Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class Config(Schema):
    """A whole run: three data sets, a label space, and how each stage works."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is `runs/NAME`."""
    label_space: NameOrFile = "cityscapes19"
    """A built-in label space, or the path of a YAML file."""
    source: DatasetSpec
    """Labelled synthetic frames."""
    target: DatasetSpec
    """Real frames to adapt to. Their labels are read for arms that train on `target`, and
    for nothing else."""
    test: DatasetSpec
    """Labelled real frames that every arm is scored on; no stage trains on them."""
    cyclegan: CycleGANConfig = CycleGANConfig()
    translation: TranslationConfig = TranslationConfig()
    """The translation that arms know as `translated`."""
    translations: dict[Name, TranslationConfig] = Field(default_factory=dict)
    """Further translations by name: of the source, or of one another. Those are made that an arm
    trains on, and those that they start from."""
    segmentation: SegmentationConfig = SegmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    arms: dict[Name, ArmConfig] = Field(
        default_factory=lambda: {
            arm: ArmConfig(train={frames: 1})
            for arm, frames in (*WITHOUT_TARGET_LABELS.items(), (IDEAL, "target"))
        },
        min_length=1,
    )
    """Arm -> what its network is trained on. `oracle` learns from the target's labels: where there
    are none, write `arms: {source_only: source, adapted: translated}`."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    """Seeds of the segmentation training; each arm is trained once with each."""
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} hold one twice")
        return self

    @model_validator(mode="after")
    def _translations_work(self) -> Self:
        names = ["source", TRANSLATED, *self.translations]
        for taken in ("source", "target", TRANSLATED):
            if taken in self.translations:
                raise ValueError(f"translations.{taken}: this name has a meaning; take another one")
        for name, arm in self.arms.items():
            for frames in arm.train:
                if frames not in (*names, "target"):
                    raise ValueError(
                        f"arms.{name}.train: no frames {frames!r}.{near(frames, names)} Known: "
                        f"target, {', '.join(names)}"
                    )
        for name, translation in self.all_translations.items():
            if translation.source not in names:
                raise ValueError(
                    f"{place(name)}.source: no frames {translation.source!r}. Known: "
                    f"{', '.join(names)}. {self._graph}"
                )
        try:
            list(self.used_translations)
        except CycleError as error:
            raise ValueError(
                f"translations start from one another in a circle: {' <- '.join(error.args[1])}. "
                f"{self._graph}"
            ) from error
        for name, translation in self.used_translations.items():
            try:
                recipe = self.cyclegan_recipe(name)
            except UserError as error:
                raise ValueError(f"{place(name)}.cyclegan: {error}") from error
            if translation.checkpoint == "best" and not recipe.semantics:
                raise ValueError(
                    f"{place(name)}.checkpoint is 'best', and no segmentation network scores the "
                    "checkpoints; set cyclegan.semantics, or take 'last'"
                )
            if translation.trains and recipe.semantics:
                self.semantics_arm(recipe.semantics)
            self._check_pseudo_labels(name, translation.pseudo_labels)
            if translation.trains and recipe.paired and translation.source != "source":
                raise ValueError(
                    f"{place(name)}: cyclegan.paired takes frames of equal name of `source` and "
                    f"`target`, and its source is {translation.source!r}; take source"
                )
        return self

    def _check_pseudo_labels(self, translation: str, arm: str | None) -> None:
        if arm is None:
            return
        able = [name for name in self.arms if not self._sees_target_labels(name)]
        if arm not in able:
            raise ValueError(
                f"{place(translation)}.pseudo_labels is {arm!r}; it must be an arm that learns "
                f"from no label of the target ({', '.join(able) or 'there is none'})"
            )

    def _sees_target_labels(self, arm: str) -> bool:
        own = self.arms[arm]
        start = own.start if own.start in self.arms else None
        return "target" in own.train or bool(start and self._sees_target_labels(start))

    @property
    def _graph(self) -> str:
        """The translations as a text."""
        return "Translations: " + "; ".join(
            f"{name} from {translation.source}"
            + (f" by pseudo-labels of {arm}" if (arm := translation.pseudo_labels) else "")
            for name, translation in self.all_translations.items()
        )

    @model_validator(mode="after")
    def _arms_work(self) -> Self:
        before: list[str] = []
        for name, arm in self.arms.items():
            if arm.start and not _is_file(arm.start) and arm.start not in before:
                raise ValueError(
                    f"arms.{name}.start is {arm.start!r}; it must be an arm that is listed before "
                    f"it ({', '.join(before) or 'there is none'}) or the path of a .pt file"
                )
            try:
                recipe = self.recipe(name)
            except UserError as error:
                raise ValueError(f"arms.{name}.segmentation: {error}") from error
            start = self.arms.get(arm.start or "")
            if start and _network(recipe) != _network(self.recipe(str(arm.start))):
                raise ValueError(
                    f"arms.{name} starts from {arm.start}, whose network is another one; give both "
                    "the same architecture, encoder and options"
                )
            if arm.base is not None and arm.base not in self.arms:
                raise ValueError(
                    f"arms.{name}.base is {arm.base!r}; it must be one of {', '.join(self.arms)}"
                )
            before.append(name)
        return self

    @model_validator(mode="after")
    def _shards_are_equal(self) -> Self:
        self.check_batches(self.compute.devices, "compute.devices")
        return self

    def check_batches(self, ranks: int, number: str) -> None:
        """Raise `ValueError` unless `ranks` processes can share every training batch equally.

        Args:
            number: what the user set to get so many.
        """
        batches = {
            f"{place(name)}.cyclegan" if own.cyclegan else "cyclegan": self.cyclegan_recipe(
                name
            ).batch_size
            for name, own in self.used_translations.items()
            if own.trains
        }
        for name, arm in self.arms.items():
            own_batch = "batch_size" in arm.segmentation
            where = f"arms.{name}.segmentation" if own_batch else "segmentation"
            batches[where] = self.recipe(name).batch_size
        for where, batch in batches.items():
            if batch % ranks:
                fitting = [n for n in range(1, batch + 1) if batch % n == 0]
                raise ValueError(
                    f"{where}.batch_size {batch} is that of all devices together and must be a "
                    f"multiple of {number}, {ranks}; make that one of {fitting}, or, in a new "
                    f"run, {where}.batch_size {batch + -batch % ranks}"
                )

    def recipe(self, arm: str) -> SegmentationConfig:
        """How the network of an arm is trained: `segmentation` with the arm's own settings."""
        own = self.arms[arm].segmentation
        if not own:
            return self.segmentation
        fields = overlay(self.segmentation.model_dump(), own)
        return parse(SegmentationConfig, fields, "settings")

    def cyclegan_recipe(self, translation: str) -> CycleGANConfig:
        """How networks are trained for a translation: `cyclegan` with the translation's own."""
        own = self.all_translations[translation].cyclegan
        if not own:
            return self.cyclegan
        return parse(CycleGANConfig, overlay(self.cyclegan.model_dump(), own), "settings")

    @property
    def all_translations(self) -> dict[str, TranslationConfig]:
        """Name -> every translation that is written down."""
        return {TRANSLATED: self.translation, **self.translations}

    @property
    def used_translations(self) -> dict[str, TranslationConfig]:
        """Name -> the translations that arms need, each after the one that it starts from.

        Raises:
            graphlib.CycleError: they start from one another in a circle.
        """
        known = self.all_translations
        graph: dict[str, list[str]] = {}
        todo = [frames for arm in self.arms.values() for frames in arm.train]
        while todo:
            name = todo.pop(0)
            if name in graph:
                continue
            if name in known:
                arm = known[name].pseudo_labels
                graph[name] = [known[name].source, *([f"arms.{arm}"] if arm else [])]
            elif name.startswith("arms.") and (own := self.arms.get(name[5:])):
                start = [f"arms.{own.start}"] if own.start in self.arms else []
                graph[name] = [*own.train, *start]
            todo.extend(graph.get(name, []))
        order = TopologicalSorter(graph).static_order()
        return {name: known[name] for name in order if name in known}

    @property
    def labels_read(self) -> frozenset[str]:
        """The frames that some arm is trained on with their labels."""
        return frozenset(frames for arm in self.arms.values() for frames in arm.train)

    @property
    def without_target_labels(self) -> str:
        """Which arms read the target's labels, and how to go on without."""
        reading = [name for name, arm in self.arms.items() if "target" in arm.train]
        arms = ", ".join(f"{name}: {frames}" for name, frames in WITHOUT_TARGET_LABELS.items())
        return (
            f"Of the target's labels learn: {', '.join(reading)}. If the target has none, leave "
            f"these arms out: `arms: {{{arms}}}`."
        )

    @property
    def translates(self) -> bool:
        """Whether an arm needs translated frames."""
        return bool(self.used_translations)

    def semantics_arm(self, semantics: SemanticsConfig) -> str:
        """The arm whose network, of the first seed, tells what translations show.

        Raises:
            ValueError: there is none.
        """
        able = [name for name, arm in self.arms.items() if arm.only == "source"]
        if semantics.arm is not None and semantics.arm not in able:
            raise ValueError(
                f"cyclegan.semantics.arm is {semantics.arm!r}; it must be an arm that trains on "
                f"`source` alone ({', '.join(able) or 'there is none'})"
            )
        if not able:
            raise ValueError(
                "cyclegan.semantics needs a network that was trained on the source; give `arms` "
                "one, e.g. source_only: source"
            )
        return semantics.arm or able[0]


def place(translation: str) -> str:
    """Where a configuration says a translation's settings."""
    return "translation" if translation == TRANSLATED else f"translations.{translation}"


def overlay(fields: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Settings of segmentation with those of `own` in their place; `options` are replaced whole."""
    merged = dict(fields)
    for key, value in own.items():
        below = merged.get(key)
        nested = isinstance(value, dict) and isinstance(below, dict) and key != "options"
        merged[key] = {**below, **value} if nested else value  # type: ignore[dict-item]
    return merged


def _is_file(start: str) -> bool:
    """Whether an arm's `start` means a file and not an arm."""
    return start.endswith(FILES)


def _network(recipe: SegmentationConfig) -> tuple[str, str, dict[str, object]]:
    return recipe.architecture, recipe.encoder, recipe.options
