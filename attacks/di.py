"""Diverse inputs: every gradient is that of a randomly resized and padded image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import NORMS, Norm, ThreatModel
from siegebench.types import Attack, Lesson, Share, WrappingAttack


@dataclass(frozen=True, kw_only=True)
class DI(WrappingAttack):
    """Runs the attack inside on gradients of shrunken images at random places, so that it fits the network less.

    Xie, Zhang, Zhou, Bai, Wang, Ren, Yuille, "Improving transferability of adversarial examples with input diversity",
    CVPR 2019, arXiv 1803.06978. Made for transfer: inside it belongs an attack that goes on after the surrogate fails,
    such as mifgsm.

    Random: at each gradient and for each sample, whether, how far and where the image is shrunk, and what the attack
    inside draws. Cost: that of the attack inside.

    Differs from the paper: the image shrinks and is padded back with black to its own size, where the paper enlarges
    it: any victim takes the size it was made for. Draws are a sample's own, not the batch's. Resampling is bilinear.

    Attributes:
        attack: what runs inside; one that uses gradients.
        p: share of the gradients that see a changed image.
        shrink: smallest side, as a share of the image's.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS

    attack: Attack
    p: Share = 0.5
    shrink: Share = 0.9

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        return self.attack(oracle.seen_through(self.diverse), x, y, threat, draws, lesson)

    def diverse(self, x: Tensor, draws: Draws) -> Tensor:
        """Each image shrunk to a share of its sides at a random place, or as it is."""
        u = draws.uniform((4,), purpose="diverse input").to(x.dtype)
        side = self.shrink + (1 - self.shrink) * u[:, 0]
        place = (1 - side)[:, None] * (2 * u[:, 1:3] - 1)  # of the centre, the image being [-1, 1]
        theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / side
        theta[:, :, 2] = -place / side[:, None]
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        small = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return torch.where(ops.over(u[:, 3] < self.p, x), small, x)
