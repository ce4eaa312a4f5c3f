"""The networks: counts, keys and shapes of the reference; the norm in every memory layout."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.networks import (
    InstanceNorm,
    PatchDiscriminator,
    PictureConv,
    PixelDiscriminator,
    PyramidDiscriminator,
    ResnetGenerator,
    UnetGenerator,
    build_discriminator,
    build_generator,
    initialise,
    minimum_side,
    upsample,
)
from pipeline.config.translation import CycleGANConfig

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (ResnetGenerator(9), 11_378_179),
        (ResnetGenerator(6), 7_837_699),
        (UnetGenerator(8), 54_409_603),
        (UnetGenerator(7), 41_825_667),
        (PatchDiscriminator(), 2_764_737),
    ],
)
def test_parameter_counts(network: nn.Module, count: int) -> None:
    assert parameters(network) == count


@pytest.mark.parametrize(("blocks", "tail"), [(9, (19, 22, 26)), (6, (16, 19, 23))])
def test_generator_keys_are_the_reference_s(blocks: int, tail: tuple[int, int, int]) -> None:
    shapes = {k: tuple(v.shape) for k, v in ResnetGenerator(blocks).state_dict().items()}
    expected = {
        "model.1": (64, 3, 7, 7),
        "model.4": (128, 64, 3, 3),
        "model.7": (256, 128, 3, 3),
        f"model.{tail[0]}": (256, 128, 3, 3),
        f"model.{tail[1]}": (128, 64, 3, 3),
        f"model.{tail[2]}": (3, 64, 7, 7),
    }
    for block in range(10, 10 + blocks):
        expected[f"model.{block}.conv_block.1"] = (256, 256, 3, 3)
        expected[f"model.{block}.conv_block.5"] = (256, 256, 3, 3)
    assert {k for k in shapes if k.endswith("weight")} == {f"{k}.weight" for k in expected}
    assert {k for k in shapes if k.endswith("bias")} == {f"{k}.bias" for k in expected}
    for key, shape in expected.items():
        assert shapes[f"{key}.weight"] == shape


def test_discriminator_layers() -> None:
    network = PatchDiscriminator()
    weights = [k for k in network.state_dict() if k.endswith("weight")]
    assert weights == [f"model.{i}.weight" for i in (0, 2, 5, 8, 11)]
    assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    smallest = minimum_side(3)
    assert network(torch.zeros(1, 3, smallest, smallest)).shape[2:] == (1, 1)
    with pytest.raises((RuntimeError, ValueError)):
        network(torch.zeros(1, 3, smallest - 1, smallest - 1))


def test_initialisation() -> None:
    torch.manual_seed(0)
    network = ResnetGenerator(2, 32)
    initialise(network)
    for key, value in network.state_dict().items():
        if key.endswith("bias"):
            assert (value == 0).all()
        elif value.numel() > 5000:
            assert value.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(("layout", "upstream_layout"), [*itertools.product(LAYOUTS, LAYOUTS)])
def test_instance_norm_value_and_gradient(
    layout: torch.memory_format, upstream_layout: torch.memory_format, batch: int
) -> None:
    torch.manual_seed(0)
    # The last two sizes are those of norms in the middle of a generator.
    for shape in [(batch, 5, 6, 7), (batch, 16, 2, 2), (batch, 64, 16, 16)]:
        x = (3 + 2 * torch.randn(shape)).contiguous(memory_format=layout).requires_grad_()
        upstream = torch.randn(shape).contiguous(memory_format=upstream_layout)
        out = InstanceNorm()(x)
        assert out.is_contiguous(memory_format=layout)
        out.backward(upstream)
        exact = x.detach().double().requires_grad_()
        mean = exact.mean((2, 3), keepdim=True)
        variance = exact.var((2, 3), keepdim=True, unbiased=False)
        expected = (exact - mean) / torch.sqrt(variance + 1e-5)
        expected.backward(upstream.double())
        assert x.grad is not None
        assert exact.grad is not None
        # Two by two pixels may lie close together, and the norm divides by their deviation.
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_instance_norm_under_autocast(layout: torch.memory_format) -> None:
    """bf16 in and out; with sums in bf16 the deviation of 1 around 20 would be lost."""
    torch.manual_seed(0)
    x = (20 + torch.randn(2, 4, 32, 32)).bfloat16().contiguous(memory_format=layout)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = InstanceNorm()(x)
    upstream = torch.randn(2, 4, 32, 32).bfloat16()
    out.backward(upstream)
    exact = x.detach().double().requires_grad_()
    expected = F.group_norm(exact, 4, eps=1e-5)
    expected.backward(upstream.double())
    assert out.dtype == torch.bfloat16
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=2e-3)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2**-7, atol=2e-2)


def test_instance_norm_refuses_a_single_pixel() -> None:
    with pytest.raises(ValueError, match="single pixel"):
        InstanceNorm()(torch.zeros(1, 8, 1, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_picture_convolution_equals_torch_s_own(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    ours = PictureConv(5, 3, 7).double()
    torchs = torch.nn.Conv2d(5, 3, 7).double()
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 14, 20, dtype=torch.float64).contiguous(memory_format=layout)
    results = []
    for layer in (ours, torchs):
        y = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = layer(y)
        out.square().sum().backward()
        results.append([out.detach(), y.grad, layer.weight.grad, layer.bias.grad])
    torch.testing.assert_close(*results)


def test_generator_equals_one_of_torch_s_own_layers() -> None:
    ours = ResnetGenerator(2, 8).double()
    initialise(ours)
    x = torch.rand(2, 3, 32, 24, dtype=torch.float64) * 2 - 1

    def norm(y: torch.Tensor) -> torch.Tensor:
        return F.instance_norm(y)

    layers = dict(ours.model.named_children())
    y = norm(layers["1"](F.pad(x, (3,) * 4, "reflect"))).relu()
    y = norm(layers["4"](y)).relu()
    y = norm(layers["7"](y)).relu()
    for name in ("10", "11"):
        block = layers[name].conv_block
        z = norm(block[1](F.pad(y, (1,) * 4, "reflect"))).relu()
        y = y + norm(block[5](F.pad(z, (1,) * 4, "reflect")))
    y = norm(layers["12"](y)).relu()
    y = norm(layers["15"](y)).relu()
    y = torch.tanh(layers["19"](F.pad(y, (3,) * 4, "reflect")))
    torch.testing.assert_close(ours(x), y)


def test_passes_of_both_domains_may_be_merged() -> None:
    network = ResnetGenerator(1, 8)
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    merged = network(torch.cat([a, b])).chunk(2)
    torch.testing.assert_close(merged[0], network(a))
    torch.testing.assert_close(merged[1], network(b))


@pytest.mark.parametrize("downs", [8, 7])
def test_unet_keys_are_the_reference_s(downs: int) -> None:
    """Level by level: its submodule is number 1 outermost, then 3."""
    expected: dict[str, tuple[int, ...]] = {}
    widths = [3, 64, 128, 256, *[512] * (downs - 3)]
    prefix = "model.model"
    for level in range(downs):
        outer, inner = widths[level], widths[level + 1]
        outermost, innermost = level == 0, level == downs - 1
        down, up = (0, 3) if outermost else (1, 3 if innermost else 5)
        joined = inner if innermost else 2 * inner
        for number, shape, out in (
            (down, (inner, outer, 4, 4), inner),
            (up, (joined, outer, 4, 4), outer),
        ):
            expected[f"{prefix}.{number}.weight"] = shape
            expected[f"{prefix}.{number}.bias"] = (out,)
        prefix += ".1.model" if outermost else ".3.model"
    actual = {k: tuple(v.shape) for k, v in UnetGenerator(downs).state_dict().items()}
    assert actual == expected


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("generator", ["resnet", "unet"])
def test_a_residual_generator_begins_at_the_frame_and_adds_to_it(
    generator: str, upsampling: str
) -> None:
    small = {"blocks": 1, "downs": 4, "generator_width": 4, "crop": (64, 64), "residual": True}
    config = CycleGANConfig.model_validate(
        {"generator": generator, "upsampling": upsampling, **small}
    )
    network = build_generator(config)
    initialise(network)
    x = (torch.rand(1, 3, 32, 64) * 2 - 1).requires_grad_()
    assert torch.equal(network(x), x)
    for _ in range(2):  # the first step moves the last convolution alone
        network.zero_grad()
        (network(x) + 1).square().mean().backward()
        with torch.no_grad():
            for weight in network.parameters():
                weight -= 0.1 * (weight.grad if weight.grad is not None else 0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network(x).mean() < x.mean()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 1
    assert network(x).abs().max() <= 1


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("generator", ["resnet", "unet", "encoder_decoder"])
def test_generators_keep_the_size_down_to_the_smallest(generator: str, upsampling: str) -> None:
    config = CycleGANConfig.model_validate(
        {
            "generator": generator,
            "upsampling": upsampling,
            "blocks": 1,
            "downs": 6,
            "generator_width": 4,
            "dropout": True,
            "crop": (128, 128),
        }
    )
    network = build_generator(config)
    initialise(network)
    # A U-Net is a single pixel wide inside; a resnet pads by 3, so 4 is its least, and 4 by 4
    # would leave the norms a single pixel.
    side = network.multiple if generator != "resnet" else 8
    out = network(torch.rand(1, 3, side, 2 * side) * 2 - 1)
    assert out.shape == (1, 3, side, 2 * side)
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    twice = torch.rand(1, 3, 128, 128).repeat(2, 1, 1, 1)
    first, second = network(twice).chunk(2)
    assert (first != second).any()  # by dropout
    first, second = network.eval()(twice).chunk(2)
    torch.testing.assert_close(first, second)


def test_unet_equals_torch_s_own_layers() -> None:
    ours = UnetGenerator(4, 4).double()
    initialise(ours)
    x = torch.rand(2, 3, 32, 48, dtype=torch.float64) * 2 - 1
    weights = {k.replace("model.", ""): v for k, v in ours.state_dict().items()}

    def down(y: torch.Tensor, key: str) -> torch.Tensor:
        return F.conv2d(y, weights[f"{key}.weight"], weights[f"{key}.bias"], 2, 1)

    def up(y: torch.Tensor, key: str) -> torch.Tensor:
        return F.conv_transpose2d(y.relu(), weights[f"{key}.weight"], weights[f"{key}.bias"], 2, 1)

    first = down(x, "0")
    second = F.instance_norm(down(F.leaky_relu(first, 0.2), "1.1"))
    third = F.instance_norm(down(F.leaky_relu(second, 0.2), "1.3.1"))
    fourth = down(F.leaky_relu(third, 0.2), "1.3.3.1")
    y = F.instance_norm(up(fourth, "1.3.3.3"))
    y = F.instance_norm(up(torch.cat([third, y], 1), "1.3.5"))
    y = F.instance_norm(up(torch.cat([second, y], 1), "1.5"))
    y = torch.tanh(up(torch.cat([first, y], 1), "3"))
    torch.testing.assert_close(ours(x), y)


def test_encoder_decoder_is_a_unet_without_skips() -> None:
    network = UnetGenerator(5, 8, skips=False)
    assert parameters(network) < parameters(UnetGenerator(5, 8))
    assert network.state_dict()["model.model.3.weight"].shape == (8, 3, 4, 4)


def test_dropout_moves_the_second_convolution_as_in_the_reference() -> None:
    keys = ResnetGenerator(1, 4, dropout=True).state_dict()
    assert {"model.10.conv_block.1.weight", "model.10.conv_block.6.weight"} <= keys.keys()
    assert "model.10.conv_block.5.weight" not in keys
    plain = sum(isinstance(m, nn.Dropout) for m in UnetGenerator(8).modules())
    dropping = sum(isinstance(m, nn.Dropout) for m in UnetGenerator(8, dropout=True).modules())
    assert (plain, dropping) == (0, 3)


def test_resizing_leaves_no_grid_in_a_constant_picture() -> None:
    torch.manual_seed(0)
    x = torch.ones(1, 8, 6, 6)
    resized = upsample(8, 4, 3, "resize")(x)
    transposed = upsample(8, 4, 3, "transposed")(x)
    assert resized.shape == transposed.shape == (1, 4, 12, 12)
    assert resized.std((2, 3)).max() < 1e-6
    assert transposed[:, :, 2:-2, 2:-2].std((2, 3)).min() > 1e-3


def test_pixel_discriminator_sees_single_pixels() -> None:
    network = PixelDiscriminator(8)
    x = torch.rand(1, 3, 9, 7)
    assert network(x).shape == (1, 1, 9, 7)
    keys = {k for k in network.state_dict() if k.endswith("weight")}
    assert keys == {f"net.{i}.weight" for i in (0, 2, 5)}
    assert parameters(PixelDiscriminator()) == 3 * 64 + 64 + 64 * 128 + 128 + 128 + 1
    torch.testing.assert_close(network(x.flip(3)), network(x).flip(3))


def test_the_pyramid_keeps_a_constant_picture_constant() -> None:
    """Averaging must not count what lies beyond the border as black."""
    seen: list[Tensor] = []

    class Eye(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    PyramidDiscriminator([Eye(), Eye(), Eye()])(torch.full((1, 3, 16, 24), 0.5))
    assert [tuple(x.shape[2:]) for x in seen] == [(16, 24), (8, 12), (4, 6)]
    assert all(torch.equal(x, torch.full_like(x, 0.5)) for x in seen)


def test_discriminators_on_a_pyramid() -> None:
    config = CycleGANConfig(discriminator_scales=3, discriminator_width=4, paired=True)
    network = build_discriminator(config)
    assert isinstance(network, PyramidDiscriminator)
    smallest = minimum_side(3, 3)
    assert [tuple(x.shape[2:]) for x in network(torch.zeros(1, 6, 256, 256))] == [
        *[(30, 30), (14, 14), (6, 6)]
    ]
    assert network(torch.zeros(1, 6, smallest, smallest))[-1].shape[2:] == (1, 1)
    with pytest.raises((RuntimeError, ValueError)):
        network(torch.zeros(1, 6, smallest - 1, smallest - 1))
