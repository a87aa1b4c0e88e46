"""The fast gradient sign method: one step of length eps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """x' = clip(x + eps d(grad loss)), with d the sign for Linf and the unit vector for L2.

    Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015, arXiv 1412.6572.

    Nothing is random. Cost per sample: one forward and one backward pass.

    Differs from the paper: adds the L2 form and the margin and DLR losses, which do not saturate when logits are large.

    Attributes:
        loss: what is maximised: cross-entropy, margin of the logits, or difference of logits ratio (3 classes or more).
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    loss: Literal["ce", "margin", "dlr"] = "ce"

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ops.check_classes(self.loss, oracle.num_classes)
        g, _, _ = oracle.gradient(x, ops.aimed(self.loss, y, oracle.goal))
        return threat.project(x + threat.eps * ops.normalise(g, threat.norm), x)
