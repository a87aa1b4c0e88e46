"""Boundary attack: a random walk along the decision boundary, in small steps towards the clean image."""

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
SPHERICAL = (0.2, 0.5)  # success rates of points on the sphere between which the steps stay unchanged
SOURCE = (0.1, 0.25)  # the same for full proposals and the step towards the clean image


@dataclass(frozen=True, kw_only=True)
class Boundary(MinimalAttack):
    """Random walk on the misclassified side of the boundary, in small steps towards the clean image.

    Brendel, Rauber, Bethge, "Decision-based adversarial attacks: reliable attacks against black-box machine learning
    models", ICLR 2018, arXiv 1712.04248. A proposal takes a random step on the sphere around the clean image and then a
    step towards the clean image. It is accepted if it is misclassified. Both steps are relative to the distance. The
    rate of misclassified points on the sphere adapts both steps; the rate of accepted proposals adapts only the second
    one.

    Random: the initial noise and the directions, drawn for each sample. Cost per sample: its whole budget, which is
    `queries`, or fewer if the threat model allows fewer. The clean image is not queried.

    Differs from the paper: it starts next to the boundary, towards the best of several noise images (made of larger
    cells if pixel-wise noise gets the label of the image), with a larger step on the sphere (0.1, not 0.01). Points on
    the sphere are queried only every few steps. The rates are measured over windows of steps, shorter than those of
    foolbox, so that the steps adapt within hundreds of queries.

    Attributes:
        queries: largest number of queries per sample.
        spherical_step: initial step on the sphere, as a fraction of the distance.
        source_step: initial step towards the clean image, as a fraction of the distance.
        adaptation: factor by which steps are multiplied or divided.
        every: number of steps between two queried points on the sphere.
        sphere_window: points on the sphere after which both steps are adapted.
        source_window: proposals after which the step towards the clean image is adapted.
        directions: noise images tried for the starting point; the nearest one is used. None: half of the granted
            queries, at most 100.
        stop_at_eps: stop a sample once it is misclassified within the eps of the threat model; return the clean image
            of a sample that never is.
    """

    queries: Count = 5000
    spherical_step: Positive = 0.1
    source_step: Positive = 0.01
    adaptation: Positive = 1.5
    every: Count = 10
    sphere_window: Count = 10
    source_window: Count = 15
    directions: Count | None = None
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
            nearer = hit & (now < far)  # always, except for rounding
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

    def _factor(self, rate: Tensor, low: float, high: float) -> Tensor:
        """Factor by which steps change at this success rate."""
        return self.adaptation ** ((rate > high).to(rate) - (rate < low).to(rate))

    @staticmethod
    def _propose(
        x0: Tensor, point: Tensor, far: Tensor, around: Tensor, inward: Tensor, eta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(a point near `point` at the same distance from x0; that point moved towards x0), both clipped to the box."""
        away = point - x0
        along = (ops.flat(eta) * ops.flat(away)).sum(dim=1) / far.square().clamp(min=TINY)
        eta = eta - ops.over(along, eta) * away
        eta = ops.over(around * far / ops.size(eta, "l2").clamp(min=TINY), eta) * eta
        sphere = (x0 + (away + eta) / ops.over((1 + around.square()).sqrt(), eta)).clamp(0, 1)
        # clipping may have shortened the perturbation
        scale = ((1 - inward) * far / ops.size(sphere - x0, "l2").clamp(min=TINY)).clamp(min=0, max=1)
        return sphere, x0 + ops.over(scale, x0) * (sphere - x0)
