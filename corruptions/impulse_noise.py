"""ImpulseNoise: salt-and-pepper noise in colour, as from dead pixels and bit errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class ImpulseNoise(Corruption):
    """A fraction p of the values is replaced, half of them by 0 and half by 1, independently for each channel.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Random: which values, and by what. Cost: one pass over the pixels.

    Differs from the paper: one uniform number u decides both (u < p/2: 0; p/2 <= u < p: 1), which has the same
    distribution.
    """

    group: ClassVar[str] = "noise"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        p, _ = constants(x, severity, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07))
        u = draws.uniform(tuple(x.shape[1:]), purpose="impulses")
        return torch.where(u < p, (u >= p / 2).to(x.dtype), x)
