"""CROWN: linear bounds of the outputs, from the last layer back to the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from siegebench.bounds import Affine, Ball, Interval, Map, MaxPool, Monotone, Op, Sum, intervals, margins
from siegebench.types import Count

from ._bounds import BoundCertifier

NUMBERS = 2**23  # coefficients at once
Line = tuple[Tensor, Tensor]  # slope and offset
TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class CROWN(BoundCertifier):
    """Linear functions of the image below the margins z_y - z_k, minimised over the ball in closed form.

    Zhang, Weng, Chen, Hsieh, Daniel, "Efficient Neural Network Robustness Certification with General Activation
    Functions", NeurIPS 2018, arXiv 1811.00866.

    Coefficients A of a layer become those of the layer before: A W for an affine layer. For an activation between the
    lines a_l x + b_l and a_u x + b_u they become max(A, 0) a_l + min(A, 0) a_u. The lines of an activation need
    bounds of its input: interval bounds, improved by the same method for layers of up to `widest` numbers. Bounds are
    never looser than interval bounds.

    Lines of convex activations: the chord above, the tangent at the middle of the interval below. For ReLU, that is
    slope 1 if u > -l and 0 otherwise. Lines of sigmoid and tanh: the smaller slope at the two ends, through the ends.

    Nothing is random. Cost: per radius a backward pass for each class, and two for each number of a layer that is
    improved, in float64; only for images that cheaper bounds do not certify.

    Differs from the paper: the tangent at the middle for all convex activations. Maxima and residual sums are bounded;
    a product of two layers keeps its interval.
    Inputs stay in the box of images. Margins must exceed 1e-5 of the largest logit, for the rounding of a network in
    float32.

    Attributes:
        widest: numbers in the widest layer whose bounds are improved. 0 improves none, as in CROWN-IBP.
    """

    widest: Count | int = 512

    def quick(self) -> CROWN:
        return replace(self, widest=min(self.widest, 64))

    def together(self, ops: list[Op], x: Tensor, classes: int) -> int:
        return NUMBERS // (classes * 32 * x[0].numel())

    def lower(self, ops: list[Op], ball: Ball, y: Tensor, enough: Tensor) -> Tensor:
        low = margins(ops, intervals(ops, ball), y)
        for refine in (False, True) if self.widest else (False,):
            rows = (low.amin(dim=1) <= enough).nonzero().squeeze(1)
            if not len(rows):
                break
            some = replace(ball, x=ball.x[rows])
            bounds = intervals(ops, some, partial(self._refined, ops, some) if refine else None)
            low[rows] = torch.maximum(low[rows], self._by_lines(ops, bounds, some, y[rows]))
        return low

    @staticmethod
    def _by_lines(ops: list[Op], bounds: list[Interval], ball: Ball, y: Tensor) -> Tensor:
        """Lower bounds of the margins, by lines in these bounds or by the bounds alone."""
        by_intervals = margins(ops, bounds, y)
        one = torch.eye(by_intervals.shape[1], dtype=ball.x.dtype, device=ball.x.device)
        found = lowest(ops, bounds, len(ops), one[y][:, None] - one, ball)
        return torch.maximum(by_intervals, found.scatter(1, y[:, None], torch.inf))

    def _refined(self, ops: list[Op], ball: Ball, number: int, bounds: list[Interval]) -> Interval:
        """Better bounds of an operation whose output an activation takes."""
        l, u = bounds[number]
        width = l[0].numel()
        bent = any(isinstance(op, (Monotone, MaxPool)) for op in ops[:number])
        taken = any(number in op.inputs for op in ops if isinstance(op, (Monotone, MaxPool)))
        if not (bent and taken) or width > self.widest or isinstance(ops[number - 1], (Monotone, MaxPool)):
            return l, u
        one = torch.eye(width, dtype=l.dtype, device=l.device)
        low, high = [], []
        for rows in one.split(max(1, NUMBERS // (len(l) * 32 * ball.x[0].numel()))):
            a = rows.view(1, len(rows), *l.shape[1:]).expand(len(l), -1, *l.shape[1:])
            low.append(lowest(ops, bounds, number, a, ball))
            high.append(-lowest(ops, bounds, number, -a, ball))
        better = torch.cat(low, dim=1).view_as(l), torch.cat(high, dim=1).view_as(u)
        return torch.maximum(l, better[0]), torch.minimum(u, better[1])


def lowest(ops: list[Op], bounds: list[Interval], number: int, a: Tensor, ball: Ball) -> Tensor:
    """A lower bound of a h over the ball, [n, s], for coefficients a [n, s, ...] of operation `number`."""
    coefficients: dict[int, Tensor] = {number: a}
    total = torch.zeros(a.shape[:2], dtype=a.dtype, device=a.device)

    def hand_on(to: int, before: Tensor) -> None:
        coefficients[to] = coefficients[to] + before if to in coefficients else before

    for k in range(number, 0, -1):
        if k not in coefficients:
            continue
        op, a = ops[k - 1], coefficients.pop(k)
        at = op.inputs[0]
        l, u = bounds[at]
        match op:
            case Affine():
                before, constant = _through(op.f, a, l)
                hand_on(at, before)
            case Monotone():
                (a_l, b_l), (a_u, b_u) = lines(op, l, u)
                up, down = a.clamp(min=0), a.clamp(max=0)
                hand_on(at, up * a_l[:, None] + down * a_u[:, None])
                constant = up * b_l[:, None] + down * b_u[:, None]
            case MaxPool():
                before, constant = _of_maxima(op, a, l, u)
                hand_on(at, before)
            case Sum() if l.shape == bounds[op.inputs[1]][0].shape:
                hand_on(at, a)
                hand_on(op.inputs[1], a)
                continue
            case _:  # the interval of the layer itself
                low, high = bounds[k]
                constant = a.clamp(min=0) * low[:, None] + a.clamp(max=0) * high[:, None]
        total = total + constant.flatten(2).sum(dim=2)
    return total + ball.least(coefficients[0]) if 0 in coefficients else total


def _through(f: Map, a: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(a W, a b) for f(x) = W x + b."""
    n, s = a.shape[:2]
    with torch.enable_grad():
        x = torch.zeros(n * s, *like.shape[1:], dtype=a.dtype, device=a.device, requires_grad=True)
        (g,) = torch.autograd.grad(f(x), x, a.flatten(0, 1))
    constant = f(torch.zeros_like(like[:1]))
    return g.unflatten(0, (n, s)), a * constant[:, None]


