"""RayS: signs of ever smaller blocks of pixels are flipped, and kept where the ray meets the boundary earlier."""

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
from siegebench.search import keep
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Count, MinimalAttack, Positive

from ._decision import Queries, bisect


def blocks(d: int) -> Iterator[slice]:
    """Of d numbers: all, the halves, the quarters, ..., each alone, and again each alone."""
    size = d
    level = 0
    while True:
        for first in range(0, d, size):
            yield slice(first, first + size)
        level += 1
        size = max(1, math.ceil(d / 2**level))


@dataclass(frozen=True, kw_only=True)
class RayS(MinimalAttack):
    """Searches the signs of the perturbation block by block, and its size by halving.

    Chen, Gu, "RayS: a ray searching method for hard-label adversarial attack", KDD 2020, arXiv 2006.12792. The signs of
    a block are flipped, and one query at the radius so far says whether the boundary is nearer on the new ray; if it
    is, a binary search finds how near. Blocks run over the whole image, its halves, its quarters, down to one number.

    Nothing is random. Cost of a sample: one query a block and about ten for each ray that is nearer, at most `queries`
    in all, or what the threat model leaves. The clean image is not queried. The mean distance that it finds without
    `stop_at_eps` is the paper's ADBD.

    Differs from the paper: a sample that is broken within eps leaves (the authors' code goes on to the end).

    Attributes:
        queries: at most.
        tolerance: of the binary searches, in L2.
        stop_at_eps: a sample leaves as soon as it is broken within the eps of the threat model, and one that never is
            comes back clean. Without it, the attack keeps minimising.
    """

    queries: Count = 10_000
    tolerance: Positive = 1e-3
    stop_at_eps: bool = True

    needs: ClassVar[Access] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ask = Queries(oracle, x, y, threat, self.queries, self.stop_at_eps)
        rows = ask.rows()
        x0, v = x[rows], torch.ones_like(x[rows])
        radius = torch.ones_like(x0[:, 0, 0, 0])  # of the ray in Linf; at 1 every pixel is black or white
        d = x[0].numel()
        tolerance = self.tolerance / math.sqrt(d)
        for block in blocks(d):
            if not len(rows):
                break
            trial = v.clone()
            trial.flatten(1)[:, block] *= -1
            hit = ask.wrong(rows, (x0 + ops.over(radius, x0) * trial).clamp(0, 1))
            at = hit.nonzero().squeeze(1)
            if len(at):
                near, ray = x0[at], trial[at]

                def place(i: Tensor, r: Tensor, near: Tensor = near, ray: Tensor = ray) -> Tensor:
                    return (near[i] + ops.over(r, near) * ray[i]).clamp(0, 1)

                radius[at] = bisect(ask, rows[at], place, radius[at], torch.full_like(radius[at], tolerance))
                v[at] = ray
            rows, x0, v, radius = keep(ask.open(rows), rows, x0, v, radius)
        return ask.result()
