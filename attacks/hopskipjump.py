"""HopSkipJump: estimates the normal of the boundary from labels, steps along it, and bisects back to the boundary."""

from __future__ import annotations

import math
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

from ._decision import Queries, probes, start, to_boundary


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(MinimalAttack):
    """Follows the boundary towards the nearest misclassified image, with gradients estimated from labels.

    Chen, Jordan, Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", IEEE S&P 2020, arXiv
    1904.02144. At a point on the boundary, the mean of random directions weighted by their answers estimates the
    normal. The step along it starts at distance / sqrt(t) and is halved until the point is misclassified; a binary
    search returns to the boundary. Iteration t queries probes * sqrt(t) directions.

    Random: the initial noise and the directions (normal in L2, uniform in Linf), drawn for each sample. Cost per
    sample: its whole budget, which is `queries`, or fewer if the threat model allows fewer. The clean image is not
    queried.

    Differs from the paper: the length of a probe is 1 % of the distance, whatever the size of the image, as in ART (the
    paper uses 1/d of it, which float32 pixels in Linf round away). The start is the best of several noise images (made
    of larger cells if pixel-wise noise gets the label of the image). The last estimate of a budget leaves enough
    queries for the step after it. The search for the boundary stops at the resolution of the pixels' dtype. A step that
    is never misclassified is given up once it is as short as the tolerance of the search.

    Attributes:
        queries: largest number of queries per sample.
        probes: number of directions in the first estimate.
        most_probes: largest number of directions in an estimate.
        radius: length of the probes, as a fraction of the distance. The tolerance of the boundary search is radius /
            sqrt(d) in L2 and radius / d in Linf, for d numbers per image, as the noise of the estimate requires.
        directions: noise images tried for the starting point; the nearest one is used. None: half of the granted
            queries, at most 100.
        stop_at_eps: stop a sample once it is misclassified within the eps of the threat model; return the clean image
            of a sample that never is.
    """

    queries: Count = 5000
    probes: Count = 100
    most_probes: Count = 10_000
    radius: Positive = 0.01
    directions: Count | None = None
    stop_at_eps: bool = False

    needs: ClassVar[Access] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ask = Queries(oracle, x, y, threat, self.queries, self.stop_at_eps)
        d = x[0].numel()
        theta = self.radius / (d if threat.norm == "linf" else math.sqrt(d))  # tolerance, as a fraction of the distance
        search = math.ceil(-math.log2(theta)) + 2  # queries of a step and of the search back to the boundary
        rows, point = start(ask, draws, theta, self.directions)
        t = 0
        while len(rows):
            t += 1
            far = threat.size(point, x[rows])
            delta = torch.full_like(far, 0.1) if t == 1 else self.radius * far
            wanted = min(round(self.probes * math.sqrt(t)), self.most_probes)
            spend = (ask.left[rows] - search).clamp(min=1, max=wanted)
            g = self._gradient(ask, rows, point, delta, spend, draws[rows].child("probes", t))
            point = self._step(ask, rows, point, ops.normalise(g, threat.norm), far / math.sqrt(t), theta)
            rows, point = keep(ask.open(rows), rows, point)
        return ask.result()

    @staticmethod
    def _gradient(ask: Queries, rows: Tensor, point: Tensor, delta: Tensor, spend: Tensor, draws: Draws) -> Tensor:
        """Sum over the probes of delta (phi_b - mean phi) u_b; without the mean if all answers are equal."""
        sums = torch.zeros_like(point.flatten(1)[:, None].repeat(1, 2, 1))  # of phi u, and of |phi| u
        answers = torch.zeros_like(delta)
        kind = "normal" if ask.threat.norm == "l2" else "uniform"
        for first, u in probes(draws, point.shape[1:], int(spend.max()), kind):
            u = u.to(point)
            length = delta[:, None] / u.flatten(2).norm(dim=2)
            probe = torch.addcmul(point[:, None], u, length[:, :, None, None, None]).clamp_(0, 1)
            phi = ask.votes(rows, probe, spend - first)
            answers += phi.sum(dim=1)
            u = probe.sub_(point[:, None])  # delta u_b after clipping and rounding
            sums += torch.stack([phi, phi.abs()], dim=1) @ u.flatten(2)
        weighted, plain = sums.view(len(point), 2, *point.shape[1:]).unbind(dim=1)
        mean = ops.over(answers / spend, point)
        return torch.where(mean.abs() == 1, weighted, weighted - mean * plain)

    @staticmethod
    def _step(ask: Queries, rows: Tensor, point: Tensor, g: Tensor, step: Tensor, theta: float) -> Tensor:
        """A step along g, halved until it is misclassified, then bisection; the old point if no step succeeds."""
        new, moved = point.clone(), torch.zeros_like(rows, dtype=torch.bool)
        live, shortest = torch.arange(len(rows), device=rows.device), theta * step
        while len(live):
            trial = (point[live] + ops.over(step[live], point) * g[live]).clamp(0, 1)
            hit = ask.wrong(rows[live], trial)
            new[live[hit]], moved[live] = trial[hit], hit
            step = step / 2
            live = live[~hit & ask.open(rows[live]) & (step[live] > shortest[live])]
        at = moved.nonzero().squeeze(1)
        new[at] = to_boundary(ask, rows[at], new[at], theta)
        return new
