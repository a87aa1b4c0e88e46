"""Clipping: no image contributes a gradient longer than a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from siegebench.draws import Draws
from siegebench.per_image import Gradients, clipped
from siegebench.types import Positive, Sharing


@dataclass(frozen=True, kw_only=True)
class Clip(Sharing):
    """Release the mean of g_i min(1, C / |g_i|) over the images i: DP-SGD without its noise.

    For a single image, its direction is that of the gradient. Clipping hides nothing, because an attacker can compare
    directions.

    Nothing is random.

    Attributes:
        norm: C, over all parameters together.
    """

    rescales: ClassVar[bool] = True

    norm: Positive = 1.0

    def release(self, per_image: Gradients, draws: Draws) -> Gradients:
        return {name: g.mean(dim=1) for name, g in clipped(per_image, self.norm).items()}