def lines(op: Monotone, l: Tensor, u: Tensor) -> tuple[Line, Line]:
    """The lines below and above an activation on [l, u]."""
    at_l, at_u = op.f(l), op.f(u)
    if op.convex:
        middle = (l + u) / 2
        below = _slope(op.f, middle)
        above = torch.where(u - l > TINY, (at_u - at_l) / (u - l).clamp(min=TINY), below)
        return (below, op.f(middle) - below * middle), (above, torch.maximum(at_l - above * l, at_u - above * u))
    flat = torch.minimum(_slope(op.f, l), _slope(op.f, u))
    return (flat, at_l - flat * l), (flat, at_u - flat * u)


def _slope(f: Map, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(f(x).sum(), x)
    return g


def _of_maxima(op: MaxPool, a: Tensor, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Below, a maximum is at least the input with the largest lower bound; above, at most its own upper bound."""
    up, down = a.clamp(min=0), a.clamp(max=0)
    best = op.f(l)[1]
    where = best[:, None].expand_as(a).flatten(3)
    before = torch.zeros(*a.shape[:2], *l.shape[1:], dtype=a.dtype, device=a.device)
    before = before.flatten(3).scatter_add(3, where, up.flatten(3)).view_as(before)
    return before, down * op.f(u)[0][:, None]
