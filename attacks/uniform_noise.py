"""UniformNoise: random noise, the baseline for attacks without model access."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Access, ThreatModel
from siegebench.types import Attack


@dataclass(frozen=True, kw_only=True)
class UniformNoise(Attack):
    """x' = clip(x + u), u uniform in [-eps, eps]: no model, no label, no data.

    A no-box attack is only meaningful if it beats this baseline. Random: u. Cost: no passes.
    """

    needs: ClassVar[Access] = "none"
    restricted: ClassVar[bool] = True

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        u = 2 * draws.uniform(tuple(x.shape[1:]), purpose="noise").to(x.dtype) - 1
        return threat.project(x + threat.eps * u, x)
