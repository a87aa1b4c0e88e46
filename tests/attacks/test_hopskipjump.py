"""HopSkipJump estimates the normal of the boundary."""

from __future__ import annotations

import torch
from siegebench.attacks._decision import start
from siegebench.attacks.hopskipjump import HopSkipJump

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from tests import kit

from .planted import asking, two_of


def test_hopskipjump_estimates_the_normal(linear: Classifier) -> None:
    model = two_of(linear).double()
    x = kit.grey_images(4).double()
    ask = asking(model, x, "l2", 5000)
    rows, points = start(ask, Draws(0, torch.arange(4)), 1e-7)
    w = (model.net.layer.weight[1] - model.net.layer.weight[0]).view(1, 3, 8, 8)
    w = w * ops.over(1 - 2 * ask.y, x)
    spend = torch.tensor([3000, 3000, 3000, 300])
    g = HopSkipJump._gradient(ask, rows, points, torch.full((4,), 0.01).double(), spend, Draws(0, torch.arange(4)))
    cosine = torch.cosine_similarity(g.flatten(1), w.flatten(1))
    assert float(cosine[:3].min()) > 0.9
    assert 0.5 < float(cosine[3]) < float(cosine[:3].min())
    assert (5000 - ask.left >= spend).tolist() == [True] * 4
