"""Sign-OPT: the distance of the boundary as a function of the direction, descended by the signs of its changes."""

from __future__ import annotations

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

from ._decision import Queries, bisect, probes, start

FINE = 500  # searches end at beta / FINE
DOUBLINGS = 15  # of a step, at most
RESERVE = 15  # queries that an estimate of the slope leaves for the steps after it
SHORTEST = 1e-4  # step; below it beta is divided by 10
LEAST_BETA = 1e-5


@dataclass(frozen=True, kw_only=True)
class SignOPT(MinimalAttack):
    """Descends g(theta), the distance of the boundary in direction theta, with one query for each sign of a change.

    Cheng, Singh, Chen, Chen, Liu, Hsieh, "Sign-OPT: a query-efficient hard-label adversarial attack", ICLR 2020,
    arXiv 1909.10773. A probe theta + beta u is misclassified at distance g(theta) where g falls along u; the mean of
    the u with these signs is the slope. The step along it is doubled while it helps, or divided by 4 until it does.

    Random: the noise it starts from and the probes, for each sample on its own. A sample spends its whole budget:
    `queries`, or what the threat model leaves. The clean image is not queried.

    Differs from the paper: it starts towards the best of 50 images of uniform noise (there: 100 directions), in larger
    cells where fine noise has the label of the image. A step is looked at first at the best distance so far, one query,
    and its distance is searched only where it is nearer (the authors' code follows every step to its boundary). beta is
    not divided below 1e-5, where float32 pixels would not show it.

    Attributes:
        queries: at most.
        probes: signs for one slope (K).
        alpha: first step, a multiple of the slope.
        beta: length of the probes, of directions of length 1.
        directions: draws of noise that compete for the start.
        stop_at_eps: a sample leaves as soon as it is broken within the eps of the threat model, and one that never is
            comes back clean.
    """

    queries: Count = 5000
    probes: Count = 200
    alpha: Positive = 0.2
    beta: Positive = 0.001
    directions: Count = 50
    stop_at_eps: bool = False

    needs: ClassVar[Access] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ask = Queries(oracle, x, y, threat, self.queries, self.stop_at_eps)
        rows, point = start(ask, draws, self.beta / FINE, self.directions)
        theta = ops.normalise(point - x[rows], "l2")
        g = threat.size(point, x[rows])
        alpha, beta = torch.full_like(g, self.alpha), torch.full_like(g, self.beta)
        t = 0
        while len(rows):
            t += 1
            slope = self._slope(ask, rows, theta, g, beta, draws[rows].child("probes", t))
            theta, g, alpha = self._descend(ask, rows, theta, g, slope, alpha, beta / FINE)
            stuck = alpha < SHORTEST
            alpha = torch.where(stuck, torch.ones_like(alpha), alpha)
            beta = torch.where(stuck, beta / 10, beta).clamp(min=LEAST_BETA)
            rows, theta, g, alpha, beta = keep(ask.open(rows), rows, theta, g, alpha, beta)
        return ask.result()

    def _slope(self, ask: Queries, rows: Tensor, theta: Tensor, g: Tensor, beta: Tensor, draws: Draws) -> Tensor:
        """Mean of the probes u, with the signs of the changes of g along them."""
        x = ask.x[rows][:, None]
        spend = (ask.left[rows] - RESERVE).clamp(min=1, max=self.probes)
        total = torch.zeros_like(theta)
        for first, u in probes(draws, theta.shape[1:], int(spend.max())):
            u = u.to(theta)
            u = u / u.flatten(2).norm(dim=2)[:, :, None, None, None]
            other = theta[:, None] + beta.view(-1, 1, 1, 1, 1) * u
            length = g[:, None] / other.flatten(2).norm(dim=2)
            nearer = ask.votes(rows, (x + length[:, :, None, None, None] * other).clamp(0, 1), spend - first)
            total -= (nearer[:, :, None, None, None] * u).sum(dim=1)
        return total / ops.over(spend, total)

    @staticmethod
    def _descend(
        ask: Queries, rows: Tensor, theta: Tensor, g: Tensor, slope: Tensor, step: Tensor, tolerance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(best direction on the line, its distance, the step that led there, 0 where none helped)."""
        x, best, near, took = ask.x[rows], theta.clone(), g.clone(), torch.zeros_like(step)

        def look(live: Tensor, step: Tensor) -> Tensor:
            """Whether the boundary is nearer after this step; if so, how near."""
            ray = ops.normalise(theta[live] - ops.over(step, x) * slope[live], "l2")

            def place(i: Tensor, r: Tensor) -> Tensor:
                return (x[live[i]] + ops.over(r, x) * ray[i]).clamp(0, 1)

            hit = ask.wrong(rows[live], place(torch.arange(len(live), device=live.device), near[live]))
            i = hit.nonzero().squeeze(1)
            at = live[i]
            near[at] = bisect(ask, rows[at], lambda j, r: place(i[j], r), near[at], tolerance[at])
            best[at], took[at] = ray[i], step[i]
            return hit

        live, length = torch.arange(len(rows), device=rows.device), step
        for _ in range(DOUBLINGS):
            if not len(live):
                break
            live, length = keep(look(live, length) & ask.open(rows[live]), live, 2 * length)
        live, length = keep((took == 0) & ask.open(rows), torch.arange(len(rows), device=rows.device), step / 4)
        while len(live):
            helped = look(live, length)
            live, length = keep(~helped & ask.open(rows[live]) & (length / 4 >= SHORTEST), live, length / 4)
        return best, near, took
