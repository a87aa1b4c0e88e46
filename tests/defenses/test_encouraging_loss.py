"""The encouraging loss: its values, its gradient, and the margins that it leads to."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops

from .two_features import ONE, SHORT, build, granted, model, two_features


def encouraging(z: Tensor, y: Tensor, limit: float) -> Tensor:
    value: Tensor = sys.modules[type(build("encouraging_loss")).__module__].encouraging(z, y, limit)
    return value


def logits(*own: float) -> tuple[Tensor, Tensor]:
    z = torch.zeros(len(own), 5, dtype=torch.float64)
    z[:, 2] = torch.tensor(own, dtype=torch.float64)
    return z.requires_grad_(True), torch.full((len(own),), 2)


def test_with_the_full_bonus_the_gradient_never_vanishes() -> None:
    z, y = logits(-3, 0, 5, 9)
    loss = encouraging(z, y, 1.0)
    others = z.detach().scatter(1, y[:, None], -torch.inf).logsumexp(dim=1)
    assert torch.allclose(loss, others - z[:, 2])
    (g,) = torch.autograd.grad(loss.sum(), z)
    assert torch.allclose(g[:, 2], -torch.ones(4, dtype=torch.float64))
    (g,) = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), z)
    assert abs(float(g[3, 2])) < 1e-3


@pytest.mark.parametrize("limit", [0.5, 0.75])
def test_above_the_limit_the_bonus_is_its_tangent(limit: float) -> None:
    at = torch.logit(torch.tensor(limit, dtype=torch.float64)) + torch.log(torch.tensor(4.0))  # p_y is the limit
    z, y = logits(float(at) - 1e-4, float(at) + 1e-4, float(at) + 3, -1)
    full, linear = encouraging(z, y, 1.0), encouraging(z, y, limit)
    assert torch.allclose(full[:2], linear[:2], atol=1e-6)
    slopes = torch.autograd.grad(linear.sum(), z)[0][:, 2]
    assert torch.allclose(slopes[0], slopes[1], atol=1e-3)
    assert torch.equal(full[3], linear[3])
    p = z.softmax(dim=1)[2, 2]
    bonus = torch.log(torch.tensor(1 - limit, dtype=torch.float64)) - (p - limit) / (1 - limit)
    assert torch.allclose(linear[2], -p.log() + bonus)


def test_margins_grow_beyond_those_of_cross_entropy() -> None:
    data = two_features(256)

    def margins(**numbers: Any) -> float:
        z = build("encouraging_loss", recipe=SHORT, **numbers).apply(model(), granted(data), ONE)(data.pixels())
        return float(-ops.margin(z, data.labels).mean().detach())

    assert margins(limit=1.0) > 1.3 * margins(limit=0.0)
