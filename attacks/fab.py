"""FAB-T: steps to the linearised boundary of one class after the other, with a pull towards the clean image."""

from __future__ import annotations

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

from .apgd import hardest

TINY = 1e-12


def to_hyperplane(t: Tensor, w: Tensor, c: Tensor, norm: str) -> Tensor:
    """The shortest d with <w, d> = c and t + d in [0, 1], per row; the nearest corner if the box contains no such d.

    Every pixel moves in the direction that increases <w, d>. In linf and l2 pixel i moves by min(lambda * v_i, room_i),
    with v = 1 or v = |w|. <w, d> is then concave and piecewise linear in lambda, so Newton's steps from the left end
    exactly at the lambda where it is c. In l1 the pixels move to the border of the box one after the other, in
    decreasing order of |w|.

    Args:
        t: points [n, d] in [0, 1].
        w: normals [n, d].
        c: values of <w, d> to reach, [n].
        norm: norm of d that is minimised: linf, l2 or l1.
    """
    # rescale each row, so that the result does not depend on the scale of the logits
    scale = w.abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    w, c = w / scale, (c / scale.squeeze(1))[:, None]
    w = torch.where(c < 0, -w, w)
    c = c.abs()
    rate = w.abs()
    room = torch.where(w > 0, 1 - t, t) * (rate > 0)

    if norm == "l1":
        order = rate.argsort(dim=1, descending=True)
        reach = (rate * room).gather(1, order).cumsum(dim=1)
        # what is still missing at each pixel, limited to the room of the pixel
        missing = torch.cat([c, c - reach[:, :-1]], dim=1).clamp(min=0)
        move = torch.minimum(missing / rate.gather(1, order).clamp(min=TINY), room.gather(1, order))
        return w.sign() * torch.zeros_like(t).scatter(1, order, move)

    v = (rate > 0).to(t.dtype) if norm == "linf" else rate
    turn = room / v.clamp(min=TINY)  # lambda at which a pixel reaches the box
    ended = turn <= 0
    while True:
        fixed = (rate * room).masked_fill(~ended, 0).sum(dim=1, keepdim=True)
        slope = (rate * v).masked_fill(ended, 0).sum(dim=1, keepdim=True)
        lam = (c - fixed).clamp(min=0) / slope.clamp(min=TINY)
        more = ended | (turn <= lam)
        if torch.equal(more, ended):
            break
        ended = more
    return w.sign() * torch.minimum(lam * v, room)


def gap(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y, [n]; positive beyond the boundary."""
    return (z.gather(1, target[:, None]) - z.gather(1, y[:, None])).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class FAB(MinimalAttack):
    """Finds a small perturbation by projecting onto the linearised boundary between the true class and one wrong class.

    Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020, arXiv
    1907.02044; the targeted version of AutoAttack (arXiv 2003.01690). Each step projects the current point and the
    clean image onto the same hyperplane within the box. It takes a weighted mean of the two; the weight of the second
    grows as its distance shrinks. A misclassified point is kept if it is the nearest so far, and the next step starts
    closer to the clean image. The wrong classes are tried in the order of their logits on the clean image.

    Nothing is random. Cost per sample: one forward pass, then 2 forward and 1 backward passes per step and target.

    Differs from the paper: no random restarts and no final search along the line to the clean image, as in AutoAttack.

    Attributes:
        steps: number of steps per target.
        targets: number of wrong classes tried, at most the number of classes minus one.
        alpha_max: largest weight of the projection of the clean image.
        eta: length of a projection, relative to the hyperplane; above 1 it crosses the hyperplane.
        beta: after a misclassified point the perturbation is multiplied by this factor.
        stop_at_eps: stop a sample once it is misclassified within the eps of the threat model; return the clean image
            of a sample that never is. Set by autoattack. Without it, the attack continues to minimise.
    """

    steps: Count = 100
    targets: Count = 9
    alpha_max: Share = 0.1
    eta: Positive = 1.05
    beta: Share = 0.9
    stop_at_eps: bool = False

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        z = oracle.logits(x)
        goals = hardest(z, y, self.targets) if oracle.goal is None else oracle.goal[:, None]
        x_adv = x.clone()
        nearest = torch.full_like(x[:, 0, 0, 0], torch.inf)
        left = (~ops.hit(z.argmax(dim=1), y, oracle.goal)).nonzero().squeeze(1)
        for k in range(goals.shape[1]):
            if not len(left):
                break
            found, far = self._towards(oracle[left], x[left], y[left], goals[left, k], threat)
            better = far < nearest[left]
            x_adv[left[better]], nearest[left[better]] = found[better], far[better]
            if self.stop_at_eps:
                left = left[nearest[left] > threat.eps]
        return torch.where(ops.over(nearest <= threat.eps, x), x_adv, x) if self.stop_at_eps else x_adv

    def _towards(
        self, oracle: Oracle, x0: Tensor, y: Tensor, target: Tensor, threat: ThreatModel
    ) -> tuple[Tensor, Tensor]:
        """The nearest misclassified points found towards one class, and their distances, infinite if there is none."""
        out = x0.clone()
        nearest = torch.full_like(x0[:, 0, 0, 0], torch.inf)
        live = torch.arange(len(x0), device=x0.device)
        x = x0
        for _ in range(self.steps):
            # a target is compared with the strongest other class, a wrong class with the true one
            goal = oracle.goal
            ahead = partial(gap, y=y, target=target) if goal is None else ops.aimed("margin", y, goal)
            w, _, df = oracle.gradient(x, ahead)
            stuck = oracle.stuck(w)
            if bool(stuck.any()):  # a zero gradient defines no hyperplane, now or later
                rest = ~stuck
                live, oracle, w, df = live[rest], oracle[rest], w[rest], df[rest]
                x, x0, y, target = x[rest], x0[rest], y[rest], target[rest]
                if not len(live):
                    break
            x = self._step(x, x0, w, df, threat.norm)
            bad = ops.hit(oracle.labels(x), y, oracle.goal)
            far = threat.size(x, x0)
            better = bad & (far < nearest[live])
            out[live[better]], nearest[live[better]] = x[better], far[better]
            x = torch.where(ops.over(bad, x), x0 + self.beta * (x - x0), x)
            if self.stop_at_eps:
                rest = nearest[live] > threat.eps
                if not bool(rest.all()):
                    live, oracle = live[rest], oracle[rest]
                    x, x0, y, target = x[rest], x0[rest], y[rest], target[rest]
                    if not len(live):
                        break
        return out, nearest

    def _step(self, x: Tensor, x0: Tensor, w: Tensor, df: Tensor, norm: Norm) -> Tensor:
        """Project x and x0 on df + <w, v - x> = 0, overshoot by eta, mix by their distances."""
        t, t0, w = ops.flat(x), ops.flat(x0), ops.flat(w)
        missing = torch.cat([-df, -df - (w * (t0 - t)).sum(dim=1)])
        d, d0 = to_hyperplane(torch.cat([t, t0]), torch.cat([w, w]), missing, norm).chunk(2)
        a, a0 = ops.size(d, norm).clamp(min=1e-8), ops.size(d0, norm).clamp(min=1e-8)
        alpha = (a / (a + a0)).clamp(max=self.alpha_max)[:, None]
        return ((1 - alpha) * (t + self.eta * d) + alpha * (t0 + self.eta * d0)).clamp(0, 1).view_as(x)
