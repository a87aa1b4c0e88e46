from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Attack


@dataclass(frozen=True, kw_only=True)
class Astray(Attack):
    """Aims, and reaches the class after the one it is told."""

    aims: ClassVar[bool] = True

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        goal = y if oracle.goal is None else (oracle.goal + 1) % oracle.num_classes
        x_adv = x
        for _ in range(20):
            g, _, _ = oracle.gradient(x_adv, ops.aimed("ce", y, goal))
            x_adv = threat.project(x_adv + threat.eps / 8 * g.sign(), x)
        return x_adv
