"""Contrast: moves all pixels towards the mean colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class Contrast(Corruption):
    """x' = clip(c (x - mean) + mean), with the mean of each channel of each image.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Nothing is random. Cost: one pass over the pixels.

    Differs from the paper: values are not truncated to 8 bits, which at c = 0.05 leaves a dozen grey levels.
    """

    group: ClassVar[str] = "digital"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        c, _ = constants(x, severity, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15))
        mean = x.mean(dim=(2, 3), keepdim=True)
        return (c * (x - mean) + mean).clamp(0, 1)
