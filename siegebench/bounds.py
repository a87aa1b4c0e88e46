"""Interval bounds: what the layers of a network can be on a set of inputs.

A network is a list of operations (`siegebench.traced` makes it): affine layers, monotone activations, maxima, sums and
products. The bounds follow it layer by layer, and gradients pass through them to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from siegebench.threat import Norm

Map = Callable[[Tensor], Tensor]
Interval = tuple[Tensor, Tensor]  # lower and upper bounds, of the same shape


@dataclass(frozen=True, eq=False)
class Op:
    """An operation. `inputs` are the numbers of earlier operations; number 0 is the input of the network."""

    name: str
    inputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Affine(Op):
    """y = W x + b.

    Attributes:
        f: x to y.
        spread: r to |W| r.
        square: v to (W * W) v; None if it is not known.
        mixes: several inputs enter one output.
    """

    f: Map = field(repr=False)
    spread: Map = field(repr=False)
    square: Map | None = field(repr=False)
    mixes: bool


@dataclass(frozen=True, eq=False)
class Dense(Affine):
    """An affine operation that is a linear layer."""

    layer: nn.Linear


@dataclass(frozen=True, eq=False)
class Monotone(Op):
    """An activation that never falls, number by number.

    Attributes:
        f: the activation.
        convex: its slope never falls either. Otherwise it is nowhere flatter in an interval than at one of its ends.
    """

    f: Map = field(repr=False)
    convex: bool


@dataclass(frozen=True, eq=False)
class MaxPool(Op):
    """Maxima over windows; `f` also returns where they are in the flattened map."""

    f: Callable[[Tensor], tuple[Tensor, Tensor]] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Sum(Op):
    """The sum of two layers."""


@dataclass(frozen=True, eq=False)
class Product(Op):
    """The product of two layers, number by number, such as of a gate."""


@dataclass(frozen=True, eq=False)
class Ball:
    """A set of inputs around x: what lies within eps in a norm, and in the box.

    Attributes:
        x: [n, ...].
        norm: `linf` or `l2`.
        eps: radius, one for all or [n, 1, 1, 1].
        low, high: the box.
    """

    x: Tensor
    norm: Norm
    eps: float
    low: float = 0.0
    high: float = 1.0

    def interval(self) -> Interval:
        """The smallest interval around the set."""
        return (self.x - self.eps).clamp(min=self.low), (self.x + self.eps).clamp(max=self.high)

    def least(self, a: Tensor) -> Tensor:
        """A lower bound of a x over the set, [n, s], for coefficients a [n, s, ...]."""
        a = a.flatten(2)
        l, u = (side.flatten(1)[:, :, None] for side in self.interval())
        least = (a.clamp(min=0) @ l + a.clamp(max=0) @ u)[:, :, 0]
        if self.norm == "linf":
            return least
        within = (a @ self.x.flatten(1)[:, :, None])[:, :, 0] - self.eps * a.norm(dim=2)
        return torch.maximum(least, within)


def values(ops: Sequence[Op], x: Tensor) -> Tensor:
    """The outputs of a network at x."""
    found = [x]
    for op in ops:
        given = [found[i] for i in op.inputs]
        match op:
            case Affine() | Monotone():
                found.append(op.f(given[0]))
            case MaxPool():
                found.append(op.f(given[0])[0])
            case Sum():
                found.append(given[0] + given[1])
            case _:
                found.append(given[0] * given[1])
    return found[-1]


Refine = Callable[[int, list[Interval]], Interval]  # (number of an operation, bounds up to it) to its better bounds


def intervals(ops: Sequence[Op], ball: Ball, refine: Refine | None = None) -> list[Interval]:
    """Bounds of the input and of every operation on the ball.

    In L2, the first layer that mixes inputs is bounded by the norms of its rows: |w x' - w x| <= |w| eps.
    """
    out: list[Interval] = [ball.interval()]
    squares: list[Tensor | None] = [torch.ones_like(ball.x[:1]) if ball.norm == "l2" else None]
    for number, op in enumerate(ops, start=1):
        l, u = _interval(op, [out[i] for i in op.inputs])
        v = squares[op.inputs[0]] if isinstance(op, Affine) else None
        if isinstance(op, Affine) and v is not None:
            v = None if op.square is None else op.square(v)
            if op.mixes and v is not None:
                middle, far = values(ops[:number], ball.x), ball.eps * v.sqrt()
                l, u, v = torch.maximum(l, middle - far), torch.minimum(u, middle + far), None
        squares.append(v)
        out.append((l, u))
        if refine is not None:
            out[number] = refine(number, out)
    return out


def _interval(op: Op, given: Sequence[Interval]) -> Interval:
    l, u = given[0]
    match op:
        case Affine():
            middle, far = op.f((l + u) / 2), op.spread((u - l) / 2)
            return middle - far, middle + far
        case Monotone():
            return op.f(l), op.f(u)
        case MaxPool():
            return op.f(l)[0], op.f(u)[0]
        case Sum():
            return l + given[1][0], u + given[1][1]
        case _:
            corners = [a * b for a in (l, u) for b in given[1]]
            least, most = corners[0], corners[0]
            for corner in corners[1:]:
                least, most = torch.minimum(least, corner), torch.maximum(most, corner)
            return least, most


def margins(ops: Sequence[Op], bounds: Sequence[Interval], y: Tensor) -> Tensor:
    """Lower bounds of z_y - z_k, [n, classes], infinite for k = y. A linear last layer is fused with the difference."""
    l, u = bounds[-1]
    low = l.gather(1, y[:, None]) - u
    last = ops[-1]
    if isinstance(last, Dense):
        a, b = bounds[last.inputs[0]]
        w = last.layer.weight
        middle, far = (a + b) / 2, (b - a) / 2
        rows = w[y][:, None] - w  # [n, classes, d]
        z = last.f(middle)
        fused = z.gather(1, y[:, None]) - z - (rows.abs() @ far[:, :, None])[:, :, 0]
        low = torch.maximum(low, fused)
    return low.scatter(1, y[:, None], torch.inf)
