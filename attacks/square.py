"""Square attack: random search with square-shaped updates that use the whole budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Budget, keep
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Attack, Count, Share

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of the fraction of pixels, after these steps of 10 000
SHORTEST = 1000  # queries to which the schedule is rescaled by default, at least
TINY = 1e-12


def window(top: Tensor, left: Tensor, side: int, height: int, width: int) -> Tensor:
    """Mask of one square per sample, bool [n, 1, height, width]."""
    row = torch.arange(height, device=top.device) - top[:, None]
    column = torch.arange(width, device=top.device) - left[:, None]
    inside = ((row >= 0) & (row < side))[:, :, None] & ((column >= 0) & (column < side))[:, None, :]
    return inside[:, None]


@cache
def bump(side: int, order: int) -> Tensor:
    """Two opposite pyramids side by side, of length 1 in L`order`; steeper in L1 than in L2: float64 [side, side]."""

    def pyramid(height: int, width: int) -> Tensor:
        rings = max(height // 2, width // 2) + 1
        tail = torch.arange(1, rings + 1, dtype=torch.float64).pow(-4 / order).flip(0).cumsum(0).flip(0)
        row = (torch.arange(height) - height // 2).abs()[:, None]
        value = tail[torch.maximum(row, (torch.arange(width) - width // 2).abs())]
        return value / value.norm(p=order).clamp(min=TINY)

    both = torch.cat([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
    return both / both.norm(p=order)


def tiles(x: Tensor, order: int, draws: Draws) -> Tensor:
    """A grid of bumps with random signs and orientations, centred in the image, of the shape of x."""
    n, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    sign = draws.sign((channels, rows, columns), purpose="grid").to(x.dtype)
    turned = draws.uniform((1, rows, columns), purpose="grid turned") < 0.5
    one = bump(side, order).to(x)
    each = torch.where(turned[..., None, None], one.T, one) * sign[..., None, None]  # [n, c, rows, columns, s, s]
    delta = torch.zeros_like(x)
    area = each.transpose(3, 4).reshape(n, channels, rows * side, columns * side)
    delta[:, :, top : top + rows * side, left : left + columns * side] = area
    return delta


def laid(x: Tensor, order: int, share: float, draws: Draws, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """(a random window, another one, a bump of random sign and orientation that fits the first one)"""
    channels, height, width = x.shape[1:]
    side = max(round(math.sqrt(share * height * width)), 3)
    side = min(side + (side % 2 == 0), height, width)
    u = draws.uniform((5 + channels,), step, "square").to(x.dtype)
    top, left = (u[:, :2] * (height - side + 1)).long(), (u[:, 2:4] * (width - side + 1)).long()
    row = (torch.arange(height, device=x.device) - top[:, :1]).clamp(0, side - 1)[:, :, None]
    column = (torch.arange(width, device=x.device) - left[:, :1]).clamp(0, side - 1)[:, None, :]
    turned = (u[:, 4] < 0.5)[:, None, None]
    one = bump(side, order).to(x)[torch.where(turned, column, row), torch.where(turned, row, column)][:, None]
    sign = torch.where(u[:, 5:] < 0.5, -1.0, 1.0)[:, :, None, None]
    here, there = (window(top[:, i], left[:, i], side, height, width) for i in (0, 1))
    return here, there, sign * one


def length(delta: Tensor, dim: tuple[int, ...]) -> Tensor:
    """L2 norm over some dimensions, which are kept with size 1."""
    return delta.square().sum(dim=dim, keepdim=True).sqrt()


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search on the margin: a random square is changed, and the change is kept if it helps.

    Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial attack via random
    search", ECCV 2020, arXiv 1912.00049. Linf: initially vertical stripes, then squares of one colour at +-eps. L2:
    initially a grid of bumps, then one window receives a bump and the budget of another window.

    Random: stripes, positions, colours and the orientation of bumps, drawn for each sample (the authors' code draws one
    position for the whole batch). Cost per sample: one query for the first image and one per step, at most `queries` in
    all, or fewer if the threat model allows fewer. A sample stops once it is misclassified. The clean image is not
    queried.

    Differs from the paper: the schedule of the square sizes follows the granted queries: `queries`, or fewer if the
    threat model allows fewer (AutoAttack follows that of 10 000 queries whatever is granted). Squares can be anywhere
    in the image (the authors' code never reaches the last row and column).

    Attributes:
        queries: largest number of queries per sample, first image included.
        p: initial fraction of the pixels in a square; it is halved on a schedule for 10 000 queries.
        rescale: whether to rescale the schedule to the granted queries. Default: yes, but at most tenfold; with fewer
            than 1 000 queries, the smallest squares are left out, because the large ones gain more.
    """

    queries: Count = 5000
    p: Share = 0.8
    rescale: bool | None = None

    needs: ClassVar[Access] = "score"
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        x_adv = x.clone()
        budget = Budget(oracle, y, self.queries)
        # state of the samples still attacked: their rows, the best point and its margin
        live = budget.rows()
        x0, best, margin = x[live], x[live], torch.full_like(x[live, 0, 0, 0], -torch.inf)
        propose = self._linf if threat.norm == "linf" else self._l2
        start = self._stripes if threat.norm == "linf" else self._grid
        step = 0
        while len(live):
            streams = draws[live]
            if step == 0:
                trial = start(x0, threat.eps, streams)
            else:
                trial, shares = best.clone(), self.share(step - 1, budget.granted[live])
                for share in shares.unique().tolist():  # a single value, unless samples have different budgets
                    rows = (shares == share).nonzero().squeeze(1)
                    trial[rows] = propose(best[rows], x0[rows], threat.eps, share, streams[rows], step)
            z = budget.logits(live, trial)
            value = ops.gain(z, y[live], oracle[live].goal)
            broken = ops.hit(z.argmax(dim=1), y[live], oracle[live].goal)
            better = (value > margin) | (broken & (margin <= 0))
            best = torch.where(ops.over(better, best), trial, best)
            margin = torch.where(better, value, margin)
            x_adv[live] = best
            live, x0, best, margin = keep(~broken & budget.open(live), live, x0, best, margin)
            step += 1
        return x_adv

    def share(self, step: int, granted: Tensor) -> Tensor:
        """Fraction of the pixels in the square of this step (from 0), for these numbers of queries: float64 [n]."""
        whole = {True: granted, None: granted.clamp(min=SHORTEST), False: torch.full_like(granted, 10_000)}[
            self.rescale
        ]
        at = (step / whole.double() * 10_000).long()
        halvings = (at[:, None] > torch.tensor(HALVINGS, device=at.device)).sum(dim=1)
        return self.p / 2.0 ** halvings.double()

    @staticmethod
    def _stripes(x0: Tensor, eps: float, draws: Draws) -> Tensor:
        sign = draws.sign((x0.shape[1], 1, x0.shape[3]), purpose="stripes").to(x0.dtype)
        return (x0 + eps * sign).clamp(0, 1)

    @staticmethod
    def _linf(best: Tensor, x0: Tensor, eps: float, share: float, draws: Draws, step: int) -> Tensor:
        channels, height, width = x0.shape[1:]
        side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
        u = draws.uniform((2 + channels,), step, "square").to(x0.dtype)
        top, left = (u[:, 0] * (height - side + 1)).long(), (u[:, 1] * (width - side + 1)).long()
        colour = torch.where(u[:, 2:] < 0.5, -eps, eps)[:, :, None, None]
        # +-2 eps added to a point of the ball and clipped to the ball is +-eps
        return torch.where(window(top, left, side, height, width), (x0 + colour).clamp(0, 1), best)

    @staticmethod
    def _grid(x0: Tensor, eps: float, draws: Draws) -> Tensor:
        return (x0 + ops.normalise(tiles(x0, 2, draws), "l2") * eps).clamp(0, 1)

    @staticmethod
    def _l2(best: Tensor, x0: Tensor, eps: float, share: float, draws: Draws, step: int) -> Tensor:
        here, there, one = laid(x0, 2, share, draws, step)
        delta = best - x0
        old = delta * here
        new = (one + old / length(old, (2, 3)).clamp(min=TINY)) * here
        # each channel gets the norm of both windows, plus its part of the budget lost by clipping
        unused = (eps**2 - delta.square().sum(dim=(1, 2, 3), keepdim=True)).clamp(min=0) / x0.shape[1]
        budget = ((delta * (here | there)).square().sum(dim=(2, 3), keepdim=True) + unused).sqrt()
        new = new / length(new, (2, 3)).clamp(min=TINY) * budget
        delta = torch.where(here, new, torch.where(there, 0.0, delta))
        return (x0 + ops.normalise(delta, "l2") * eps).clamp(0, 1)
