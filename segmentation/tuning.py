"""What of an encoder learns: all of it, low-rank updates of its attention, nothing."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """W + BA for a frozen weight W: A and B alone learn (LoRA: Hu et al., ICLR 2022, section 4.1).

    A is drawn as a linear layer's weight is, and B is 0: training starts from W. Alpha is the rank.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """(rows, columns) -> (rows, columns)."""
        return weight + self.b @ self.a


def tune(encoder: nn.Module, tuning: Literal["full", "lora", "frozen"], rank: int) -> None:
    """Freeze an encoder but for what learns.

    With `lora` these are updates of the linear layers of its modules `attn`: queries, keys, values
    and the projection. They are parametrizations, because EVA-02 and DINOv3 read the weight of
    `qkv` and do not call it.

    Raises:
        ValueError: `lora`, and there is no such layer, or it is no larger than the rank.
    """
    if tuning == "full":
        return
    encoder.requires_grad_(False)
    if tuning == "frozen":
        return
    layers = [
        layer
        for name, layer in encoder.named_modules()
        if isinstance(layer, nn.Linear) and name.split(".")[-2:-1] == ["attn"]
    ]
    if not layers:
        raise ValueError("lora is for encoders with attention. Set full or frozen.")
    if rank >= (side := min(min(layer.weight.shape) for layer in layers)):
        raise ValueError(f"lora of rank {rank} saves nothing. Set lora_rank below {side}.")
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
