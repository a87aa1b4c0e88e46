"""GradientNorm: how steep the loss is at the images, and how near that puts the boundary."""

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
    With the gradient at the image itself it is an estimate: exact for a linear model of two classes, far too large
    where gradients are masked. Compare it with what `distances` finds.

    The gradient is the one that attacks follow: through the surrogate where the defense has one. Nothing is random but
    the model; a randomised one is asked for means over `averaged` looks. Cost of a sample: two forwards and backwards.

    Differs from the paper: no bound over a neighbourhood, so no guarantee; only the best other class at the image.
    Images without any gradient (`zero_gradient_*`) are infinitely far at first order and not in those figures.

    Attributes:
        averaged: looks behind each gradient of a randomised model.
    """

    averaged: Count = 4

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        if threat.norm not in ops.DUAL:
            raise NotApplicable(f"{threat.norm} is no norm and has no dual; one of {', '.join(ops.DUAL)}")
        asked = oracle.as_attacked(self.averaged)
        metrics: dict[str, float] = {}
        for name, loss in (("ce", ops.cross_entropy), ("margin", ops.margin)):
            g, _, value = asked.gradient(x, partial(loss, y=y))
            steep = ops.size(g, ops.DUAL[threat.norm])
            metrics[f"zero_gradient_{name}"] = float((steep == 0).double().mean())
            metrics |= _summary(f"{name}_gradient", steep)
        metrics |= _summary("first_order_distance", (-value).clamp(min=0) / steep)
        return {"metrics": metrics, "flags": []}


def _summary(name: str, value: Tensor) -> dict[str, float]:
    """Mean, median and 95 % of what is finite; nothing where nothing is."""
    value = value[torch.isfinite(value)].double()
    if not len(value):
        return {}
    median, high = value.quantile(torch.tensor([0.5, 0.95], dtype=value.dtype, device=value.device)).tolist()
    return {f"{name}_mean": float(value.mean()), f"{name}_median": median, f"{name}_q95": high}
