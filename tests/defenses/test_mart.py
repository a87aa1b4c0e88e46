"""MART: its loss against the formula of the authors, and the feature it learns."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests import kit

from .two_features import EPS, SHORT, build, granted, learns_the_robust_feature, two_features


def test_the_loss_is_that_of_the_authors_code() -> None:
    net, x, y, beta = kit.cnn_model(), kit.grey_images(8), torch.arange(8), 5.0
    this = build("mart", beta=beta).problem(net, granted(two_features(8)), 0)
    x_adv = (x + 0.05).clamp(0, 1)
    found = this.outer(net, x, y, x_adv, net(x_adv))
    q, p = F.softmax(net(x_adv), dim=1), F.softmax(net(x), dim=1)
    top = q.argsort(dim=1)[:, -2:]
    rival = torch.where(top[:, -1] == y, top[:, -2], top[:, -1])
    boosted = F.cross_entropy(net(x_adv), y) + F.nll_loss((1.0001 - q + 1e-12).log(), rival)
    own = p.gather(1, y[:, None]).squeeze(1)
    stable = (F.kl_div((q + 1e-12).log(), p, reduction="none").sum(dim=1) * (1.0000001 - own)).sum() / len(x)
    assert torch.allclose(found, boosted + beta * stable, atol=1e-5)


def test_it_learns_the_robust_feature() -> None:
    learns_the_robust_feature("mart", eps=EPS, step=EPS, steps=2, recipe=SHORT)
