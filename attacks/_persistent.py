"""Targeted APGD until the passes are spent: more runs towards the classes that came nearest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Best
from siegebench.threat import ThreatModel
from siegebench.types import Attack

from .apgd import APGD, hardest

RANKS = (0, 1, 0, 2, 0, 1, 0, 3)  # which of the nearest classes the additional runs aim at, over and over


@dataclass(frozen=True, kw_only=True)
class Persistent:
    """Targeted APGD, first towards each class as in AutoAttack, then again towards those that came nearest.

    A class is nearer if the best point so far has the larger margin towards it. The additional runs go through `RANKS`
    again and again: from random points, then from the best points so far, and so on. Before them, `second` is tried on
    every sample, and then `probe`, a short random search: where it gets nearer than all gradients did, gradients
    mislead, and the sample is left to `otherwise`.

    Attributes:
        apgd: one run.
        targets: classes that are tried, at most all wrong ones.
        passes: largest number of forward and backward passes per sample, together.
        second: another attack by gradients.
        probe: an attack that needs no gradients.
        otherwise: the attack on samples whose gradients mislead.
    """

    apgd: APGD
    targets: int
    passes: int
    second: Attack
    probe: Attack
    otherwise: Attack

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        best, every = Best(x), torch.arange(len(x), device=x.device)
        goals = self._goals(oracle, x, y)
        near = torch.full(goals.shape, -torch.inf, dtype=x.dtype, device=x.device)  # margin at the best point
        points = x[:, None].repeat(1, goals.shape[1], 1, 1, 1)
        misled = torch.zeros_like(y, dtype=torch.bool)
        once = goals.shape[1]
        rounds = max(once, self.passes // (2 * self.apgd.steps + 3))
        for r in range(rounds + 1):
            if r == once:
                self._try(self.second, oracle, x, y, threat, draws, best)
                rows = best.left()
                misled[rows] = self._try(self.probe, oracle, x, y, threat, draws, best) > near[rows].amax(dim=1)
            if r == rounds:  # only then, because there may be no additional run
                break
            live = every[~best.hit & ~misled]
            if not len(live):
                continue
            k, start = torch.full_like(live, r), None
            if r >= once:
                k = near[live].argsort(dim=1, descending=True)[:, RANKS[(r - once) % len(RANKS)] % once]
                start = points[live, k] if (r - once) // len(RANKS) % 2 else None
            view, labels, aim = oracle[live], y[live], goals[live, k]
            streams = draws[live].child("apgd", self.apgd.loss, r, 0)
            found = self.apgd.ascend(view, x[live], labels, aim, threat, streams, start)
            z = view.logits(found.point)
            margin = ops.gain(z, labels, view.goal)
            best.keep(live, found.point, margin, found.hit)
            if once > 1:
                margin = (z.gather(1, aim[:, None]) - z.gather(1, labels[:, None])).squeeze(1)
            nearer = margin > near[live, k]
            near[live[nearer], k[nearer]], points[live[nearer], k[nearer]] = margin[nearer], found.point[nearer]
        self._try(self.otherwise, oracle, x, y, threat, draws.child("otherwise"), best, misled)
        return best.point

    def _goals(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        """The classes that runs aim at, int64 [n, targets]; a single column if the loss or the threat has no choice."""
        if oracle.goal is not None:
            return oracle.goal[:, None]
        return hardest(oracle.logits(x), y, self.targets) if self.apgd.loss == "targeted_dlr" else y[:, None]

    def _try(
        self, attack: Attack, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, best: Best,
        which: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Run another attack on the samples that are left (and in `which`), and return its margins."""
        rows = best.left() if which is None else (~best.hit & which).nonzero().squeeze(1)
        if not len(rows):
            return x.new_zeros(0)
        view = oracle[rows]
        found = attack.run(view, x[rows], y[rows], threat, draws[rows])
        z = view.logits(found)
        margin = torch.where(threat.size(found, x[rows]) <= threat.limit, ops.gain(z, y[rows], view.goal), -torch.inf)
        best.keep(rows, found, margin, margin > 0)
        return margin
