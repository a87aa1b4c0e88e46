"""Convex adversarial training: the programme's value is what attacks reach, and no more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws

from .two_features import ONE, build, granted, model, two_features

pytest.importorskip("cvxpy")
pytest.importorskip("clarabel")


def solved(eps: float, data: ImageSet, **parameters: object) -> Classifier:
    entry = build("convex_at", eps=eps, side=2, images=len(data), **{"hyperplanes": 8, "beta": 1e-4, **parameters})
    deployed: Classifier = entry.apply(model(), granted(data), ONE).double()
    return deployed


def hinge(net: Classifier, x: Tensor, y: Tensor) -> Tensor:
    z = net(x)
    return (1 - (2.0 * y - 1) * (z[:, 1] - z[:, 0])).relu()


def worst(net: Classifier, data: ImageSet, eps: float) -> float:
    """The mean hinge loss on the worst of many points of each ball: corners and random ones, all channels alike."""
    x, y = data.pixels().double(), data.labels
    found = hinge(net, x, y)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).view(-1, 1, 2, 2).double()
    inside = 2 * Draws(0, torch.arange(60)).uniform((1, 2, 2)).double() - 1
    for step in torch.cat([corners, inside]):
        found = torch.maximum(found, hinge(net, x + eps * step, y))
    return float(found.mean())


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.15])
def test_the_programme_bounds_the_worst_loss_and_the_bound_is_met(eps: float) -> None:
    data = two_features(40)
    net = solved(eps, data)
    reached, bound = worst(net, data, eps), float(net.bound)
    assert reached <= bound + 1e-4
    assert reached >= bound - 0.02
    assert worst(net, data, eps + 0.1) > bound + 0.01  # beyond eps it says nothing


def test_robust_programmes_lose_less_in_the_ball_than_plain_ones() -> None:
    data = two_features(40)
    plain, robust = solved(0.0, data), solved(0.15, data)
    assert worst(plain, data, 0.0) < worst(robust, data, 0.0)
    assert worst(robust, data, 0.15) < worst(plain, data, 0.15) - 0.05


def test_the_network_is_the_function_of_the_programme_and_sees_means() -> None:
    net = solved(0.05, two_features(20))
    x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    seen = torch.cat([x.mean(1).view(5, 2, 2, 2, 2).mean((2, 4)).flatten(1), torch.ones(5, 1)], dim=1)
    torch.testing.assert_close(net.seen(x), seen)
    f = ((seen @ net.u[0].T).relu() * net.a[0]).sum(dim=1)
    torch.testing.assert_close(net(x), torch.stack([-f / 2, f / 2], dim=1))


def test_patterns_differ_and_are_at_most_as_many_as_asked_for() -> None:
    x = solved(0.1, two_features(20)).seen(two_features(20).pixels().double())
    on = build("convex_at", eps=0.1, patterns=3).activations(x, Draws(0, torch.arange(12)))
    assert on.shape == (3, 20)
    assert len(on.unique(dim=0)) == 3
