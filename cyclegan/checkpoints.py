"""Generators as files: the reference implementation's, our checkpoints, ONNX.

The reference implementation (Zhu et al., ICCV 2017) stores a generator as a plain dictionary of
weights, `latest_net_G_A.pth`, and its options nowhere. Everything a network is built from is read
from the names and shapes of the weights here.
"""

import copy
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cyclegan.networks import (
    EPSILON,
    Generator,
    InstanceNorm,
    ResnetGenerator,
    UnetGenerator,
    UnetLevel,
)
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.training import save_checkpoint

State = dict[str, Tensor]
Direction = Literal["source_to_target", "target_to_source"]

EXPECTED = (
    "Expected the weights of a CycleGAN generator: a `latest_net_G_A.pth` of the reference "
    "implementation, or a `checkpoints/last.pt` of ours"
)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
REFERENCE_NAMES = {
    "source_to_target": "G_A",
    "target_to_source": "G_B",
    # The reference names a critic after the generator that it judges.
    "target_critic": "D_A",
    "source_critic": "D_B",
}
"""Network of a training checkpoint -> its name in the reference implementation."""
PAIRED_NAMES = {"source_to_target": "G", "critic": "D"}
"""The same for paired training, which is pix2pix there."""
ONNX_TOLERANCE = 1e-3
"""Largest difference to torch that an ONNX file may have, in [-1, 1]: 1/8 of a grey level."""


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


class _ExportedNorm(nn.Module):
    """`InstanceNorm` in operations that torch's exporter knows.

    Means are taken along rows, then columns: onnxruntime adds up one after another, which over a
    whole frame loses digits, as do its own instance norm and a mean over both.
    """

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(3, keepdim=True).mean(2, keepdim=True)
        variance = centred.square().mean(3, keepdim=True).mean(2, keepdim=True)
        return centred * (variance + EPSILON).rsqrt()


