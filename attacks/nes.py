"""NES: projected gradient ascent with gradients estimated from scores by antithetic Gaussian probes."""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True)
class NES(Attack):
    """g = mean over pairs of (L(x + sigma u) - L(x - sigma u)) u / (2 sigma), u ~ N(0, I); then a step along g.

    Ilyas, Engstrom, Athalye, Lin, "Black-box Adversarial Attacks with Limited Queries and Information", ICML 2018,
    arXiv 1804.08598. L is the margin; the step goes along the sign of g (Linf) or along g (L2), and is projected.

    Random: the probes, drawn for each sample. Cost per step: 2 `pairs` queries for g and one to check the new point; at
    most `queries` in all, or fewer if the threat model allows fewer. If the remaining queries do not suffice for a
    whole step, a step with fewer pairs follows, and finally steps along the same g. A sample stops once it is
    misclassified; a sample with fewer than three queries is not attacked. The clean image is not queried.

    Differs from the paper: the margin instead of cross-entropy, which is flat where the network is confident. The step
    is a fixed fraction of eps (the authors halve it on plateaus). The query that checks the new point is counted.
    Probes are clipped to [0, 1], because a real system only accepts valid images.

    Attributes:
        queries: largest number of queries per sample.
        pairs: pairs of probes per gradient. With momentum few are enough; the authors use 25.
        sigma: standard deviation of a probe in each pixel.
        step: step size as a fraction of eps.
        momentum: weight of the previous gradients in the running mean.
    """

    queries: Count = 10_000
    pairs: Count = 5
    sigma: Positive = 0.01
    step: Positive = 0.2
    momentum: Share = 0.9

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
        step = 0
        while len(live):
            pairs = ((budget.left[live] - 1) // 2).clamp(max=self.pairs)
            estimate = self._gradient(budget, live, point, y[live], pairs, draws[live], step)
            followed = self.momentum * g + (1 - self.momentum) * estimate
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

    def _gradient(
        self, budget: Budget, live: Tensor, point: Tensor, y: Tensor, pairs: Tensor, draws: Draws, step: int
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
                move = (self.sigma * u).view(len(rows), len(k), *point.shape[1:])
                here = point[rows][:, None]
                probes = torch.cat([here + move, here - move], dim=1).clamp(0, 1).flatten(0, 1)
                z = budget.logits(live[rows], probes)
                goal = budget.oracle[live[rows]].repeat(2 * len(k)).goal
                value = ops.gain(z, y[rows].repeat_interleave(2 * len(k)), goal)
                up, down = value.view(len(rows), 2, len(k)).unbind(1)
                g[rows] += torch.einsum("nk,nk...->n...", (up - down) / (2 * self.sigma**2 * count), move)
        return g
