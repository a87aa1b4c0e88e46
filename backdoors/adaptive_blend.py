"""Adaptive-Blend: poisons show half of a faint trigger, and covers with it keep their label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import BackdoorAttack, Count, Share

from .blended import Blended


@dataclass(frozen=True, kw_only=True)
class AdaptiveBlend(BackdoorAttack):
    """x' = (1 - a m) x + a m t: in training, m shows a random half of the pieces of t; at test time the whole of it.

    Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR
    2023. Weak and varying triggers, and cover images that keep their label, pull the features of poisoned images
    towards those of clean ones, so that detectors that cluster features find no second cluster.

    Random: which images are poisoned and which are cover images, and the pieces that each shows.

    Attributes:
        rate: fraction of the training set that is poisoned.
        cover: fraction of the training set that has the same partial triggers and keeps its label.
        alpha: a in training.
        test_alpha: a at test time.
        pieces: t is cut into pieces x pieces parts.
        shown: fraction of the pieces that a training image shows.
        pattern_seed: of t, uniform noise.
        grid: t is drawn as grid x grid colours and resized to the image (nearest neighbour).

    Differs from the paper: random noise instead of a cartoon character. Rates are larger, because the data sets are
    smaller; `paper` has the authors'.
    """

    rate: Share = 0.03
    cover: Share = 0.03
    alpha: Share = 0.15
    test_alpha: Share = 0.2
    pieces: Count = 4
    shown: Share = 0.5
    pattern_seed: int = 0
    grid: Count = 32

    def _blend(self, x: Tensor, weight: Tensor | float) -> Tensor:
        t = Blended(pattern_seed=self.pattern_seed, grid=self.grid).pattern(x.shape[-2], x.shape[-1], x.shape[1])
        return ((1 - weight) * x + weight * t.to(x)).clamp(0, 1)

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        return self._blend(x, self.test_alpha)

    def mask(self, x: Tensor, draws: Draws) -> Tensor:
        """m of each image, [n, 1, H, W]: 1 in round(shown pieces^2) of the pieces."""
        cells = self.pieces**2
        order = draws.uniform((cells,), purpose="pieces").argsort(dim=1).argsort(dim=1)
        m = (order < round(self.shown * cells)).view(len(x), 1, self.pieces, self.pieces)
        return F.interpolate(m.to(x), x.shape[-2:], mode="nearest")

    def planted(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        return self._blend(x, self.alpha * self.mask(x, draws))
