"""L-BFGS on many problems at once: each row of x is a problem of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Losses = Callable[[Tensor], Tensor]  # [m, d] to [m]; row i depends on row i alone
Pair = tuple[Tensor, Tensor, Tensor]  # step s, change of gradient y, and 1 / s y, 0 for a row that did not move
ARMIJO = 1e-4
SMALLEST = 1e-8  # a step below it starts anew along the gradient
CURVED = 1e-10  # products of step and change of gradient below it do not update the curvature


def lbfgs(losses: Losses, start: Tensor, steps: int, *, history: int = 100) -> tuple[Tensor, Tensor]:
    """(best point, its loss) of each row, after `steps` evaluations of the losses.

    Nocedal, "Updating quasi-Newton matrices with limited storage", Mathematics of Computation 1980. Each evaluation
    tries one step of every row. A row accepts it if its loss falls as much as Armijo's rule asks; otherwise, also where
    the loss is not finite, it stays and tries half of the step next. The first step has length min(1, 1 / |g|_1).
    """
    x = start
    value, g = value_and_gradient(losses, x)
    pairs: list[Pair] = []
    scale = torch.ones_like(value)
    d, t = -g, first_step(g)
    for _ in range(steps - 1):
        step = t[:, None] * d
        new_value, new_g = value_and_gradient(losses, x + step)
        finite = torch.isfinite(new_value) & torch.isfinite(new_g).all(dim=1)
        taken = finite & (new_value <= value + ARMIJO * (g * step).sum(dim=1))
        s = torch.where(taken[:, None], step, 0.0)
        y = torch.where(taken[:, None], new_g - g, 0.0)
        sy = (s * y).sum(dim=1)
        curved = sy > CURVED
        pairs = [*pairs[1 - history :], (s, y, torch.where(curved, 1 / sy, 0.0))]
        scale = torch.where(curved, sy / (y * y).sum(dim=1), scale)
        x, value = x + s, torch.where(taken, new_value, value)
        g = torch.where(taken[:, None], new_g, g)
        new_d = _direction(g, pairs, scale)
        falls = (new_d * g).sum(dim=1) < 0
        d = torch.where((taken & falls)[:, None], new_d, d)
        t = torch.where(taken, 1.0, t / 2)
        anew = (t < SMALLEST) | (taken & ~falls)
        d = torch.where(anew[:, None], -g, d)
        t = torch.where(anew, first_step(g), t)
    return x, value


def first_step(g: Tensor) -> Tensor:
    """Size of a step along the gradient before any curvature is known, [m]."""
    return (1 / g.abs().sum(dim=1).clamp(min=1e-30)).clamp(max=1.0)


def value_and_gradient(losses: Losses, x: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of the rows [m], and their gradients [m, d]."""
    leaf = x.detach().requires_grad_(True)
    value = losses(leaf)
    (g,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), g


def _direction(g: Tensor, pairs: list[Pair], scale: Tensor) -> Tensor:
    """-H g by the two loops of L-BFGS."""
    q, alphas = -g, []
    for s, y, rho in reversed(pairs):
        alphas.append(rho * (s * q).sum(dim=1))
        q = q - alphas[-1][:, None] * y
    q = q * scale[:, None]
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + (alpha - rho * (y * q).sum(dim=1))[:, None] * s
    return q
