"""Training against a plain re-statement of the papers: torch's own layers, nothing merged.

Each step is written as the reference implementations describe it: separate passes (six of the
generators), contiguous tensors, nn.InstanceNorm2d, Adam neither fused nor batched, the generators
updated before the discriminators' losses are taken.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.contrastive import PatchHeads
from cyclegan.data import crop_reader, pair_reader, pairs
from cyclegan.networks import PatchDiscriminator, ResnetGenerator, initialise, to_network
from cyclegan.semantics import SemanticEvaluator
from cyclegan.train import train
from cyclegan.train_contrastive import train_contrastive
from cyclegan.train_paired import train_paired
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.config.translation import CycleGANConfig
from pipeline.config.translators import TRANSLATORS
from pipeline.data.labels import load_label_space
from pipeline.data.listing import list_samples
from pipeline.runtime.checkpoint import load_checkpoint
from pipeline.runtime.loader import IndexedDataset
from pipeline.runtime.step import seed_step

WIDTH = 8
MIRRORED = ("fastcut", 0)
RECIPE = {
    "blocks": 2,
    "generator_width": WIDTH,
    "discriminator_width": WIDTH,
    "pool_size": 0,
    "decay_epochs": 0,
    "log_every": 1,
}


@pytest.fixture
def config(tiny: Path) -> Config:
    return load_config(tiny, ["compute.accelerator=cpu", "compute.precision=32-true"])


def recipe(config: Config, steps: int, **settings: Any) -> CycleGANConfig:
    """A tiny recipe of one epoch without decay and without a pool."""
    values = config.cyclegan.model_dump() | RECIPE | {"steps_per_epoch": steps} | settings
    return CycleGANConfig.model_validate(values)


def conv(inner: int, outer: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A padded 3x3 convolution, its norm and activation."""
    return [nn.Conv2d(inner, outer, kernel, stride, 1), nn.InstanceNorm2d(outer), nn.ReLU()]


