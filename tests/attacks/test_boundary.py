"""Boundary attack: proposals on the sphere, then nearer."""

from __future__ import annotations

import torch
from siegebench.attacks.boundary import Boundary

from siegebench import ops
from siegebench.draws import Draws


def test_boundary_proposals_stay_on_the_sphere_and_then_come_nearer() -> None:
    x = torch.full((5, 3, 8, 8), 0.5).double()
    draws = Draws(0, torch.arange(5))
    point = x + 0.1 * draws.normal((3, 8, 8)).double() * torch.arange(1, 6)[:, None, None, None] / 5
    around, inward = torch.full((5,), 0.02).double(), torch.full((5,), 0.03).double()
    far = ops.size(point - x, "l2")
    sphere, trial = Boundary._propose(x, point, far, around, inward, draws.normal((3, 8, 8), 1).double())
    torch.testing.assert_close(ops.size(sphere - x, "l2"), far, rtol=1e-9, atol=0)
    torch.testing.assert_close(ops.size(trial - x, "l2"), 0.97 * far, rtol=1e-9, atol=0)
    angle = torch.cosine_similarity((sphere - x).flatten(1), (point - x).flatten(1)).acos()
    torch.testing.assert_close(angle, around.atan(), rtol=1e-6, atol=0)
