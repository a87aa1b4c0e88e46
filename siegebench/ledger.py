"""Ledger: what an oracle counts and keeps, and the functions that see a gradient pass by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from siegebench import ops
from siegebench.data import Kind
from siegebench.threat import TOLERANCE, ThreatModel


class Ledger:
    """Forward passes, backward passes and queries of each sample of a batch."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.forwards = torch.zeros(n, dtype=torch.long, device=device)
        self.backwards = torch.zeros(n, dtype=torch.long, device=device)
        self.queries = torch.zeros(n, dtype=torch.long, device=device)
        self.blind = torch.zeros(n, dtype=torch.long, device=device)  # backward passes whose gradient is all zero
        self.undefined = torch.zeros(n, dtype=torch.long, device=device)  # those whose gradient has NaN or infinity
        self.spent = 0  # an upper bound of max(queries), kept on the host to avoid synchronisation


class Nearest:
    """The nearest feasible misclassified point that a foreign attack has queried, if any."""

    def __init__(self, x: Tensor, y: Tensor, threat: ThreatModel, kind: Kind) -> None:
        self.x, self.y, self.threat, self.kind = x, y, threat, kind
        self.point = x.clone()
        self.distance = torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)

    def update(self, seen: Tensor, z: Tensor, rows: Tensor) -> None:
        origin = self.x[rows]
        far = self.threat.size(seen, origin)
        good = (ops.margin(z, self.y[rows]) > 0) & self.kind.inside(seen, TOLERANCE)
        # rows may repeat a sample: the nearest point is kept
        far = torch.where(good, far, torch.full_like(far, float("inf")))
        nearest = torch.full_like(self.distance, float("inf")).scatter_reduce(0, rows, far, "amin")
        for_rows = (far <= nearest[rows]) & (far < self.distance[rows])
        self.point[rows[for_rows]] = seen[for_rows].clamp(self.kind.low, self.kind.high)
        self.distance = torch.minimum(self.distance, nearest)


class CountBackward(torch.autograd.Function):
    """Identity that counts a backward pass when a gradient passes through it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, count: Callable[[Tensor], None]) -> Tensor:
        ctx.count = count
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        ctx.count(grad[0])
        return grad[0], None


class SeeGradient(torch.autograd.Function):
    """Identity on images that passes their gradient through `see`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.see = see
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        return ctx.see(grad[0]), None
