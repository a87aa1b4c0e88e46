"""ShotNoise: Poisson noise of photon counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._poisson import poisson
from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class ShotNoise(Corruption):
    """x' = clip(k / c), k ~ Poisson(c x): a pixel of value 1 receives c photons on average.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Random: the counts k, exactly Poisson. Cost: two table look-ups for each value.

    Differs from the paper: values are not truncated to 8 bits, which darkens by half a grey level on average.
    """

    group: ClassVar[str] = "noise"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        c, _ = constants(x, severity, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50))
        return (poisson(x, c, draws).to(x.dtype) / c).clamp(0, 1)
