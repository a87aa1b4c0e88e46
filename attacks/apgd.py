"""Auto-PGD: projected gradient ascent with an automatic step size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Best
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Count, Share

from ._l1 import Sparse, stages

TargetLoss = Callable[..., Tensor]  # (logits, y, target) to one number per sample


def checkpoints(steps: int) -> dict[int, int]:
    """Steps after which the step size is checked, and how many steps each check covers (22, 19, 16, ... % of all)."""
    window, shrink, least = (max(int(fraction * steps), 1) for fraction in (0.22, 0.03, 0.06))
    out, at = {}, window
    while at <= steps:
        out[at] = window
        window = max(window - shrink, least)
        at += window
    return out


def hardest(z: Tensor, y: Tensor, count: int) -> Tensor:
    """The `count` wrong classes (or all) with the highest logits, highest first; int64 [n, count]."""
    wrong = z.scatter(1, y[:, None], float("-inf"))
    return wrong.argsort(dim=1, descending=True, stable=True)[:, : min(count, z.shape[1] - 1)]


@dataclass
class _Climb:
    """State of the samples still attacked: the current point, the best point, and what decides the step size."""

    x0: Tensor
    y: Tensor
    target: Tensor
    x: Tensor
    x_old: Tensor
    g: Tensor
    loss: Tensor
    x_best: Tensor
    g_best: Tensor
    loss_best: Tensor
    step: Tensor
    rises: Tensor  # steps that raised the loss since the last checkpoint
    halved: Tensor  # whether the step was halved at the last checkpoint
    loss_checked: Tensor  # best loss at the last checkpoint

    def __getitem__(self, index: Tensor) -> _Climb:
        return _Climb(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Projected gradient ascent with momentum; the step of each sample is halved when its loss stops rising.

    Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    ICML 2020, arXiv 2003.01690. The step starts at 2 eps. At fixed checkpoints the step of a sample is halved, and the
    sample returns to its best point, in two cases: its loss rose in too few of the last steps, or its best loss did not
    change although the step did not either. `targeted_dlr` maximises the loss towards the strongest wrong classes of
    the clean image, one after the other; with a threat that has a target, towards that target only.

    L1: Croce, Hein, "Mind the box: L1-APGD for sparse adversarial attacks on image classifiers", ICML 2021, arXiv
    2103.01208. A step moves the entries with the largest gradients; their number follows the sparsity of the best
    point. Points are projected onto the intersection of ball and box. The run starts in a ball of 3 eps (30 % of the
    steps), goes on in 2 eps (30 %) and ends in eps; only points of the last ball count. There is no momentum, and
    `rho` is not used.

    Random: the starting point, drawn for each sample, target and restart; the first run starts from `oracle.start` if
    points are given (L1: in eps only). Cost per sample that is never misclassified:
    steps + 1 (L1: steps + 3) forward and backward passes per restart (and target), plus one forward pass to rank the
    targets.

    Differs from the paper: a sample stops at its first misclassified point and returns it; a sample that is never
    misclassified returns its point of highest loss, not the clean image. The first step counts as a rise when the loss
    exceeds that of the starting point (the authors' code compares it with zero). When the oracle averages forward
    passes of a randomised model, the mean logits decide whether a point is misclassified (in the authors' code, the
    last pass).

    Attributes:
        steps: gradient steps per run.
        restarts: runs from new starting points, for samples that are still correctly classified.
        rho: the step size is kept when more than this fraction of the steps since the last checkpoint raised the loss.
        loss: what is maximised. `dlr` and `targeted_dlr` do not depend on the scale of the logits.
        targets: number of classes tried by `targeted_dlr`, at most the number of classes minus one.
        early_stop: stop a sample once it is misclassified. Without it every run takes all its steps, and the
            misclassified point of highest loss is returned: for randomised models, where a single misclassified forward
            pass is not a success.
    """

    steps: Count = 100
    restarts: Count = 1
    rho: Share = 0.75
    loss: Literal["ce", "margin", "dlr", "targeted_dlr"] = "ce"
    targets: Count = 9
    early_stop: bool = True

    aims: ClassVar[bool] = True
    starts: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        ops.check_classes(self.loss, oracle.num_classes)
        if oracle.goal is None:
            targeted = self.loss == "targeted_dlr"
            goals = hardest(oracle.logits(x), y, self.targets) if targeted else y[:, None]
        else:
            goals = oracle.goal[:, None]
        best = Best(x)
        for k in range(goals.shape[1]):
            for restart in range(self.restarts):
                live = best.left()
                if not len(live):
                    return best.point
                streams = draws[live].child("apgd", self.loss, k, restart)
                given = oracle.start if k == restart == 0 else None
                found = self.ascend(oracle[live], x[live], y[live], goals[live, k], threat, streams, given)
                best.keep(live, found.point, found.loss, found.hit)
        return best.point

    def ascend(
        self, oracle: Oracle, x: Tensor, y: Tensor, target: Tensor, threat: ThreatModel, draws: Draws,
        start: Tensor | None = None,
    ) -> Best:  # fmt: skip
        """One run: towards the classes `target`, if the loss is targeted, from `start` or from random points."""
        best = Best(x)
        if threat.norm == "l1":
            self._climb_sparsely(oracle, x, y, target, threat, draws, best, start)
            return best
        s = self._start(x, y, target, threat, draws)
        if start is not None:
            s.x = s.x_old = s.x_best = threat.project(start, x)
        self._climb(oracle, s, threat, best)
        return best

    def _climb(self, oracle: Oracle, s: _Climb, threat: ThreatModel, best: Best) -> None:
        """One run on the samples that are still correctly classified."""
        live = best.left()
        oracle = oracle[live]
        check = checkpoints(self.steps)
        aims = oracle.goal is not None
        climb = self._loss(aims)
        for k in range(self.steps + 1):
            if k > 0:
                # a gradient step, then 3/4 of that move and 1/4 of the previous one
                z = threat.project(s.x + ops.over(s.step, s.x) * ops.normalise(s.g, threat.norm), s.x0)
                a = 0.75 if k > 1 else 1.0
                s.x, s.x_old = threat.project(s.x + a * (z - s.x) + (1 - a) * (s.x - s.x_old), s.x0), s.x
            s.g, logits, loss = oracle.gradient(s.x, partial(climb, y=s.y, target=s.target))
            s.rises = s.rises + (loss > s.loss)
            s.loss = loss
            better = loss > s.loss_best
            s.loss_best = torch.where(better, loss, s.loss_best)
            s.x_best = torch.where(ops.over(better, s.x), s.x, s.x_best)
            s.g_best = torch.where(ops.over(better, s.g), s.g, s.g_best)

            broken = ops.hit(logits.argmax(dim=1), s.y, s.target if aims else None)
            best.keep(live, s.x, loss, broken)
            leaving = broken & self.early_stop
            if k == 0:  # without a gradient at the starting point no step can move a sample
                leaving = leaving | (oracle.stuck(s.g) & ~broken)
            if bool(leaving.any()):
                rest = ~leaving
                s, live, oracle = s[rest], live[rest], oracle[rest]
                if not len(live):
                    break

            if k in check:
                stuck = ~s.halved & (s.loss_checked >= s.loss_best)
                halve = (s.rises <= self.rho * check[k]) | stuck
                s.step = torch.where(halve, s.step / 2, s.step)
                s.x = torch.where(ops.over(halve, s.x), s.x_best, s.x)
                s.g = torch.where(ops.over(halve, s.g), s.g_best, s.g)
                s.halved, s.loss_checked, s.rises = halve, s.loss_best, torch.zeros_like(s.rises)

    def _climb_sparsely(
        self,
        oracle: Oracle,
        x0: Tensor,
        y: Tensor,
        target: Tensor,
        threat: ThreatModel,
        draws: Draws,
        best: Best,
        given: Tensor | None,
    ) -> None:
        """One run in L1, in a larger ball first, on the samples that are still correctly classified."""
        live = best.left()
        oracle = oracle[live]
        aims = oracle.goal is not None
        climb = self._loss(aims)
        x = x0 + draws.normal(tuple(x0.shape[1:]), purpose="start").to(x0.dtype) if given is None else given
        # a given point lies in the last ball: the larger ones would leave it
        for ratio, steps in stages(self.steps) if given is None else [(1.0, self.steps)]:
            radius = ratio * threat.eps
            s = Sparse.start(x0, y, target, ops.project_l1(x, x0, radius))
            every = max(int(0.04 * steps), 1)
            for k in range(steps + 1):
                if k > 0:
                    s.move(radius)
                g, logits, loss = oracle.gradient(s.x, partial(climb, y=s.y, target=s.target))
                s.see(g, loss)
                if ratio == 1:
                    broken = ops.hit(logits.argmax(dim=1), s.y, s.target if aims else None)
                    best.keep(live, s.x, loss, broken)
                    leaving = (broken & self.early_stop) | ((oracle.stuck(g) & ~broken) if k == 0 else False)
                    if bool(leaving.any()):
                        rest = ~leaving
                        s, live, oracle = s[rest], live[rest], oracle[rest]
                        if not len(live):
                            return
                if k > 0 and k % every == 0:
                    s.check()
            x = s.x_best

    def _loss(self, aims: bool) -> TargetLoss:
        if aims:
            towards = ops.TOWARDS[self.loss]
            return lambda z, y, target: towards(z, target)
        if self.loss == "targeted_dlr":
            return ops.targeted_dlr
        untargeted = ops.LOSSES[self.loss]
        return lambda z, y, target: untargeted(z, y)

    def _start(self, x0: Tensor, y: Tensor, target: Tensor, threat: ThreatModel, draws: Draws) -> _Climb:
        """A random point on the sphere of radius eps, clipped to the box."""
        shape = tuple(x0.shape[1:])
        if threat.norm == "linf":
            u = 2 * draws.uniform(shape, purpose="start").to(x0.dtype) - 1
        else:
            u = draws.normal(shape, purpose="start").to(x0.dtype)
        x = (x0 + threat.eps * u / ops.over(ops.size(u, threat.norm).clamp(min=1e-12), u)).clamp(0, 1)
        low = torch.full_like(x0[:, 0, 0, 0], -torch.inf)
        return _Climb(
            x0=x0, y=y, target=target, x=x, x_old=x, g=torch.zeros_like(x), loss=-low,
            x_best=x, g_best=torch.zeros_like(x), loss_best=low, step=torch.full_like(low, 2 * threat.eps),
            rises=torch.zeros_like(y), halved=torch.ones_like(y, dtype=torch.bool), loss_checked=low,
        )  # fmt: skip
