"""Unlearnable examples: the noise is bounded, lowers the loss, and leaves nothing to learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from siegebench import registry
from siegebench.train import accuracy, predict, train
from siegebench.types import Poisoned, Poisoning
from tests import victims

from .planted import SHORT, clean_net, small_net


def poisoned(n: int | None = None, **parameters: Any) -> Poisoned:
    poison = registry.build(Poisoning, {"name": "unlearnable", "eps": 0.2, "step": 0.02, "steps": 5, **parameters})
    data = victims.tiny_digits()[0].select(torch.arange(n or len(victims.tiny_digits()[0])))
    return poison.poison(data, 0, poison.learn(data, 0, small_net(7)))


def test_the_noise_of_a_class_makes_a_network_learn_nothing_about_digits() -> None:
    found, data = poisoned(form="class", steps=1, iterations=12, eps=0.5, step=0.1, error=0.0), victims.tiny_digits()[0]
    change = found.data.pixels() - data.pixels()
    assert float(change.abs().max()) <= 0.5 + 0.51 / 255
    assert torch.equal(found.data.labels, data.labels)
    for c in (0, 7):  # a class has one noise, as far as nothing is clipped
        after, own = found.data.pixels()[data.labels == c], change[data.labels == c]
        inside = (after > 0) & (after < 1)
        high = torch.where(inside, own, -torch.inf).amax(dim=0)
        low = torch.where(inside, own, torch.inf).amin(dim=0)
        assert float((high - low)[inside.any(dim=0)].max()) <= 1.01 / 255
    model = small_net()
    train(model, found.data, SHORT, 0)
    assert accuracy(model, found.data) > 0.95
    assert accuracy(model, victims.tiny_digits()[3]) < 0.6
    assert accuracy(clean_net(), victims.tiny_digits()[3]) > 0.95


def test_min_max_noise_raises_the_loss_of_another_network() -> None:
    clean = victims.tiny_digits()[0].select(torch.arange(300))

    def loss(found: Poisoned) -> float:
        return float(F.cross_entropy(predict(clean_net(), found.data), clean.labels))

    start = float(F.cross_entropy(predict(clean_net(), clean), clean.labels))
    harmful = loss(poisoned(300, kind="min_max", iterations=5))
    assert harmful > 3 * start
    assert loss(poisoned(300, kind="random")) < harmful


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_part_of_the_set(rate: float) -> None:
    found, data = poisoned(kind="random", rate=rate), victims.tiny_digits()[0]
    changed = (found.data.images != data.images).flatten(1).any(dim=1).nonzero().squeeze(1)
    assert torch.equal(changed, found.index)
    assert len(changed) == round(rate * len(data))
