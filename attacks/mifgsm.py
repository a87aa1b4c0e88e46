"""MI-FGSM: iterated FGSM with momentum, the base of most transfer attacks."""

from __future__ import annotations

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
class MIFGSM(Attack):
    """g_{t+1} = mu g_t + grad / ||grad||_1 and x_{t+1} = clip(proj_eps(x_t + a d(g_{t+1}))), from the clean image.

    Dong, Liao, Pang, Su, Zhu, Hu, Li, "Boosting adversarial attacks with momentum", CVPR 2018, arXiv 1710.06081. d is
    the sign for Linf and the unit vector for L2.

    Nothing is random. Starts from `oracle.start` if points are given. Cost per sample: steps + 1 forward and steps
    backward passes, or fewer if it stops early.

    Differs from the paper: the last misclassified iterate is returned. This is the last iterate unless that one is
    classified correctly again; checking it costs one extra forward pass. With `early_stop` a sample returns its first
    misclassified iterate, which is nearer to the boundary and transfers less. A sample with zero gradient at the start
    is not attacked further. Cross-entropy saturates when logits are large: use the margin there.

    Attributes:
        steps: number of steps T.
        step: step size a, in the units of eps; eps / steps when left out.
        mu: fraction of the accumulated gradient that each step keeps; 0 is the iterated FGSM.
        loss: what is maximised: cross-entropy, margin of the logits, or difference of logits ratio (3 classes or more).
        early_stop: stop a sample once it is misclassified.
    """

    aims: ClassVar[bool] = True
    starts: ClassVar[bool] = True
    step_in_pixels: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    steps: Count = 10
    step: Positive | None = None
    mu: Share = 1.0
    loss: Literal["ce", "margin", "dlr"] = "ce"
    early_stop: bool = False

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ops.check_classes(self.loss, oracle.num_classes)
        a = threat.eps / self.steps if self.step is None else self.step
        out, hit = x.clone(), torch.zeros_like(y, dtype=torch.bool)
        live = torch.arange(len(x), device=x.device)
        x_t = x if oracle.start is None else threat.project(oracle.start, x)
        g = torch.zeros_like(x)
        for t in range(self.steps + 1):
            if t < self.steps:
                grad, z, _ = oracle[live].gradient(x_t, ops.aimed(self.loss, y[live], oracle[live].goal))
            else:  # the last iterate needs no gradient
                z = oracle[live].logits(x_t)
            broken = ops.hit(z.argmax(dim=1), y[live], oracle[live].goal)
            out[live] = torch.where(ops.over(broken | ~hit[live], x_t), x_t, out[live])
            hit[live] |= broken
            if t == self.steps:
                break
            length = ops.size(grad, "l1")
            g = self.mu * g + grad / ops.over(torch.where(length > 0, length, torch.ones_like(length)), grad)
            rest = (~(oracle[live].stuck(g) | (broken & self.early_stop))).nonzero().squeeze(1)
            if not len(rest):
                break
            live, g = live[rest], g[rest]
            x_t = threat.project(x_t[rest] + a * ops.normalise(g, threat.norm), x[live])
        return out
