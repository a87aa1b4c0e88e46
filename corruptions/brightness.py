"""Brightness: more daylight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class Brightness(Corruption):
    """The value V of each pixel in HSV becomes V' = min(V + c, 1); hue and saturation stay.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    V is the largest of the three channels, and scaling a colour changes only V: x' = x V'/V, and grey V' where V = 0.
    Nothing is random. Cost: one pass over the pixels.

    Differs from the paper: values are not truncated to 8 bits, which darkens by half a grey level on average.
    """

    group: ClassVar[str] = "weather"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        c, _ = constants(x, severity, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3))
        V = x.amax(dim=1, keepdim=True)
        brighter = (V + c).clamp(max=1)
        return torch.where(V > 0, x / V.clamp(min=1e-12) * brighter, brighter).clamp(0, 1)
