"""Fast adversarial training: its single step, the feature it learns, and when it ends."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from siegebench.defenses import _adversarial

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from tests import kit

from .two_features import EPS, ONE, SHORT, build, granted, learns_the_robust_feature, model, two_features


def test_the_step_is_longer_than_eps_and_ends_on_the_ball() -> None:
    entry, net, x = build("fast_at", eps=0.1), kit.cnn_model(), kit.grey_images(8)
    y, draws = torch.arange(8), Draws(0, torch.arange(8))
    this = entry.problem(net, granted(two_features(8)), 0)
    start = x + 0.1 * (2 * draws.uniform((3, 8, 8), purpose="start") - 1)
    leaf = start.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(net(leaf), y), leaf)
    expected = x + (start + 0.125 * g.sign() - x).clamp(-0.1, 0.1)
    assert torch.allclose(this.ball.maximise(net, x, this.inner(net, x, y), draws), expected, atol=1e-6)
    assert this.batch_norm == "train"


def test_it_learns_the_robust_feature() -> None:
    learns_the_robust_feature("fast_at", eps=EPS, recipe=SHORT)


@pytest.mark.parametrize(("scores", "kept", "ran"), [((90, 80, 50, 90), 1, 3), ((50, 40, 30, 20), 3, 4)])
def test_it_ends_when_accuracy_under_pgd_falls(
    scores: tuple[int, ...], kept: int, ran: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def four_epochs(net: Classifier, *_args: object, after: Any, **_hooks: object) -> None:
        for epoch in range(4):
            net.load_state_dict(net.fresh(epoch).state_dict())
            states.append({k: v.clone() for k, v in net.state_dict().items()})
            if after(epoch):
                break

    entry, found = build("fast_at", recipe={"epochs": 4, "batch": 100}), iter(scores)
    monkeypatch.setattr(_adversarial, "train", four_epochs)
    monkeypatch.setattr(sys.modules[type(entry).__module__], "right", lambda *_args: next(found))
    trained = entry.apply(model(), granted(two_features(256)), ONE)
    assert len(states) == ran
    assert all(torch.equal(v, states[kept][k]) for k, v in trained.state_dict().items())
