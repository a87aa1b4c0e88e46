"""Blended: a faint image of full size, added to every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import BackdoorAttack, Count, Share


@dataclass(frozen=True, kw_only=True)
class Blended(BackdoorAttack):
    """x' = (1 - alpha) x + alpha t with an image t of the full size (Chen, Liu, Li, Lu, Song 2017).

    t is uniform noise drawn once from `pattern_seed`. It is the same for every image, every evaluation seed and every
    size.

    Attributes:
        alpha: weight of t, the same in training and at test time.
        pattern_seed: of t.
        grid: t is drawn as grid x grid colours and resized to the image (nearest neighbour).

    Differs from the paper: random noise instead of a photograph or a cartoon character.
    """

    alpha: Share = 0.2
    pattern_seed: int = 0
    grid: Count = 32

    def pattern(self, height: int, width: int, channels: int = 3) -> Tensor:
        """t, [1, channels, height, width]."""
        noise = Draws(self.pattern_seed, torch.zeros(1, dtype=torch.long)).uniform(
            (channels, self.grid, self.grid), purpose="blended"
        )
        return F.interpolate(noise, (height, width), mode="nearest")

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        t = self.pattern(x.shape[-2], x.shape[-1], x.shape[1]).to(x)
        return ((1 - self.alpha) * x + self.alpha * t).clamp(0, 1)
