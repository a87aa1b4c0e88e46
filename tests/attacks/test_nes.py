"""NES: its estimate of the gradient and the draws behind it."""

from __future__ import annotations

import math

import pytest
import torch
from siegebench.attacks.nes import NES
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Budget
from tests import kit

from .planted import half_space, score


def test_nes_estimates_the_gradient() -> None:
    model, w = half_space(b=500.0)
    x = kit.grey_images(4).double()
    y = model(x).argmax(1)
    oracle, draws = Oracle(model, score("linf", 0.1), Draws(0, torch.arange(4))), Draws(0, torch.arange(4))
    pairs = torch.tensor([3000, 100, 0, 7])
    budget, rows = Budget(oracle, y, 10_000), torch.arange(4)
    g = NES()._gradient(budget, rows, x, y, pairs, 0.001, draws, 0)
    assert oracle.ledger.queries.tolist() == (2 * pairs).tolist()
    exact = -w.flatten()  # of the margin
    assert float(g[2].abs().max()) == 0
    # from m pairs in n dimensions: length^2 is (n + m + 1) / m times the true one, cosine^2 is m / (n + m + 1)
    n = exact.numel()
    for k in (0, 1, 3):
        m = int(pairs[k])
        cosine = float(torch.cosine_similarity(g[k].flatten(), exact, dim=0))
        length = float(g[k].norm() / exact.norm())
        assert cosine == pytest.approx(math.sqrt(m / (n + m + 1)), abs=0.1)
        assert length == pytest.approx(math.sqrt((n + m + 1) / m), rel=0.25)


def test_nes_draws_a_pair_anew_for_each_step_and_pair() -> None:
    model, _ = half_space(b=500.0)
    x = kit.grey_images(1).double()
    y, one = model(x).argmax(1), Draws(0, torch.zeros(1, dtype=torch.long))
    seen: list[Tensor] = []

    def look(image: Tensor) -> Tensor:
        seen.append(image.clone())
        return model(image)

    class Seen(Classifier):
        num_classes = 2

        def forward(self, image: Tensor, draws: Draws | None = None) -> Tensor:
            return look(image)

    threat = score("linf", 0.01, 31)
    NES(pairs=5, sigma=0.01)(Oracle(Seen(), threat, one), x, y, threat, one)
    probes = torch.cat([s for s in seen if len(s) > 1])
    assert len(probes) == 10 + 10 + 8
    assert [len(s) for s in seen] == [10, 1, 10, 1, 8, 1]
    moves = torch.cat([s[: len(s) // 2] - s[len(s) // 2 :] for s in seen if len(s) > 1]).flatten(1)
    assert float(torch.corrcoef(moves).fill_diagonal_(0).abs().max()) < 0.35
    assert float(moves.std()) == pytest.approx(0.02, rel=0.05)  # 2 sigma


def test_nes_follows_the_gradients_before() -> None:
    """Fifteen pairs in 192 dimensions say little; what is remembered says more."""
    model, w = half_space(b=500.0)
    x = kit.grey_images(8).double()
    y = model(x).argmax(1)
    threat = score("linf", 0.05, 31 * 5)
    gain = {}
    for momentum in (0.0, 0.9):
        x_adv, _ = kit.attack_with(NES(pairs=15, momentum=momentum, step=2.0), model, x, y, threat)
        gain[momentum] = float((ops.margin(model(x_adv), y) - ops.margin(model(x), y)).mean() / (0.05 * w.abs().sum()))
    assert gain[0.9] > gain[0.0] + 0.1


def test_the_constants_follow_the_budget() -> None:
    # a probe is half as long as the radius of the ball
    assert NES()._sigma(score("linf", 0.02), 3072) == 0.01
    assert NES()._sigma(score("l2", 0.5), 2500) == pytest.approx(0.005)
    assert NES(sigma=0.3)._sigma(score("linf", 0.02), 3072) == 0.3
    # the running mean remembers as many steps as there are
    granted = torch.tensor([5, 21, 210, 2100])
    torch.testing.assert_close(NES(pairs=10)._momentum(granted), torch.tensor([0, 0, 0.9, 0.99]).double())
    assert NES(momentum=0.5)._momentum(granted).tolist() == [0.5] * 4


def test_a_longer_memory_pays_where_more_queries_are_granted() -> None:
    """On a half-space every probe counts: the mean over all steps is better than one over the last ten."""
    model, w = half_space(b=500.0)
    x = kit.grey_images(8).double()
    y = model(x).argmax(1)
    threat, gain = score("linf", 0.05, 21 * 40), {}
    for momentum in (None, 0.5):
        x_adv, _ = kit.attack_with(NES(momentum=momentum), model, x, y, threat)
        gain[momentum] = float((ops.margin(model(x_adv), y) - ops.margin(model(x), y)).mean() / (0.05 * w.abs().sum()))
    assert gain[None] > gain[0.5] + 0.1
