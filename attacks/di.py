"""Diverse inputs: gradients of randomly resized and padded images."""

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
    """Runs the inner attack on gradients of randomly shrunken and padded images, to overfit the surrogate less.

    Xie, Zhang, Zhou, Bai, Wang, Ren, Yuille, "Improving transferability of adversarial examples with input diversity",
    CVPR 2019, arXiv 1803.06978. Made for transfer: use an inner attack that continues after the surrogate
    misclassifies, such as mifgsm.

    Random: for each gradient and sample, whether the image is shrunk, by how much and its position; and what the inner
    attack draws. Cost: that of the inner attack.

    Differs from the paper: the image is shrunk and padded with black to its original size, where the paper enlarges it,
    because every victim takes images of a fixed size. Draws are per sample, not per batch. Resampling is bilinear.

    Attributes:
        attack: the inner attack; it must use gradients.
        p: probability that a gradient is taken at a changed image.
        shrink: smallest side, as a fraction of the image's.
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
        """Each image shrunk by a random factor and put at a random position, or unchanged."""
        u = draws.uniform((4,), purpose="diverse input").to(x.dtype)
        side = self.shrink + (1 - self.shrink) * u[:, 0]
        centre = (1 - side)[:, None] * (2 * u[:, 1:3] - 1)  # in coordinates where the image is [-1, 1]
        theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / side
        theta[:, :, 2] = -centre / side[:, None]
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        small = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return torch.where(ops.over(u[:, 3] < self.p, x), small, x)
