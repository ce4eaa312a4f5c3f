"""Losses: against plain sums over pixels, against the library, of void, of parts of a batch."""

from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from lightning_fabric import Fabric
from torch import Tensor

from pipeline.data.labels import IGNORE, load_label_space
from pipeline.errors import UserError
from pipeline.runtime.distributed import Ranks
from pipeline.runtime.step import backward
from segmentation.losses import balanced_weights, class_weights, cross_entropy, dice
from tests.ranks import in_ranks

WEIGHTS = torch.tensor([1.0, 0.2, 3.0, 0.0])


def batch(images: int = 4) -> tuple[Tensor, Tensor]:
    """Logits of 4 classes and labels of 0 to 2, a third of them void; one image is nothing else."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, 4, 5, 6, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (images, 5, 6), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 1 / 3] = IGNORE
    label[1] = IGNORE
    return logits.requires_grad_(), label


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("hard_pixels", [1.0, 0.3])
def test_cross_entropy_is_a_weighted_mean_of_chosen_pixels(
    weights: Tensor | None, hard_pixels: float
) -> None:
    logits, label = batch()
    log_probabilities = logits.log_softmax(1)
    total, size = torch.tensor(0.0, dtype=torch.float64), 0.0
    for image in range(len(label)):
        losses = []
        for y, x in (label[image] != IGNORE).nonzero().tolist():
            index = int(label[image, y, x])
            weight = 1.0 if weights is None else float(weights[index])
            losses.append((-weight * log_probabilities[image, index, y, x], weight))
        losses.sort(key=lambda pair: -pair[0].item())
        for loss, weight in losses[: -int(-hard_pixels * len(losses) // 1)]:
            total, size = total + loss, size + weight
    loss = cross_entropy(logits, label, weights=weights, hard_pixels=hard_pixels)
    torch.testing.assert_close(loss, total / size)
    (expected,) = torch.autograd.grad(total / size, logits)
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, expected)


def test_equal_weights_and_all_pixels_are_the_plain_mean() -> None:
    logits, label = batch()
    plain = cross_entropy(logits, label)
    torch.testing.assert_close(
        plain, torch.nn.functional.cross_entropy(logits, label, ignore_index=IGNORE)
    )
    torch.testing.assert_close(cross_entropy(logits, label, weights=torch.ones(4)), plain)
    assert cross_entropy(logits, label, hard_pixels=0.25) > 1.5 * plain


def test_dice_is_the_library_s() -> None:
    logits, label = batch()
    theirs = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE)(logits, label)
    ours = dice(logits, label)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (ours, theirs)))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("hard_pixels", [1.0, 0.3])
def test_nothing_but_void_teaches_nothing(weights: Tensor | None, hard_pixels: float) -> None:
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    label = torch.full((2, 3, 3), IGNORE)
    loss = cross_entropy(logits, label, weights=weights, hard_pixels=hard_pixels)
    loss = loss + dice(logits, label)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_a_class_that_weighs_nothing_alone_teaches_nothing() -> None:
    logits, label = torch.randn(1, 4, 2, 2), torch.full((1, 2, 2), 3)
    assert cross_entropy(logits, label, weights=WEIGHTS) == 0


def test_class_weights_by_name() -> None:
    space = load_label_space("camvid11")

    def weigh(weights: dict[str, float]) -> Tensor | None:
        return class_weights(weights, space)

    assert weigh({}) is None
    found = weigh({"pole": 2.5, space.class_names[0]: 0})
    assert found is not None
    expected = dict.fromkeys(space.class_names, 1.0) | {"pole": 2.5, space.class_names[0]: 0}
    assert dict(zip(space.class_names, found.tolist(), strict=True)) == expected
    with pytest.raises(UserError, match=r"camvid11 has no class 'poles'. Did you mean 'pole'"):
        weigh({"poles": 2})


def test_balanced_weights_are_inverse_to_the_share_of_a_class() -> None:
    one = np.array([[600, 100, 0, 0], [200, 100, 0, 0]])  # 80%, 20%
    assert balanced_weights([one], [7]).tolist() == pytest.approx([0.625, 2.5, 1, 1])
    # As scikit-learn has it: pixels / (classes that are there * pixels of the class).
    assert balanced_weights([one], [7])[0] == 1000 / (2 * 800)
    # A small data set that makes half of the draws: 40% + 5%, 10%, 45%.
    other = np.array([[1, 0, 9, 0]])
    expected = [1 / (3 * 0.45), 1 / (3 * 0.1), 1 / (3 * 0.45), 1]
    assert balanced_weights([one, other], [2, 2]).tolist() == pytest.approx(expected)
    nothing = np.zeros((1, 4), np.int64)
    assert balanced_weights([nothing], [1]).tolist() == [1, 1, 1, 1]


def in_shards(folder: Path, ranks: Ranks) -> None:
    for settings in ({}, {"weights": WEIGHTS}, {"hard_pixels": 0.3}):
        for loss in (lambda x, y, t: cross_entropy(x, y, ranks=t, **settings), dice):  # noqa: B023
            logits, label = batch()
            part = logits.detach().chunk(ranks.world_size)[ranks.rank].requires_grad_()
            mine = loss(part, ranks.shard(label), ranks)
            mine.backward()
            whole = loss(logits, label, Ranks())
            whole.backward()
            torch.testing.assert_close(ranks.all_gather(mine[None]).mean(), whole.detach())
            assert part.grad is not None
            torch.testing.assert_close(ranks.all_gather(part.grad) / ranks.world_size, logits.grad)
    (folder / str(ranks.rank)).touch()


def test_shards_of_a_batch_make_the_loss_of_the_whole(tmp_path: Path) -> None:
    in_ranks(2, in_shards, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1"}


def test_the_sum_of_all_losses_is_trained() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    values = backward(Fabric(accelerator="cpu", devices=1), {"one": 3 * x, "other": x.square()})
    assert x.grad is not None
    assert x.grad.item() == 3 + 2 * 2
    assert {name: value.item() for name, value in values.items()} == {"one": 6, "other": 4}
    assert not any(value.requires_grad for value in values.values())
