"""FMN: normalised gradient steps, projected onto a ball that shrinks after successes and grows after failures."""

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

ROUNDING = 1e-5  # fraction of the largest logit: a smaller margin may change sign in another forward pass


def soft_gain(z: Tensor, y: Tensor, goal: Tensor | None, softness: float) -> Tensor:
    """The soft margin of y; with a goal, the negated soft margin of the goal."""
    return soft_margin(z, y, softness) if goal is None else -soft_margin(z, goal, softness)


def soft_margin(z: Tensor, y: Tensor, softness: float) -> Tensor:
    """T log sum_{j != y} exp(z_j / T) - z_y, [n]; T = softness * standard deviation of a sample's logits."""
    own = z.gather(1, y[:, None]).squeeze(1)
    others = z.scatter(1, y[:, None], float("-inf"))
    t = (softness * z.detach().std(dim=1, keepdim=True)).clamp(min=1e-6)
    return (t * (others / t).logsumexp(dim=1, keepdim=True)).squeeze(1) - own


@dataclass(frozen=True, kw_only=True)
class FMN(MinimalAttack):
    """delta <- proj_eps(delta + alpha g / ||g||_2), g the gradient of a smooth margin, with eps adapted in every step.

    Pintor, Roli, Brendel, Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints",
    NeurIPS 2021, arXiv 2102.12827. The radius eps of a sample
      - is ||delta|| + |margin| / ||g||_*, its distance to the linearised boundary, until an iterate is misclassified,
      - falls to the smaller of (1 - gamma) eps and the smallest norm found, after a misclassified iterate,
      - and rises to (1 + gamma) eps after any other iterate.
    alpha and gamma decrease from their initial to their final value along a cosine; the temperature T of the margin
    reaches 0 halfway. The nearest misclassified iterate is returned. The result does not depend on the scale of the
    logits.

    Nothing is random. Cost per sample: `steps` forward and backward passes.

    Differs from the paper: a step is clipped to [0, 1] before it is projected, not after (pixels that cannot change
    would use up the radius: on a linear model, none of 8 black and white images was misclassified that way). The margin
    begins as T log sum_{j != y} exp(z_j / T) - z_y, which takes all near classes into account and not only the nearest
    (161 images on cifar_resnet20, 100 steps: median L2 distance 0.0511 instead of 0.0520). A margin of the size of the
    logits' rounding error does not count as misclassified, because the step to a flat boundary would end on it. alpha
    begins at 0.3, not 1 (16 images on cifar_resnet20, 100 steps: geometric mean of the L2 distances 0.036 instead of
    0.040). No start from a given adversarial image. A sample with zero gradient is no longer attacked.

    Attributes:
        steps: number of iterates, the clean image included.
        alpha: initial step size, in L2 for every norm.
        alpha_end: final step size.
        gamma: initial relative change of eps.
        gamma_end: final relative change of eps.
        softness: initial temperature, as a fraction of the standard deviation of a sample's logits; 0: plain margin.
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

            softness, goal = self.softness * max(0.0, math.cos(math.pi * k / self.steps)), oracle[live].goal
            g, z, _ = oracle[live].gradient(x_k, partial(soft_gain, y=y[live], goal=goal, softness=softness))
            margin = ops.gain(z, y[live], goal)
            slack = ROUNDING * z.abs().amax(dim=1)
            broken, norm = margin > slack, ops.size(x_k - x[live], p)
            closer = broken & (norm < nearest)
            x_adv[live] = torch.where(ops.over(closer, x_k), x_k, x_adv[live])
            nearest = torch.where(closer, norm, nearest)

            linear = norm + (margin.abs() + 2 * slack) / ops.size(g, ops.DUAL[p]).clamp(min=1e-12)
            grown = torch.where(nearest.isfinite(), (1 + gamma) * eps, linear)
            eps = torch.where(broken, torch.minimum((1 - gamma) * eps, nearest), grown).clamp(max=farthest)

            rest = (broken | ~oracle[live].stuck(g)).nonzero().squeeze(1)
            live, eps, nearest, farthest = live[rest], eps[rest], nearest[rest], farthest[rest]
            if k == self.steps - 1 or not len(live):
                break
            # clip to the box first: changes that the box removes would use up the radius
            moved = (x_k[rest] + alpha * ops.normalise(g[rest], "l2")).clamp(0, 1)
            x_k = ops.project(moved, x[live], p, eps)
        return x_adv
