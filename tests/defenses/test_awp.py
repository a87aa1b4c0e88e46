"""AWP: one step against the step written out, what it leaves as found, and what it goes around."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from siegebench.defenses._adversarial import renew
from torch import nn

from siegebench.classifier import Network
from siegebench.draws import derive_seed
from siegebench.errors import ConfigError

from .two_features import EPS, ONE, RECIPE, SHORT, build, granted, learns_the_robust_feature, two_features

STEP = {
    "epochs": 1,
    "batch": 64,
    "optimiser": "sgd",
    "lr": 0.5,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "augment": "none",
}


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))


def test_one_step_is_the_step_written_out() -> None:
    data, gamma = two_features(64), 0.1
    inner = {"name": "pgd_at", "eps": 1e-9, "step": 1e-9, "steps": 1, "recipe": STEP}  # no perturbation of the images
    start, moved = (Network(net(), num_classes=2, rebuild=net) for _ in range(2))
    trained = build("awp", defense=inner, gamma=gamma).apply(start, granted(data), ONE)
    renew(start, derive_seed(0, "pgd_at"))
    moved.load_state_dict(start.state_dict())
    start.train()
    moved.train()
    x, y = data.pixels(), data.labels
    rho = F.cross_entropy(start(x), y)
    for (name, w), v, g in zip(
        start.named_parameters(), moved.parameters(), torch.autograd.grad(rho, list(start.parameters())), strict=True
    ):
        if name.endswith("weight") and w.dim() > 1:
            v.data += gamma * w.norm() / g.norm() * g
    F.cross_entropy(moved(x), y).backward()
    for w, v in zip(start.parameters(), moved.parameters(), strict=True):
        w.data -= 0.5 * v.grad  # type: ignore[operator]
    for (name, a), b in zip(trained.named_parameters(), start.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name
    # the pass that finds v does not count for the statistics; the pass at theta + v does
    assert torch.allclose(trained.net[1].running_mean, moved.net[1].running_mean, atol=1e-5)  # type: ignore
    assert int(trained.net[1].num_batches_tracked) == 1  # type: ignore


def test_without_perturbation_it_is_the_other_training() -> None:
    data, numbers = two_features(128), {"steps": 2, "recipe": {**RECIPE, "epochs": 2}}
    given, inner = Network(net(), num_classes=2, rebuild=net), {"name": "trades", **numbers}
    plain = build("trades", **numbers).apply(given, granted(data), ONE).state_dict()
    trained = build("awp", defense=inner, warmup=1).apply(given, granted(data), ONE).state_dict()
    assert all(torch.equal(v, plain[k]) for k, v in trained.items())
    moved = build("awp", defense=inner).apply(given, granted(data), ONE).state_dict()
    assert not all(torch.equal(v, plain[k]) for k, v in moved.items())


def test_the_other_training_sees_the_weights_before_the_perturbation() -> None:
    data = two_features(64)
    net_: Any = Network(net(), num_classes=2, rebuild=net)
    this = build("awp", defense={"name": "cure", "revise": 1.0, "decay": 0.0}, gamma=0.5).problem(
        net_, granted(data), 0
    )
    x, y = data.pixels(), data.labels
    theta = net_.net[0].weight.detach().clone()

    def rho() -> torch.Tensor:
        value: torch.Tensor = this.outer(net_, x, y, x, net_(x))
        return value

    assert this.perturb is not None
    assert this.gradients is not None
    this.perturb(rho, 0)
    before = float(rho().detach())
    assert not torch.equal(net_.net[0].weight, theta)
    this.gradients()  # the second network of cure becomes a copy of the first: its term of the loss is zero
    assert torch.equal(net_.net[0].weight, theta)
    net_.eval()
    plain = F.cross_entropy(net_(x), y)
    assert torch.allclose(rho(), plain, atol=1e-5)
    assert before > float(plain.detach()) + 1e-3


def test_it_goes_around_adversarial_trainings_only() -> None:
    with pytest.raises(ConfigError, match="defense"):
        build("awp", defense="jpeg")


def test_it_learns_the_robust_feature() -> None:
    inner = {"name": "pgd_at", "eps": EPS, "step": EPS, "steps": 2, "recipe": SHORT}
    learns_the_robust_feature("awp", defense=inner)
