"""Boundary attack: a random walk along the boundary that comes nearer to the clean image by small steps."""

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

from ._decision import Queries, start

TINY = 1e-12
SPHERICAL = (0.2, 0.5)  # shares of misclassified spherical proposals between which the steps stay
SOURCE = (0.1, 0.25)  # the same of full proposals, for the step towards the clean image


@dataclass(frozen=True, kw_only=True)
class Boundary(MinimalAttack):
    """A random walk on the misclassified side of the boundary that comes nearer to the clean image step by step.

    Brendel, Rauber, Bethge, "Decision-based adversarial attacks: reliable attacks against black-box machine learning
    models", ICLR 2018, arXiv 1712.04248. A proposal goes a step of random direction on the sphere around the clean
    image and then a step towards it; it is accepted when it is misclassified. Both steps are relative to the distance.
    They grow and shrink together with the share of misclassified points on the sphere, and the second one alone with
    the share of accepted proposals.

    Random: the noise it starts from and the directions, for each sample on its own. A sample spends its whole budget:
    `queries`, or what the threat model leaves. The clean image is not queried.

    Differs from the paper: it starts next to the boundary, towards the best of some noise images (in larger cells where
    fine noise has the label of the image), with a larger step on the sphere (0.1, not 0.01). Points on the sphere are
    asked about every few steps only, and the shares are those of windows of steps, shorter than foolbox's, so that the
    steps adapt within hundreds of queries.

    Attributes:
        queries: at most.
        spherical_step: first step on the sphere, as a share of the distance.
        source_step: first step towards the clean image, as a share of the distance.
        adaptation: factor by which steps grow or shrink.
        every: steps from one point on the sphere that is asked about to the next.
        sphere_window: points on the sphere that decide about an adaptation of both steps.
        source_window: proposals that decide about an adaptation of the step towards the clean image.
        directions: draws of noise that compete for the start.
        stop_at_eps: a sample leaves as soon as it is broken within the eps of the threat model, and one that never is
            comes back clean.
    """

    queries: Count = 5000
    spherical_step: Positive = 0.1
    source_step: Positive = 0.01
    adaptation: Positive = 1.5
    every: Count = 10
    sphere_window: Count = 10
    source_window: Count = 15
    directions: Count = 50
    stop_at_eps: bool = False

    needs: ClassVar[Access] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ask = Queries(oracle, x, y, threat, self.queries, self.stop_at_eps)
        rows, point = start(ask, draws, 1e-3, self.directions)
        x0, far = x[rows], threat.size(point, x[rows])
        around, inward = torch.full_like(far, self.spherical_step), torch.full_like(far, self.source_step)
        stayed, gained = torch.zeros_like(far), torch.zeros_like(far)  # successes since the last adaptation
        t = 0
        while len(rows):
            t += 1
            eta = draws[rows].normal(x.shape[1:], t, "step").to(x)
            sphere, trial = self._propose(x0, point, far, around, inward, eta)
            if t % self.every == 0:
                stayed += ask.wrong(rows, sphere)
            hit = ask.wrong(rows, trial)
            gained += hit
            now = threat.size(trial, x0)
            nearer = hit & (now < far)  # but for rounding, always
            point, far = torch.where(ops.over(nearer, point), trial, point), torch.where(nearer, now, far)
            if t % (self.every * self.sphere_window) == 0:
                factor = self._factor(stayed / self.sphere_window, *SPHERICAL)
                around, inward, stayed = around * factor, inward * factor, torch.zeros_like(stayed)
            if t % self.source_window == 0:
                factor = self._factor(gained / self.source_window, *SOURCE)
                inward, gained = inward * factor, torch.zeros_like(gained)
            rows, x0, point, far, around, inward, stayed, gained = keep(
                ask.open(rows), rows, x0, point, far, around, inward, stayed, gained
            )
        return ask.result()

    def _factor(self, share: Tensor, low: float, high: float) -> Tensor:
        """By how much steps change at this share of successes."""
        return self.adaptation ** ((share > high).to(share) - (share < low).to(share))

    @staticmethod
    def _propose(
        x0: Tensor, point: Tensor, far: Tensor, around: Tensor, inward: Tensor, eta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(a point beside `point`, as far from x0 as it is; the same drawn towards x0), both clipped to the box."""
        away = point - x0
        along = (ops.flat(eta) * ops.flat(away)).sum(dim=1) / far.square().clamp(min=TINY)
        eta = eta - ops.over(along, eta) * away
        eta = ops.over(around * far / ops.size(eta, "l2").clamp(min=TINY), eta) * eta
        sphere = (x0 + (away + eta) / ops.over((1 + around.square()).sqrt(), eta)).clamp(0, 1)
        # clipping has shortened some
        share = ((1 - inward) * far / ops.size(sphere - x0, "l2").clamp(min=TINY)).clamp(min=0, max=1)
        return sphere, x0 + ops.over(share, x0) * (sphere - x0)
