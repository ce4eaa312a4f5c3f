"""Settings of translations: CycleGAN, and how frames are translated."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.fields import FilePath, NameOrFile, Size
from pipeline.config.translators import TRANSLATORS, Translator
from pipeline.schema import Schema, near


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


class ContrastiveConfig(Schema):
    """One-sided translation (CUT: Park et al., ECCV 2020): each patch of a translation is to be
    nearer to the patch that it was made from than to others of its frame, in features of the
    generator itself."""

    weight: float = Field(1.0, ge=0)
    """Weight of the contrastive loss; the higher, the more of the content is kept."""
    identity: bool = True
    """Half of the loss is about target frames, which the generator is to leave as they are."""
    flip_equivariance: bool = False
    """Compare with the features of the mirrored frame, mirrored back, in half of the steps."""
    temperature: float = Field(0.07, gt=0)
    """What similarities are divided by; the lower, the more the most similar patches count."""
    patches: int = Field(256, ge=2)
    """Patches of a frame that are told apart, in each layer."""


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
    contrastive: ContrastiveConfig | None = None
    """Train one translator by contrastive learning, without cycles and image pool. The methods
    `cut` and `fastcut` set it; `cyclegan` of such a translation changes it."""
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
    residual: bool = False
    """Generators compute what is added to a frame, and begin at the frame as it is: its detail need
    not pass through them (Kupyn et al., CVPR 2018)."""
    discriminator: Literal["patch", "pixel", "none"] = "patch"
    """`patch` looks at overlapping patches (PatchGAN); `pixel` at single pixels' colours; `none`
    leaves it to those of `feature_encoder`."""
    feature_encoder: str | None = None
    """Discriminators on frozen features of this encoder of segmentation-models-pytorch, by name,
    e.g. `tu-tf_efficientnet_lite0` (Projected GANs: Sauer et al., NeurIPS 2021; Richter et al.,
    TPAMI 2022). Beside `discriminator` both count alike."""
    feature_encoder_weights: NameOrFile = "imagenet"
    """`imagenet` (from the local cache or the hub), or the path of a state_dict."""
    label_discriminators: bool = False
    """Tell discriminators the classes of frames, so that they compare skies with skies (Richter et
    al., TPAMI 2022): the source's labels, and `pseudo_labels` of the translation for the target."""
    matched_crops: int = Field(0, ge=0, le=10_000)
    """Crops of the target of which one is taken, that whose layout is nearest to that of the
    source's crop (after Richter et al., TPAMI 2022), by the same labels; 0 takes any."""
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
    """Have a segmentation network watch over the translations; none: none does. It makes the
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

    @property
    def one_way(self) -> bool:
        """Whether one generator is trained against one discriminator."""
        return self.paired or self.contrastive is not None

    @property
    def plain_discriminators(self) -> bool:
        """Whether discriminators are those of the reference implementation."""
        return self.discriminator != "none" and not (
            self.feature_encoder or self.label_discriminators
        )

    @property
    def reads_labels(self) -> bool:
        """Whether it needs the source's labels and pseudo-labels of the target."""
        return self.label_discriminators or self.matched_crops > 0

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.paired and self.semantics:
            raise ValueError(
                "semantics is for unpaired training; pairs say themselves what is shown"
            )
        if self.discriminator == "none" and self.feature_encoder is None:
            raise ValueError(
                "discriminator is 'none', and no feature_encoder takes its place; name one, e.g. "
                "tu-tf_efficientnet_lite0, or take patch"
            )
        if self.feature_encoder and self.feature_encoder_weights == "none":
            raise ValueError(
                "feature_encoder_weights is 'none', but random features know nothing; give "
                "imagenet or the path of a state_dict"
            )
        for name in ("feature_encoder", "label_discriminators", "matched_crops"):
            if self.paired and getattr(self, name):
                raise ValueError(f"{name} is for unpaired training; leave it out, or paired")
        if self.contrastive:
            wrong = {
                "generator": (self.generator != "resnet", "resnet, whose layers are compared"),
                "residual": (self.residual, "false"),
                "paired": (self.paired, "false"),
                "semantics": (self.semantics is not None, "null; only cycles are watched over"),
            }
            for name, (set_otherwise, legal) in wrong.items():
                if set_otherwise:
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r}; with contrastive it must be {legal}"
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


