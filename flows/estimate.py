"""What a run will take on this machine: time and disk by stage, from one measured pass each."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cyclegan.networks import build_discriminator, build_generator
from pipeline.config import Config
from pipeline.datasets import list_samples, read_frame
from pipeline.images import write_image
from pipeline.labels import load_label_space
from pipeline.training import make_fabric
from segmentation.models import build_model

_FLOAT = 4


@dataclass(frozen=True)
class Estimate:
    """One kind of stage of a run, all arms and seeds together."""

    command: str
    seconds: float
    bytes: int


def estimate(config: Config) -> list[Estimate]:
    """Time and disk of the stages that compute, from passes of random pixels timed here and now.

    Good to a factor of about two: reading files, logs, pictures and evaluation's resampling are not
    counted, and a busy machine times long.
    """
    fabric = make_fabric(config.compute, training=True)
    device = fabric.device
    trainings = len(config.seeds) * len(config.arms)
    classes = len(load_label_space(config.label_space).classes)

    def picture(batch: int, width: int, height: int) -> Tensor:
        return torch.rand(batch, 3, height, width, device=device) * 2 - 1

    def passes(network: nn.Module, x: Tensor) -> tuple[float, float]:
        """Seconds of a forward pass, and of one with its backward pass."""
        network.to(device)

        def forward() -> Tensor:
            with fabric.autocast():
                out: Tensor | list[Tensor] = network(x)
            return out[0] if isinstance(out, list) else out

        with torch.inference_mode():
            alone = _seconds(forward, device)

        def there_and_back() -> None:
            torch.autograd.backward(forward().float().mean())

        return alone, _seconds(there_and_back, device)

    result = []
    target = read_frame(config.test, list_samples(config.test, labelled=False)[0])
    if "translated" in config.arms.values():
        cyclegan = config.cyclegan
        samples = list_samples(config.source, labelled=False)
        others = len(list_samples(config.target, labelled=False))
        generator, critic = build_generator(cyclegan), build_discriminator(cyclegan)
        crop = picture(cyclegan.batch_size, *cyclegan.crop)
        _, with_generator = passes(generator, crop)
        _, with_critic = passes(critic, crop if not cyclegan.paired else torch.cat([crop, crop], 1))
        epoch = cyclegan.steps_per_epoch or -(-max(len(samples), others) // cyclegan.batch_size)
        steps = epoch * (cyclegan.epochs + cyclegan.decay_epochs)
        # A pass for each of: translation, way back, and picture that is to stay as it is.
        through = 3 if cyclegan.identity_weight > 0 else 2
        domains = 1 if cyclegan.paired else 2
        step = domains * ((1 if cyclegan.paired else through) * with_generator + 3 * with_critic)
        weights = sum(_weights(network) for network in (generator, critic))
        kept = domains * cyclegan.pool_size * 3 * cyclegan.crop[0] * cyclegan.crop[1]
        result.append(
            Estimate("train-cyclegan", steps * step, (3 * domains * weights + kept) * _FLOAT)
        )

        frame = read_frame(config.source, samples[0])
        multiple = 2 ** max(2, cyclegan.downs if cyclegan.generator != "resnet" else 2)
        height, width = (side + -side % multiple for side in frame.shape[:2])
        alone, _ = passes(generator, picture(1, width, height))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "frame.png"
            start = time.perf_counter()
            write_image(path, frame)
            writing, size = time.perf_counter() - start, path.stat().st_size
        seconds = len(samples) * (config.translation.shifts * alone + writing)
        result.append(Estimate("translate", seconds, len(samples) * size))

    recipe = config.segmentation
    model = build_model(recipe, classes, pretrained=False)

    def pixels(batch: int, width: int, height: int) -> Tensor:
        return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, device=device)

    _, step = passes(model.train(), pixels(recipe.batch_size, *recipe.crop))
    result.append(
        Estimate(
            "train-segmentation",
            trainings * recipe.steps * step,
            trainings * 3 * _weights(model) * _FLOAT,
        )
    )
    alone, _ = passes(model.eval(), pixels(1, target.shape[1], target.shape[0]))
    frames = len(list_samples(config.test, labelled=False))
    result.append(Estimate("evaluate", trainings * frames * alone, 0))
    return result


def _weights(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time of the second call; the first one warms up."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
