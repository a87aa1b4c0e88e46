"""Soft labels and features, computed from the gradient of the last layer; then the image, with its label known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Count, Leak, Recovered, Shared

from ._lbfgs import lbfgs
from ._matching import best_of, distance, last_linear, total_variation

REACH = (0.01, 100.0)  # sizes of lambda
REFINED = 2  # times that the grid is narrowed to the neighbours of its best point
SHRUNK = 1e6  # largest factor by which clipping is assumed to have shortened a gradient
PART = 2000  # points of the grid at once


@dataclass(frozen=True, kw_only=True)
class SoftLabel(Leak):
    """Label recovery from a single image, also a smoothed or mixed label, and image inversion with it.

    Wang, Liang, He, "Towards Eliminating Hard Label Constraints in Gradient Inversion Attacks", ICLR 2024,
    arXiv 2402.03124. With features f, weights W and p = softmax(W f), the gradient of the last layer has rank one:

        dL/dW = (p - y) f'

    so that f = lambda r for a row r. For the right lambda, y = p(lambda) - dL/dW[:, j] / (lambda r_j) has all but its
    largest entries equal: the variance of the others is the loss of a search over lambda. With a bias, dL/db = p - y
    gives f and y at once, in one division; if the rule of sharing rescales, the length of p - y is searched in the same
    way, for networks with such a bias. The image is then found as by DLG, with the label fixed.

    Random: the starts of the image, by client.

    Differs from the paper: a grid over both signs of lambda, refined twice, instead of L-BFGS and a particle swarm.
    The search stops by its own loss; the authors' code compares lambda with the true one. No term for the features.

    Attributes:
        large: entries of the label that may differ from the others: 1 for smoothed labels, 2 also for mixed ones.
        grid: points for each sign of lambda.
        steps, restarts: of L-BFGS for the image, as in `dlg`; with `steps: 0` labels alone are recovered.
        tv: weight of the total variation under noise.
    """

    most: ClassVar[int | None] = 1

    large: Count = 2
    grid: Count = 40_001
    steps: int = 600
    restarts: Count = 2
    tv: float = 1000.0

    def run(self, shared: Shared, draws: Draws) -> Recovered:
        y = labels_and_features(shared, self.large, self.grid)[0]
        labels = y.to(next(iter(shared.released.values())))[:, None]
        if self.steps == 0:
            return Recovered(labels=labels)
        shape, kind = (1, *shared.shape), shared.model.kind
        starts = [0.5 + draws.normal((math.prod(shape),), r, "start").to(labels) / 10 for r in range(self.restarts)]
        of, repeated = distance(shared, self.restarts, cosine=False), labels.repeat(self.restarts, 1, 1)
        weight = self.tv * shared.sharing.noise(1) ** 2

        def losses(v: Tensor) -> Tensor:
            x = v.reshape(-1, *shape)
            far = of(x, repeated)
            return far + weight * total_variation(x) if weight else far

        found, loss = lbfgs(losses, torch.cat(starts), self.steps)
        x = best_of(self.restarts, found, loss).reshape(-1, *shape)
        return Recovered(x.clamp(kind.low, kind.high), labels)


def labels_and_features(shared: Shared, large: int, grid: int) -> tuple[Tensor, Tensor]:
    """(labels [m, classes], features [m, d]) of single images, in double precision."""
    name, layer = last_linear(shared.model)
    g, w = shared.released[f"{name}.weight"].double(), layer.weight.detach().double()
    rows = torch.arange(len(g), device=g.device)
    if layer.bias is not None:
        below = shared.released[f"{name}.bias"].double()
        unit = below.abs().argmax(dim=1)
        f = g[rows, unit] / _not_zero(below[rows, unit])[:, None]
        p = (f @ w.T + layer.bias.detach().double()).softmax(dim=1)
        if shared.sharing.rescales:  # below = c (p - y) with c <= 1 unknown

            def shrunk(size: Tensor) -> Tensor:
                return p[:, None] - size[..., None] * below[:, None]

            return _probabilities(_searched(shrunk, _grid(1.0, SHRUNK, grid).to(g), len(g), large)[0]), f
        return _probabilities(p - below), f
    r = g[rows, g.sum(dim=2).abs().argmax(dim=1)]  # the row with the largest |sum|, [m, d]
    j = r.abs().argmax(dim=1)
    logits, column, divisor = r @ w.T, g[rows, :, j], _not_zero(r[rows, j])

    def label(size: Tensor) -> Tensor:
        p = (size[..., None] * logits[:, None]).softmax(dim=2)
        return p - column[:, None] / (size * divisor[:, None])[..., None]

    at = _grid(*REACH, grid).to(g)
    y, best = _searched(label, torch.cat([at, -at]), len(g), large)
    return _probabilities(y), best * r


def _grid(low: float, high: float, count: int) -> Tensor:
    return torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64).exp()


def _searched(label: Callable[[Tensor], Tensor], at: Tensor, m: int, large: int) -> tuple[Tensor, Tensor]:
    """(labels [m, classes], sizes [m, 1]) for which all but the `large` largest entries of a label differ least.

    Args:
        label: sizes [m, q] to labels [m, q, classes].
        at: sizes to try, on a logarithmic grid.
    """
    sizes, step = at[None].expand(m, -1), float((at[1] / at[0]).log())
    best = sizes[:, :1]
    for _ in range(REFINED + 1):
        values = []
        for part in sizes.split(PART, dim=1):
            y = label(part).sort(dim=2).values
            values.append(y[..., : y.shape[2] - large].var(dim=2, correction=0))
        best = sizes.gather(1, torch.cat(values, dim=1).argmin(dim=1, keepdim=True))
        sizes = best * torch.linspace(-step, step, PART + 1, dtype=at.dtype, device=at.device).exp()
        step = 2 * step / PART
    return label(best)[:, 0], best


def _not_zero(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1.0, x)


def _probabilities(y: Tensor) -> Tensor:
    """Labels without what rounding and noise left of negative entries; uniform if nothing is left."""
    y = torch.nan_to_num(y).clamp(min=0)
    total = y.sum(dim=1, keepdim=True)
    return torch.where(total > 0, y / total.clamp(min=1e-12), 1 / y.shape[1])
