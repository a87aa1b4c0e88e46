"""DI: images shrink to a drawn size, and gradients go with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from siegebench.attacks.di import DI
from siegebench.attacks.mifgsm import MIFGSM

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit


def test_di_shrinks_to_the_size_it_is_told_and_keeps_the_image_whole() -> None:
    x = torch.ones(200, 3, 40, 40)
    seen = DI(attack=MIFGSM(), p=1.0, shrink=0.5).diverse(x, Draws(0, torch.arange(200)))
    side = seen[:, 0].mean(dim=(1, 2)).sqrt()  # what is white, as a share of the sides
    assert 0.47 < float(side.min()) < 0.55
    assert 0.95 < float(side.max()) < 1.03
    corners = (seen[:, 0, 0, 0] > 0.5).double().mean(), (seen[:, 0, -1, -1] > 0.5).double().mean()
    assert all(0 < float(share) < 0.3 for share in corners)  # it lies everywhere
    half = DI(attack=MIFGSM(), p=0.5, shrink=0.5).diverse(x, Draws(0, torch.arange(200)))
    untouched = float((half == x).flatten(1).all(dim=1).double().mean())
    assert 0.4 < untouched < 0.6
    assert torch.allclose(DI(attack=MIFGSM(), p=1.0, shrink=1.0).diverse(x, Draws(0, torch.arange(200))), x, atol=1e-5)


def test_di_moves_gradients_with_the_image(cnn: Classifier) -> None:
    x = kit.grey_images(6, 16)
    y = cnn(x).argmax(1)
    draws = Draws(0, torch.arange(6))
    di = DI(attack=MIFGSM(), p=1.0, shrink=0.6)
    oracle = Oracle(cnn, ThreatModel(), draws).seen_through(di.diverse)
    looks = oracle._pass_draws()
    g, z, _ = oracle.gradient(x, lambda z: F.cross_entropy(z, y, reduction="none"))
    leaf = x.clone().requires_grad_(True)
    expected = cnn(di.diverse(leaf, looks))
    F.cross_entropy(expected, y, reduction="sum").backward()
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(g, leaf.grad)
    again, _, _ = oracle.gradient(x, lambda z: F.cross_entropy(z, y, reduction="none"))
    assert not torch.equal(again, g)  # another look, another place
    assert oracle.ledger.forwards.tolist() == [2] * 6
    assert oracle.ledger.backwards.tolist() == [2] * 6
