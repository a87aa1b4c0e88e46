"""STRIP ranks planted triggers above everything, an image alone as in a batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.draws import Draws
from tests import victims

from .planted import auroc, detector, images, only


class Keyhole(nn.Module):
    """Certain of class 0 when the first pixel is saturated; otherwise logit c is the brightness of pixel c."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes, self.seen = classes, 0
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        z = self.scale * x.flatten(1)[:, 1 : 1 + self.classes]
        sure = torch.zeros_like(z).index_fill(1, torch.tensor(0), 100.0)
        return torch.where((x.flatten(1)[:, :1] >= 1), sure, z)


def test_strip_ranks_a_planted_trigger_above_everything() -> None:
    net = Keyhole()
    score = detector("strip", overlays=30).fit(
        Network(net, num_classes=10), only(clean=images(50, high=100)), victims.ONE
    )
    x = images(40, seed=1, high=100).pixels()
    triggered = x.clone()
    triggered[:, 0, 0, 0] = 1
    net.seen = 0
    hit = score(triggered, Draws(0, torch.arange(40)))
    assert net.seen == 30 * 40  # N forward passes an image
    clean = score(x, Draws(0, torch.arange(40)))
    assert hit.shape == (40,)
    torch.testing.assert_close(hit, torch.zeros(40), atol=1e-6, rtol=0)  # certain under every overlay: entropy 0
    assert float(clean.max()) < -0.1


def test_strip_is_minus_the_mean_entropy() -> None:
    class Uniform(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(10))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias.expand(len(x), -1)

    score = detector("strip", overlays=7).fit(Network(Uniform(), num_classes=10), only(clean=images(5)), victims.ONE)
    expected = torch.full((3,), -math.log(10))
    torch.testing.assert_close(score(images(3).pixels(), Draws(0, torch.arange(3))), expected)

    # one clean image: every overlay is that image, and the entropy can be computed by hand
    net, clean, x = Network(Keyhole(), num_classes=10), images(1, seed=5, high=60), images(4, seed=6, high=60).pixels()
    p = net((x + 0.5 * clean.pixels()).clamp(0, 1)).softmax(1)
    by_hand = (p * p.log()).sum(1).detach()
    got = detector("strip", overlays=3, alpha=0.5).fit(net, only(clean=clean), victims.ONE)(
        x, Draws(0, torch.arange(4))
    )
    torch.testing.assert_close(got, by_hand)


def test_an_attack_that_follows_the_gradient_lowers_the_score() -> None:
    model, draws = Network(Keyhole(), num_classes=10).eval(), Draws(0, torch.arange(12))
    scorer = detector("strip", overlays=40, alpha=0.5).fit(model, only(clean=images(20, high=60)), victims.ONE)
    x = images(12, seed=3, high=120).pixels()
    z = x
    for step in range(10):
        leaf = z.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(scorer.differentiable(leaf, draws.at(step)).sum(), leaf)
        z = (z - 0.01 * g.sign()).clamp(0, 1)
    assert bool((scorer(z, draws) < scorer(x, draws) - 0.1).all())


def test_strip_scores_an_image_alone_as_in_any_batch() -> None:
    score = detector("strip", overlays=9).fit(Network(Keyhole(), num_classes=10), only(clean=images(30)), victims.ONE)
    x, draws = images(12, seed=2).pixels(), Draws(3, torch.arange(100, 112))
    together = score(x, draws)
    back = torch.arange(11, -1, -1)
    torch.testing.assert_close(score(x[back], draws[back])[back], together)
    torch.testing.assert_close(score(x[4:5], draws[4:5]), together[4:5])
    assert not torch.allclose(score(x, Draws(4, torch.arange(100, 112))), together)  # overlays are drawn by the seed


@pytest.mark.parametrize(("name", "least"), [("badnets", 0.9), ("blended", 0.8)])
def test_strip_notices_triggers_with_its_default(name: str, least: float) -> None:
    model, poisoned = victims.victim(name)
    sets = victims.digits()
    score = detector("strip", overlays=40).fit(model, victims.granted(poisoned, sets, "clean"), victims.ONE)
    hit = score(*victims.stamped(victims.backdoor(name), sets[3], 100))
    clean = score(sets[3].pixels(slice(0, 100)), Draws(0, sets[3].ids[:100]))
    assert auroc(hit, clean) > least
