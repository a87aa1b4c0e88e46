"""Bandits: gradient ascent along a prior that is learnt from two queries per step, on tiles of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Budget, keep
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Attack, Count, Positive

# defaults of (eta, delta, online rate, step)
SETTINGS: dict[Norm, tuple[float, float, float, float]] = {"linf": (0.1, 1.0, 100.0, 0.2), "l2": (0.1, 0.1, 0.1, 0.1)}


@dataclass(frozen=True, kw_only=True)
class Bandits(Attack):
    """Keeps an estimate v of the gradient across steps; each step corrects it with a finite difference.

    Ilyas, Engstrom, Madry, "Prior Convictions: Black-Box Adversarial Attacks with Bandits and Priors", ICLR 2019, arXiv
    1807.07978; with the data prior of tiles (Bandits_TD). In each step, q+- = v +- delta u with u ~ N(0, I / dim) and d
    = (L(x + eta q+ / |q+|) - L(x + eta q- / |q-|)) / (eta delta). v is updated along d delta u: by exponentiated
    gradients in [-1, 1] for Linf, by addition for L2. Then x moves along v (along its sign for Linf) and is projected.
    L is the margin.

    Random: u, drawn for each sample. Cost per step: two queries, plus a third query of the new image if one of the two
    probes was misclassified; at most `queries` in all, or fewer if the threat model allows fewer. A sample stops once
    it is misclassified or has fewer than two queries left. The clean image is not queried.

    Differs from the paper: the margin instead of cross-entropy; the step is a fraction of eps. Queries that test for
    success are counted, and are made only if a probe was misclassified (the authors test every step, uncounted). v =
    tanh(w) with w += rate d delta u, which equals their update of v in exact arithmetic. The tiles follow the granted
    queries. Probes are clipped to [0, 1].

    Attributes:
        queries: largest number of queries per sample.
        tile: side in pixels of the squares that share one value of the prior. Default: the smallest power of two, from
            2 (Linf) or 1 (L2), with which the prior has no more values than there are granted queries.
        eta: L2 length of a probe; default 0.1.
        delta: exploration around v; default 100 (Linf) or 0.1 (L2).
        rate: learning rate of v; default 100 (Linf) or 0.1 (L2).
        step: step size as a fraction of eps; default 0.2 (Linf) or 0.1 (L2).
    """

    queries: Count = 10_000
    tile: Count | None = None
    eta: Positive | None = None
    delta: Positive | None = None
    rate: Positive | None = None
    step: Positive | None = None

    needs: ClassVar[Access] = "score"
    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        x_adv, tiles = x.clone(), self._tiles(Budget(oracle, y, self.queries).granted, x.shape[1:], threat.norm)
        for tile in tiles.unique().tolist():  # a single value, unless samples have different budgets
            rows = (tiles == tile).nonzero().squeeze(1)
            x_adv[rows] = self._climb(oracle[rows], x[rows], y[rows], threat, draws[rows], tile)
        return x_adv

    def _tiles(self, granted: Tensor, shape: tuple[int, ...], norm: Norm) -> Tensor:
        """Side of the tiles for these numbers of queries, int64 [n]."""
        if self.tile is not None:
            return torch.full_like(granted, self.tile)
        channels, height, width = shape
        least = 1 if norm == "linf" else 0
        sides = [2**k for k in range(least, max(height, width).bit_length() + 1 + least)]
        values = torch.tensor([channels * math.ceil(height / s) * math.ceil(width / s) for s in sides])
        fits = values.to(granted.device) <= granted[:, None]
        first = torch.where(fits.any(dim=1), fits.byte().argmax(dim=1), len(sides) - 1)
        return torch.tensor(sides, device=granted.device)[first]

    def _climb(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, tile: int) -> Tensor:
        """Run on samples with the same side of the tiles."""
        own = (self.eta, self.delta, self.rate, self.step)
        eta, delta, rate, step_size = (
            usual if given is None else given for given, usual in zip(own, SETTINGS[threat.norm], strict=True)
        )
        squash = torch.tanh if threat.norm == "linf" else lambda w: w
        size = x.shape[-2:]
        tiles = (x.shape[1], *(math.ceil(side / tile) for side in size))
        x_adv, budget = x.clone(), Budget(oracle, y, self.queries)
        # state of the samples still attacked: their rows, the image, and w, which defines v
        live = budget.rows(least=2)
        x0, image, w = x[live], x[live], x.new_zeros(len(live), *tiles)
        step = 0
        while len(live):
            u = draws[live].normal(tiles, step, "direction").to(x.dtype) / math.sqrt(math.prod(tiles))
            v = squash(w)
            q = torch.stack([v + delta * u, v - delta * u], dim=1).flatten(0, 1)
            probes = image.repeat_interleave(2, dim=0) + eta * ops.normalise(F.interpolate(q, size), "l2")
            z = budget.logits(live, probes.clamp(0, 1))
            value = ops.gain(z, y[live].repeat_interleave(2), oracle[live].repeat(2).goal).view(-1, 2)
            slope = (value[:, 0] - value[:, 1]) / (eta * delta)
            w = w + rate * ops.over(slope, w) * delta * u
            along = ops.normalise(F.interpolate(squash(w), size), threat.norm)
            image = threat.project(image + step_size * threat.eps * along, x0)
            broken = torch.zeros_like(live, dtype=torch.bool)
            check = ((value > 0).any(dim=1) & budget.open(live)).nonzero().squeeze(1)
            if len(check):
                z = budget.logits(live[check], image[check])
                broken[check] = ops.hit(z.argmax(dim=1), y[live[check]], oracle[live[check]].goal)
            x_adv[live] = image
            live, x0, image, w = keep(~broken & budget.open(live, least=2), live, x0, image, w)
            step += 1
        return x_adv