class GateConfig(Schema):
    """Whether translated frames still show what their labels say, as a frozen segmentation network
    sees it that was trained on the source. A pixel has flipped where the network sees the label's
    class in the source frame, and another one in the translation. No label of the target is
    read."""

    arm: str | None = None
    """The arm of the network, of the first seed; none: the first that trains on `source` alone."""
    threshold: float = Field(0.75, gt=0, le=1)
    """Quarantine frames in which a larger part of a class has flipped: no arm trains on them.
    Classes of less than 5% of the pixels that the network sees right do not count. 1 quarantines
    none."""
    ignore_flipped: bool = False
    """Ignore flipped pixels in the labels that arms train on."""


class TranslationConfig(Schema):
    """A translation of source frames, by one of the `TRANSLATORS`."""

    method: str = "cyclegan"
    """`cyclegan` trains networks, or takes those of `weights`. `cut` and `fastcut` train one
    translator by contrastive learning, with less work a step (Park et al., ECCV 2020; what they set
    of `cyclegan` is in `TRANSLATORS`). `histogram_matching` gives each
    colour channel the histogram of a target frame; `fda` takes on a target frame's lowest
    frequencies (Fourier domain adaptation: Yang and Soatto, CVPR 2020). These two train nothing:
    they take seconds for a hundred frames and know no shapes. `class_alignment` gives each class
    the colours that it has in the target, where pseudo-labels find it (Ma et al., CVPR 2021).
    `student` trains a small network on pairs: frames, and what another translation made of them."""
    source: str = "source"
    """The frames to translate: `source`, or the name of another translation."""
    teacher: str | None = None
    """The translation whose frames it learns to make (`student`)."""
    cyclegan: dict[str, object] = Field(default_factory=dict)
    """Settings that win over those of `cyclegan` for this translation alone (`cyclegan`), or over
    those of a small network (`student`)."""
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
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """What a generator translates in. `bf16-mixed` is faster on GPUs and CPUs that have it, and
    changes pictures by a few grey levels (`cyclegan`)."""
    unreadable: float = Field(0.0, ge=0, lt=1)
    """The share of source frames that may be unreadable: they are named in `manifest.csv` and
    skipped. More of them fail the stage."""
    seed: int = Field(0, ge=0)
    """Seed of the choice of a target frame for each source frame (`histogram_matching`, `fda`)."""
    pseudo_labels: str | None = None
    """The arm whose network, of the first seed, labels the target's frames (`class_alignment`; also
    `cyclegan`, `cut` and `fastcut` with `label_discriminators` or `matched_crops`)."""
    keep: float = Field(0.5, gt=0, le=1)
    """The part of each class's pseudo-labelled pixels that counts, the most confident first
    (class-balanced thresholds: Zou et al., ECCV 2018) (`class_alignment`)."""
    softness: float = Field(1.5, ge=0, le=64)
    """Standard deviation in pixels of the blend between regions of two classes; 0 for hard borders
    (`class_alignment`)."""
    fda_beta: float = Field(0.01, gt=0, lt=0.5)
    """Highest frequency that `fda` exchanges, as a part of the shorter side; the authors take .01,
    .05 and .09. More brings more of the target's look, and ghosts of its shapes."""
    gate: GateConfig | None = None
    """Look whether labels still fit the frames before arms train on them, whatever the method.
    None: nothing looks."""

    @property
    def translator(self) -> Translator:
        """The entry of the table that `method` names."""
        return TRANSLATORS[self.method]

    @property
    def trains(self) -> bool:
        """Whether networks are trained for it."""
        return self.translator.trains and self.weights is None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.method not in TRANSLATORS:
            raise ValueError(
                f"no method {self.method!r}.{near(self.method, TRANSLATORS)} "
                f"Known: {', '.join(TRANSLATORS)}"
            )
        for name in ("cyclegan", "checkpoint", "weights", "pseudo_labels", "teacher"):
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
        if self.translator.learns_pairs and self.teacher in (None, self.source):
            raise ValueError(
                f"teacher is {self.teacher!r}; method {self.method!r} needs the name of another "
                f"translation than {self.source!r}, whose frames it learns to make"
            )
        if self.cyclegan and not self.trains:
            raise ValueError("with weights no CycleGAN is trained; leave cyclegan out, or weights")
        return self


TRANSLATED = "translated"
"""The name of the translation that is written as `translation`."""


def place(translation: str) -> str:
    """Where a configuration says a translation's settings."""
    return "translation" if translation == TRANSLATED else f"translations.{translation}"
