"""Selects the published constants for an image by its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")
SMALL, LARGE = 64, 224  # pixels: the constants for CIFAR-10 apply up to SMALL; those for ImageNet are meant for LARGE


def constants(x: Tensor, severity: int, large: Sequence[T], small: Sequence[T]) -> tuple[T, float]:
    """The constants of a severity, and the factor for those among them that are lengths in pixels.

    The factor is 1 for images whose smaller side is at most 64 pixels, else that side / 224.

    Args:
        x: images [n, 3, H, W].
        severity: 1 to 5.
        large: one value per severity, published for 224 pixels (ImageNet-C).
        small: one value per severity, published for 32 pixels (CIFAR-10-C).
    """
    side = min(x.shape[-2:])
    return (small[severity - 1], 1.0) if side <= SMALL else (large[severity - 1], side / LARGE)
