"""The stand-in for likelihood flattening: its term, and that training makes the energy flatter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from siegebench.draws import Draws
from tests import kit

from .two_features import ONE, SHORT, build, granted, model, two_features


@pytest.mark.parametrize("steps", [0, 3])
def test_the_loss_is_cross_entropy_and_the_change_of_the_energy(steps: int) -> None:
    net, x, y, draws = kit.cnn_model(), kit.grey_images(8), torch.arange(8), Draws(0, torch.arange(8))
    this = build("likelihood_flattening", weight=2.0, steps=steps, eps=0.1).problem(net, granted(two_features(8)), 0)
    x_adv = this.ball.maximise(net, x, this.inner(net, x, y), draws)
    change = (net(x_adv).exp().sum(dim=1).log() - net(x).exp().sum(dim=1).log()).abs()
    assert torch.allclose(this.inner(net, x, y)(net(x_adv)), change.sum(), atol=1e-5)
    assert torch.allclose(this.outer(net, x, y, x_adv, net(x_adv)), F.cross_entropy(net(x), y) + 2 * change.mean())
    assert 0 < float((x_adv - x).abs().max()) <= 0.1 + 1e-6


def test_the_search_finds_larger_changes_than_chance() -> None:
    net, x, y, draws = kit.cnn_model(), kit.grey_images(8), torch.arange(8), Draws(0, torch.arange(8))
    random, worst = (
        build("likelihood_flattening", steps=k, eps=0.1, step=0.05).problem(net, granted(two_features(8)), 0)
        for k in (0, 4)
    )
    net.load_state_dict(kit.cnn_model().state_dict())
    gain = worst.inner(net, x, y)
    assert float(gain(net(worst.ball.maximise(net, x, gain, draws)))) > 3 * float(
        gain(net(random.ball.maximise(net, x, gain, draws)))
    )


def test_training_flattens_the_energy() -> None:
    data = two_features(256)
    x = data.pixels()

    def change(weight: float) -> float:
        entry = build("likelihood_flattening", weight=weight, eps=0.2, step=0.2, steps=2, recipe=SHORT)
        z = entry.apply(model(), granted(data), ONE)
        return float((z((x + 0.2).clamp(0, 1)).logsumexp(1) - z(x).logsumexp(1)).abs().mean().detach())

    assert change(5.0) < 0.3 * change(1e-6)
