"""Sign-OPT: minimises the distance of the boundary over directions, using only the signs of its changes."""

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
DOUBLINGS = 15  # largest number of doublings of a step
RESERVE = 15  # queries that a gradient estimate leaves for the steps after it
SHORTEST = 1e-4  # smallest step; below it beta is divided by 10
LEAST_BETA = 1e-5


@dataclass(frozen=True, kw_only=True)
class SignOPT(MinimalAttack):
    """Minimises g(theta), the distance of the boundary in direction theta, with one query per sign of a change.

    Cheng, Singh, Chen, Chen, Liu, Hsieh, "Sign-OPT: a query-efficient hard-label adversarial attack", ICLR 2020, arXiv
    1909.10773. A probe theta + beta u is misclassified at distance g(theta) if g decreases along u. The mean of the u
    with these signs estimates the gradient. The step along it is doubled while that helps, or divided by 4 until it
    does.

    Random: the initial noise and the probes, drawn for each sample. Cost per sample: its whole budget, which is
    `queries`, or fewer if the threat model allows fewer. The clean image is not queried.

    Differs from the paper: it starts towards the best of up to 100 noise images with cells of several sizes (the
    authors: 100 directions of pixel-wise noise). A step is first tested with one query at the best distance so far, and
    its distance is searched only if it is nearer (the authors' code searches the boundary for every step). beta is not
    divided below 1e-5, because float32 pixels could not represent the change.

    Attributes:
        queries: largest number of queries per sample.
        probes: number of probes per gradient estimate (K).
        alpha: initial step, a multiple of the estimated gradient.
        beta: length of the probes, relative to directions of length 1.
        directions: noise images tried for the starting point; the nearest one is used. None: half of the granted
            queries, at most 100.
        stop_at_eps: stop a sample once it is misclassified within the eps of the threat model; return the clean image
            of a sample that never is.
    """

    queries: Count = 5000
    probes: Count = 200
    alpha: Positive = 0.2
    beta: Positive = 0.001
    directions: Count | None = None
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
        """Estimated gradient of g: the mean of the probes u, each with the sign of the change of g along it."""
        x = ask.x[rows][:, None]
        spend = (ask.left[rows] - RESERVE).clamp(min=1, max=self.probes)
        total = torch.zeros_like(theta)
        for first, u in probes(draws, theta.shape[1:], int(spend.max())):
            u = u.to(theta)
            u /= u.flatten(2).norm(dim=2)[:, :, None, None, None]
            other = (beta.view(-1, 1, 1, 1, 1) * u).add_(theta[:, None])
            length = g[:, None] / other.flatten(2).norm(dim=2)
            points = other.mul_(length[:, :, None, None, None]).add_(x).clamp_(0, 1)
            nearer = ask.votes(rows, points, spend - first)
            total -= torch.bmm(nearer[:, None], u.flatten(2)).view_as(total)
        return total / ops.over(spend, total)

    @staticmethod
    def _descend(
        ask: Queries, rows: Tensor, theta: Tensor, g: Tensor, slope: Tensor, step: Tensor, tolerance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(best direction along the line, its distance, its step size; 0 if no step helped)."""
        x, best, near, took = ask.x[rows], theta.clone(), g.clone(), torch.zeros_like(step)

        def nearer(live: Tensor, step: Tensor) -> Tensor:
            """Whether the boundary is nearer after this step; if so, also search its distance."""
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
            live, length = keep(nearer(live, length) & ask.open(rows[live]), live, 2 * length)
        live, length = keep((took == 0) & ask.open(rows), torch.arange(len(rows), device=rows.device), step / 4)
        while len(live):
            helped = nearer(live, length)
            live, length = keep(~helped & ask.open(rows[live]) & (length / 4 >= SHORTEST), live, length / 4)
        return best, near, took
