"""Sign flip: shrinks an Linf perturbation and flips some of its signs, while the image stays misclassified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import keep
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Count, MinimalAttack, Positive, Share

from ._decision import Queries, start

SEARCHES = 10  # bisection steps on the path to the noise
EVERY = 10  # iterations after which alpha and p adapt
RANGE = (0.99, 0.9999)  # of the probability to keep a sign
LARGEST_P = 0.999  # that of the authors, with which an attack of 10,000 queries begins
P_SIGN, P_ALL = 1e-4, 1e-3  # changes of that probability


@dataclass(frozen=True, kw_only=True)
class SignFlip(MinimalAttack):
    """Alternately shrinks the perturbation and flips some of its signs, while the image stays misclassified.

    Chen, Zhang, Hu, Wu, "Boosting decision-based black-box adversarial attacks with random sign flip", ECCV 2020.
    Projection: a random image of +-alpha is added, and the sum is clipped to a ball that is smaller by alpha. Flip:
    each sign is kept with its own probability p. Both changes are kept if the image is misclassified. alpha and p are
    adapted to the success rates, and each p also to its own successful flips.

    Random: the initial noise, the +-alpha images and the flips, drawn for each sample. Cost per sample: the queries of
    the start and two queries per iteration, at most `queries` in all, or fewer if the threat model allows fewer. The
    clean image is not queried.

    Differs from the paper: it starts towards the best of several noise images, with cells of several sizes (the
    authors: the first misclassified image of pixel-wise noise). They cost queries (not in the authors' code).

    Attributes:
        queries: largest number of queries per sample.
        alpha: initial step.
        p: initial probability to keep a sign. None: 1 - 10 / granted queries, between 0.99 and 0.999.
        resize: random images are drawn smaller by this factor and interpolated.
        directions: noise images tried for the starting point; the nearest one is used. None: half of the granted
            queries, at most 100.
        stop_at_eps: stop a sample once it is misclassified within the eps of the threat model; return the clean image
            of a sample that never is. Without it, the attack continues to minimise.
    """

    queries: Count = 10_000
    alpha: Positive = 0.004
    p: Share | None = None
    resize: Count = 1
    directions: Count | None = None
    stop_at_eps: bool = True

    needs: ClassVar[Access] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ask = Queries(oracle, x, y, threat, self.queries, self.stop_at_eps)
        rows, point = start(ask, draws, 0.5**SEARCHES, self.directions)
        x0 = x[rows]
        delta = point - x0
        p = self.keeping(ask.granted[rows]).to(x).view(-1, 1, 1, 1).repeat(1, *self._grid(x))
        alpha = torch.full_like(delta[:, 0, 0, 0], self.alpha)
        shrunk, flipped = torch.zeros_like(alpha), torch.zeros_like(alpha)  # successes since the last adaptation
        t = 0
        while len(rows):
            t += 1
            streams = draws[rows]
            eta = ops.over(alpha, delta) * self._spread(streams.sign(self._grid(x), t, "project"), x)
            trial = ops.project_ball(delta + eta, "linf", (ops.size(delta, "linf") - alpha).clamp(min=0))
            hit = ask.wrong(rows, (x0 + trial).clamp(0, 1))
            delta = torch.where(ops.over(hit, delta), trial, delta)
            shrunk += hit
            s = torch.where(streams.uniform(self._grid(x), t, "flip") < p, 1.0, -1.0)
            trial = torch.where(self._spread(s, x) < 0, -delta, delta)
            hit = ask.wrong(rows, (x0 + trial).clamp(0, 1))
            delta = torch.where(ops.over(hit, delta), trial, delta)
            p = torch.where(ops.over(hit, p), (p - P_SIGN * s).clamp(*RANGE), p)
            flipped += hit
            if t % EVERY == 0:
                often, seldom = 0.7 * EVERY, 0.3 * EVERY
                alpha = torch.where(shrunk > often, alpha * 1.5, torch.where(shrunk < seldom, alpha / 1.5, alpha))
                change = P_ALL * ((flipped < seldom).to(alpha) - (flipped > often).to(alpha))
                p = (p + ops.over(change, p)).clamp(*RANGE)
                shrunk, flipped = torch.zeros_like(alpha), torch.zeros_like(alpha)
            rows, x0, delta, p, alpha, shrunk, flipped = keep(
                ask.open(rows), rows, x0, delta, p, alpha, shrunk, flipped
            )
        return ask.result()

    def keeping(self, granted: Tensor) -> Tensor:
        """Initial probability to keep a sign, for these numbers of queries, float64 [n]."""
        if self.p is not None:
            return torch.full_like(granted, self.p, dtype=torch.float64)
        return (1 - 10 / granted.double()).clamp(RANGE[0], LARGEST_P)

    def _grid(self, x: Tensor) -> tuple[int, int, int]:
        channels, height, width = x.shape[1:]
        return channels, max(1, height // self.resize), max(1, width // self.resize)

    @staticmethod
    def _spread(u: Tensor, like: Tensor) -> Tensor:
        """Interpolate to the size of the image."""
        u = u.to(like)
        if u.shape[2:] == like.shape[2:]:
            return u
        return F.interpolate(u, like.shape[2:], mode="bilinear", align_corners=False)
