"""RayS: flips the signs of smaller and smaller blocks of pixels, and keeps flips that bring the boundary nearer."""

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

COARSE = 1.0  # tolerance of a search, as a fraction of the radius times the share of the image in the block


def blocks(d: int) -> Iterator[slice]:
    """Blocks of d numbers: all, the halves, the quarters, ..., then single numbers, repeated without end."""
    size = d
    level = 0
    while True:
        for first in range(0, d, size):
            yield slice(first, first + size)
        level += 1
        size = max(1, math.ceil(d / 2**level))


@dataclass(frozen=True, kw_only=True)
class RayS(MinimalAttack):
    """Searches the signs of the perturbation block by block, and its size by bisection.

    Chen, Gu, "RayS: a ray searching method for hard-label adversarial attack", KDD 2020, arXiv 2006.12792. The signs of
    a block are flipped. One query at the current radius tests whether the boundary is nearer on the new ray; if so, a
    binary search finds the new radius. Blocks are the whole image, its halves, its quarters, down to single numbers.

    Nothing is random. Cost per sample: one query per block and up to ten for each ray that is nearer, at most `queries`
    in all, or fewer if the threat model allows fewer. The clean image is not queried. The mean distance found without
    `stop_at_eps` is the paper's ADBD.

    Differs from the paper: after a flip of a fraction f of the image, the binary search ends at a tolerance of f times
    the radius, because later flips change it more than that; for single numbers, at `tolerance` (the authors' code:
    always). A sample stops once it is misclassified within eps (the authors' code continues to the end).

    Attributes:
        queries: largest number of queries per sample.
        tolerance: finest tolerance of the binary searches, in L2.
        stop_at_eps: stop a sample once it is misclassified within the eps of the threat model; return the clean image
            of a sample that never is. Without it, the attack continues to minimise.
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
        radius = torch.ones_like(x0[:, 0, 0, 0])  # Linf length along the ray; at 1 every pixel is black or white
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

                finest = torch.full_like(radius[at], tolerance)
                size = len(range(d)[block])
                radius[at] = bisect(ask, rows[at], place, radius[at], finest, COARSE * size / d if size > 1 else 0.0)
                v[at] = ray
            rows, x0, v, radius = keep(ask.open(rows), rows, x0, v, radius)
        return ask.result()
