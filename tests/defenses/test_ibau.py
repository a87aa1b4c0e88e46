"""I-BAU: the hypergradient in closed form, and a universal perturbation that is unlearnt."""

from __future__ import annotations

import pytest
import torch

from siegebench import registry
from siegebench.train import accuracy

from . import planted


@pytest.mark.parametrize(("count", "step"), [(1, 0.1), (5, 0.1), (400, 0.1)])
def test_the_hypergradient_of_a_quadratic_problem(count: int, step: float) -> None:
    module = __import__(registry.entry_class("defense", "ibau").__module__, fromlist=["x"])
    random = torch.Generator().manual_seed(0)
    A, b = (torch.randn(*s, generator=random, dtype=torch.float64) for s in ((3, 2), (3,)))
    theta = torch.randn(2, generator=random, dtype=torch.float64, requires_grad=True)
    d = (A @ theta).detach().requires_grad_(True)  # the maximiser of -|d - A theta|^2 / 2
    mapped = d + step * (A @ theta - d)
    outer = (d - b).square().sum() / 2 + theta.square().sum() / 2
    (found,) = module.hypergradient(outer, mapped, d, [theta], count)
    # v after k iterations is (1 - (1 - step)^k) / step times the gradient of the outer loss
    expected = theta + (1 - (1 - step) ** count) * A.T @ (d - b)
    torch.testing.assert_close(found, expected.detach())


def test_the_planted_trigger_is_unlearnt() -> None:
    before, after = planted.repaired("ibau", "clean", rounds=10, batch=20, lr=0.05, part=0.5)
    assert planted.success(before) == 1
    assert planted.success(after) == 0
    assert accuracy(after, planted.data()) > 0.9
    assert all(p.grad is None for p in after.parameters())
