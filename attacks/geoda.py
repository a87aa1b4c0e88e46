"""GeoDA: estimates the normal of a nearly flat boundary from labels, then searches the boundary along the normal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import keep
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Count, MinimalAttack, Positive

from ._decision import Queries, bisect, probes, start

DOUBLINGS = 10  # largest number of doublings of the distance along a normal
MOST_WAVES = 20  # largest number of frequencies chosen from the granted queries
RESERVE = 25  # queries of a round that are kept for the search along the normal


@cache
def cosines(size: int, waves: int) -> Tensor:
    """The first rows of the orthonormal DCT-II, float64 [waves, size]."""
    k, i = torch.arange(waves, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (i + 0.5) * k) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


@dataclass(frozen=True, kw_only=True)
class GeoDA(MinimalAttack):
    """Assumes a locally flat boundary: estimates its normal from labels and follows it from the clean image.

    Rahmati, Moosavi-Dezfooli, Frossard, Dai, "GeoDA: a geometric framework for black-box adversarial attacks", CVPR
    2020, arXiv 2003.06468. Each round queries random smooth images around a point on the boundary. The sum of these
    images over all rounds so far, each with the sign of its answer, estimates the normal. The next point is where the
    boundary meets the ray from the clean image along the normal (along its signs in Linf). Rounds grow by mu^(-2/3).

    Random: the initial noise and the smooth images, drawn for each sample. Cost per sample: its whole budget, which is
    `queries`, or fewer if the threat model allows fewer. The clean image is not queried.

    Differs from the paper: it starts towards the best of several noise images (made of larger cells if pixel-wise noise
    gets the label of the image). All probes have equal weight (in the authors' code all rounds have, whatever their
    size). The first round has a fixed size, and the last round uses up the remaining queries if they do not suffice for
    another round (the authors' code fits the number of rounds to the budget so that the first has 50 to 80 probes). The
    search along a ray starts at the distance of the previous point and doubles it (the authors: steps of a fixed
    length).

    Attributes:
        queries: largest number of queries per sample.
        waves: number of lowest cosine frequencies per axis in the smooth images. None: the square root of a tenth of
            the granted queries, at most 20 (3 for 100 queries, 10 for 1,000).
        sigma: standard deviation of their coefficients.
        mu: controls the growth of the rounds.
        tolerance: of the searches for the boundary, in L2.
        probes: number of probes in the first round.
        directions: noise images tried for the starting point; the nearest one is used. None: a fifth of the granted
            queries, at most 100.
        stop_at_eps: stop a sample once it is misclassified within the eps of the threat model; return the clean image
            of a sample that never is.
    """

    queries: Count = 5000
    waves: Count | None = None
    sigma: Positive = 2e-4
    mu: Annotated[float, Field(gt=0, le=1)] = 0.6
    tolerance: Positive = 1e-4
    probes: Count = 65
    directions: Count | None = None
    stop_at_eps: bool = False

    needs: ClassVar[Access] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ask = Queries(oracle, x, y, threat, self.queries, self.stop_at_eps)
        rows, point = start(ask, draws, self.tolerance / math.sqrt(x[0].numel()), self.directions, share=5)
        normal = torch.zeros_like(point)
        t = 0
        while len(rows):
            now, then = (round(self.probes * self.mu ** (-2 * k / 3)) for k in (t, t + 1))
            usable = ask.left[rows] - RESERVE
            spend = torch.where(usable < now + RESERVE + then, usable, now).clamp(min=1)
            waves = self.frequencies(ask.granted[rows])
            for count in waves.unique().tolist():  # a single value, unless samples have different budgets
                live = (waves == count).nonzero().squeeze(1)
                at, streams = rows[live], draws[rows[live]].child("probes", t)
                normal[live] += self._normal(ask, at, point[live], spend[live], count, streams)
            point = self._along(ask, rows, point, ops.normalise(normal, threat.norm))
            rows, point, normal = keep(ask.open(rows), rows, point, normal)
            t += 1
        return ask.result()

    def frequencies(self, granted: Tensor) -> Tensor:
        """Number of frequencies per axis for these numbers of queries, int64 [n]."""
        if self.waves is not None:
            return torch.full_like(granted, self.waves)
        return (granted.double() / 10).sqrt().round().long().clamp(min=1, max=MOST_WAVES)

    def _normal(self, ask: Queries, rows: Tensor, point: Tensor, spend: Tensor, waves: int, draws: Draws) -> Tensor:
        """Sum of the smooth images, with the signs of their answers."""
        channels, height, width = point.shape[1:]
        down, across = (cosines(size, min(waves, size)).to(point) for size in (height, width))
        total = torch.zeros_like(point)
        for first, weights in probes(draws, (channels, len(down), len(across)), int(spend.max())):
            u = down.T @ weights.to(point) @ across
            answers = ask.votes(rows, (point[:, None] + self.sigma * u).clamp(0, 1), spend - first)
            total += (answers[:, :, None, None, None] * u).sum(dim=1)
        return total

    def _along(self, ask: Queries, rows: Tensor, point: Tensor, w: Tensor) -> Tensor:
        """The boundary on the rays from the clean images along w; the old point if a ray does not reach it."""
        x, norm = ask.x[rows], ask.threat.norm

        def place(at: Tensor, r: Tensor) -> Tensor:
            return (x[at] + ops.over(r, x) * w[at]).clamp(0, 1)

        high, reached = ops.size(point - x, norm), torch.zeros_like(rows, dtype=torch.bool)
        live = torch.arange(len(rows), device=rows.device)
        for _ in range(DOUBLINGS):
            if not len(live):
                break
            reached[live] = ask.wrong(rows[live], place(live, high[live]))
            live = live[~reached[live] & ask.open(rows[live])]
            high[live] *= 2
        at = reached.nonzero().squeeze(1)
        tolerance = self.tolerance / (math.sqrt(x[0].numel()) if norm == "linf" else 1.0)
        high = bisect(ask, rows[at], lambda i, r: place(at[i], r), high[at], torch.full_like(high[at], tolerance))
        point = point.clone()
        point[at] = place(at, high)
        return point
