"""Flatness: how much the likelihoods implied by a classifier change around an image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Count, Measure


@dataclass(frozen=True, kw_only=True)
class Flatness(Measure):
    """Mean |Delta| over the grid x + i r1 + j r2, -1 <= i, j <= 1; r1 increases the cross-entropy, r2 is random.

    Lin et al., "Likelihood Landscapes: A Unifying Principle Behind Many Adversarial Defenses", ECCV workshop 2020,
    arXiv 2008.11300, treat a classifier as an energy-based model. Up to terms that do not depend on x, log p(x | y) is
    the logit f_y and log p(x) is logsumexp f. Delta is the difference of either quantity from its value at x:
        class_delta, marginal_delta            mean |Delta|; smaller is flatter, but logits divided by 10 also lower it
        class_delta_relative, ..._relative     divided by the standard deviation over the images (class_spread, ...)
    r1 and r2 have length eps in the norm of the threat model: eps sign(g) and eps times random signs in Linf,
    directions of length eps in L2.

    Random: r2, independently for each image.

    Cost: side^2 + 1 forward passes and one backward pass per sample.

    Differs from the paper: the normalisation of the paper's measure was not available; this one is ours. The standard
    deviation is taken over the correctly classified images given, not over a whole test set. `class_delta_relative`
    depends on the scale of the logits only through the direction r1; `marginal_delta_relative` depends on it directly.
    Points are clipped to [0, 1].

    Attributes:
        side: points along each direction.
        averaged: forward passes averaged for each output of a randomised model.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    side: Count = 21
    averaged: Count = 4

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        if threat.norm not in self.norms:
            raise NotApplicable(f"flatness is not defined for {threat.norm}; use one of {', '.join(self.norms)}")
        adaptive = oracle.as_attacked(self.averaged)

        g = adaptive.gradient(x, partial(ops.cross_entropy, y=y))[0]
        noise = draws.normal(tuple(x.shape[1:]), purpose="direction").to(x)
        r1, r2 = (threat.eps * ops.normalise(r, threat.norm) for r in (g, noise))

        def likelihoods(image: Tensor) -> Tensor:
            """(log p(x | y), log p(x)) up to their constants, [2, n]."""
            z = adaptive.logits(image.clamp(0, 1)).double()
            return torch.stack([z.gather(1, y[:, None]).squeeze(1), z.logsumexp(dim=1)])

        at_x = likelihoods(x)
        delta = torch.zeros_like(at_x)
        axis = torch.linspace(-1, 1, self.side).tolist()
        for i in axis:
            for j in axis:
                delta += (likelihoods(x + i * r1 + j * r2) - at_x).abs() / self.side**2
        metrics: dict[str, float] = {}
        for name, change, value in zip(("class", "marginal"), delta, at_x, strict=True):
            mean, spread = float(change.mean()), float(value.std(correction=0))
            metrics |= {f"{name}_delta": mean, f"{name}_spread": spread}
            if spread > 0:
                metrics[f"{name}_delta_relative"] = mean / spread
        return {"metrics": metrics, "flags": []}
