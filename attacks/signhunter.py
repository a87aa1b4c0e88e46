"""SignHunter: divide and conquer on the signs of the perturbation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Budget, keep
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Attack, Count


def chunks(n: int) -> Iterator[slice]:
    """Chunks of n coordinates to flip: all, halves, quarters, ..., single ones; then again from the beginning."""
    while True:
        for level in range(math.ceil(math.log2(n)) + 1):
            length = math.ceil(n / 2**level)
            yield from (slice(first, first + length) for first in range(0, n, length))


@dataclass(frozen=True, kw_only=True)
class SignHunter(Attack):
    """Every pixel changes by the whole budget; signs are flipped in smaller and smaller chunks, and kept if that helps.

    Al-Dujaili, O'Reilly, "Sign Bits Are All You Need for Black-Box Attacks", ICLR 2020, arXiv 1902.06894. Linf: x + eps
    s, L2: x + eps s / |s|, with s in {-1, +1}^n, initially all +1. Chunks are consecutive in the order channel, row,
    column. A flip is kept unless the margin decreased.

    Nothing is random. Cost per sample: one query for the first image and one per flip, at most `queries` in all, or
    fewer if the threat model allows fewer. A sample stops once it is misclassified. The clean image is not queried.

    Differs from the paper: after single signs, chunks start again around the same clean image (the authors' code
    continues around the point found, so that its images leave the ball). Images are clipped to [0, 1] before they are
    queried, not after.

    Attributes:
        queries: largest number of queries per sample, first image included.
    """

    queries: Count = 10_000

    needs: ClassVar[Access] = "score"
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        x_adv = x.clone()
        budget = Budget(oracle, y, self.queries)
        n = math.prod(x.shape[1:])
        reach = threat.eps if threat.norm == "linf" else threat.eps / math.sqrt(n)
        # state of the samples still attacked: their rows, pixels for s = +1 and -1, signs, image, its margin
        live = budget.rows()
        up, down = (ops.flat(x[live] + move).clamp(0, 1) for move in (reach, -reach))
        s, image, margin = torch.ones_like(up, dtype=torch.bool), up.clone(), torch.full_like(up[:, 0], -torch.inf)
        part, parts = slice(0, 0), chunks(n)
        while len(live):
            kept, kept_signs = image[:, part].clone(), s[:, part].clone()
            s[:, part] = ~kept_signs
            image[:, part] = torch.where(kept_signs, down[:, part], up[:, part])
            value = ops.gain(budget.logits(live, image.view(-1, *x.shape[1:])), y[live], oracle[live].goal)
            better = value >= margin
            image[:, part] = torch.where(better[:, None], image[:, part], kept)
            s[:, part] = kept_signs ^ better[:, None]
            margin = torch.where(better, value, margin)
            x_adv[live] = image.view(-1, *x.shape[1:])
            rest = ~(value > 0) & budget.open(live)
            live, up, down, s, image, margin = keep(rest, live, up, down, s, image, margin)
            part = next(parts)
        return x_adv
