"""FMN: steps of normalised length, projected on a ball that shrinks while they succeed and grows while they fail."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Count, MinimalAttack, Positive, Share

ROUNDING = 1e-5  # of the largest logit: a margin that is smaller may turn over when the image is looked at again


def soft_gain(z: Tensor, y: Tensor, goal: Tensor | None, share: float) -> Tensor:
    """The soft margin of y, or that of the goal with the other sign."""
    return soft_margin(z, y, share) if goal is None else -soft_margin(z, goal, share)


def soft_margin(z: Tensor, y: Tensor, share: float) -> Tensor:
    """T log sum_{j != y} exp(z_j / T) - z_y, [n], with T = share * the standard deviation of a sample's logits."""
    own = z.gather(1, y[:, None]).squeeze(1)
    others = z.scatter(1, y[:, None], float("-inf"))
    t = (share * z.detach().std(dim=1, keepdim=True)).clamp(min=1e-6)
    return (t * (others / t).logsumexp(dim=1, keepdim=True)).squeeze(1) - own


@dataclass(frozen=True, kw_only=True)
class FMN(MinimalAttack):
    """delta <- proj_eps(delta + alpha g / ||g||_2), g the gradient of a smooth margin, with eps adapted in every step.

    Pintor, Roli, Brendel, Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints",
    NeurIPS 2021, arXiv 2102.12827. The radius eps of a sample
      - is ||delta|| + |margin| / ||g||_*, its way to the linearised boundary, while nothing has succeeded,
      - falls to the smaller of (1 - gamma) eps and the smallest norm found after a misclassified iterate,
      - and rises to (1 + gamma) eps after any other.
    alpha and gamma fall with a cosine from their first to their last value, and the temperature T of the margin to 0
    halfway. The nearest misclassified iterate is returned. Only directions and ratios of the logits matter, not their
    scale.

    Nothing is random. Cost of a sample: `steps` forwards and backwards.

    Differs from the paper: a step is clipped to [0, 1] before it is projected, not after (pixels that cannot move would
    use up the radius: of 8 black and white images on a linear model not one was broken that way); the margin begins as
    T log sum_{j != y} exp(z_j / T) - z_y, which feels all near classes at once and not only the nearest (161 images on
    cifar_resnet20, 100 steps: median L2 distance 0.0511 instead of 0.0520); a margin of the size
    of the logits' rounding does not count as misclassified, as the way to a flat boundary would end on it; alpha begins
    at 0.3, not 1 (16 images on cifar_resnet20, 100 steps: geometric mean of the L2 distances 0.036 instead of 0.040);
    no start from a given adversarial image; a sample without any gradient leaves.

    Attributes:
        steps: iterates looked at, the clean image first.
        alpha: first step size, in L2 whatever the norm is.
        alpha_end: last step size.
        gamma: first relative change of eps.
        gamma_end: last relative change of eps.
        softness: first temperature, as a share of the standard deviation of a sample's logits; 0 for the margin itself.
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    steps: Count = 100
    alpha: Positive = 0.3
    alpha_end: Positive = 0.003
    gamma: Share = 0.05
    gamma_end: Share = 0.001
    softness: Share = 0.25

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        p = threat.norm
        x_adv, live = x.clone(), torch.arange(len(x), device=x.device)
        x_k = x
        farthest = ops.size(torch.maximum(x, 1 - x), p)
        eps, nearest = torch.full_like(farthest, torch.inf), torch.full_like(farthest, torch.inf)
        for k in range(self.steps):
            cosine = (1 + math.cos(math.pi * k / self.steps)) / 2
            alpha = self.alpha_end + (self.alpha - self.alpha_end) * cosine
            gamma = self.gamma_end + (self.gamma - self.gamma_end) * cosine

            share, goal = self.softness * max(0.0, math.cos(math.pi * k / self.steps)), oracle[live].goal
            g, z, _ = oracle[live].gradient(x_k, partial(soft_gain, y=y[live], goal=goal, share=share))
            margin = ops.gain(z, y[live], goal)
            slack = ROUNDING * z.abs().amax(dim=1)
            broken, norm = margin > slack, ops.size(x_k - x[live], p)
            closer = broken & (norm < nearest)
            x_adv[live] = torch.where(ops.over(closer, x_k), x_k, x_adv[live])
            nearest = torch.where(closer, norm, nearest)

            way = norm + (margin.abs() + 2 * slack) / ops.size(g, ops.DUAL[p]).clamp(min=1e-12)
            grown = torch.where(nearest.isfinite(), (1 + gamma) * eps, way)
            eps = torch.where(broken, torch.minimum((1 - gamma) * eps, nearest), grown).clamp(max=farthest)

            rest = (broken | ~oracle[live].stuck(g)).nonzero().squeeze(1)
            live, eps, nearest, farthest = live[rest], eps[rest], nearest[rest], farthest[rest]
            if k == self.steps - 1 or not len(live):
                break
            # the box first: what it cuts off would use up the radius
            moved = (x_k[rest] + alpha * ops.normalise(g[rest], "l2")).clamp(0, 1)
            x_k = ops.project(moved, x[live], p, eps)
        return x_adv
