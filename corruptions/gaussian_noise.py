"""GaussianNoise: the noise of a sensor in low light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Corruption):
    """x' = clip(x + sigma n), n ~ N(0, 1) for each pixel and channel.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Random: n. Cost: one pass over the pixels.

    Differs from the paper: values are not truncated to 8 bits, which darkens by half a grey level on average.
    """

    group: ClassVar[str] = "noise"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        sigma, _ = constants(x, severity, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10))
        return (x + sigma * draws.normal(tuple(x.shape[1:]), purpose="noise").to(x.dtype)).clamp(0, 1)
