"""Carlini and Wagner's L2 attack, with the binary search of its constant done for every sample on its own."""

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

SHRINK = 0.999999  # keeps atanh finite: a pixel at exactly 0 or 1 could otherwise never move
LARGEST = 1e10  # "no upper bound for c yet"


@dataclass(frozen=True, kw_only=True)
class CW(MinimalAttack):
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    searches: Count = 9
    steps: Count = 100
    lr: Positive = 0.01
    c0: Positive = 1.0
    kappa: float = 0.0

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        nearest, distance = x.clone(), torch.full_like(x[:, 0, 0, 0], torch.inf)
        c = torch.full_like(distance, self.c0)
        lo, hi = torch.zeros_like(c), torch.full_like(c, LARGEST)
        for s in range(self.searches):
            if s == self.searches - 1 and self.searches >= 10:
                c = torch.where(hi < LARGEST, hi, c)
            found, at = self.descend(oracle, x, y, c)
            closer = at < distance
            nearest = torch.where(ops.over(closer, x), found, nearest)
            distance = torch.minimum(at, distance)
            reached = at.isfinite()
            hi = torch.where(reached, torch.minimum(hi, c), hi)
            lo = torch.where(reached, lo, torch.maximum(lo, c))
            c = torch.where(hi < LARGEST, (lo + hi) / 2, 10 * c)
        return nearest

    def descend(self, oracle: Oracle, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        found, at = x.clone(), torch.full_like(c, torch.inf)
        w = torch.atanh(SHRINK * (2 * x - 1))
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        here, before = torch.arange(len(x), device=x.device), torch.full_like(c, torch.inf)
        every = max(1, self.steps // 10)
        for k in range(1, self.steps + 1):
            tanh = w.tanh()
            x_k = (tanh + 1) / 2
            g, z, h = oracle[here].gradient(x_k, lambda z, y=y, c=c: c * (self.kappa - ops.margin(z, y)).clamp(min=0))
            far = ops.size(x_k - x, "l2")
            margin = ops.margin(z, y)
            better = (margin > 0) & (margin >= self.kappa) & (far < at[here])
            found[here] = torch.where(ops.over(better, x), x_k, found[here])
            at[here] = torch.where(better, far, at[here])
            grad = (2 * (x_k - x) + g) * (1 - tanh * tanh) / 2
            first = 0.9 * first + 0.1 * grad
            second = 0.999 * second + 0.001 * grad * grad
            w = w - self.lr * (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
            if k % every == 0:
                loss = far * far + h
                falling = (loss <= 0.9999 * before).nonzero().squeeze(1)
                before = loss
                if len(falling) < len(here):
                    if not len(falling):
                        break
                    here, x, y, c, w = here[falling], x[falling], y[falling], c[falling], w[falling]
                    first, second, before = first[falling], second[falling], before[falling]
        return found, at
