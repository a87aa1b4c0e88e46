"""ContrastScale: lower or higher contrast around middle grey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.ops import over
from siegebench.types import Corruption


@dataclass(frozen=True, kw_only=True)
class ContrastScale(Corruption):
    """x' = clip(c (x - 1/2) + 1/2), c = 1 - 0.16 s or 1 + 0.16 s at severity s, whatever the size of the image.

    That is c = 0.84, 0.68, 0.52, 0.36, 0.2 for lower and 1.16, 1.32, 1.48, 1.64, 1.8 for higher contrast. Based on the
    test sweeps of Fioresi, Petkovic, "A precortical module for robust CNNs to light variations", 2022, arXiv
    2202.07432. Random: lower or higher, drawn for each image, unless `direction` fixes it. Cost: one pass over the
    pixels.

    Differs from the paper: scales around middle grey and clips the result to [0, 1], for photographs. The paper divides
    by a factor from 0.1 to 4 around the mean of the image and does not clip.

    Attributes:
        direction: `either` draws it for each image, `lower` and `higher` fix it.
    """

    group: ClassVar[str] = "light"

    direction: Literal["either", "lower", "higher"] = "either"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        sign = draws.sign(purpose="direction").to(x.dtype)
        if self.direction != "either":
            sign = torch.full_like(sign, 1 if self.direction == "higher" else -1)
        c = 1 + 0.16 * severity * over(sign, x)
        return (c * (x - 0.5) + 0.5).clamp(0, 1)
