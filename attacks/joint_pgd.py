"""Joint PGD: one loss for the classifier and its detector, weighted for each image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.guarded import GuardedOracle
from siegebench.oracle import Oracle
from siegebench.search import Best
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Count, Positive


@dataclass(frozen=True, kw_only=True)
class JointPGD(Attack):
    """PGD on margin(x) - lambda s(x); a binary search over lambda for each image.

    Carlini, Wagner, "Adversarial examples are not easily detected: bypassing ten detection methods", AISec 2017, arXiv
    1705.07263, attack classifier and detector with one loss. s is the detector's score in units of its standard
    deviation on clean images. lambda starts at 1; a run at whose end the classifier is fooled raises it, any other
    lowers it, tenfold until both ends are known, then to their geometric mean. Of all
    misclassified iterates the one with the lowest score is returned. Without a detector this is PGD on the margin.

    Nothing is random. Cost per sample: `searches` runs of `steps` gradients of the classifier and of the detector.

    Attributes:
        steps: gradient steps per run.
        step: step size, in the units of eps; 2.5 eps / steps if left out.
        searches: values of lambda that are tried for each image.

    Differs from the paper: within an eps-ball, with signed gradients, instead of the smallest perturbation.
    """

    step_in_pixels: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    steps: Count = 40
    step: Positive | None = None
    searches: Count = 9

    def cost(self) -> float:
        return 2.0 * self.steps * self.searches

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        best = Best(x)
        weight = torch.ones(len(x), dtype=x.dtype, device=x.device)
        low, high = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
        for _ in range(self.searches):
            fooled = self._climb(oracle, x, y, weight, threat, best)
            low, high = torch.where(fooled, weight, low), torch.where(fooled, high, weight)
            both = (low * high).sqrt()
            weight = torch.where(low == 0, weight / 10, torch.where(high.isinf(), weight * 10, both))
            if not isinstance(oracle, GuardedOracle):
                break
        return best.point

    def _climb(self, oracle: Oracle, x: Tensor, y: Tensor, weight: Tensor, threat: ThreatModel, best: Best) -> Tensor:
        """One run; returns which images the classifier gets wrong at its end, bool [n]."""
        a = 2.5 * threat.eps / self.steps if self.step is None else self.step
        every, x_t = torch.arange(len(x), device=x.device), x
        through = oracle.backward_model()
        for t in range(self.steps + 1):
            g, _, margin = through.gradient(x_t, partial(ops.margin, y=y))
            score = -margin
            if isinstance(oracle, GuardedOracle):
                g_d, score = oracle.score_gradient(x_t)
                g = g - ops.over(weight / oracle.spread, x) * g_d
            best.keep(every, x_t, -score, margin > 0)
            if t < self.steps:
                x_t = threat.project(x_t + a * ops.normalise(g, threat.norm), x)
        return margin > 0
