"""LightShift: adds or subtracts the same amount everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.ops import over
from siegebench.types import Corruption


@dataclass(frozen=True, kw_only=True)
class LightShift(Corruption):
    """x' = clip(x + b), |b| = 0.1, 0.2, 0.3, 0.4, 0.5 at severities 1 to 5, whatever the size of the image.

    Based on the test sweeps of Fioresi, Petkovic, "A precortical module for robust CNNs to light variations", 2022,
    arXiv 2202.07432. Random: the sign of b, drawn for each image, unless `direction` fixes it. Cost: one pass over the
    pixels.

    Differs from the paper: b is within [-0.5, 0.5] and the result is clipped to [0, 1], for photographs. The paper
    sweeps b over [-2, 2] on normalised images and does not clip.

    Attributes:
        direction: `either` draws the sign for each image, `brighter` and `darker` fix it.
    """

    group: ClassVar[str] = "light"

    direction: Literal["either", "brighter", "darker"] = "either"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        sign = draws.sign(purpose="direction").to(x.dtype)
        if self.direction != "either":
            sign = torch.full_like(sign, 1 if self.direction == "brighter" else -1)
        return (x + severity / 10 * over(sign, x)).clamp(0, 1)
