"""NES: projected gradient ascent with gradients estimated from scores by antithetic Gaussian probes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Budget, keep
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Attack, Count, Positive, Share

NUMBERS = 2**24  # largest number of pixels of probes in memory
TINY = 1e-6  # smallest radius of the ball in each pixel that probes are made for


@dataclass(frozen=True, kw_only=True)
class NES(Attack):
    """g = mean over pairs of (L(x + sigma u) - L(x - sigma u)) u / (2 sigma), u ~ N(0, I); then a step along g.

    Ilyas, Engstrom, Athalye, Lin, "Black-box Adversarial Attacks with Limited Queries and Information", ICML 2018,
    arXiv 1804.08598. L is the margin; the step goes along the sign of g (Linf) or along g (L2), and is projected.

    Random: the probes, drawn for each sample. Cost per step: 2 `pairs` queries for g and one to check the new point; at
    most `queries` in all, or fewer if the threat model allows fewer. If the remaining queries do not suffice for a
    whole step, a step with fewer pairs follows, and finally steps along the same g. A sample stops once it is
    misclassified; a sample with fewer than three queries is not attacked. The clean image is not queried.

    Differs from the paper: the margin instead of cross-entropy, which is flat where the network is confident. The
    constants follow eps and the granted queries, where the authors have 25 pairs, sigma = 0.001, momentum 0.9 and a
    step that is halved on plateaus. The query that checks the new point is counted. Probes are clipped to [0, 1],
    because a real system only accepts valid images.

    Attributes:
        queries: largest number of queries per sample.
        pairs: pairs of probes per gradient.
        sigma: standard deviation of a probe in each pixel. Default: a probe is half as long as the radius of the ball,
            so eps / 2 (Linf) or eps / (2 sqrt(n)) (L2) for n pixels.
        step: step size as a fraction of eps.
        momentum: weight of the previous gradients in the running mean. Default: 1 - 1 / steps, for the number of steps
            that the granted queries allow. The mean then remembers about as many probes as there are in all, because
            inside a small ball the gradient changes less than its estimate from a few probes errs.
    """

    queries: Count = 10_000
    pairs: Count = 10
    sigma: Positive | None = None
    step: Positive = 1.0
    momentum: Share | None = None

    needs: ClassVar[Access] = "score"
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        x_adv = x.clone()
        budget = Budget(oracle, y, self.queries)
        # state of the samples still attacked: their rows, the point, its gradient, and the best point so far
        live = budget.rows(least=3)
        x0 = x[live]
        point, g, best, margin = x0, torch.zeros_like(x0), x0, torch.full_like(x0[:, 0, 0, 0], -torch.inf)
        momentum, sigma = self._momentum(budget.granted).to(x.dtype), self._sigma(threat, x[0].numel())
        step = 0
        while len(live):
            pairs = ((budget.left[live] - 1) // 2).clamp(max=self.pairs)
            estimate = self._gradient(budget, live, point, y[live], pairs, sigma, draws[live], step)
            weight = ops.over(momentum[live], g)
            followed = weight * g + (1 - weight) * estimate
            g = torch.where(ops.over(pairs > 0, g), followed, g)
            point = threat.project(point + self.step * threat.eps * ops.normalise(g, threat.norm), x0)
            value = ops.gain(budget.logits(live, point), y[live], oracle[live].goal)
            better = value > margin
            best = torch.where(ops.over(better, best), point, best)
            margin = torch.where(better, value, margin)
            x_adv[live] = best
            rest = ~(value > 0) & budget.open(live)
            live, x0, point, g, best, margin = keep(rest, live, x0, point, g, best, margin)
            step += 1
        return x_adv

    def _momentum(self, granted: Tensor) -> Tensor:
        """Weight of the previous gradients for these numbers of queries, float64 [n]."""
        if self.momentum is not None:
            return torch.full_like(granted, self.momentum, dtype=torch.float64)
        return 1 - 1 / (granted.double() / (2 * self.pairs + 1)).clamp(min=1)

    def _sigma(self, threat: ThreatModel, n: int) -> float:
        """Standard deviation of a probe in images of n pixels."""
        if self.sigma is not None:
            return self.sigma
        return max(threat.eps if threat.norm == "linf" else threat.eps / math.sqrt(n), TINY) / 2

    def _gradient(
        self,
        budget: Budget,
        live: Tensor,
        point: Tensor,
        y: Tensor,
        pairs: Tensor,
        sigma: float,
        draws: Draws,
        step: int,
    ) -> Tensor:
        """Estimated gradient at each point [n, ...], from its own number of pairs, int64 [n]; zero for zero pairs."""
        g = torch.zeros_like(point)
        for count in pairs.unique().tolist():  # a single value, except for the last steps of unequal budgets
            rows = (pairs == count).nonzero().squeeze(1)
            width = max(1, NUMBERS // (2 * len(rows) * point[0].numel()))
            for first in range(0, count, width):
                k = torch.arange(first, min(first + width, count), device=point.device)
                each = rows.repeat_interleave(len(k))
                u = (
                    draws[each]
                    .normal(point.shape[1:], step * self.pairs + k.repeat(len(rows)), "probe")
                    .to(point.dtype)
                )
                move = (sigma * u).view(len(rows), len(k), *point.shape[1:])
                here = point[rows][:, None]
                probes = torch.cat([here + move, here - move], dim=1).clamp(0, 1).flatten(0, 1)
                z = budget.logits(live[rows], probes)
                goal = budget.oracle[live[rows]].repeat(2 * len(k)).goal
                value = ops.gain(z, y[rows].repeat_interleave(2 * len(k)), goal)
                up, down = value.view(len(rows), 2, len(k)).unbind(1)
                g[rows] += torch.einsum("nk,nk...->n...", (up - down) / (2 * sigma**2 * count), move)
        return g
