"""GradientNorm: the norm of the loss gradient at the images, and the distance to the boundary that it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Count, Measure


@dataclass(frozen=True, kw_only=True)
class GradientNorm(Measure):
    """||grad_x loss||_* for cross-entropy and margin, and the first-order distance |margin| / ||grad margin||_*.

    Hein & Andriushchenko, "Formal guarantees on the robustness of a classifier against adversarial manipulation",
    NeurIPS 2017, arXiv 1705.08475, bound the distance to the boundary by a margin over the dual norm of its gradient.
    With the gradient at the image itself, this is an estimate: exact for a linear model of two classes, far too large
    where gradients are masked. Compare it with the distances that the measure `distances` finds.

    The gradient is the one that attacks use: through the surrogate if the defense has one.

    Random: only the model. For a randomised model, outputs and gradients are averaged over `averaged` passes.

    Cost: two forward and two backward passes per sample.

    Differs from the paper: no bound over a neighbourhood, so there is no guarantee. Only the best other class at the
    image is considered. For images whose gradient is zero (`zero_gradient_*`) the first-order distance is infinite;
    they are left out of the distance statistics.

    Attributes:
        averaged: forward passes averaged for each gradient of a randomised model.
    """

    averaged: Count = 4

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        if threat.norm not in ops.DUAL:
            raise NotApplicable(f"{threat.norm} has no dual norm; use one of {', '.join(ops.DUAL)}")
        adaptive = oracle.as_attacked(self.averaged)
        metrics: dict[str, float] = {}
        for name, loss in (("ce", ops.cross_entropy), ("margin", ops.margin)):
            g, _, value = adaptive.gradient(x, partial(loss, y=y))
            length = ops.size(g, ops.DUAL[threat.norm])
            metrics[f"zero_gradient_{name}"] = float((length == 0).double().mean())
            metrics |= _summary(f"{name}_gradient", length)
        metrics |= _summary("first_order_distance", (-value).clamp(min=0) / length)
        return {"metrics": metrics, "flags": []}


def _summary(name: str, value: Tensor) -> dict[str, float]:
    """Mean, median and 95 % quantile of the finite values; empty when there are none."""
    value = value[torch.isfinite(value)].double()
    if not len(value):
        return {}
    median, high = value.quantile(torch.tensor([0.5, 0.95], dtype=value.dtype, device=value.device)).tolist()
    return {f"{name}_mean": float(value.mean()), f"{name}_median": median, f"{name}_q95": high}
