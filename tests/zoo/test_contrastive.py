"""The contrastive model: the probe solves its problem, and labels do not reach the encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from siegebench.zoo.contrastive import fit_probe

from siegebench import registry
from siegebench.errors import ConfigError
from siegebench.train import accuracy
from siegebench.types import ModelSource
from tests import victims

from .building import built, model


def test_the_probe_is_the_optimum_on_standardised_features() -> None:
    g = torch.Generator().manual_seed(0)
    h = 100 + 20 * torch.randn(60, 5, generator=g, dtype=torch.float64)
    h[:, 4] = 7.0  # a feature that never changes
    y = torch.randint(0, 3, (60,), generator=g)
    weight, bias = fit_probe(h, y, 3, decay=0.01)
    assert float(weight[:, 4].abs().max()) == 0
    mean, std = h.mean(dim=0), h.std(dim=0, correction=0).clamp(min=1e-9)
    w = (weight * std).requires_grad_(True)  # the layer on standardised features
    z = (h - mean) / std @ w.T + (bias + weight @ mean)
    torch.testing.assert_close(z, h @ weight.T + bias)
    (slope,) = torch.autograd.grad(F.cross_entropy(z, y) + 0.005 * w.square().sum(), w)
    assert float(slope.abs().max()) < 1e-5


def test_labels_reach_the_probe_and_not_the_encoder() -> None:
    source: Any = model({"name": "contrastive", "recipe": {"epochs": 1, "batch": 64, "lr": 0.001}, "probe": 300})
    data = victims.tiny_digits()[0].select(torch.arange(320))
    states = []
    for labels in (data.labels, (data.labels + 1) % 10):
        net = source.build(num_classes=10, size=8).fresh(0)
        source.train(net, replace(data, labels=labels), 0)
        states.append((net.state_dict(), accuracy(net, replace(data, labels=labels))))
    (one, right), (two, other) = states
    assert {k for k in one if not torch.equal(one[k], two[k])} == set(list(one)[-2:])  # weight and bias of the last
    assert right > 0.7
    assert other > 0.7


def test_it_is_the_network_that_it_is_given() -> None:
    net = built({"name": "contrastive", "network": {"name": "plain_cnn"}, "method": "byol"})
    assert net.card.name == "byol plain_cnn"
    with pytest.raises(ConfigError, match="without published weights"):
        registry.build(ModelSource, {"name": "contrastive", "network": {"name": "cifar_resnet20"}})
