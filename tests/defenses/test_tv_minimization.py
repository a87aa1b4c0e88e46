"""Total variation minimisation: solutions in closed form, an optimum that nothing near it beats, and its mask."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from tests import kit

from .grey_digits import defense, robust


def minimise(x: Tensor, m: Tensor, lam: float, iterations: int) -> Tensor:
    module = sys.modules[type(defense("tv_minimization")).__module__]
    found: Tensor = module.minimise(x, m, lam, iterations)
    return found


def objective(u: Tensor, x: Tensor, m: Tensor, lam: float) -> Tensor:
    down, right = torch.zeros_like(u), torch.zeros_like(u)
    down[..., :-1, :], right[..., :-1] = u[..., 1:, :] - u[..., :-1, :], u[..., 1:] - u[..., :-1]
    value = (m * (u - x)).square() / 2 + lam * (down.square() + right.square()).sqrt()
    return value.sum(dim=(1, 2, 3))


def test_two_halves_come_closer_by_lambda_over_their_width() -> None:
    x = torch.full((1, 1, 6, 12), 0.2, dtype=torch.float64)
    x[..., 4:] = 0.8
    u = minimise(x, torch.ones_like(x), 0.1, 2000)
    expected = torch.where(x < 0.5, x + 0.1 / 4, x - 0.1 / 8)
    assert torch.allclose(u, expected, atol=1e-6)
    flat = minimise(x, torch.ones_like(x), 10.0, 4000)  # a large weight leaves the mean
    assert torch.allclose(flat, x.mean().expand_as(x), atol=1e-3)


def test_pixels_that_are_left_out_do_not_count() -> None:
    x, m = torch.full((1, 1, 8, 8), 0.3, dtype=torch.float64), torch.ones(1, 1, 8, 8, dtype=torch.float64)
    m[..., 2:5, 3:6] = 0
    hidden = torch.where(m > 0, x, torch.rand_like(x))
    assert torch.allclose(minimise(hidden, m, 0.03, 500), x, atol=1e-9)


def test_nothing_near_the_result_has_a_smaller_objective() -> None:
    x = kit.grey_images(3, 10).double()
    m = (Draws(0, torch.arange(3)).uniform((3, 10, 10)) < 0.5).double()
    u = minimise(x, m, 0.03, 1000)
    least = objective(u, x, m, 0.03)
    for k in range(20):
        move = Draws(k, torch.arange(3)).normal((3, 10, 10)).double()
        for size in (1e-1, 1e-2, 1e-3):
            assert bool((objective(u + size * move, x, m, 0.03) > least - 1e-7).all())
    rough = minimise(x, m, 0.03, 60)  # the number of the default is close
    assert bool((objective(rough, x, m, 0.03) < 1.02 * least).all())


def test_the_mask_keeps_a_share_of_the_values_anew_in_each_pass(cnn16: Classifier, test_set: ImageSet) -> None:
    entry, x, draws = (
        defense("tv_minimization", keep=0.3, iterations=1),
        torch.full((40, 3, 8, 8), 0.5),
        Draws(0, torch.arange(40)),
    )
    kept = draws.uniform((3, 8, 8), purpose="mask") < 0.3
    assert float(kept.float().mean()) == pytest.approx(0.3, abs=0.02)
    noise = torch.where(kept, x, torch.rand_like(x))  # what is left out is not seen
    assert torch.allclose(entry.transform(noise, draws), entry.transform(x, draws))  # type: ignore[attr-defined]
    assert not torch.allclose(entry.transform(noise, draws.at(1)), entry.transform(x, draws.at(1)))  # type: ignore[attr-defined]


def test_its_adaptive_attacks_break_it(cnn16: Classifier, test_set: ImageSet) -> None:
    entry = defense("tv_minimization", iterations=10)
    model = entry.structure(cnn16)
    adaptive = {
        "name": "bpda",
        "attack": {"name": "eot", "looks": 5, "attack": {"name": "apgd", "loss": "dlr", "steps": 15}},
    }
    naive: dict[str, object] = {"name": "pgd", "loss": "margin", "steps": 10, "random_start": False}
    assert robust(model, naive, test_set, n=12) >= 0.8  # its forward pass has no gradient
    assert robust(model, adaptive, test_set, n=12) <= 0.35
