"""Carlini and Wagner's L2 attack, with a separate search of the constant for every sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Count, MinimalAttack, Positive

SHRINK = 0.999999  # keeps atanh finite; otherwise a pixel at exactly 0 or 1 could never change
LARGEST = 1e10  # marks that no upper bound for c is known yet


@dataclass(frozen=True, kw_only=True)
class CW(MinimalAttack):
    """Minimises ||x' - x||^2 + c h(x') with x' = (tanh(w) + 1) / 2 and h = max(0, z_y - max_{j != y} z_j + kappa).

    Carlini, Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, arXiv 1608.04644. Adam optimises
    w at fixed c. After a success c is reduced, after a failure it is increased: by bisection, or by a factor of ten
    while no c has succeeded. With ten or more searches, the last one uses the smallest c that succeeded.

    Nothing is random. Cost per sample: at most searches * steps forward and backward passes. A sample whose objective
    fell by less than 0.01 % in a tenth of the steps pauses until its next c.

    Differs from the paper: fewer steps and a smaller learning rate than the authors' 10000 and 0.01. In 100 steps a
    pixel changes by about 50 lr at most, and a pixel at exactly 0 or 1 hardly changes. Raise `steps` or `lr` for black
    and white images and for models with large distances.

    Attributes:
        searches: number of values of c tried.
        steps: Adam steps for each c.
        lr: learning rate of Adam.
        c0: initial value of c.
        kappa: smallest margin of the logits that counts as a success.
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    searches: Count = 9
    steps: Count = 100
    lr: Positive = 0.002
    c0: Positive = 0.01
    kappa: float = 0.0

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        nearest, distance = x.clone(), torch.full_like(x[:, 0, 0, 0], torch.inf)
        c = torch.full_like(distance, self.c0)
        lo, hi = torch.zeros_like(c), torch.full_like(c, LARGEST)
        for s in range(self.searches):
            if s == self.searches - 1 and self.searches >= 10:
                c = torch.where(hi < LARGEST, hi, c)
            found, far = self._descend(oracle, x, y, c)
            nearest = torch.where(ops.over(far < distance, x), found, nearest)
            distance = torch.minimum(far, distance)
            reached = far.isfinite()
            hi = torch.where(reached, torch.minimum(hi, c), hi)
            lo = torch.where(reached, lo, torch.maximum(lo, c))
            c = torch.where(hi < LARGEST, (lo + hi) / 2, 10 * c)
        return nearest

    def _hinge(self, z: Tensor, y: Tensor, goal: Tensor | None, c: Tensor) -> Tensor:
        return c * (self.kappa - ops.gain(z, y, goal)).clamp(min=0)

    def _descend(self, oracle: Oracle, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Adam at fixed c: the nearest misclassified iterates and their distances, infinite if there is none."""
        found, nearest = x.clone(), torch.full_like(c, torch.inf)
        here, before = torch.arange(len(x), device=x.device), torch.full_like(c, torch.inf)
        w = torch.atanh(SHRINK * (2 * x - 1))
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        for k in range(1, self.steps + 1):
            tanh = w.tanh()
            x_k = (tanh + 1) / 2
            goal = oracle[here].goal
            g, z, h = oracle[here].gradient(x_k, partial(self._hinge, y=y, goal=goal, c=c))
            far, margin = ops.size(x_k - x, "l2"), ops.gain(z, y, goal)
            closer = (margin > 0) & (margin >= self.kappa) & (far < nearest[here])
            found[here] = torch.where(ops.over(closer, x_k), x_k, found[here])
            nearest[here] = torch.where(closer, far, nearest[here])

            g_w = (2 * (x_k - x) + g) * (1 - tanh * tanh) / 2
            m = 0.9 * m + 0.1 * g_w
            v = 0.999 * v + 0.001 * g_w * g_w
            w = w - self.lr * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)

            if k % max(1, self.steps // 10) == 0:
                objective = far * far + h
                falls = (objective <= 0.9999 * before).nonzero().squeeze(1)
                if not len(falls):
                    break
                here, x, y, c, w, m, v = (t[falls] for t in (here, x, y, c, w, m, v))
                before = objective[falls]
        return found, nearest
