"""Translation invariance: blurs every gradient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.oracle import Oracle
from siegebench.threat import NORMS, Norm, ThreatModel
from siegebench.types import Attack, Count, Lesson, WrappingAttack


@cache
def gaussian(side: int) -> Tensor:
    """Normal density at `side` points from -3 to 3 per axis, normalised to sum 1: float64 [side, side]."""
    row = torch.exp(-torch.linspace(-3, 3, side, dtype=torch.float64).square() / 2)
    kernel = row[:, None] * row
    return kernel / kernel.sum()


@dataclass(frozen=True, kw_only=True)
class TI(WrappingAttack):
    """Runs the inner attack on gradients convolved with a Gaussian, which approximates the mean over shifted images.

    Dong, Pang, Su, Zhu, "Evading defenses to transferable adversarial examples by translation-invariant attacks", CVPR
    2019, arXiv 1904.02884. Made for transfer, like `di`; both can be nested, in either order.

    Random: what the inner attack draws. Cost: that of the inner attack.

    Differs from the paper: 7x7 by default, where the paper blurs 299-pixel images with 15x15. Only the blur (the
    torchattacks version also diversifies inputs).

    Attributes:
        attack: the inner attack; it must use gradients.
        side: side of the kernel in pixels, odd; 1 changes nothing.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS
    for_transfer: ClassVar[bool] = True

    attack: Attack
    side: Count = 7

    def __post_init__(self) -> None:
        if self.side % 2 == 0:
            raise ConfigError(f"ti: side is {self.side}; expected an odd number of pixels")

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        return self.attack(oracle.filtered(self.blurred), x, y, threat, draws, lesson)

    def blurred(self, g: Tensor) -> Tensor:
        """Each channel convolved with the kernel; zeros beyond the border."""
        if self.side == 1:
            return g
        channels = g.shape[1]
        kernel = gaussian(self.side).to(g).expand(channels, 1, -1, -1)
        return F.conv2d(g, kernel, padding=self.side // 2, groups=channels)
