"""TRADES: its loss against the formula of the authors, and the feature it learns."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests import kit

from .two_features import EPS, SHORT, build, granted, learns_the_robust_feature, two_features


def test_the_loss_is_that_of_the_authors_code() -> None:
    net, x, y = kit.cnn_model(), kit.grey_images(8), torch.arange(8)
    this = build("trades", beta=3.0).problem(net, granted(two_features(8)), 0)
    x_adv = (x + 0.05).clamp(0, 1)
    found = this.outer(net, x, y, x_adv, net(x_adv))
    robust = F.kl_div(F.log_softmax(net(x_adv), dim=1), F.softmax(net(x), dim=1), reduction="batchmean")
    assert torch.allclose(found, F.cross_entropy(net(x), y) + 3.0 * robust)


def test_the_clean_prediction_has_a_gradient_in_both_terms() -> None:
    net, x, y = kit.cnn_model().requires_grad_(True), kit.grey_images(8), torch.arange(8)
    this = build("trades", beta=1.0).problem(net, granted(two_features(8)), 0)
    outer = this.outer(net, x, y, x, net(x + 0.1).detach())  # only the clean pass has a graph
    g = torch.autograd.grad(outer, next(net.parameters()))[0]
    natural = torch.autograd.grad(F.cross_entropy(net(x), y), next(net.parameters()))[0]
    assert not torch.allclose(g, natural, atol=1e-6)


def test_it_learns_the_robust_feature() -> None:
    learns_the_robust_feature("trades", beta=6.0, eps=EPS, step=EPS, steps=2, recipe={**SHORT, "epochs": 24})
