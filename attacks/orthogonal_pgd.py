"""Orthogonal and selective PGD: attacks that evade a detector as well as the classifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.guarded import GuardedOracle
from siegebench.oracle import Oracle
from siegebench.search import Best
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Count, Number, Positive


@dataclass(frozen=True, kw_only=True)
class OrthogonalPGD(Attack):
    """PGD that ascends the classifier's loss until it is fooled, and then descends the detector's score.

    Bryniarski, Hingun, Pachuca, Wang, Carlini, "Evading adversarial example detection defenses with orthogonal
    projected gradient descent", ICLR 2022, arXiv 2106.15023. `orthogonal` removes from each gradient its component
    along the other, g_d <- g_d - <g_d, g_c> / |g_c|^2 g_c and vice versa, so that a step for one loss changes the other
    little; `select` uses them as they are. Two runs from the clean image: away from the label, and towards the next
    class. Of all misclassified iterates the one with the lowest score is returned.

    Without a gradient of the detector, a misclassified sample goes on ascending its margin, which gives images of large
    confidence; the detector's scores still choose among the iterates. Without a detector (other tracks) the most
    confident iterate is returned.

    Nothing is random. Cost per sample: two runs of `steps` gradients of the classifier and as many of the detector.

    Attributes:
        rule: `orthogonal` or `select`.
        steps: gradient steps per run.
        step: step size, in the units of eps; 2.5 eps / steps if left out.
        slack: the classifier counts as fooled when the margin of the logits exceeds this.
        next_class: also run towards the class after the label.
        loss: of the classifier; the cross-entropy has no gradient left where the logits are large.

    Differs from the paper: the default is 100 steps on the margin; the preset `paper` has 1,000 steps of 0.001 on the
    cross-entropy. Descent on the score does not end at the threshold.
    """

    step_in_pixels: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    rule: Literal["orthogonal", "select"] = "orthogonal"
    steps: Count = 100
    step: Positive | None = None
    slack: Number = 0.05
    next_class: bool = True
    loss: Literal["ce", "margin"] = "margin"

    def cost(self) -> float:
        return 2.0 * self.steps * (1 + self.next_class)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        best = Best(x)
        self._climb(oracle, x, y, None, threat, best)
        if self.next_class:
            self._climb(oracle, x, y, (y + 1) % oracle.num_classes, threat, best)
        return best.point

    def _climb(
        self, oracle: Oracle, x: Tensor, y: Tensor, goal: Tensor | None, threat: ThreatModel, best: Best
    ) -> None:
        a = 2.5 * threat.eps / self.steps if self.step is None else self.step
        every, x_t = torch.arange(len(x), device=x.device), x
        through = oracle.backward_model()
        climbed = ops.aimed(self.loss, y, goal)
        for t in range(self.steps + 1):
            g_c, z, _ = through.gradient(x_t, climbed)
            g_d, score = self._detector(oracle, x_t, z, y)
            best.keep(every, x_t, -score, ops.margin(z, y) > 0)
            if t == self.steps:
                return
            if not isinstance(oracle, GuardedOracle) or not oracle.smooth:
                g_d = -through.gradient(x_t, partial(ops.margin, y=y))[0]
            elif self.rule == "orthogonal":
                g_c, g_d = _without(g_c, g_d), _without(g_d, g_c)
            fooled = ops.over(ops.gain(z, y, goal) > self.slack, x)
            g = torch.where(fooled, -g_d, g_c)
            x_t = threat.project(x_t + a * ops.normalise(g, threat.norm), x)

    @staticmethod
    def _detector(oracle: Oracle, x_t: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(gradient of the score, score [n]); minus the margin takes the place of the score without a detector."""
        if isinstance(oracle, GuardedOracle):
            return oracle.score_gradient(x_t)
        return torch.zeros_like(x_t), -ops.margin(z, y)


def _without(g: Tensor, other: Tensor) -> Tensor:
    """Each row of g without its component along the row of the other gradient."""
    a, b = ops.flat(g), ops.flat(other)
    along = (a * b).sum(dim=1, keepdim=True) / (b.square().sum(dim=1, keepdim=True) + 1e-20)
    return (a - along * b).view_as(g)
