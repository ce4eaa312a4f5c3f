"""Networks of segmentation-models-pytorch by name, with errors that help."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any, Self

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import TimmViTEncoder
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config.segmentation import SegmentationConfig
from pipeline.errors import UserError
from pipeline.files import explain_damage
from pipeline.runtime.checkpoint import load_checkpoint
from pipeline.runtime.distributed import Ranks
from pipeline.schema import near
from segmentation.tuning import tune
from segmentation.vision_transformers import (
    OPTIONS,
    PATCHES,
    PREFIX,
    Linear,
    encoder_options,
    published_form,
    published_patch,
)

ARCHITECTURES: dict[str, type[nn.Module]] = {**smp.MODEL_ARCHITECTURES_MAPPING, "linear": Linear}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Ours to give, or changing what the network puts out.
_NOT_OPTIONS = {
    *["self", "kwargs", "encoder_name", "encoder_weights", "in_channels", "classes"],
    *["activation", "aux_params"],
}
STRIDE = 32
"""Sides that every architecture of segmentation-models-pytorch accepts are multiples of this."""


class Segmenter(nn.Module):
    """A segmentation network with its input normalisation.

    `network` is that of an architecture. An encoder that is `frozen` stays in evaluation mode: no
    dropout, no statistics of batches.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.frozen = frozen
        self.multiple = int(getattr(network, "multiple", STRIDE))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.network.encoder.eval()  # type: ignore[union-attr]
        return self

    def forward(self, rgb: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 RGB of any size -> (N, classes, H, W) float32 logits."""
        return self.logits(rgb.permute(0, 3, 1, 2).float().div(255))

    def logits(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] of any size -> (N, classes, H, W) float32 logits."""
        height, width = x.shape[2:]
        logits: Tensor = self.network(self._input(x))
        return logits[:, :, :height, :width].float()

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] -> (N, D): the encoder's last stage, averaged over H and W."""
        return self.feature_map(x).mean(dim=(2, 3)).float()

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] -> (N, D, h, w): the encoder's last stage, which covers the
        frame as `pad` to `multiple` makes it."""
        found: Any = self.network.encoder(self._input(x))  # type: ignore[operator]
        # Those for tokens put out class tokens, too.
        stages: list[Tensor] = found[0] if isinstance(found, tuple) else found
        return stages[-1]

    def _input(self, x: Tensor) -> Tensor:
        return _network_input(x, self.mean, self.std, self.multiple)


class Encoder(nn.Module):
    """A frozen encoder with its input normalisation.

    `channels` are those of its levels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.channels: list[int] = network.out_channels[2:]  # type: ignore[index,assignment]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) RGB in [0, 1] of any size -> features (N, C, h, w) of strides 4, 8, ..."""
        levels: list[Tensor] = self.network(_network_input(x, self.mean, self.std))
        return levels[2:]


def _network_input(x: Tensor, mean: Tensor, std: Tensor, multiple: int = STRIDE) -> Tensor:
    """Normalised, sides padded to what the network accepts."""
    x = pad((x - mean) / std, "replicate", multiple)
    return x.contiguous(memory_format=torch.channels_last)


def check_encoder(name: str, weights: str, field: str) -> list[str]:
    """What is wrong with the name of an encoder and of its weights; empty when nothing is.

    Args:
        field: the setting that holds the name; that of the weights is called `FIELD_weights`.
    """
    problems = []
    encoders = list(smp.encoders.get_encoder_names())
    # `tu-` hands any name on to timm.
    if name not in encoders and not name.startswith(PREFIX):
        problems.append(
            f"{field}: no encoder {name!r}.{near(name, encoders)} Known: {', '.join(encoders)}; or "
            "tu-NAME for any network of timm."
        )
    if weights not in {"imagenet", "none"} and not Path(weights).is_file():
        problems.append(
            f"{field}_weights: no file {weights!r}. Give 'imagenet', 'none' or the path of an "
            "encoder's state_dict (.pth, .safetensors)."
        )
    return problems


