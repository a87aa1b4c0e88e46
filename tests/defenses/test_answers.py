"""Defenses that change answers: closed forms, and the gradient that prediction poisoning turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from siegebench.defenses.prediction_poisoning import Poisoned, _sets, deviation, keeping, vertex
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.draws import Draws
from siegebench.types import Defense
from tests import kit


class Fixed(nn.Module):
    """Logits that are the logarithm of given posteriors, for any images."""

    def __init__(self, p: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(p.clamp(min=1e-12).log())

    def forward(self, x: Tensor) -> Tensor:
        return self.z + 0 * x.flatten(1).sum(dim=1, keepdim=True)


def posteriors(n: int = 40, classes: int = 10, sharp: float = 3.0) -> Tensor:
    return (sharp * torch.randn(n, classes, generator=torch.Generator().manual_seed(0))).double().softmax(dim=1)


def answers(spec: Any, p: Tensor, draws: Draws | None = None) -> Tensor:
    model = Network(
        Fixed(p), num_classes=p.shape[1], rebuild=lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, p.shape[1]))
    )
    defended = registry.build(Defense, spec).structure(model.double())
    return defended(torch.rand(len(p), 3, 2, 2, dtype=p.dtype), draws).softmax(dim=1).detach()


def test_coarse_answers_in_closed_form() -> None:
    p = torch.tensor([[0.62, 0.26, 0.11, 0.01]], dtype=torch.float64)
    torch.testing.assert_close(
        answers("coarse_answers", p), torch.tensor([[0.6, 0.3, 0.1, 0.0]], dtype=torch.float64), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        answers({"name": "coarse_answers", "digits": None, "top": 2}, p),
        torch.tensor([[0.62, 0.26, 0.06, 0.06]], dtype=torch.float64),
    )
    flat = answers({"name": "coarse_answers", "digits": None, "temperature": 2.0}, p)
    torch.testing.assert_close(flat, p.sqrt() / p.sqrt().sum())
    assert answers("coarse_answers.labels", p).argmax() == 0
    torch.testing.assert_close(answers("coarse_answers.labels", p).amax(), torch.tensor(1.0).double())
    uniform = answers("coarse_answers", torch.full((1, 43), 1 / 43).double())  # every probability rounds to zero
    torch.testing.assert_close(uniform, torch.full((1, 43), 1 / 43).double())


def test_reverse_sigmoid_in_closed_form() -> None:
    p, beta, gamma = posteriors(sharp=1.0), 0.7, 0.2
    moved = p - beta * (1 / (1 + ((1 - p) / p) ** gamma) - 0.5)
    torch.testing.assert_close(
        answers("reverse_sigmoid", p), moved.clamp(min=0) / moved.clamp(min=0).sum(1, keepdim=True)
    )


def test_noisy_answers_stay_within_eps_and_differ_from_pass_to_pass() -> None:
    p = posteriors()
    draws = Draws(0, torch.arange(len(p)))
    one, two = (answers({"name": "noisy_answers", "eps": 0.3}, p, draws.at(k)) for k in (0, 1))
    assert float((one - p).abs().sum(dim=1).max()) <= 0.3 + 1e-9
    assert not torch.equal(one, two)


def test_the_deviation_is_that_of_the_gradients_of_the_last_layer() -> None:
    """2 - 2 cos(p - y, p - y~) is |G'y~/|G'y~| - G'y/|G'y||^2 with G from autograd."""
    torch.manual_seed(0)
    layer, h, n = nn.Linear(6, 5, bias=False).double(), torch.randn(8, 6).double(), 8
    y, other = posteriors(n, 5), posteriors(n, 5, sharp=1.0).flip(0)
    p = layer(h).softmax(dim=1).detach()
    found = deviation(p, y, other)
    for i in range(n):
        slopes = []
        for target in (y[i], other[i]):
            loss = -(target * layer(h[i]).log_softmax(dim=0)).sum()
            (g,) = torch.autograd.grad(loss, layer.weight)
            slopes.append(g.flatten() / g.norm())
        torch.testing.assert_close(found[i], (slopes[0] - slopes[1]).square().sum())


def test_prediction_poisoning_finds_the_best_vertex() -> None:
    p, y = posteriors(20, 6, sharp=0.5), posteriors(20, 6)
    best = vertex(p, y, torch.eye(6).double())
    every = torch.stack([deviation(p, y, torch.eye(6).double()[k].expand_as(p)) for k in range(6)])
    torch.testing.assert_close(deviation(p, y, best), every.amax(dim=0))
    sets = _sets(y)
    assert sets.shape == (20, 32, 6)
    assert len(sets[0].unique(dim=0)) == 32
    assert (sets.argmax(dim=2) <= y.argmax(dim=1)[:, None]).all()
    top = sets.gather(2, y.argmax(dim=1)[:, None, None].expand(-1, 32, 1))
    assert (top[..., 0] >= sets.amax(dim=2) - 1e-12).all()  # no class is above the top-1 class
    exact, greedy = deviation(p, y, vertex(p, y, sets)), deviation(p, y, keeping(p, y))
    assert (greedy <= exact + 1e-9).all()
    assert float(greedy.mean()) > 0.95 * float(exact.mean())


@pytest.mark.parametrize("classes", [6, 43])
@pytest.mark.parametrize("eps", [0.1, 0.5, 2.0])
def test_prediction_poisoning_keeps_the_decision_and_the_budget(classes: int, eps: float) -> None:
    p = posteriors(60, classes)
    found = answers({"name": "prediction_poisoning", "eps": eps}, p)
    assert torch.equal(found.argmax(dim=1), p.argmax(dim=1))
    assert float((found - p).abs().sum(dim=1).max()) <= eps + 1e-6
    assert float((found - p).abs().sum(dim=1).mean()) > 0.5 * min(eps, 1.0)
    free = answers({"name": "prediction_poisoning.extreme", "eps": 2.0}, p)
    assert float((free.argmax(dim=1) != p.argmax(dim=1)).double().mean()) > 0.5


def test_it_turns_the_gradient_of_a_thief_further_than_noise() -> None:
    model = Network(kit.small_cnn(), num_classes=10, rebuild=lambda: kit.small_cnn(seed=5)).eval()
    x, draws = kit.grey_images(32), Draws(0, torch.arange(32))
    y = model(x).softmax(dim=1).detach()
    poisoned = registry.build(Defense, {"name": "prediction_poisoning", "eps": 0.5}).structure(model)
    assert isinstance(poisoned.change, Poisoned)
    p = poisoned.change.surrogate(x).softmax(dim=1)
    noisy = registry.build(Defense, {"name": "noisy_answers", "eps": 0.5}).structure(model)
    turned = [float(deviation(p, y, d(x, draws).softmax(dim=1)).detach().mean()) for d in (poisoned, noisy)]
    assert turned[0] > turned[1]