def load_generator(path: Path, direction: Direction = "source_to_target") -> Generator:
    """Build a generator from a file of weights, in evaluation mode on the CPU. Runs no code of it.

    Known are the reference's ResNet and U-Net generators of any depth and width, with or without
    dropout, normalised by instance (affine or not) or by batch, and our training checkpoints (the
    averaged weights, where there are any). Running statistics that the reference stored beside
    instance norms until 2018 are dropped, as are the prefixes of DataParallel and torch.compile.
    Batch norms use their running statistics. A U-Net's weights do not tell whether it has dropout:
    it is built without.

    Args:
        direction: which generator of a training checkpoint; a file of the reference holds one.

    Returns:
        (N, 3, H, W) in [-1, 1] -> the same.

    Raises:
        UserError: no such file, a damaged one, one of something else, or of a network that cannot
            be told from its weights.
    """
    content = _read(path)
    if isinstance(content.get("networks"), dict):
        networks = _networks(content)
        if direction not in networks:
            found = ", ".join(map(str, networks))
            raise UserError(f"{path} holds no {direction} network, only: {found}. {EXPECTED}.")
        content = networks[direction]
    return _generator(content, path)


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
        if isinstance(module, nn.Upsample):
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

    `latest_net_G_A.pth` translates source to target, and `latest_net_D_A.pth` judges what it makes.
    Of paired training these are `latest_net_G.pth` and `latest_net_D.pth`, as pix2pix has them.
    Discriminators at several scales have no counterpart and are left out.

    Raises:
        UserError: `checkpoint` is not ours, or the reference has no such generator.
    """
    content = _read(checkpoint)
    if not isinstance(content.get("networks"), dict):
        raise UserError(
            f"{checkpoint} is not a training checkpoint of ours: a dictionary with 'networks' was "
            f"expected, found {_some(map(str, content))}. Give the `checkpoints/last.pt` of a run."
        )
    networks = _networks(content)
    paths = []
    names = REFERENCE_NAMES if "target_to_source" in networks else PAIRED_NAMES
    for name, short in names.items():
        if name not in networks:
            continue
        weights = _plain_state(networks[name], checkpoint)
        if any(key.startswith("scales.") for key in weights):
            continue
        path = folder / f"latest_net_{short}.pth"
        if "critic" in name:
            save_checkpoint(path, {key: value.contiguous() for key, value in weights.items()})
        else:
            export_generator(_generator(weights, checkpoint), path)
        paths.append(path)
    return paths


def export_onnx(generator: Generator, path: Path, tolerance: float = ONNX_TOLERANCE) -> float:
    """Write a generator as one ONNX file, checked against torch at two sizes before it is kept.

    Input `image` and output `translated` are (batch, 3, height, width) float32 RGB in [-1, 1], of
    any batch size, height and width multiples of `generator.multiple`.

    Args:
        tolerance: largest difference allowed, in units of the output's [-1, 1].

    Returns:
        The largest difference seen between onnxruntime and torch on random pictures.

    Raises:
        UserError: the packages are missing, or the difference is above `tolerance`.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise UserError(
            f"ONNX files need the package {error.name!r}, which is not installed. "
            "Install the extra: pip install -e '.[onnx]'."
        ) from error
    reference = copy.deepcopy(generator).cpu().eval()
    reference.to(memory_format=torch.contiguous_format)
    network = copy.deepcopy(reference)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                module.register_module(name, _ExportedNorm())
    multiple = generator.multiple
    dim = torch.export.Dim
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 3, 2 * multiple, 3 * multiple),),
        input_names=["image"],
        output_names=["translated"],
        dynamic_shapes=({0: dim("batch"), 2: multiple * dim("h"), 3: multiple * dim("w")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["range"] = "RGB in [-1, 1], in and out"
    program.model.metadata_props["multiple_of"] = str(multiple)
    least = -(-48 // multiple)
    sizes = [(1, least, least + 1), (2, least + 2, least)]
    generator_of_noise = torch.Generator().manual_seed(0)
    with replacing(path) as part:
        program.save(part, external_data=False)
        onnx.checker.check_model(part)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(part, options, ["CPUExecutionProvider"])
        difference = 0.0
        for batch, height, width in sizes:
            shape = (batch, 3, height * multiple, width * multiple)
            image = torch.rand(shape, generator=generator_of_noise) * 2 - 1
            with torch.inference_mode():
                expected = reference(image)
            (found,) = session.run(None, {"image": image.numpy()})
            difference = max(difference, (expected - torch.from_numpy(found)).abs().max().item())
        # Not `>`: a difference that is not a number must not pass.
        if not difference <= tolerance:
            raise UserError(
                f"The ONNX file differs from the network by {difference:.2g}, more than "
                f"{tolerance:.2g}, and is not kept: {path}. Install the versions of onnx, "
                "onnxruntime and onnxscript that constraints.txt names."
            )
    return difference


def export(source: Path, out: Path, direction: Direction = "source_to_target") -> str:
    """Write a generator as `out` says: `.pth`, `.onnx`, or a folder for all networks of `source`.

    Args:
        source: a file that `load_generator` reads; for a folder, a training checkpoint of ours.

    Returns:
        What was written, for the user.

    Raises:
        UserError: `source` cannot be read or `out` not hold it.
    """
    if out.suffix == ".onnx":
        difference = export_onnx(load_generator(source, direction), out)
        return f"{out}: differs from torch by {difference:.1g} at most, of [-1, 1]"
    if out.suffix == ".pth":
        export_generator(load_generator(source, direction), out)
        return f"{out}: weights as the reference implementation stores them"
    if out.suffix:
        raise UserError(f"{out}: give a file *.pth or *.onnx, or a folder without suffix.")
    return ", ".join(str(path) for path in export_reference(source, out))


def _read(path: Path) -> dict[str, Any]:
    """The dictionary in a file of weights."""
    if not path.is_file():
        raise UserError(f"No file {path}. {EXPECTED}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
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
    with path.open("rb") as file:
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


def _plain_state(content: Any, path: Path) -> State:
    """Name -> weight without wrappers' prefixes, renamed to the reference's names."""
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds no weights by name. {EXPECTED}; found {type(content).__name__}."
        )
    state: State = {}
    for key, value in content.items():
        if key == "_metadata":
            continue
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} is not a plain dictionary of weights. {EXPECTED}; found a dictionary of "
                f"{_some(map(str, content))} in which {key!r} is {type(value).__name__}. Save the "
                "generator's `state_dict()` alone."
            )
        key = re.sub(r"^((module|_orig_mod)\.)+", "", key)
        # Other implementations of the same network call a residual block's layers otherwise.
        state[re.sub(r"^(model\.\d+)\.[a-z_]+\.(?=\d)", r"\1.conv_block.", key)] = value
    if not state:
        raise UserError(f"{path} is empty. {EXPECTED}; found a dictionary without weights.")
    return state


def _networks(content: dict[str, Any]) -> dict[str, Any]:
    """The networks of a training checkpoint, averaged where that was on."""
    averages = content.get("averages")
    return {**content["networks"], **(averages if isinstance(averages, dict) else {})}


def _generator(content: Any, path: Path) -> Generator:
    """The generator of a dictionary of weights; `path` is for messages."""
    state = _plain_state(content, path)
    network = _build(state, path)
    _fill(network, state, path)
    return network.eval()


def _build(state: State, path: Path) -> Generator:
    """The network that `state` belongs to, without storage for its weights."""
    if any(key.endswith(".filt") for key in state):
        raise UserError(
            f"{path} is a generator of CUT, whose antialiasing filters CycleGAN's networks do not "
            "have. Use one trained by CycleGAN, or by CUT with --no_antialias --no_antialias_up."
        )
    network: Generator
    # On the meta device nothing is allocated and no random number is drawn.
    with torch.device("meta"):
        if "model.1.weight" in state and any(".conv_block." in key for key in state):
            network = _resnet(state)
        elif "model.model.0.weight" in state and "model.model.1.model.1.weight" in state:
            network = _unet(state)
        else:
            raise UserError(
                f"{path} is no generator. {EXPECTED}; found {len(state)} weights: {_some(state)}."
            )
        _fit_norms(network, state, path)
    return network


def _resnet(state: State) -> ResnetGenerator:
    """A ResNet generator as deep and wide as `state`."""
    blocks = len({key.split(".")[1] for key in state if ".conv_block." in key})
    # With dropout the second convolution stands where the second norm is without.
    dropout = any(
        re.search(r"\.conv_block\.6\.weight$", key) and value.ndim == 4
        for key, value in state.items()
    )
    resize = f"model.{10 + blocks}.2.weight" in state
    return ResnetGenerator(
        blocks,
        _size(state, "model.1.weight", 0),
        dropout=dropout,
        upsampling="resize" if resize else "transposed",
    )


def _unet(state: State) -> UnetGenerator:
    """A U-Net generator as deep and wide as `state`."""
    # A level is `model.3` of the one around it; the second level is `model.1` of the first.
    downs = 2 + max(len(re.findall(r"\.model\.3(?=\.model)", key)) for key in state)
    width = _size(state, "model.model.0.weight", 0)
    resize = "model.model.3.2.weight" in state
    entering = (
        _size(state, "model.model.3.2.weight", 1)
        if resize
        else _size(state, "model.model.3.weight", 0)
    )
    return UnetGenerator(
        downs,
        width,
        skips=entering != width,
        upsampling="resize" if resize else "transposed",
    )


def _fit_norms(network: Generator, state: State, path: Path) -> None:
    """Give `network` the kind of norms that `state` holds; drop what is no weight of them."""
    layers = dict(network.named_modules())
    norms = [name for name, module in layers.items() if isinstance(module, InstanceNorm)]
    convolutions = [name for name, module in layers.items() if isinstance(module, CONVOLUTIONS)]
    affine = any(f"{name}.weight" in state for name in norms)
    running = any(f"{name}.running_mean" in state for name in norms)
    biased = f"{convolutions[0]}.bias" in state
    if affine and running and biased:
        raise UserError(
            f"{path} has weights, running statistics and a bias before each norm: batch norm or "
            "instance norm, which its weights do not tell. Expected instance norm, or batch norm "
            "without biases before it, as the reference implementation has them."
        )
    if not affine and not biased:
        raise UserError(
            f"{path} has neither norms with weights nor the biases ({convolutions[0]}.bias) that "
            "the reference implementation has with instance norm. Choose a generator trained with "
            "--norm instance or --norm batch."
        )
    channels = 0
    for name, module in layers.items():
        if isinstance(module, CONVOLUTIONS):
            channels = module.out_channels
            if not biased and name != convolutions[-1]:
                module.bias = None
        elif isinstance(module, InstanceNorm) and affine:
            parent, _, index = name.rpartition(".")
            norm = nn.BatchNorm2d(channels) if running else AffineInstanceNorm(channels)
            layers[parent].register_module(index, norm)
            if running:  # not stored by torch before 0.4, and not used
                state.setdefault(f"{name}.num_batches_tracked", torch.tensor(0, device="cpu"))
        elif isinstance(module, InstanceNorm):
            for key in ("running_mean", "running_var", "num_batches_tracked"):
                state.pop(f"{name}.{key}", None)


def _fill(network: Generator, state: State, path: Path) -> None:
    """Put `state` into a network of the meta device, all or nothing."""
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
        first = found.get(next(iter(expected)), ())
        if len(first) == 4 and first[1] != 3:
            raise UserError(
                f"{path} reads pictures of {first[1]} channels; a generator that reads and writes "
                "3 (RGB) is expected. Choose or train one for RGB."
            )
        listed = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise UserError(
            f"{path} is not the {type(network).__name__} that its first weights look like. "
            f"{EXPECTED}; {listed}. Fetch the file again, or take it from where it was trained."
        )
    weights = {}
    for key, value in state.items():
        counter = key.endswith("num_batches_tracked")
        if value.layout != torch.strided or (not counter and not value.is_floating_point()):
            raise UserError(
                f"{path}: weight {key} is {value.dtype} ({value.layout}); dense floating-point "
                "numbers are expected. Export the network before it is quantised."
            )
        weights[key] = value if counter else value.detach().float().contiguous()
        if not weights[key].isfinite().all():
            raise UserError(
                f"{path}: weight {key} is not finite, so every picture would be blank. "
                "Take an earlier checkpoint."
            )
    network.load_state_dict(weights, assign=True)


def _size(state: State, key: str, axis: int) -> int:
    """The size of a weight along an axis; 1 where there is none, for `_fill` to complain of."""
    shape = state[key].shape if key in state else ()
    return shape[axis] if len(shape) == 4 and shape[axis] else 1


def _some(keys: Any) -> str:
    """The first of many names, and how many there are."""
    names = list(keys)
    more = f" ... ({len(names)} in all)" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
