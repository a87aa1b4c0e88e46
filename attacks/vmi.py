"""VMI-FGSM: MI-FGSM with gradients tuned by their variance around the previous point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Count, Positive, Share


@dataclass(frozen=True, kw_only=True)
class VMI(Attack):
    """g_{t+1} = mu g_t + (grad + v_t) / ||grad + v_t||_1, then a step; v_{t+1} = mean_i grad(x_t + r_i) - grad(x_t).

    Wang, He, "Enhancing the transferability of adversarial attacks through variance tuning", CVPR 2021, arXiv
    2103.15571. r_i is uniform in the cube of half side beta eps. Made for transfer: there is no early stop, and the
    last point is returned.

    Random: the neighbours, drawn for each sample and step. Cost per sample: steps (1 + neighbours) - neighbours forward
    passes and as many backward passes.

    Differs from the paper: the last variance is not computed, because it is never used. In L2 the step goes along the
    unit vector, and the half diagonal of the cube is beta eps.

    Attributes:
        steps: number of steps T.
        step: step size a, in the units of eps; eps / steps when left out.
        mu: fraction of the accumulated gradient that each step keeps.
        neighbours: number of neighbours N.
        beta: largest distance of the neighbours, in units of eps.
        loss: what is maximised: cross-entropy, margin of the logits, or difference of logits ratio (3 classes or more).
    """

    aims: ClassVar[bool] = True
    step_in_pixels: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    steps: Count = 10
    step: Positive | None = None
    mu: Share = 1.0
    neighbours: Count = 20
    beta: Positive = 1.5
    loss: Literal["ce", "margin", "dlr"] = "ce"

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ops.check_classes(self.loss, oracle.num_classes)
        a = threat.eps / self.steps if self.step is None else self.step
        loss = ops.aimed(self.loss, y, oracle.goal)
        x_t, g, v = x, torch.zeros_like(x), torch.zeros_like(x)
        for t in range(self.steps):
            grad, _, _ = oracle.gradient(x_t, loss)
            tuned = grad + v
            length = ops.size(tuned, "l1")
            g = self.mu * g + tuned / ops.over(torch.where(length > 0, length, torch.ones_like(length)), tuned)
            if t + 1 < self.steps:
                v = self._around(oracle, x_t, loss, threat, draws, t) - grad
            x_t = threat.project(x_t + a * ops.normalise(g, threat.norm), x)
        return x_t

    def _around(
        self, oracle: Oracle, x_t: Tensor, loss: Callable[[Tensor], Tensor], threat: ThreatModel, draws: Draws, t: int
    ) -> Tensor:
        """Mean gradient over the neighbours."""
        half = self.beta * threat.eps / (1.0 if threat.norm == "linf" else x_t[0].numel() ** 0.5)
        total = torch.zeros_like(x_t)
        for i in range(self.neighbours):  # one neighbour at a time: all at once may not fit into memory
            r = half * (2 * draws.uniform(tuple(x_t.shape[1:]), t * self.neighbours + i, "neighbour") - 1)
            total = total + oracle.gradient(x_t + r.to(x_t.dtype), loss)[0]
        return total / self.neighbours
