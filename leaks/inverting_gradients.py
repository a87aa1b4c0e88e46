"""Inverting Gradients: match the direction of the gradient, with little total variation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from siegebench.draws import Draws
from siegebench.types import Count, Leak, Positive, Recovered, Shared

from ._lbfgs import value_and_gradient
from ._matching import best_of, distance, labels_of, total_variation

DECAYS = (3 / 8, 5 / 8, 7 / 8)  # of the steps, at which the step size is divided by ten


@dataclass(frozen=True, kw_only=True)
class InvertingGradients(Leak):
    """min over images x in the box of 1 - cos(grad_w L(x, y), g) + tau TV(x), by Adam on the sign of the gradient.

    Geiping, Bauermeister, Droege, Moeller, "Inverting Gradients - How easy is it to break privacy in federated
    learning?", NeurIPS 2020, arXiv 2003.14053. It needs no second derivative of the activations and works on networks
    of ReLUs. The labels y are computed from the gradient of the last layer. The step size is divided by ten after
    3/8, 5/8 and 7/8 of the steps. Only released entries are compared; of a restart the one with the smallest
    objective is kept.

    Random: the starts, by client.

    Differs from the paper: 1,000 steps instead of 24,000; the total variation is the mean over the pixels; labels are
    not given but computed from the gradient. Starts are N(1/2, 1/16), inside the box.

    Attributes:
        steps: of Adam.
        lr: first step size.
        tau: weight of the total variation.
        restarts: starts, of which the best is kept.
    """

    steps: Count = 1000
    lr: Positive = 0.1
    tau: float = 0.01
    restarts: Count = 1

    def run(self, shared: Shared, draws: Draws) -> Recovered:
        m, n, kind = len(shared), shared.n, shared.model.kind
        y = labels_of(shared)
        labels = y.repeat(self.restarts, 1, 1)
        shape = (n, *shared.shape)
        start = torch.cat([draws.normal(shape, r, "start") for r in range(self.restarts)]).to(y)
        v = (0.5 + start / 4).clamp(kind.low, kind.high).flatten(1)
        of = distance(shared, self.restarts, cosine=True)

        def losses(rows: torch.Tensor) -> torch.Tensor:
            x = rows.view(-1, *shape)
            return of(x, labels) + self.tau * total_variation(x)

        first, second = torch.zeros_like(v), torch.zeros_like(v)
        best, least = v, torch.full((len(v),), torch.inf, dtype=v.dtype, device=v.device)
        for step in range(self.steps):
            value, g = value_and_gradient(losses, v)
            better = value < least
            best, least = torch.where(better[:, None], v, best), torch.where(better, value, least)
            u = torch.nan_to_num(g).sign()
            first, second = 0.9 * first + 0.1 * u, 0.999 * second + 0.001 * u * u
            size = self.lr * 0.1 ** sum(step >= math.ceil(at * self.steps) for at in DECAYS)
            mean, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            v = (v - size * mean / (spread.sqrt() + 1e-8)).clamp(kind.low, kind.high)
        found = best_of(self.restarts, best, least)
        return Recovered(found.view(m, *shape), y)
