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

    Differs from the paper: noise images for the start cost queries (not in the authors' code), and are made of larger
    cells if pixel-wise noise gets the label of the image.

    Attributes:
        queries: largest number of queries per sample.
        alpha: initial step.
        p: initial probability to keep a sign.
        resize: random images are drawn smaller by this factor and interpolated.
        stop_at_eps: stop a sample once it is misclassified within the eps of the threat model; return the clean image
            of a sample that never is. Without it, the attack continues to minimise.
    """

    queries: Count = 10_000
    alpha: Positive = 0.004
    p: Share = 0.999
    resize: Count = 1
    stop_at_eps: bool = True

    needs: ClassVar[Access] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ask = Queries(oracle, x, y, threat, self.queries, self.stop_at_eps)
        rows, point = start(ask, draws, 0.5**SEARCHES)
        x0 = x[rows]
        delta = point - x0
        p = torch.full_like(delta[:, 0, 0, 0], self.p).view(-1, 1, 1, 1).repeat(1, *self._grid(x))
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
