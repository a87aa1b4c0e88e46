"""APGD in L1: sparse steps inside the intersection of ball and box, from a larger ball down to eps."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from siegebench import ops

SPARSER = 1.5  # a step moves the number of changed entries divided by this
LESS = 0.95  # the step size starts again when fewer than this fraction of the changed entries is left
SMALLEST = 0.1  # smallest step size, relative to the radius


def stages(steps: int) -> list[tuple[float, int]]:
    """Radii (relative to eps) and their numbers of steps: 3 eps for 30 % of the steps, 2 eps for 30 %, then eps."""
    wide = min(math.ceil(0.3 * steps), (steps - 1) // 2)
    return [(r, k) for r, k in ((3.0, wide), (2.0, wide), (1.0, steps - 2 * wide)) if k > 0]


def changed(x: Tensor, x0: Tensor) -> Tensor:
    """Number of entries that differ, float [n]."""
    return ops.flat(x != x0).sum(dim=1).to(x0.dtype)


def steepest(g: Tensor, count: Tensor) -> Tensor:
    """Direction of length 1 in L1: the signs of the `count` [n] largest entries of the gradient (more with ties)."""
    size = ops.flat(g).abs()
    last = count.ceil().long().clamp(1, size.shape[1]) - 1
    least = size.sort(dim=1, descending=True).values.gather(1, last[:, None])
    sign = g.sign() * (size >= least).view_as(g)
    return sign / ops.over(ops.size(sign, "l1").clamp(min=1), g)


@dataclass
class Sparse:
    """State of the samples in one ball: the current point, the best point, and what decides step size and sparsity."""

    x0: Tensor
    y: Tensor
    target: Tensor
    x: Tensor
    g: Tensor
    x_best: Tensor
    g_best: Tensor
    loss_best: Tensor
    step: Tensor  # relative to the radius
    spread: Tensor  # entries that the best point changed at the last checkpoint

    def __getitem__(self, index: Tensor) -> Sparse:
        return Sparse(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def start(x0: Tensor, y: Tensor, target: Tensor, x: Tensor) -> Sparse:
        """All samples at x."""
        low, zero = torch.full_like(x0[:, 0, 0, 0], -torch.inf), torch.zeros_like(x)
        return Sparse(x0=x0, y=y, target=target, x=x, g=zero, x_best=x, g_best=zero, loss_best=low,
                      step=torch.ones_like(low), spread=changed(x, x0))  # fmt: skip

    def move(self, radius: float) -> None:
        """One gradient step, without momentum."""
        along = steepest(self.g, self.spread / SPARSER)
        self.x = ops.project_l1(self.x + radius * ops.over(self.step, along) * along, self.x0, radius)

    def see(self, g: Tensor, loss: Tensor) -> None:
        """The gradient and the loss of the current point."""
        self.g = g
        better = loss > self.loss_best
        self.loss_best = torch.where(better, loss, self.loss_best)
        self.x_best = torch.where(ops.over(better, self.x), self.x, self.x_best)
        self.g_best = torch.where(ops.over(better, g), g, self.g_best)

    def check(self) -> None:
        """At a checkpoint: a sparser best point starts again with the largest step; otherwise the step shrinks."""
        now = changed(self.x_best, self.x0)
        sparser = now < LESS * self.spread
        self.step = torch.where(sparser, 1.0, (self.step / SPARSER).clamp(min=SMALLEST))
        self.x = torch.where(ops.over(sparser, self.x), self.x_best, self.x)
        self.g = torch.where(ops.over(sparser, self.g), self.g_best, self.g)
        self.spread = now
