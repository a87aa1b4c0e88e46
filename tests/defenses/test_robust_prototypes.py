"""Robust prototypes: probabilities and radii in closed form, and that nothing within a radius changes the class."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor

from siegebench import registry
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import accuracy
from siegebench.types import Attack

from .two_features import ONE, build, granted, model, two_features

SHORT = {"epochs": 15, "batch": 64, "lr": 0.02, "weight_decay": 0.0, "augment": "none"}


def untrained(sigma: float | Tensor = 0.5, **parameters: object) -> torch.nn.Module:
    """Random components and reasoning, of two classes, on images 3x2x2."""
    net = build("robust_prototypes", size=2, components=6, **parameters).structure(model()).fresh(3)
    with torch.no_grad():
        net.components.uniform_(0, 1, generator=torch.Generator().manual_seed(0))
        net.log_sigma.copy_(torch.as_tensor(sigma).log().expand(6))
    return net.double().eval().requires_grad_(False)


def images(n: int = 40, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed)).double()


def test_probabilities_and_radius_of_two_components_by_hand() -> None:
    net = build("robust_prototypes", size=2, components=2, concepts=1, certificate="closed").structure(model()).double()
    with torch.no_grad():
        net.components.copy_(torch.stack([torch.zeros(12), torch.ones(12)]))
        net.log_sigma.fill_(log(2.0))
        r = torch.tensor([[0.6, 0.1, 0.1, 0.2], [0.1, 0.5, 0.3, 0.1]])  # present, then absent
        net.reasoning.copy_(r.log())
    x = torch.full((1, 3, 2, 2), 0.25).double()
    d = [exp(-0.25 * 12**0.5 / 2), exp(-0.75 * 12**0.5 / 2)]
    p = [0.6 * d[0] + 0.1 * d[1] + 0.1 * (1 - d[0]) + 0.2 * (1 - d[1])]
    p += [0.1 * d[0] + 0.5 * d[1] + 0.3 * (1 - d[0]) + 0.1 * (1 - d[1])]
    torch.testing.assert_close(net(x).exp()[0], torch.tensor(p).double())
    a = 0.1 * d[0] + 0.2 * d[1] + 0.1 * d[0] + 0.5 * d[1]
    c = 0.6 * d[0] + 0.1 * d[1] + 0.3 * d[0] + 0.1 * d[1]
    b = (0.1 + 0.2) - (0.3 + 0.1)
    t = (b + (b * b + 4 * a * c) ** 0.5) / (2 * a)
    assert p[0] > p[1]
    assert float(net.certified_radius(x, "l2")) == pytest.approx(2 * log(t), abs=1e-4)
    low, high = p[0] - 1, p[0]  # at t the bound is met with equality
    assert c / t + b - a * t == pytest.approx(0, abs=1e-12), (low, high)


def test_the_rbf_radius_is_half_sigma_of_the_log_ratio() -> None:
    net = untrained(0.7, head="rbf", certificate="closed")
    z, x = net(images()), images()
    expected = 0.7 / 2 * (z[:, 0] - z[:, 1]).abs()
    torch.testing.assert_close(net.certified_radius(x, "l2"), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("head", ["cbc", "rbf"])
def test_bisection_is_never_below_the_closed_form_and_meets_it_for_one_sigma(head: str) -> None:
    x = images()
    for sigma, same in ((0.5, True), (torch.tensor([0.2, 0.9, 0.4, 0.5, 2.0, 0.3]), False)):
        closed = untrained(sigma, head=head, certificate="closed").certified_radius(x, "l2")
        bisected = untrained(sigma, head=head).certified_radius(x, "l2")
        assert bool((bisected >= closed - 1e-9).all())
        assert bool((closed > 0).any())
        distance = untrained(sigma).distances(x)
        free = closed + 0.02 < distance.amin(dim=1)  # no detection reaches 1
        assert int(free.sum()) > 10
        assert torch.allclose(bisected[free], closed[free], atol=1e-5) == same


def test_radii_are_negative_for_other_classes_and_zero_for_other_norms() -> None:
    net, x = untrained(), images()
    y = net(x).argmax(dim=1)
    distance = net.distances(x)
    assert bool((net.closed_form(distance, y) > 0).all())
    assert bool((net.closed_form(distance, 1 - y) < 0).all())
    assert net.certified_radius(x, "linf") is None


def test_logits_are_finite_on_a_component_and_far_from_all() -> None:
    net = untrained(0.5)
    x = torch.cat([net.components[:1].view(1, 3, 2, 2), images(2)]).requires_grad_(True)
    with torch.no_grad():
        net.log_sigma.fill_(log(0.001))  # every d_k underflows in float32
    z = net.float()(x.float())
    assert bool(torch.isfinite(z).all())
    (g,) = torch.autograd.grad(z.sum(), x)
    assert bool(torch.isfinite(g).all())
    rbf = untrained(0.001, head="rbf").float()
    assert bool(torch.isfinite(rbf(images(2).float())).all())


@pytest.mark.parametrize("certificate", ["closed", "bisected"])
@pytest.mark.parametrize("head", ["cbc", "rbf"])
def test_no_attack_within_the_radius_changes_the_class(head: str, certificate: str) -> None:
    net, x = untrained(torch.tensor([0.2, 0.9, 0.4, 0.5, 2.0, 0.3]), head=head, certificate=certificate), images(60)
    y, radius = net(x).argmax(dim=1), net.certified_radius(x, "l2")
    attack = registry.build(Attack, {"name": "pgd", "loss": "margin", "steps": 40})
    for quantile in (0.2, 0.6):
        eps = float(radius.quantile(quantile))
        rows = (radius >= eps).nonzero().squeeze(1)
        threat, draws = ThreatModel(norm="l2", eps=eps), Draws(0, rows)
        x_adv = attack(Oracle(net, threat, draws), x[rows], y[rows], threat, draws)
        assert bool((net(x_adv).argmax(dim=1) == y[rows]).all())
        out = torch.nn.functional.normalize(torch.randn(30, 12, generator=torch.Generator().manual_seed(2)), dim=1)
        for step in eps * out.view(-1, 3, 2, 2).double():
            inside = (x[rows] + step).clamp(0, 1)
            assert bool((net(inside).argmax(dim=1) == y[rows]).all())


def test_the_robust_loss_certifies_more_than_the_margin_loss() -> None:
    data = two_features(256)
    common = {"size": 2, "components": 8, "concepts": 1, "recipe": SHORT}
    robust = build("robust_prototypes", margin=0.5, **common).apply(model(), granted(data), ONE)
    plain = build("robust_prototypes", loss="margin", margin=0.3, **common).apply(model(), granted(data), ONE)
    assert accuracy(plain, data) > 0.85
    assert accuracy(robust, data) > 0.85

    def certified(net: torch.nn.Module) -> float:
        right = net(data.pixels()).argmax(dim=1) == data.labels
        return float((net.certified_radius(data.pixels(), "l2") * right).mean())

    assert certified(robust) > certified(plain)
    assert bool(((robust.components >= 0) & (robust.components <= 1)).all())
