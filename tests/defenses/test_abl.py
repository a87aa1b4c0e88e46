"""ABL: the two losses in closed form, planted images with a small loss, and unlearning that stops in time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from siegebench import registry
from siegebench.classifier import Network
from siegebench.train import accuracy
from siegebench.types import Defense

from . import planted

isolation: Any = __import__(
    registry.entry_class("defense", "abl").__module__.replace("abl", "_isolation"), fromlist=["x"]
)


def test_the_losses_and_their_gradients() -> None:
    z = torch.tensor([[3.0, 0.0], [0.1, 0.0]], dtype=torch.float64, requires_grad=True)  # one loss below g, one above
    y = torch.tensor([0, 0])
    each = F.cross_entropy(z, y, reduction="none")
    assert float(each[0].detach()) < 0.3 < float(each[1].detach())
    torch.testing.assert_close(isolation.floored(z, y, "sign", 0.3), (each[1] - each[0]) / 2)
    (g,) = torch.autograd.grad(isolation.floored(z, y, "sign", 0.3), z)
    assert float(g[0, 0]) > 0 > float(g[1, 0])  # the loss of the first rises, that of the second falls
    torch.testing.assert_close(isolation.floored(z, y, "flooding", 0.6), 1.2 - each.mean())
    torch.testing.assert_close(isolation.floored(z, y, "flooding", 0.1), each.mean())


def test_the_images_with_the_smallest_loss_are_isolated() -> None:
    model, data = planted.model(), planted.data()
    x = data.images.clone()
    easy = torch.tensor([3, 8, 21])
    x[easy, data.labels[easy]] = 255  # far on the side of their class
    data = replace(data, source=x)
    found = isolation.easiest(model, data, 3 / 40)
    assert sorted(found.tolist()) == easy.tolist()
    left = isolation.without(data, found)
    assert len(left) == 37
    assert not torch.isin(left.ids, easy).any()


def weakened(weight: float) -> Network:
    """The planted network with another weight of the trigger: gradients vanish where the softmax is saturated."""
    model = planted.model()
    with torch.no_grad():
        model.net[-1].weight[0, planted.BAD] = weight  # type: ignore[index, union-attr, operator]
    return model


def test_the_trigger_is_unlearnt() -> None:
    model, data = weakened(6.0), planted.data()
    assert planted.success(model) == 1
    ones = data.select((data.labels == 1).nonzero().squeeze(1))
    triggered = (planted.stamped(ones.pixels()) * 255).round().to(torch.uint8)
    isolated = replace(ones, source=triggered, labels=torch.zeros_like(ones.labels))
    abl: Any = registry.build(Defense, {"name": "abl", "unlearning": 20, "unlearning_lr": 0.01})
    abl.unlearn(model, isolated, data, 0)
    assert planted.success(model) == 0
    assert accuracy(model, data) == 1


def test_unlearning_stops_before_the_network_is_destroyed() -> None:
    data = planted.data()
    zeros = data.select((data.labels == 0).nonzero().squeeze(1)[:10])  # clean images were isolated by mistake
    many = {"name": "abl", "unlearning": 50, "unlearning_lr": 0.2}
    guarded, free = weakened(6.0), weakened(6.0)
    registry.build(Defense, many).unlearn(guarded, zeros, data, 0)  # type: ignore[attr-defined]
    registry.build(Defense, {**many, "guard": 1}).unlearn(free, zeros, data, 0)  # type: ignore[attr-defined]
    assert accuracy(guarded, data) >= 0.95
    assert accuracy(free, data) <= 0.6


def test_all_three_steps_run_on_a_poisoned_set() -> None:
    data = planted.data()
    recipe = {"epochs": 2, "batch": 20, "augment": "none"}
    abl = registry.build(Defense, {"name": "abl", "isolation": recipe, "recipe": recipe, "isolate": 0.1})
    model = planted.model()
    first, second = (abl.apply(model, planted.granted("train"), planted.ONE) for _ in range(2))
    assert torch.equal(first(data.pixels()), second(data.pixels()))
    assert not torch.equal(first(data.pixels()), model(data.pixels()))
