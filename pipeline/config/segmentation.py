"""Settings of segmentation networks: training, arms, evaluation."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.config.fields import Name, NameOrFile, Size
from pipeline.schema import FORM, Schema


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
    WACV 2021); the pasted frames are trained on, weighted by how sure the teacher is.
    """

    weight: float = Field(1.0, ge=0)
    """Weight of the loss on mixed frames."""
    confidence: float = Field(0.968, ge=0, le=1)
    """A pixel counts as sure when the teacher gives its class more than this; a frame's pixels all
    weigh as much as the share of those that are. Not used with `keep`."""
    keep: float | None = Field(None, gt=0, le=1)
    """Learn from this part of the pixels that the teacher gives to each class, the most confident
    first, and from no others: rare classes are not drowned by those of which it is sure
    (class-balanced thresholds: Zou et al., ECCV 2018, here of the last hundred steps or so).
    None: from all pixels alike, weighted by `confidence`."""
    teacher: Name | None = None
    """The arm, listed before this one, whose network of the same seed labels the frames and stays
    as it is (Lee, ICML workshop 2013; Zou et al., ECCV 2018). None: the mean teacher."""
    teacher_average: float = Field(0.999, ge=0, lt=1)
    """The part of the old average of weights that each step of a mean teacher keeps."""
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
    """Any architecture of segmentation-models-pytorch, by name; or `linear`, one linear layer on
    the last tokens of a vision transformer."""
    encoder: str = "resnet50"
    """Any encoder of segmentation-models-pytorch, by name, or `tu-NAME` for one of timm. `dpt` and
    `linear` take vision transformers of timm."""
    encoder_weights: NameOrFile = "imagenet"
    """`imagenet` (the encoder's published weights, from the local cache or the hub), `none`, or the
    path of a state_dict (`.pth`, `.safetensors`)."""
    encoder_tuning: Literal["full", "lora", "frozen"] = "full"
    """What of the encoder learns: all of it; low-rank updates of the weights of its attention
    (LoRA: Hu et al., ICLR 2022); nothing."""
    lora_rank: int = Field(16, ge=1)
    """Rank of these updates; their alpha is the same number, so that they are not scaled."""
    options: dict[str, object] = Field(default_factory=dict)
    """Further arguments of the architecture, e.g. `decoder_channels`. For `dpt` and `linear` also
    `patch_size`, to which the encoder's patches are resampled, and `drop_path_rate`."""
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

    @property
    def network(self) -> dict[str, object]:
        """What decides the names and shapes of a network's weights."""
        lora = self.encoder_tuning == "lora"
        return {
            "architecture": self.architecture,
            "encoder": self.encoder,
            "options": self.options,
            "encoder_tuning": f"lora of rank {self.lora_rank}" if lora else "full or frozen",
        }


class Subset(Schema):
    """Some of the labelled frames of a name."""

    frames: int = Field(ge=1)
    """So many, evenly spaced, as by a data set's `limit`."""
    weight: float = Field(1.0, gt=0)
    """Their weight in the mixture."""


def _form(value: object) -> str:
    return f"{FORM}subset" if isinstance(value, dict | Subset) else f"{FORM}weight"


Part = Annotated[
    Annotated[float, Field(gt=0), Tag(f"{FORM}weight")] | Annotated[Subset, Tag(f"{FORM}subset")],
    Discriminator(_form),
]
"""A weight in a mixture; or how many frames, and their weight."""


class ArmConfig(Schema):
    """What one network is trained on, and how, where that differs from `segmentation`."""

    train: dict[str, Part] = Field(min_length=1)
    """Labelled frames -> their weight in the mixture, in any unit: `source`, `target` (with the
    target's own labels), `translated`, or one of `translations`. A name alone is all of them;
    `{target: {frames: 16, weight: 1}}` is 16 of them, evenly spaced."""
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
    def networks(self) -> list[str]:
        """What its training begins with: `start` and the teacher, where it has them."""
        teacher = self.self_training.teacher if self.self_training else None
        return [network for network in (self.start, teacher) if network]

    @property
    def weights(self) -> dict[str, float]:
        """Labelled frames -> their weight in the mixture."""
        return {
            kind: part.weight if isinstance(part, Subset) else part
            for kind, part in self.train.items()
        }

    @property
    def frames(self) -> dict[str, int]:
        """Labelled frames -> how many of them, where that is not all."""
        return {kind: part.frames for kind, part in self.train.items() if isinstance(part, Subset)}

    @property
    def only(self) -> str | None:
        """The kind of frames that it is trained on, where there is one kind and nothing else."""
        if self.self_training or self.start or len(self.train) > 1:
            return None
        return next(iter(self.train))


class EvaluationConfig(Schema):
    """Scoring on the labelled frames of `test`."""

    pictures: int = Field(6, ge=0)
    """0 keeps no predictions as pictures, and the report shows no frames. Any other number keeps
    those of all frames; the report shows as many as it has room for."""
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
    """Keep every frame, at its own size, with its prediction drawn over it, below `overlays/`."""


class SelectionConfig(Schema):
    """Looking at networks without labels of the target, to choose among arms and seeds."""

    frames: int = Field(64, ge=1)
    """Frames of the target that each network is shown, and labelled frames of the source, both
    evenly spaced."""
