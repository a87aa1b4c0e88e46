"""Inversion influence: the formula is the measured error for small noise, and the bound lies below it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from siegebench import registry
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Measure
from tests.leaks import clients

influence: Any = pytest.importorskip("siegebench.measures.inversion_influence")


def found(sigma: float) -> dict[str, float]:
    x, y = clients.digits(3)
    x = torch.nn.functional.avg_pool2d(x, 2)
    model, threat, draws = clients.lenet(x), ThreatModel(norm="linf", eps=0.1), Draws(0, torch.arange(3))
    measure = registry.build(Measure, {"name": "inversion_influence", "sigma": sigma})
    return dict(measure(Oracle(model, threat, draws), x, y, threat, draws)["metrics"])


def test_small_noise_has_the_error_of_the_formula_and_more_than_the_bound() -> None:
    small = found(1e-5)
    assert small["measured"] == pytest.approx(small["predicted"], rel=0.01)
    assert small["predicted"] == pytest.approx(small["expected"], rel=0.3)
    assert small["bound"] < small["predicted"]
    assert small["sigma_15db_low"] <= small["sigma_15db"]
    assert small["sigma_15db_ratio"] >= 1
    large = found(1e-4)
    assert large["predicted"] == pytest.approx(10 * small["predicted"], rel=1e-4)  # linear in the noise
    assert large["sigma_15db"] == pytest.approx(small["sigma_15db"])


def test_the_jacobian_and_the_largest_eigenvalue_by_hand() -> None:
    a = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0]]).double()
    j = influence.jacobian(lambda x: (a.T @ x) ** 2, torch.tensor([1.0, 1.0]).double())
    at = a.T @ torch.ones(2).double()
    assert torch.allclose(j, (2 * at[:, None] * a.T).T)
    h = torch.diag(torch.tensor([5.0, 1.0, 0.1])).double()
    assert influence.largest(h) == pytest.approx(5.0, rel=1e-6)