def pad(x: Tensor, mode: str = "constant", multiple: int = STRIDE) -> Tensor:
    """(N, C, H, W), continued below and to the right until its sides are multiples."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode=mode)


def check_names(config: SegmentationConfig) -> list[str]:
    """What is wrong with the names in a recipe; empty when nothing is.

    Names the value, near legal names, and where the full list is.
    """
    problems = []
    patches = PATCHES.get(config.architecture)
    if config.architecture not in ARCHITECTURES:
        problems.append(
            f"segmentation.architecture: no architecture {config.architecture!r}."
            f"{near(config.architecture, ARCHITECTURES)} Known: {', '.join(ARCHITECTURES)}."
        )
    else:
        # The constructors swallow options that they do not know.
        model = ARCHITECTURES[config.architecture]
        options = set(inspect.signature(model.__init__).parameters) - _NOT_OPTIONS
        options |= OPTIONS if patches else set()
        problems += [
            f"segmentation.options: {config.architecture} has no option {key!r}."
            f"{near(key, options)} Known: {', '.join(sorted(options))}."
            for key in config.options
            if key not in options
        ]
    where = "segmentation.encoder"
    problems += check_encoder(config.encoder, config.encoder_weights, where)
    if patches and not (published := published_patch(config.encoder)):
        problems.append(
            f"{where}: {config.architecture} takes a vision transformer of timm, not "
            f"{config.encoder!r}. Give tu-NAME, e.g. tu-vit_base_patch14_dinov2."
        )
    elif patches and (patch := config.options.get("patch_size", published)) not in patches:
        problems.append(
            f"segmentation.options: {config.architecture} does not work on patches of {patch!r} "
            f"pixels. Set patch_size, to which they are resampled, to one of {patches}, best 16."
        )
    return problems


def build_encoder(name: str, weights: str, field: str) -> Encoder:
    """An encoder by name, frozen.

    Args:
        weights: `imagenet`, or the path of a state_dict.
        field: as `check_encoder`, for messages.

    Raises:
        UserError: unknown names, or weights that do not fit.
    """
    if problems := check_encoder(name, weights, field):
        raise UserError("\n".join(problems))
    hub = weights == "imagenet"
    try:
        network = smp.encoders.get_encoder(name, weights="imagenet" if hub else None)
    except OSError as error:
        raise UserError(_no_weights(name, error, f"{field}_weights to a local file")) from error
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{field}: encoder {name} cannot be built: {error}.") from error
    if not hub:
        load_encoder(network, Path(weights))
    return Encoder(network, *_normalisation(name))


def _no_weights(encoder: str, error: OSError, way_out: str) -> str:
    return (
        f"The published weights of encoder {encoder!r} are neither cached nor to be downloaded "
        f"({error}). Set {way_out}."
    )


def build_model(config: SegmentationConfig, classes: int, *, pretrained: bool = True) -> Segmenter:
    """The network of a recipe.

    Args:
        classes: number of output channels.
        pretrained: load the encoder's weights; without it they are left random, for a network
            whose checkpoint is loaded next.

    Raises:
        UserError: unknown names or options, or encoder weights that do not fit.
    """
    if problems := check_names(config):
        raise UserError("\n".join(problems))
    hub = config.encoder_weights == "imagenet"
    try:
        options = config.options
        if config.architecture in PATCHES:
            options = encoder_options(config.encoder, options)
        network: Any = ARCHITECTURES[config.architecture](
            config.encoder,
            encoder_weights="imagenet" if hub and pretrained else None,
            classes=classes,
            **options,
        )
    except OSError as error:
        way_out = "segmentation.encoder_weights to a local file or 'none'"
        raise UserError(_no_weights(config.encoder, error, way_out)) from error
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{config.architecture} with encoder {config.encoder} and options {config.options} "
            f"cannot be built: {error}. Change segmentation.options or the names."
        ) from error
    if pretrained and config.encoder_weights not in {"imagenet", "none"}:
        load_encoder(network.encoder, Path(config.encoder_weights))
    try:
        tune(network.encoder, config.encoder_tuning, config.lora_rank)
    except ValueError as error:
        raise UserError(
            f"segmentation.encoder_tuning with encoder {config.encoder!r}: {error}"
        ) from error
    mean, std = _normalisation(config.encoder)
    return Segmenter(network, mean, std, frozen=config.encoder_tuning == "frozen")


def try_model(config: SegmentationConfig, classes: int) -> None:
    """Build the network of a recipe and train it on nothing once, to find what cannot work.

    Raises:
        UserError: as `build_model`; or the network refuses a batch of the recipe.
    """
    model = build_model(config, classes).train()
    try:
        logits = model(torch.zeros(min(config.batch_size, 2), 64, 64, 3, dtype=torch.uint8))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"{config.architecture} with encoder {config.encoder} cannot be trained on batches of "
            f"{config.batch_size}: {error}. Change segmentation.batch_size, options or the names."
        ) from error
    assert logits.shape[1] == classes


def sync_batch_norms(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Let batch norms use the statistics of the whole batch, of which each rank has a shard.

    Names and shapes of the weights stay. torch's own way works on GPUs alone.
    """
    if ranks.world_size == 1:
        return model
    if next(model.parameters()).is_cuda:
        synced: nn.Module = convert_sync_batchnorm(model)
        return synced
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            norm.forward = partial(_synced_batch_norm, norm, ranks)  # type: ignore[method-assign]
    return model


