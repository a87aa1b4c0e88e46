"""Leaks on planted cases: what must be exact is exact, and what rules of sharing promise is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from siegebench import registry
from siegebench.draws import Draws
from siegebench.errors import ContractError, NotApplicable
from tests.leaks import clients

matching: Any = pytest.importorskip("siegebench.leaks._matching")
soft: Any = pytest.importorskip("siegebench.leaks.soft_label")
newton: Any = pytest.importorskip("siegebench.leaks._lbfgs")

DLG = {"name": "dlg", "steps": 150, "restarts": 1}


def test_a_linear_layer_with_a_bias_leaks_its_input_exactly() -> None:
    x, y = clients.digits(6)
    found = clients.leaked("analytic", clients.shared(clients.linear_first(x, 10), x, y))
    assert clients.psnr(found, x).min() > 80
    assert torch.equal(found.labels[:, 0].argmax(dim=1), y)


def test_other_first_layers_are_named() -> None:
    x, y = clients.digits(2)
    with pytest.raises(NotApplicable, match="first layer of LeNetSigmoid is Conv2d"):
        clients.leaked("analytic", clients.shared(clients.lenet(x), x, y))


@pytest.mark.parametrize("bias", [True, False])
def test_the_label_of_a_single_image_is_the_sign_of_a_gradient(bias: bool) -> None:
    x, y = clients.digits(10)
    of = clients.shared(clients.linear_first(x, 10, bias), x, y)
    if bias:
        last = of.released["net.3.bias"]
        assert torch.equal((last < 0).nonzero()[:, 1], y)
    assert torch.equal(matching.labels_of(of)[:, 0].argmax(dim=1), y)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_soft_labels_and_features_are_read_off(bias: bool, mixed: bool) -> None:
    x, y = clients.digits(4)
    model = clients.linear_first(x, 43, bias)
    wanted = F.one_hot(y, 43).float()
    wanted = 0.7 * wanted + 0.3 * wanted.roll(1, 0) if mixed else 0.8 * wanted + 0.2 / 43
    of = clients.shared(model, x, wanted)
    labels, features = soft.labels_and_features(of, 2, 8001)
    assert (labels - wanted).abs().max() < 1e-3
    assert (features - model.features(x)).abs().max() < 1e-2
    if bias:  # the length of the gradient is not needed
        of = clients.shared(model, x, wanted, {"name": "clip", "norm": 0.01})
        assert (soft.labels_and_features(of, 2, 8001)[0] - wanted).abs().max() < 1e-2
    of = clients.shared(model, x, wanted, {"name": "noise", "sigma": 0.1})
    assert (soft.labels_and_features(of, 2, 8001)[0] - wanted).abs().sum(dim=1).median() > 0.5


def test_a_leak_for_one_image_refuses_several() -> None:
    x, y = clients.digits(4)
    with pytest.raises(ContractError, match="separates 1 images of a client, these have 2"):
        clients.leaked("soft_label", clients.shared(clients.linear_first(x, 10), x, y, n=2))


def test_dlg_recovers_digits_and_rules_of_sharing_lower_that() -> None:
    x, y = clients.digits(2)
    model = clients.lenet(x)
    found = clients.leaked(DLG, clients.shared(model, x, y))
    assert clients.psnr(found, x).median() > 20
    assert torch.equal(found.labels[:, 0].argmax(dim=1), y)
    assert clients.psnr(clients.leaked(DLG, clients.shared(model, x, y, "clip")), x).median() > 20
    for rule in ({"name": "noise", "sigma": 1.0}, {"name": "prune", "share": 0.95}):
        less = clients.leaked({**DLG, "steps": 100}, clients.shared(model, x, y, rule))
        assert clients.psnr(less, x).median() < 15, rule


def test_inverting_gradients_comes_near_without_second_derivatives_of_activations() -> None:
    x, y = clients.digits(2)
    of = clients.shared(clients.lenet(x), x, y)
    found = clients.leaked({"name": "inverting_gradients", "steps": 150}, of)
    blind = clients.leaked("prior", of)
    assert clients.psnr(found, x).median() > clients.psnr(blind, x).median() + 2
    assert torch.equal(found.labels[:, 0].argmax(dim=1), y)


def test_only_released_entries_are_compared() -> None:
    x, y = clients.digits(2)
    of = clients.shared(clients.linear_first(x, 10), x, y, {"name": "prune", "share": 0.5})
    true = F.one_hot(y, 10).float()[:, None]
    near = matching.distance(of, 1, cosine=False)(x[:, None], true)
    assert near.max() < 1e-10  # the entries that were set to zero do not count


def test_directions_are_compared_where_a_rule_rescales() -> None:
    x, y = clients.digits(2)
    of = clients.shared(clients.linear_first(x, 10), x, y, {"name": "clip", "norm": 1e-3})
    assert matching.distance(of, 1, cosine=False)(x[:, None], F.one_hot(y, 10).float()[:, None]).max() < 1e-5


def test_lbfgs_solves_each_row_by_itself_and_survives_infinity() -> None:
    draws = Draws(0, torch.arange(4))
    start, goal = draws.normal((6,)).double(), draws.normal((6,), 1).double()
    scale = torch.tensor([1.0, 10.0, 100.0, 3.0, 0.5, 7.0]).double()

    def losses(x: torch.Tensor) -> torch.Tensor:
        value = (scale * (x - goal).square()).sum(dim=1)
        return torch.where(x.abs().amax(dim=1) > 50, torch.inf, value)

    found, least = newton.lbfgs(losses, start, 60)
    assert (found - goal).abs().max() < 1e-4
    assert least.max() < 1e-6
    alone, _ = newton.lbfgs(lambda x: (scale * (x - goal[2:3]).square()).sum(dim=1), start[2:3], 60)
    assert (alone - found[2:3]).abs().max() < 1e-6


def test_entries_say_what_they_are() -> None:
    assert registry.cards()["leak", "prior"].card.control
    assert "reference" in registry.traits("sharing", "plain")
