"""HopSkipJump: the normal of the boundary from labels of random probes, a step along it, and back to the boundary."""

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
    """Walks along the boundary with gradients estimated from labels, towards the nearest misclassified image.

    Chen, Jordan, Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", IEEE S&P 2020,
    arXiv 1904.02144. At a point of the boundary, the mean of random directions weighted with their answers estimates
    the normal; the step along it starts at distance / sqrt(t) and is halved until it is misclassified; a binary search
    leads back to the boundary. Iteration t asks about probes * sqrt(t) directions.

    Random: the noise it starts from and the directions (normal in L2, uniform in Linf), for each sample on its own. A
    sample spends its whole budget: `queries`, or what the threat model leaves. The clean image is not queried.

    Differs from the paper: probes are 1 % of the distance away from the boundary whatever the size of the image, as in
    ART (there: 1/d of it, too little for the rounding of float32 pixels in Linf). The start is the best of some noise
    images, in larger cells where fine noise has the label of the image. The last estimate of a budget leaves enough
    queries for the step after it. The search of the boundary goes no further than the pixels' type resolves. A step
    that never is misclassified is given up when it is as short as the search is fine.

    Attributes:
        queries: at most.
        probes: directions of the first estimate.
        most_probes: directions of an estimate, at most.
        radius: length of the probes, as a share of the distance. The search of the boundary is as many times finer as
            the noise in the estimate asks for: radius / sqrt(d) in L2 and radius / d in Linf, for d numbers an image.
        directions: draws of noise that compete for the start.
        stop_at_eps: a sample leaves as soon as it is broken within the eps of the threat model, and one that never is
            comes back clean.
    """

    queries: Count = 5000
    probes: Count = 100
    most_probes: Count = 10_000
    radius: Positive = 0.01
    directions: Count = 50
    stop_at_eps: bool = False

    needs: ClassVar[Access] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ask = Queries(oracle, x, y, threat, self.queries, self.stop_at_eps)
        d = x[0].numel()
        theta = self.radius / (d if threat.norm == "linf" else math.sqrt(d))  # tolerance, as a share of the distance
        search = math.ceil(-math.log2(theta)) + 2  # queries that a step and the way back take
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
        """Sum over the probes of (phi_b - mean phi) u_b; without the mean where all answers are alike."""
        weighted, plain, answers = torch.zeros_like(point), torch.zeros_like(point), torch.zeros_like(delta)
        delta = delta.view(-1, 1, 1, 1, 1)
        kind = "normal" if ask.threat.norm == "l2" else "uniform"
        for first, u in probes(draws, point.shape[1:], int(spend.max()), kind):
            u = u.to(point)
            u = u / u.flatten(2).norm(dim=2)[:, :, None, None, None]
            probe = (point[:, None] + delta * u).clamp(0, 1)
            u = (probe - point[:, None]) / delta  # what clipping and rounding have left of it
            phi = ask.votes(rows, probe, spend - first)
            answers += phi.sum(dim=1)
            phi = phi[:, :, None, None, None]
            weighted += (phi * u).sum(dim=1)
            plain += (phi.abs() * u).sum(dim=1)
        mean = ops.over(answers / spend, point)
        return torch.where(mean.abs() == 1, weighted, weighted - mean * plain)

    @staticmethod
    def _step(ask: Queries, rows: Tensor, point: Tensor, g: Tensor, step: Tensor, theta: float) -> Tensor:
        """Along g, half as far until it is misclassified, then back to the boundary; stays where nothing was."""
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
