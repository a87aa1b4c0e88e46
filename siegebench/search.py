"""State of iterative attacks: the best points so far, the queries left, the samples still attacked.

Rows are indices into the batch, int64 [m], each at most once in a call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.oracle import Oracle


class Best:
    """The best point of each sample so far: misclassified before correctly classified, then the higher loss.

    Attributes:
        point: [n, ...], initially the clean images.
        loss: of the points, [n]; initially -inf.
        hit: whether they are misclassified, bool [n].
    """

    def __init__(self, x: Tensor) -> None:
        self.point = x.clone()
        self.loss = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.hit = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def keep(self, rows: Tensor, point: Tensor, loss: Tensor, hit: Tensor) -> None:
        """Keep those points [m, ...] that are better than the best points so far."""
        before = self.hit[rows]
        better = (hit & ~before) | ((hit | ~before) & (loss > self.loss[rows]))
        chosen = rows[better]  # several times faster than torch.where over all pixels
        self.point[chosen], self.loss[chosen] = point[better], loss[better]
        self.hit[rows] = before | hit

    def left(self) -> Tensor:
        """Rows of the samples that are not misclassified yet."""
        return (~self.hit).nonzero().squeeze(1)


class Budget:
    """Remaining queries of each sample: `most`, or fewer if the threat model allows fewer.

    Attributes:
        granted: queries at the start, int64 [n]; schedules follow them.
        left: remaining queries, int64 [n].
    """

    def __init__(self, oracle: Oracle, y: Tensor, most: int) -> None:
        self.oracle = oracle
        granted = oracle.left()
        self.granted = torch.full_like(y, most) if granted is None else granted.clamp(max=most)
        self.left = self.granted.clone()

    def open(self, rows: Tensor, least: int = 1) -> Tensor:
        """Whether the samples have at least `least` queries left, bool [m]."""
        return self.left[rows] >= least

    def rows(self, least: int = 1) -> Tensor:
        """Rows of all samples that have at least `least` queries left."""
        every = torch.arange(len(self.left), device=self.left.device)
        return self.open(every, least).nonzero().squeeze(1)

    def logits(self, rows: Tensor, points: Tensor) -> Tensor:
        """Logits of k images per sample, [m * k, ...], sample-major; one query each."""
        k = len(points) // max(1, len(rows))
        self.left[rows] -= k
        return self.oracle[rows].repeat(k).logits(points)


def keep(which: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """Select rows of each tensor by a mask; returns the tensors themselves if all rows are kept."""
    return state if bool(which.all()) else tuple(part[which] for part in state)
