"""SDA on a linear film classifier, where the fewest flips are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from siegebench import ops, registry
from siegebench.classifier import Classifier, Network
from siegebench.data import EVENTS
from siegebench.draws import Draws
from siegebench.threat import ThreatModel
from siegebench.types import Attack
from tests import kit

L0 = ThreatModel(norm="l0", eps=1.0)
ROWS, COLUMNS = 12, 6


def planted() -> tuple[Classifier, Tensor, Tensor, Tensor]:
    """(linear model z = (s, 0), films, labels, fewest flips of each film)"""
    w = Draws(5, torch.zeros(1, dtype=torch.long)).normal((ROWS * COLUMNS,))[0].double()
    films = (Draws(6, torch.arange(5)).uniform((ROWS * COLUMNS,)) < 0.3).double()
    b = -(films @ w).median() + 0.1
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(len(w), 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([w, torch.zeros_like(w)]))
        net[1].bias.copy_(torch.stack([b, torch.zeros_like(b)]))
    model = Network(net, num_classes=2).eval().requires_grad_(False)
    model.kind = EVENTS
    s = films @ w + b
    lowers = -s.sign()[:, None] * w * (1 - 2 * films)  # how much nearer a flip brings the other class
    best = lowers.clamp(min=0).sort(dim=1, descending=True).values.cumsum(dim=1)
    fewest = (best <= s.abs()[:, None]).sum(dim=1) + 1
    x = films.view(-1, 1, ROWS, COLUMNS)
    return model, x, model(x).argmax(dim=1), fewest


def flips(name: str) -> tuple[Tensor, Tensor, int]:
    model, x, y, _ = planted()
    out, oracle = kit.attack_with(registry.build(Attack, name), model, x, y, L0)
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    wrong = model(out).argmax(dim=1) != y
    return wrong, (ops.size(out - x, "l0") * ROWS * COLUMNS).round(), int(oracle.ledger.queries.min())


def test_the_fewest_flips_of_a_linear_classifier_are_found() -> None:
    wrong, found, queries = flips("sda")
    fewest = planted()[3]
    assert len(fewest.unique()) > 2
    assert bool(wrong.all())
    assert found.long().tolist() == fewest.tolist()
    assert queries > 10  # every flip that is tried is a pass of its film


@pytest.mark.parametrize("plain", ["", "topk"])
def test_a_reduction_never_makes_it_worse(plain: str) -> None:
    before = flips("sda." + ("topk_unreduced" if plain else "unreduced"))
    after = flips("sda.topk" if plain else "sda")
    assert bool(before[0].all())
    assert bool(after[0].all())
    assert bool((after[1] <= before[1]).all())
    assert float(after[1].sum()) < float(before[1].sum())


def bent() -> tuple[Classifier, Tensor, Tensor]:
    """A network whose hidden layer saturates, so that flips act on each other: (model, films, labels)"""
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(ROWS * COLUMNS, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    ).double()
    draws = Draws(7, torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        for i, weights in enumerate(net.parameters()):
            weights.copy_(4 * draws.normal(weights.shape, i)[0] / weights.shape[-1] ** 0.5)
    model = Network(net, num_classes=3).eval().requires_grad_(False)
    model.kind = EVENTS
    x = (Draws(8, torch.arange(12)).uniform((1, ROWS, COLUMNS)) < 0.3).double()
    return model, x, model(x).argmax(dim=1)


@pytest.mark.parametrize("tested", [True, False])
def test_no_single_flip_can_be_taken_back(tested: bool) -> None:
    model, x, y = bent()
    count = {}
    for reduction in ("prefix", "singles"):
        spec = {"name": "sda", "tested": tested, "reduction": reduction}
        out, _ = kit.attack_with(registry.build(Attack, spec), model, x, y, L0)
        assert bool((model(out).argmax(dim=1) != y).all())
        changed = (out != x).flatten(1)
        count[reduction] = int(changed.sum())
        needed = True
        for film, label, adversarial, which in zip(x, y, out, changed, strict=True):
            for entry in which.nonzero().flatten():
                less = adversarial.flatten().clone()
                less[entry] = film.flatten()[entry]
                needed &= bool(model(less.view_as(film)[None]).argmax(dim=1) == label)
        assert needed == (reduction == "singles")
    assert count["singles"] < count["prefix"]


def test_a_film_that_is_never_misclassified_comes_back_unchanged() -> None:
    model, x, _, _ = planted()
    model.net[1].bias[0] = 1e6  # type: ignore[index]
    y = model(x).argmax(dim=1)
    out, _ = kit.attack_with(registry.build(Attack, {"name": "sda", "iterations": 2}), model, x, y, L0)
    assert torch.equal(out, x)
