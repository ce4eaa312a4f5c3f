"""Our forms of two operations against the plain ones, in one process, interleaved.

For each: the median of the paired ratios plain / ours, with minimum and maximum. Above 1 means
that ours is faster. Both forms compute the same function; the script checks that first.

    python benchmarks/training_steps.py [rounds]
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cyclegan.networks import InstanceNorm, ResnetGenerator, initialise

SIZE, BLOCKS, WIDTH = 128, 6, 32


def with_torch_norm(network: nn.Module) -> nn.Module:
    """Replace our norm by nn.InstanceNorm2d, as the reference implementation has it."""
    channels = 0
    for name, child in network.named_children():
        if isinstance(child, InstanceNorm):
            setattr(network, name, nn.InstanceNorm2d(channels))
        elif isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
            channels = child.out_channels
        else:
            with_torch_norm(child)
    return network


def generator(*, plain: bool) -> nn.Module:
    """The same generator in the plain and in our form."""
    torch.manual_seed(0)
    network: nn.Module = ResnetGenerator(BLOCKS, WIDTH)
    initialise(network)
    if plain:
        return with_torch_norm(network)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def separate(network: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Translate one domain and keep the other, in two passes."""
    return torch.cat([network(a), network(b)])


def merged(network: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """The same in one pass."""
    out: Tensor = network(torch.cat([a, b]))
    return out


def seconds(work: Callable[[], Tensor]) -> float:
    """Time of forward and backward."""
    start = time.perf_counter()
    work().abs().mean().backward()
    return time.perf_counter() - start


def compare(name: str, plain: Callable[[], Tensor], ours: Callable[[], Tensor], n: int) -> None:
    """Check equality, warm up, then time both in turn."""
    torch.testing.assert_close(plain(), ours(), rtol=1e-3, atol=1e-3)
    for work in (plain, ours):
        seconds(work)
    ratios = [seconds(plain) / seconds(ours) for _ in range(n)]
    print(
        f"{name}: {statistics.median(ratios):.2f}x "
        f"(min {min(ratios):.2f}, max {max(ratios):.2f}, {n} rounds)"
    )


def main(rounds: int) -> None:
    """Compare, and say on what."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, {SIZE}x{SIZE}")
    reference, own = generator(plain=True), generator(plain=False)
    a, b = torch.rand(2, 1, 3, SIZE, SIZE) * 2 - 1
    compare("norm and memory layout", lambda: reference(a), lambda: own(a), rounds)
    compare(
        "both, and merged passes",
        lambda: separate(reference, a, b),
        lambda: merged(own, a, b),
        rounds,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
