"""BoundaryTilting: the angle to the nearest-centroid classifier, and how much closer that angle brings the boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import NORMS, Norm, ThreatModel
from siegebench.types import Attack, Count, Lesson, Measure

from .distances import nearest, refuse_what_does_not_minimise


@dataclass(frozen=True, kw_only=True)
class BoundaryTilting(Measure):
    """theta = angle(grad_x(z_b - z_a), mu_b - mu_a), and the strength (||mu_b - mu_a|| / 2) / distance, always in L2.

    Tanay & Griffin, "A Boundary Tilting Perspective on the Phenomenon of Adversarial Examples", 2016, arXiv 1608.07690.
    Their claim: adversarial examples are strong where the decision boundary is tilted towards the data. For two classes
    with means mu_a, mu_b and a linear classifier through their midpoint, the strength is 1 / cos(theta). For a network,
    a is the class of the image, b is the predicted class of the nearest misclassified image, and theta is computed at
    the image.

    The means are those of the training images, in pixels.

    Random: only what the attack draws. For a randomised model, logits and gradients are averaged over `averaged`
    passes.

    Differs from the paper: the paper treats the linear case. The extension to networks is ours, and so is the strength
    of single images (the paper's exact definition was not available). Where the attack finds nothing, b is the class
    with the second-largest logit, and the image is left out of the strength. Images without a gradient, or whose
    classes have no training images, are left out of the angle.

    Attributes:
        attack: a minimum-norm attack, run in L2.
        averaged: forward passes averaged for each gradient of a randomised model.
    """

    learns: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = NORMS

    attack: Attack
    averaged: Count = 9

    def __post_init__(self) -> None:
        refuse_what_does_not_minimise(self.attack, "boundary_tilting")

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Tensor:
        """Means of the classes, float64 [classes, 3, H, W]; NaN for a class without images."""
        total = torch.zeros(data.num_classes, *data.shape, dtype=torch.float64)
        for at in torch.arange(len(data)).split(1000):
            total.index_add_(0, data.labels[at], data.pixels(at, torch.float64))
        count = data.labels.bincount(minlength=data.num_classes)
        return (total / ops.over(count, total)).to(oracle.rows.device)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        means: Tensor = lesson
        in_l2 = replace(threat, norm="l2", eps=1.0)  # a minimum-norm attack ignores eps
        label, distance = nearest(self.attack, oracle, x, y, in_l2, draws, self.averaged)
        adaptive = oracle.as_attacked(self.averaged)
        second = adaptive.logits(x).scatter(1, y[:, None], -torch.inf).argmax(dim=1)
        b = torch.where(distance.isfinite(), label, second)
        g = adaptive.gradient(x, _difference(y, b))[0].double()
        direction = means[b] - means[y]

        length = ops.size(direction, "l2")
        cosine = ops.flat(g * direction).sum(dim=1) / (ops.size(g, "l2") * length)
        angle = cosine[cosine.isfinite()].clamp(-1, 1).acos().rad2deg()
        strength = length / 2 / distance.double()
        strength = strength[distance.isfinite() & strength.isfinite()]
        metrics = {"not_found": float(distance.isinf().double().mean())}
        for name, value in (("angle", angle), ("strength", strength)):
            if len(value):
                metrics |= {f"{name}_mean": float(value.mean()), f"{name}_median": float(value.quantile(0.5))}
        return {"metrics": metrics, "flags": []}


def _difference(a: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    """z_b - z_a as a loss."""
    return lambda z: (z.gather(1, b[:, None]) - z.gather(1, a[:, None])).squeeze(1)
