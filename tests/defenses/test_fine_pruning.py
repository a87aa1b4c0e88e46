"""Fine-pruning: the channel that clean images do not activate goes first and stays away."""

from __future__ import annotations

import torch

from siegebench import registry
from siegebench.train import accuracy

from . import planted

TUNING = {"epochs": 2, "batch": 20, "optimiser": "sgd", "lr": 0.01, "augment": "none"}
PARTS = {"tuning": TUNING}


def test_the_planted_channel_is_pruned_and_stays_pruned() -> None:
    before, after = planted.repaired("fine_pruning", "clean", "val", tuning=TUNING)
    assert planted.success(before) == 1
    assert planted.success(after) == 0
    assert accuracy(after, planted.data()) == 1
    weight = after.net[-1].weight  # type: ignore[union-attr, index]
    assert torch.equal(weight[:, planted.BAD], torch.zeros(2))
    assert bool((weight[[0, 1], [0, 1]] != before.net[-1].weight[[0, 1], [0, 1]]).all())  # type: ignore[index, union-attr]


def test_the_least_active_channel_comes_first() -> None:
    module = __import__(registry.entry_class("defense", "fine_pruning").__module__, fromlist=["x"])
    model = planted.model()
    activity = module.activity(model, planted.data(), model.net[-1], planted.CHANNELS)  # type: ignore[index]
    x = planted.data().pixels()
    torch.testing.assert_close(activity[0].float(), x[:, 0].mean(), rtol=1e-4, atol=0)
    assert int(activity.argmin()) == planted.BAD


def test_pruning_stops_before_the_accuracy_falls_too_far() -> None:
    _, after = planted.repaired("fine_pruning", "clean", "val", tuning=TUNING, drop=0.0, most=1.0)
    assert accuracy(after, planted.data()) == 1
    assert bool((after.net[-1].weight[:, 1] != 0).any())  # type: ignore[union-attr, index]
