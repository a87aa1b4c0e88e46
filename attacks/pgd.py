"""Projected gradient descent, the standard white-box attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Best
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Count, Positive


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """x_{t+1} = clip(proj_eps(x_t + a d(grad loss(x_t)))), from a random point of the ball.

    Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
    arXiv 1706.06083. d is the sign for Linf and the unit vector for L2.

    Random: the starting point, uniform in the ball, drawn for each sample and restart; the first run starts from
    `oracle.start` if points are given. Cost per sample that is never
    misclassified: steps + 1 forward and steps backward passes per restart.

    Differs from the paper: a sample stops at its first misclassified iterate and returns it. A sample that is never
    misclassified returns its iterate of highest loss over all restarts, not the last one. A run also stops for a sample
    whose gradient is exactly zero, because it cannot move. If the oracle averages several forward passes, the mean
    logits decide. The margin and DLR losses do not saturate when logits are large.

    Attributes:
        steps: gradient steps per run.
        step: step size a, in the units of eps; 2.5 eps / steps when left out.
        restarts: runs from new starting points, for samples that are still correctly classified.
        random_start: when false, start from the clean image; all restarts are then identical.
        loss: what is maximised: cross-entropy, margin of the logits, or difference of logits ratio (3 classes or more).
        early_stop: stop a sample once it is misclassified. Without it every run takes all its steps, and the
            misclassified point of highest loss is returned: for randomised models, where a single misclassified forward
            pass is not a success.
    """

    aims: ClassVar[bool] = True
    starts: ClassVar[bool] = True
    step_in_pixels: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    steps: Count = 20
    step: Positive | None = None
    restarts: Count = 1
    random_start: bool = True
    loss: Literal["ce", "margin", "dlr"] = "ce"
    early_stop: bool = True

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ops.check_classes(self.loss, oracle.num_classes)
        best = Best(x)
        for restart in range(self.restarts):
            live = best.left()
            if not len(live):
                break
            given = oracle.start if restart == 0 else None
            if given is not None:
                x_t = threat.project(given, x)
            else:
                x_t = self._start(x[live], threat, draws[live].child("pgd", restart))
            self._climb(oracle, x, y, threat, x_t, best)
        return best.point

    def _climb(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, x_t: Tensor, best: Best) -> None:
        """One run from the points x_t, on the samples that are still correctly classified."""
        a = 2.5 * threat.eps / self.steps if self.step is None else self.step
        live = best.left()
        for t in range(self.steps + 1):
            loss = ops.aimed(self.loss, y[live], oracle[live].goal)
            if t < self.steps:
                g, z, value = oracle[live].gradient(x_t, loss)
            else:  # the last iterate needs no gradient
                z = oracle[live].logits(x_t)
                value = loss(z)
            broken = ops.hit(z.argmax(dim=1), y[live], oracle[live].goal)
            best.keep(live, x_t, value, broken)
            if t == self.steps:
                break
            leaving = oracle[live].stuck(g) | (broken & self.early_stop)
            rest = (~leaving).nonzero().squeeze(1)
            if not len(rest):
                break
            live = live[rest]
            x_t = threat.project(x_t[rest] + a * ops.normalise(g[rest], threat.norm), x[live])

    def _start(self, x: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        """A point drawn uniformly from the ball, clipped to the box."""
        if not self.random_start:
            return x.clone()
        shape = tuple(x.shape[1:])
        if threat.norm == "linf":
            delta = threat.eps * (2 * draws.uniform(shape, purpose="start") - 1)
        else:
            direction = ops.normalise(draws.normal(shape, purpose="start"), "l2")
            radius = threat.eps * draws.uniform(purpose="radius") ** (1 / x[0].numel())
            delta = ops.over(radius, direction) * direction
        return threat.project(x + delta.to(x.dtype), x)