def _synced_batch_norm(norm: _BatchNorm, ranks: Ranks, x: Tensor) -> Tensor:
    """`norm` of (N, C, ...), equal shards of which are in all ranks."""
    if not norm.training:
        return type(norm).forward(norm, x)
    axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    mean = ranks.all_reduce_sum(x.float().mean(axes)) / ranks.world_size
    centred = x.float() - mean.view(shape)
    variance = ranks.all_reduce_sum(centred.square().mean(axes)) / ranks.world_size
    with torch.no_grad():
        count = x.numel() // x.shape[1] * ranks.world_size
        momentum = norm.momentum or 0.0
        norm.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
        norm.running_var.lerp_(variance * (count / (count - 1)), momentum)  # type: ignore[union-attr]
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    out = centred * (norm.weight * (variance + norm.eps).rsqrt()).view(shape)
    out = (out + norm.bias.view(shape)).to(x.dtype)
    if isinstance(norm, BatchNormAct2d):
        out = norm.act(norm.drop(out))
    return out


def _normalisation(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The input statistics that smp or timm states for the encoder, else ImageNet's."""
    settings = (smp.encoders.encoders.get(encoder) or {}).get("pretrained_settings") or {}
    stated = settings.get("imagenet") or {}
    if "mean" in stated:
        return tuple(stated["mean"]), tuple(stated["std"])
    name = encoder.removeprefix("timm-").removeprefix(PREFIX)
    known = timm.get_pretrained_cfg(name)
    return (known.mean, known.std) if known else (IMAGENET_MEAN, IMAGENET_STD)


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Load an encoder's weights from a state_dict; a classifier's surplus keys are left aside.

    Raises:
        UserError: keys are missing or shapes differ.
    """
    state = load_checkpoint(path)
    if isinstance(encoder, TimmViTEncoder):
        with explain_damage(path, "Give the state_dict of this very encoder."):
            state = published_form(encoder, state)
    # smp keeps timm's own networks (`tu-`) one level down.
    state |= {f"model.{key}": value for key, value in state.items()}
    own = encoder.state_dict()
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    for key in sorted(needed & state.keys()):
        if not _is_weight(state[key]):
            raise UserError(
                f"{path}: {key} is {_described(state[key])}; dense, finite floating-point numbers "
                "are expected. Give the state_dict of a trained encoder."
            )
    missing = sorted(key for key in needed if key not in state)
    differing = sorted(k for k in needed if k in state and state[k].shape != own[k].shape)
    if missing or differing:
        shown = [f"missing {k}" for k in missing[:3]]
        shown += [f"{k} {tuple(state[k].shape)} not {tuple(own[k].shape)}" for k in differing[:3]]
        raise UserError(
            f"{path} does not fit the encoder: {len(missing)} keys missing, {len(differing)} of "
            f"another shape ({'; '.join(shown)}). Give the state_dict of this very encoder."
        )
    weights = {key: state[key] if key in needed else value for key, value in own.items()}
    # smp's encoders drop a classifier's head themselves and refuse a state_dict without one.
    nn.Module.load_state_dict(encoder, weights)


def _is_weight(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and not value.is_meta
        and bool(value.isfinite().all())
    )


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    what = f"{value.dtype} ({value.layout}, on {value.device})"
    finite = value.is_meta or not value.is_floating_point() or bool(value.isfinite().all())
    return what if finite else f"{what}, not all finite"
