"""ELR: the loss and its gradient in closed form, and labels that are not memorised."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.train import predict
from siegebench.types import Defense
from tests import victims

ELR: Any = registry.build(Defense, {"name": "elr", "weight": 2.0, "memory": 0.7})


def test_the_loss_and_its_gradient() -> None:
    z = torch.tensor([[1.0, 0.2, -0.5], [0.0, 2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    y, index, t = torch.tensor([1, 1]), torch.tensor([4, 2]), torch.zeros(6, 3, dtype=torch.float64)
    t[2] = torch.tensor([0.1, 0.6, 0.1])
    before = t.clone()
    value = ELR.loss(z, y, t, index)
    p = F.softmax(z, dim=1).detach()
    target = 0.7 * before[index] + 0.3 * p
    torch.testing.assert_close(t[index], target)
    assert torch.equal(t[[0, 1, 3, 5]], before[[0, 1, 3, 5]])
    dot = (target * p).sum(dim=1, keepdim=True)
    torch.testing.assert_close(value.detach(), F.cross_entropy(z, y).detach() + 2 * (1 - dot).log().mean())
    (g,) = torch.autograd.grad(value, z)
    # the gradient of the paper: p - y + l p (<t, p> - t) / (1 - <t, p>), through p alone
    expected = (p - F.one_hot(y, 3) + 2 * p * (dot - target) / (1 - dot)) / 2
    torch.testing.assert_close(g, expected)


def test_wrong_labels_are_not_memorised() -> None:
    data = victims.tiny_digits()[0]
    data = data.select(torch.arange(300))
    wrong = Draws(0, data.ids).uniform() < 0.4
    labels = torch.where(wrong, (data.labels + 1 + Draws(1, data.ids).integers(9)) % 10, data.labels)
    noisy = replace(data, labels=labels)
    recipe = {"epochs": 40, "batch": 60, "augment": "none", "lr": 3e-3}

    def rebuild() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.ReLU(), nn.Linear(256, 10))

    model = Network(rebuild(), num_classes=10, rebuild=rebuild)

    def memorised(weight: float) -> float:
        spec = {"name": "elr", "weight": weight, "recipe": recipe}
        granted = Granted("test", ("train",), train=partial(lambda v: v, noisy))
        trained = registry.build(Defense, spec).apply(model, granted, victims.ONE)
        return float((predict(trained, noisy).argmax(dim=1) == labels)[wrong].double().mean())

    assert memorised(3.0) + 0.2 < memorised(1e-9)
