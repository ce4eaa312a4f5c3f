"""The pool of translated images that the discriminators learn from."""

import numpy as np
import torch
from torch import Tensor


class ImagePool:
    """A history of translated images (Shrivastava et al., CVPR 2017, section 2.3).

    While the pool fills, each image is stored and returned. Then, with probability 1/2, an image
    is exchanged for a random older one; otherwise it is returned and not stored.

    Args:
        size: images kept; 0 returns every batch as it is.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, batch: Tensor, rng: np.random.Generator) -> Tensor:
        """Exchange a batch (N, C, H, W), image by image; the result carries no gradient."""
        batch = batch.detach()
        if self.size == 0:
            return batch
        chosen = []
        for image in batch:
            if len(self.images) < self.size:
                self.images.append(image.clone())
                chosen.append(image)
            elif rng.random() > 0.5:
                position = int(rng.integers(self.size))
                chosen.append(self.images[position])
                self.images[position] = image.clone()
            else:
                chosen.append(image)
        return torch.stack(chosen).contiguous(memory_format=torch.channels_last)
