"""What a file of weights holds, and the network that they belong to.

The reference implementation (Zhu et al., ICCV 2017) stores a network as a plain dictionary of
weights, `latest_net_G_A.pth`, and its options nowhere. Everything a network is built from is read
from the names and shapes of the weights here.

Where a function takes `where`, messages begin with it: a file, or a network in it.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from cyclegan.networks import InstanceNorm
from pipeline.config.translation import CycleGANConfig
from pipeline.errors import UserError
from pipeline.files import open_regular
from pipeline.runtime.checkpoint import read_tensors
from pipeline.text import listed

State = dict[str, Tensor]
Where = Path | str
Norms = Literal["instance", "affine instance", "batch"]
BatchNorm = Literal["running", "batch"]

EXPECTED = (
    "Expected the weights of a CycleGAN network: a `latest_net_G_A.pth` of the reference "
    "implementation, or a `checkpoints/last.pt` of ours"
)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What norms keep besides weights."""


class AffineInstanceNorm(nn.Module):
    """Instance normalisation with a weight and a bias for each channel, (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.norm = InstanceNorm()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x) * self.weight[:, None, None] + self.bias[:, None, None]
        return out


def read_weights(path: Path) -> dict[str, object]:
    """The dictionary in a file of weights, on the CPU. Runs no code of the file.

    Raises:
        UserError: no such file, a damaged one, or one of something else.
    """
    if not path.is_file():
        raise UserError(f"No file {path}. {EXPECTED}.")
    try:
        content = read_tensors(path)
    except UserError:
        raise
    except Exception as error:  # a damaged or foreign file can make the unpickler raise anything
        raise UserError(
            f"{path} cannot be read. {EXPECTED}; found {_look(path, error)}."
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds no weights by name. {EXPECTED}; found {type(content).__name__}."
        )
    return content


def _look(path: Path, error: Exception) -> str:
    """What an unreadable file seems to be, and what to do about it."""
    with open_regular(path) as file:
        head = file.read(512).lstrip().lower()
    if not head:
        return "an empty file: fetch it again"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page: the download gave an error or a confirmation page, fetch the file again"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: run `git lfs pull`"
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"pickled Python objects ({code[1]}), which are not loaded because that runs their "
            "code: where the file comes from, save `network.state_dict()` instead"
        )
    return f"a damaged or truncated file of {path.stat().st_size:,} bytes: fetch it again"


def plain_state(content: object, where: Where) -> State:
    """Name -> weight without wrappers' prefixes, renamed to the reference's names.

    Raises:
        UserError: `content` is anything else than weights by name.
    """
    if not isinstance(content, dict):
        raise UserError(
            f"{where} holds no weights by name. {EXPECTED}; found {type(content).__name__}."
        )
    if {"step", "classes"} <= content.keys():
        raise UserError(
            f"{where} is a checkpoint of a segmentation network, which names classes and makes no "
            f"pictures. {EXPECTED}."
        )
    state: State = {}
    for key, value in content.items():
        if key == "_metadata":
            continue
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{where} is not a plain dictionary of weights. {EXPECTED}; found a dictionary of "
                f"{listed(content, 3)} in which {key!r} is {type(value).__name__}. Save the "
                "network's `state_dict()` alone."
            )
        if value.is_meta:
            raise UserError(
                f"{where}: weight {key} is on the device meta: its numbers are not in "
                "the file. Load the network before its `state_dict()` is saved."
            )
        key = re.sub(r"^((module|_orig_mod)\.)+", "", key)
        # Other implementations of the same network call a residual block's layers otherwise.
        state[re.sub(r"^(model\.\d+)\.[a-z_]+\.(?=\d)", r"\1.conv_block.", key)] = value
    if not state:
        raise UserError(f"{where} is empty. {EXPECTED}; found a dictionary without weights.")
    return state


def generator_settings(state: State, where: Where) -> CycleGANConfig:
    """The settings that the weights of a generator tell; the other fields are not set.

    A U-Net's do not tell whether it has dropout.

    Raises:
        UserError: they are those of something else.
    """
    if any(key.endswith(".filt") for key in state):
        raise UserError(
            f"{where} is a generator of CUT, whose antialiasing filters CycleGAN's networks do not "
            "have. Use one trained by CycleGAN, or by CUT with --no_antialias --no_antialias_up."
        )
    inner = {key.removeprefix("correction."): value for key, value in state.items()}
    if "model.1.weight" in inner and any(".conv_block." in key for key in inner):
        settings = _resnet(inner)
    elif "model.model.0.weight" in inner and "model.model.1.model.1.weight" in inner:
        settings = _unet(inner)
    else:
        raise UserError(
            f"{where} is no generator. {EXPECTED}; found {len(state)} weights: {listed(state, 3)}."
        )
    return settings.model_copy(update={"residual": inner.keys() != state.keys()})


def _resnet(state: State) -> CycleGANConfig:
    blocks = len({key.split(".")[1] for key in state if ".conv_block." in key})
    # With dropout the second convolution stands where the second norm is without.
    dropout = any(
        re.search(r"\.conv_block\.6\.weight$", key) and value.ndim == 4
        for key, value in state.items()
    )
    resize = f"model.{10 + blocks}.2.weight" in state
    return CycleGANConfig.model_construct(
        generator="resnet",
        blocks=blocks,
        generator_width=_size(state, "model.1.weight", 0),
        dropout=dropout,
        upsampling="resize" if resize else "transposed",
    )


def _unet(state: State) -> CycleGANConfig:
    # A level is `model.3` of the one around it; the second level is `model.1` of the first.
    downs = 2 + max(len(re.findall(r"\.model\.3(?=\.model)", key)) for key in state)
    width = _size(state, "model.model.0.weight", 0)
    resize = "model.model.3.2.weight" in state
    entering = (
        _size(state, "model.model.3.2.weight", 1)
        if resize
        else _size(state, "model.model.3.weight", 0)
    )
    return CycleGANConfig.model_construct(
        generator="encoder_decoder" if entering == width else "unet",
        downs=downs,
        generator_width=width,
        upsampling="resize" if resize else "transposed",
    )


def looks_at_more(discriminator: Iterable[str]) -> bool:
    """Whether weights of these names are a discriminator of ours that looks at more than pixels;
    see `cyclegan.discriminators`."""
    return any(name.startswith(("parts.", "heads.", "discriminator.")) for name in discriminator)


def discriminator_settings(state: State, where: Where) -> CycleGANConfig:
    """The settings that the weights of a discriminator tell; the other fields are not set.

    Raises:
        UserError: they are those of something else, or it takes no RGB pictures.
    """
    scales = len({key.split(".")[1] for key in state if key.startswith("scales.")})
    prefix = "scales.0." if scales else ""
    convolutions = {
        key.removeprefix(prefix): value.shape
        for key, value in state.items()
        if key.startswith(prefix) and value.ndim == 4
    }
    if {"net.0.weight", "net.2.weight", "net.5.weight"} <= convolutions.keys():
        first = convolutions["net.0.weight"]
        settings = CycleGANConfig.model_construct(discriminator="pixel")
    elif {"model.0.weight", "model.2.weight", "model.5.weight"} <= convolutions.keys():
        first = convolutions["model.0.weight"]
        layers = len(convolutions) - 2  # beside the first and the one that gives logits
        settings = CycleGANConfig.model_construct(
            discriminator="patch", discriminator_layers=layers
        )
    else:
        raise UserError(
            f"{where} is no discriminator (PatchGAN or PixelGAN). {EXPECTED}; found {len(state)} "
            f"weights: {listed(state, 3)}."
        )
    if first[1] not in (3, 6):
        raise UserError(
            f"{where} takes pictures of {first[1]} channels; 3 (RGB), or 6 for a frame and its "
            "translation, are expected. Choose or train one for RGB, or leave this file out: the "
            "discriminator then starts anew."
        )
    told = {
        "discriminator_width": first[0],
        "discriminator_scales": scales or 1,
        "paired": first[1] == 6,
    }
    return settings.model_copy(update=told)


def norms(network: nn.Module, state: State, where: Where) -> Norms:
    """The kind of norms that `state` holds for `network`; drops from it what instance norms ignore.

    Raises:
        UserError: `state` does not tell.
    """
    names: list[str] = []
    bias = ""
    for name, layer in network.named_modules():
        if isinstance(layer, InstanceNorm):
            names.append(name)
        elif isinstance(layer, CONVOLUTIONS) and not names:
            bias = f"{name}.bias"  # at last that before the first norm
    affine = any(f"{name}.weight" in state for name in names)
    running = any(f"{name}.running_mean" in state for name in names)
    if affine and running and bias in state:
        raise UserError(
            f"{where} has weights, running statistics and a bias before each norm: batch norm or "
            "instance norm, which its weights do not tell. Expected instance norm, or batch norm "
            "without biases before it, as the reference implementation has them."
        )
    if not affine and bias not in state:
        raise UserError(
            f"{where} has neither norms with weights nor the biases ({bias}) that the reference "
            "implementation has with instance norm. Choose a network trained with --norm instance."
        )
    if affine:
        return "batch" if running else "affine instance"
    for name in names:
        for key in STATISTICS:
            state.pop(f"{name}.{key}", None)
    return "instance"


def fit_norms(network: nn.Module, state: State, where: Where, batch_norm: BatchNorm) -> Norms:
    """Give a generator the kind of norms that `state` holds; drop what is no weight of them.

    Batch norms that normalise a batch of one frame by its own statistics are affine instance norms.
    """
    kind = norms(network, state, where)
    if kind == "instance":
        return kind
    layers = dict(network.named_modules())
    convolutions = [name for name, layer in layers.items() if isinstance(layer, CONVOLUTIONS)]
    biased = f"{convolutions[0]}.bias" in state
    channels = 0
    for name, layer in layers.items():
        if isinstance(layer, CONVOLUTIONS):
            channels = layer.out_channels
            if not biased and name != convolutions[-1]:
                layer.bias = None
        elif isinstance(layer, InstanceNorm):
            parent, _, index = name.rpartition(".")
            running = kind == "batch" and batch_norm == "running"
            norm = nn.BatchNorm2d(channels) if running else AffineInstanceNorm(channels)
            layers[parent].register_module(index, norm)
            if running:  # not stored by torch before 0.4, and not used
                state.setdefault(f"{name}.num_batches_tracked", torch.tensor(0, device="cpu"))
            else:
                for key in STATISTICS:
                    state.pop(f"{name}.{key}", None)
    return kind


def fill(network: nn.Module, state: State, where: Where) -> None:
    """Put `state` into a network of the meta device, all or nothing, as float32.

    Raises:
        UserError: weights are missing, superfluous, of other shapes, or not finite.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [
            f"{key} {found[key]} instead of {shape}"
            for key, shape in expected.items()
            if found.get(key, shape) != shape
        ],
    }
    if any(problems.values()):
        key, shape = next(iter(expected.items()))
        first = found.get(key, ())
        if len(first) == 4 and first[1] != shape[1]:
            raise UserError(
                f"{where} reads pictures of {first[1]} channels; a generator that reads and writes "
                "3 (RGB) is expected. Choose or train one for RGB."
            )
        told = "; ".join(f"{what}: {listed(keys, 3)}" for what, keys in problems.items() if keys)
        raise UserError(
            f"{where} is not the {type(network).__name__} that its first weights look like. "
            f"{EXPECTED}; {told}. Fetch the file again, or take it from where it was trained."
        )
    weights = {}
    for key, value in state.items():
        counter = key.endswith("num_batches_tracked")
        if value.layout != torch.strided or (not counter and not value.is_floating_point()):
            raise UserError(
                f"{where}: weight {key} is {value.dtype} ({value.layout}); dense floating-point "
                "numbers are expected. Export the network before it is quantised."
            )
        weights[key] = value if counter else value.detach().float().contiguous()
        if not weights[key].isfinite().all():
            raise UserError(
                f"{where}: weight {key} is not finite, so every result would be blank. "
                "Take an earlier checkpoint."
            )
    network.load_state_dict(weights, assign=True)


def _size(state: State, key: str, axis: int) -> int:
    """The size of a weight along an axis; 1 where there is none, for `fill` to complain of."""
    shape = state[key].shape if key in state else ()
    return shape[axis] if len(shape) == 4 and shape[axis] else 1
