"""Images to poison and streams for their triggers."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.draws import Draws


def random_set(n: int = 200, size: int = 16) -> ImageSet:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % 5, 1000 + 7 * torch.arange(n), 5, "random")


def constant(value: float, n: int = 2, size: int = 32) -> Tensor:
    return torch.full((n, 3, size, size), value)


def draws(x: Tensor) -> Draws:
    return Draws(0, torch.arange(len(x)))
