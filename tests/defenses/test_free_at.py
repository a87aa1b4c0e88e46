"""Free adversarial training: how the perturbation moves, that it is kept, and the feature it learns."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.train import Recipe

from .two_features import EPS, ONE, SHORT, build, granted, learns_the_robust_feature, model, two_features


def test_delta_starts_at_zero_moves_by_eps_and_is_kept_for_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, eps, data = build("free_at", eps=0.1, recipe={"batch": 32}), 0.1, two_features(64)
    asked: dict[str, Any] = {}

    def recorded(net: Classifier, given: ImageSet, recipe: Recipe, seed: int, **hooks: Any) -> None:
        asked.update(hooks)
        seen: list[Tensor] = []
        for places in (torch.arange(32), torch.arange(32), torch.arange(32, 64)):
            x_adv = hooks["images"](given.pixels(places), given.labels[places], places, 0)
            F.cross_entropy(net(x_adv), given.labels[places]).backward()
            seen.append(x_adv.grad.clone())
            asked.setdefault("x", []).append(x_adv.detach().clone())
            hooks["gradients"]()
        asked["g"] = seen

    monkeypatch.setattr(sys.modules[type(entry).__module__], "train", recorded)
    entry.apply(model(), granted(data), ONE)
    first, second = data.pixels(slice(0, 32)), data.pixels(slice(32, 64))
    assert asked["replays"] == 4
    assert torch.equal(asked["x"][0], first)
    one = eps * asked["g"][0].sign()
    assert torch.allclose(asked["x"][1], first + one)
    two = (one + eps * asked["g"][1].sign()).clamp(-eps, eps)
    assert torch.allclose(asked["x"][2], second + two, atol=1e-6)


def test_it_learns_the_robust_feature() -> None:
    learns_the_robust_feature("free_at", eps=EPS, replays=4, recipe={**SHORT, "epochs": 6})