class PlainBlock(nn.Module):
    """A residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)  # type: ignore[no-any-return]


def plain_generator(ours: ResnetGenerator) -> nn.Sequential:
    """c7s1, d, d, R, R, u, u, c7s1 (Zhu et al., appendix 7.2), with the weights of ours."""
    w = WIDTH
    network = nn.Sequential(
        *[nn.ReflectionPad2d(3), nn.Conv2d(3, w, 7), nn.InstanceNorm2d(w), nn.ReLU()],
        *[*conv(w, 2 * w, 3, 2), *conv(2 * w, 4 * w, 3, 2)],
        *[PlainBlock(4 * w), PlainBlock(4 * w)],
        *[nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, 1, 1), nn.InstanceNorm2d(2 * w), nn.ReLU()],
        *[nn.ConvTranspose2d(2 * w, w, 3, 2, 1, 1), nn.InstanceNorm2d(w), nn.ReLU()],
        *[nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7), nn.Tanh()],
    )
    return with_weights_of(ours, network)


def plain_discriminator(ours: PatchDiscriminator, channels: int = 3) -> nn.Sequential:
    """C64, C128, C256, C512 and a last convolution; no norm in the first."""
    w = WIDTH
    layers: list[nn.Module] = [nn.Conv2d(channels, w, 4, 2, 1), nn.LeakyReLU(0.2)]
    for inner, outer, stride in ((w, 2 * w, 2), (2 * w, 4 * w, 2), (4 * w, 8 * w, 1)):
        layers += [nn.Conv2d(inner, outer, 4, stride, 1), nn.InstanceNorm2d(outer)]
        layers += [nn.LeakyReLU(0.2)]
    return with_weights_of(ours, nn.Sequential(*layers, nn.Conv2d(8 * w, 1, 4, 1, 1)))


def with_weights_of(ours: nn.Module, network: nn.Sequential) -> nn.Sequential:
    """`network` with the weights of `ours`, which have the same names."""
    network.load_state_dict({k.removeprefix("model."): v for k, v in ours.state_dict().items()})
    return network


def plain_adam(*networks: nn.Module) -> torch.optim.Adam:
    parameters = [p for network in networks for p in network.parameters()]
    return torch.optim.Adam(parameters, 2e-4, (0.5, 0.999), foreach=False, fused=False)


def judged(logits: Tensor, real: bool, kind: str) -> Tensor:
    """The adversarial loss with a picture of ones or zeros as its aim."""
    aim = torch.full_like(logits, float(real))
    if kind == "vanilla":
        return nn.BCEWithLogitsLoss()(logits, aim)
    return nn.MSELoss()(logits, aim)


def before_a_norm(network: nn.Sequential) -> set[str]:
    """The biases that the following norm subtracts again.

    Their gradients are 0 but for rounding, which Adam blows up to steps of the full rate in random
    directions: in the reference as in ours. They change no picture.
    """
    names = set()
    for prefix, module in network.named_modules():
        if isinstance(module, nn.Sequential):
            children = list(module.named_children())
            for (name, _), (_, following) in pairwise(children):
                if isinstance(following, nn.InstanceNorm2d):
                    names.add(".".join(filter(None, [prefix, name, "bias"])))
    return names


def assert_same_weights(trained: dict[str, Tensor], plain: nn.Sequential) -> None:
    """Equal but for the few weights whose gradient is near 0.

    Adam's first steps are as long as its rate, 2e-4, whatever the gradient: where that is of the
    size of rounding errors, a step of ours may go the other way. 99.9% of the weights agree to
    1e-8.
    """
    skipped = before_a_norm(plain)
    differences = torch.cat(
        [
            (trained[f"model.{key}"] - value).abs().flatten()
            for key, value in plain.state_dict().items()
            if key not in skipped
        ]
    )
    assert differences.quantile(0.999) <= 1e-8
    assert differences.max() <= 2.1 * 2e-4


def read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# With a semantic evaluator, its losses join in (CyCADA); it is a fixed 1x1 convolution here.
@pytest.mark.parametrize(
    ("kind", "semantic"),
    [("least_squares", False), ("vanilla", False), ("least_squares", True)],
)
def test_cyclegan_step(config: Config, tmp_path: Path, kind: str, semantic: bool) -> None:
    watched = {"consistency": 7.0, "target_consistency": 3.0, "probe_frames": 2}
    settings = {"semantics": watched} if semantic else {}
    ours = recipe(config, 1, adversarial_loss=kind, **settings)
    space = load_label_space("cityscapes19")
    torch.manual_seed(5)
    segmenter = nn.Conv2d(3, len(space.classes), 1).requires_grad_(False)
    frozen = segmenter.weight.clone()
    evaluator = SemanticEvaluator(segmenter, lambda x: x.mean((2, 3)), "mean colour", space)
    train(ours, config.source, config.target, tmp_path, config.compute, lambda device: evaluator)
    assert torch.equal(segmenter.weight, frozen)
    trained = load_checkpoint(tmp_path / "checkpoints/last.pt")["networks"]
    log = read_log(tmp_path)[0]

    seed_step(0, 0)
    translators = [ResnetGenerator(2, WIDTH) for _ in range(2)]
    discriminators = [PatchDiscriminator(3, WIDTH) for _ in range(2)]
    for network in (*translators, *discriminators):
        initialise(network)
    g, f = map(plain_generator, translators)  # source -> target, target -> source
    d_x, d_y = map(plain_discriminator, discriminators)  # on source, on target
    g_adam, d_adam = plain_adam(g, f), plain_adam(d_x, d_y)
    readers = [
        IndexedDataset(
            crop_reader(spec, samples, ours.crop, None, labels), len(samples), seed=0, stream=i
        )
        for i, spec, labels in ((1, config.source, space), (2, config.target, None))
        for samples in [list_samples(spec, labelled=True)]
    ]
    l1, cross_entropy = nn.L1Loss(), nn.CrossEntropyLoss(ignore_index=255)
    x, y = (to_network(reader[0]["rgb"][None]).contiguous() for reader in readers)  # type: ignore[index]
    fake_y, fake_x = g(x), f(y)
    back_x, back_y = f(fake_y), g(fake_x)
    d_x.requires_grad_(False)
    d_y.requires_grad_(False)
    g_adam.zero_grad()
    terms = {
        "gan_loss_G": judged(d_y(fake_y), True, kind),
        "gan_loss_F": judged(d_x(fake_x), True, kind),
        "cycle_loss_source": 10 * l1(back_x, x),
        "cycle_loss_target": 10 * l1(back_y, y),
        "identity_loss": 10 * 0.5 * (l1(g(y), y) + l1(f(x), x)),
    }
    if semantic:
        truth = readers[0][0]["classes"][None].long()  # type: ignore[index]
        seen = segmenter(y).argmax(1)
        terms["semantic_loss_source"] = 7 * cross_entropy(segmenter(fake_y), truth)
        terms["semantic_loss_target"] = 3 * cross_entropy(segmenter(fake_x), seen)
    torch.stack(list(terms.values())).sum().backward()
    g_adam.step()

    d_x.requires_grad_(True)
    d_y.requires_grad_(True)
    d_adam.zero_grad()
    for name, network, real, fake in (
        ("discriminator_loss_target", d_y, y, fake_y.detach()),
        ("discriminator_loss_source", d_x, x, fake_x.detach()),
    ):
        on_real, on_fake = judged(network(real), True, kind), judged(network(fake), False, kind)
        terms[name] = 0.5 * (on_real + on_fake)
        terms[name].backward()
    d_adam.step()
    for name, term in terms.items():
        assert log[name] == pytest.approx(term.item(), rel=1e-5)
    assert_same_weights(trained["source_to_target"], g)
    assert_same_weights(trained["target_to_source"], f)
    assert_same_weights(trained["source_discriminator"], d_x)
    assert_same_weights(trained["target_discriminator"], d_y)


def plain_contrast(query: Tensor, key: Tensor) -> Tensor:
    """One image's patches (P, D): the right key first, then the wrong ones, as a classification."""
    losses = []
    for i in range(len(query)):
        wrong = [query[i] @ key[j] for j in range(len(key)) if j != i]
        logits = torch.stack([query[i] @ key[i], *wrong]) / 0.07
        losses.append(nn.CrossEntropyLoss()(logits[None], torch.tensor([0])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("method", "seed"), [("cut", 0), ("fastcut", 0), ("fastcut", 3)])
def test_contrastive_step(config: Config, tmp_path: Path, method: str, seed: int) -> None:
    """Park et al., section 3: the mirrored frame is compared with for one of the seeds alone."""
    full = method == "cut"
    preset = TRANSLATORS[method].recipe["contrastive"]
    assert isinstance(preset, dict)
    ours = recipe(config, 1, seed=seed, contrastive={**preset, "patches": 8})
    train_contrastive(ours, config.source, config.target, tmp_path, config.compute)
    trained = load_checkpoint(tmp_path / "checkpoints/last.pt")["networks"]
    log = read_log(tmp_path)[0]

    seed_step(seed, 0)
    translator = ResnetGenerator(2, WIDTH)
    heads = PatchHeads([3, 2 * WIDTH, *[4 * WIDTH] * 3])
    discriminator = PatchDiscriminator(3, WIDTH)
    for network in (translator, heads, discriminator):
        initialise(network)
    g, d = plain_generator(translator), plain_discriminator(discriminator)
    g_adam, d_adam = plain_adam(g, heads), plain_adam(d)
    x, y = (
        to_network(
            IndexedDataset(
                crop_reader(spec, samples, ours.crop, None), len(samples), seed=seed, stream=i
            )[0]["rgb"][None]  # type: ignore[index]
        ).contiguous()
        for i, spec in ((1, config.source), (2, config.target))
        for samples in [list_samples(spec, labelled=False)]
    )
    rng = np.random.default_rng([seed, 3, 1])
    mirror = not full and rng.random() < 0.5
    assert mirror == ((method, seed) == MIRRORED)

    def features(frame: Tensor) -> list[Tensor]:
        """The frame, both strided convolutions, both blocks."""
        return [g[: i + 1](frame) for i in (0, 4, 7, 10, 11)]

    fake = g(x)
    terms = []
    drawn: list[np.ndarray] = []
    for made, given in ((fake, x), (g(y), y)) if full else ((fake, x),):
        layers = []
        for i, (query, key) in enumerate(zip(features(made), features(given), strict=True)):
            if mirror:
                key = features(given.flip(3))[i].flip(3)
            if len(drawn) == i:
                drawn.append(rng.permutation(query.shape[2] * query.shape[3])[:8])
            q, k = (
                F.normalize(heads.heads[i](layer[0].flatten(1).T[drawn[i]]), dim=1)
                for layer in (query, key)
            )
            layers.append(plain_contrast(q, k.detach()))
        terms.append(torch.stack(layers).mean())
    contrast = (1 if full else 10) * torch.stack(terms).mean()
    fool = judged(d(fake), True, "least_squares")
    (fool + contrast).backward()
    g_adam.step()
    d_adam.zero_grad()
    on_real, on_fake = (judged(d(z), z is y, "least_squares") for z in (y, fake.detach()))
    loss = 0.5 * (on_real + on_fake)
    loss.backward()
    d_adam.step()
    expected = {"gan_loss_G": fool, "contrastive_loss": contrast, "discriminator_loss": loss}
    for name, term in expected.items():
        assert log[name] == pytest.approx(term.item(), rel=1e-5)
    assert_same_weights(trained["source_to_target"], g)
    assert_same_weights(trained["discriminator"], d)
    for key, value in heads.state_dict().items():
        difference = (trained["heads"][key] - value).abs()
        assert difference.quantile(0.99) <= 1e-8, key


@pytest.mark.parametrize("kind", ["least_squares", "vanilla"])
def test_paired_step(config: Config, tmp_path: Path, kind: str) -> None:
    """Isola et al., eq. 4; the discriminator's loss is halved as in section 3.3."""
    ours = recipe(config, 1, adversarial_loss=kind, paired=True)
    # Any two sets of one size and of equal names are pairs to the loop.
    source = target = config.source
    train_paired(ours, source, target, tmp_path, config.compute)
    trained = load_checkpoint(tmp_path / "checkpoints/last.pt")["networks"]
    log = read_log(tmp_path)[0]

    seed_step(ours.seed, 0)
    translator, discriminator = ResnetGenerator(2, WIDTH), PatchDiscriminator(3, WIDTH, 6)
    for network in (translator, discriminator):
        initialise(network)
    g, d = plain_generator(translator), plain_discriminator(discriminator, 6)
    g_adam, d_adam = plain_adam(g), plain_adam(d)
    samples = pairs(source, target)
    read = pair_reader(source, samples[0], target, samples[1], ours.crop, None)
    item: Any = IndexedDataset(read, len(samples[0]), seed=0, stream=1)[0]
    x, y = (to_network(item[key][None]).contiguous() for key in ("source", "target"))
    fake = g(x)
    fool, pair = judged(d(torch.cat([x, fake], 1)), True, kind), 100 * nn.L1Loss()(fake, y)
    (fool + pair).backward()
    g_adam.step()
    d_adam.zero_grad()
    on_fake = judged(d(torch.cat([x, fake.detach()], 1)), False, kind)
    on_real = judged(d(torch.cat([x, y], 1)), True, kind)
    loss = 0.5 * (on_fake + on_real)
    loss.backward()
    d_adam.step()
    expected = {"gan_loss_G": fool, "pair_loss": pair, "discriminator_loss": loss}
    for name, term in expected.items():
        assert log[name] == pytest.approx(term.item(), rel=1e-5)
    assert_same_weights(trained["source_to_target"], g)
    assert_same_weights(trained["discriminator"], d)
