"""DeepFool: steps to the nearest linearised class boundary, until a boundary is crossed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Count, MinimalAttack, Positive

from .apgd import hardest

SHORTEST = 1e-6  # minimum step length; otherwise an iterate exactly on the boundary would not move


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimalAttack):
    """r_i = |f_l| / ||w_l||_* d(w_l) towards the class l with the smallest |f_k| / ||w_k||_*, f_k = z_k - z_y.

    Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016,
    arXiv 1511.04599. w_k is the gradient of f_k, * denotes the dual norm, d(w) is the unit vector for L2 and the sign
    for Linf. The steps add up, and x_i = x + (1 + eta) (r_0 + ... + r_{i-1}). A sample stops at its first misclassified
    iterate. This is fast, but where boundaries are curved the perturbation is larger than the smallest one. The result
    does not depend on the scale of the logits.

    Nothing is random. Cost per step: two forward and `targets` backward passes. A sample misclassified after its i-th
    step takes one more forward pass.

    Differs from the paper: iterates are clipped to [0, 1]. Only the wrong classes with the largest logits on the clean
    image are candidates. A sample that is still correctly classified after the last step returns the clean image.

    Attributes:
        steps: largest number of steps.
        targets: number of candidate classes, at most the number of classes minus one.
        eta: overshoot, as a fraction of the whole perturbation.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    steps: Count = 50
    targets: Count = 9
    eta: Positive = 0.02

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        x_adv, live = x.clone(), torch.arange(len(x), device=x.device)
        x_i, r = x, torch.zeros_like(x)
        z = oracle.logits(x)
        goals = hardest(z, y, self.targets)
        for i in range(self.steps + 1):
            if i > 0:
                z = oracle[live].logits(x_i)
            broken = z.argmax(dim=1) != y[live]
            x_adv[live[broken]] = x_i[broken]
            rest = (~broken).nonzero().squeeze(1)
            if i == self.steps or not len(rest):
                break
            live, x_i, r = live[rest], x_i[rest], r[rest]
            step = self._nearest(oracle[live], x_i, y[live], goals[live], threat.norm)
            rest = (~oracle[live].stuck(step)).nonzero().squeeze(1)
            if not len(rest):
                break
            live, r = live[rest], r[rest] + step[rest]
            x_i = (x[live] + (1 + self.eta) * r).clamp(0, 1)
        return x_adv

    def _nearest(self, oracle: Oracle, x: Tensor, y: Tensor, goals: Tensor, norm: Norm) -> Tensor:
        """The step to the nearest hyperplane of the candidate classes; zero if no class has a gradient."""
        w, _, f = oracle.gradients(x, lambda z: z.gather(1, goals) - z.gather(1, y[:, None]))
        steepness = ops.size(w.flatten(0, 1), ops.DUAL[norm]).view_as(f)
        flat = steepness == 0
        far = (f.abs() / torch.where(flat, torch.ones_like(f), steepness)).masked_fill(flat, torch.inf)
        nearest, which = far.min(dim=1)
        w = w[torch.arange(len(x), device=x.device), which]
        length = nearest.nan_to_num(posinf=0.0).clamp(min=SHORTEST)
        return ops.over(length, x) * ops.normalise(w, norm)
