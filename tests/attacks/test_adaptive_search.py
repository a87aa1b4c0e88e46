"""Adaptive search: planted fakes keep no more images than the network inside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.inputs import as_classifier, restored
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.tracks.attacking import explored
from siegebench.types import Attack, WrappingAttack
from tests import fakes, kit, victims

THREAT = ThreatModel(norm="linf", eps=24 / 255)
N = 50  # images; 2 points are one of them


@cache
def scene() -> tuple[Classifier, Tensor, Tensor]:
    """(a trained network, images that it classifies correctly, labels)"""
    data, _, _, test = victims.tiny_digits()
    net = kit.small_cnn()
    optimiser, x, y = torch.optim.Adam(net.parameters(), 0.01), data.pixels(), data.labels
    for _ in range(100):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    model = Network(net, num_classes=10).eval().requires_grad_(False)
    x, y = test.pixels(), test.labels
    right = (model(x).argmax(dim=1) == y).nonzero().squeeze(1)[:N]
    return model, x[right], y[right]


def left(model: Classifier, attack: Attack) -> tuple[float, list[str]]:
    """(per cent of the images that stay correctly classified, ids of the findings above info)"""
    _, x, y = scene()
    model = restored(model.eval(), x)
    x_adv, flags = attacked(model, attack, x, y)
    return 100 * float((model(x_adv).argmax(dim=1) == y).double().mean()), flags


def attacked(model: Classifier, attack: Attack, x: Tensor, y: Tensor) -> tuple[Tensor, list[str]]:
    draws = Draws(0, torch.arange(len(x)))
    k = attack.explored()
    lesson, _ = explored(attack, model, THREAT, x[:k], y[:k], draws[:k])
    found = attack(Oracle(model, THREAT, draws), x, y, THREAT, draws, lesson)
    return found, [flag.id for flag in attack.findings(lesson) if flag.severity != "info"]


def search() -> Attack:
    return registry.build(Attack, {"name": "adaptive_search", "images": 8, "trial": 20, "passes": 120})


@cache
def bare() -> float:
    strong = registry.build(Attack, {"name": "apgd", "loss": "dlr", "steps": 100, "restarts": 2})
    model, x, y = scene()
    x_adv, _ = kit.attack_with(strong, model, x, y, THREAT)
    return 100 * float((model(x_adv).argmax(dim=1) == y).double().mean())


def test_the_bare_network_keeps_some_images() -> None:
    assert 10 < bare() < 70
    found, flags = left(scene()[0], search())
    assert found <= bare() + 2
    assert not flags


FAST = ("steps", "detached", "refined")  # the others take some seconds each


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in fakes.FAKES])
def test_a_fake_keeps_no_more_than_the_network_inside(name: str) -> None:
    found, flags = left(fakes.FAKES[name](scene()[0]), search())
    # a grid of 1/15 leaves no more than 1/15 of the 24/255: nine APGDs of 200 steps and Square leave as many images
    assert found <= bare() + (10 if name == "quantised" else 2)
    hides = ("probabilities", "steps", "detached", "no_grad", "high_frequency", "quantised", "nan_gradients", "hooked")
    assert ("hidden_gradients" in flags) or name not in hides


class Formula(nn.Module):
    """The same network without a module inside: its layers are written as functions of tensors."""

    def __init__(self, change: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        net: nn.Module = scene()[0].net  # type: ignore[assignment]
        self.weights = [p.detach().clone() for p in net.parameters()]
        self.change = change

    def logits(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f = self.weights
        x = F.relu(F.conv2d(F.relu(F.conv2d(x, a, b, 2, 1)), c, d, 2, 1))
        return F.linear(F.adaptive_avg_pool2d(x, 2).flatten(1), e, f)

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.logits, x)


def hooked(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    seen = x.clone()
    if seen.requires_grad:
        seen.register_hook(torch.zeros_like)
    return net(seen)


FORMULAS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "rounded image": lambda net, x: net((x * 60).round() / 60),
    "rounded probabilities": lambda net, x: (20 * net(x).softmax(dim=1)).round() / 20,
    "cut": lambda net, x: net(x.detach()) + 1e-6 * x.flatten(1).mean(dim=1, keepdim=True),
    "reversed": lambda net, x: net(fakes._Turned.apply(x)),
    "hooked": hooked,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_fake_without_modules_keeps_no_more_than_the_network(name: str) -> None:
    found, _ = left(as_classifier(Formula(FORMULAS[name]), scene()[1]), search())
    assert found <= bare() + 2


def test_a_network_that_answers_with_a_label_is_attacked_by_labels() -> None:
    def label(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.eye(10)[net(x).argmax(dim=1)]

    model, (_, x, y) = as_classifier(Formula(label), scene()[1]), scene()
    attack = registry.build(Attack, {"name": "adaptive_search", "images": 8, "trial": 20, "queries": 300})
    draws = Draws(0, torch.arange(len(x)))
    lesson, _ = explored(attack, restored(model, x), THREAT, x[:8], y[:8], draws[:8])
    assert lesson.ways[0].name == "RayS"
    found, _ = left(model, attack)
    assert found <= bare() + 30  # 300 labels tell less than a gradient


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "detached": lambda x: x.detach(),
    "rounded": lambda x: (x * 63).round() / 63,  # a coarser grid takes a part of the ball
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_network_hidden_in_a_plain_module_is_found(name: str) -> None:
    model, x, _ = scene()
    inner: Network = model  # type: ignore[assignment]
    found, _ = left(as_classifier(fakes.Plain(inner.net, CHANGES[name]), x), search())
    assert found <= bare() + 2


@pytest.mark.slow
def test_a_model_that_is_random_by_its_own_declaration_is_attacked() -> None:
    noise = registry.build("defense", {"name": "rnd", "nu": 0.02})
    found, _ = left(noise.structure(scene()[0]), search())  # type: ignore[attr-defined]
    assert found <= bare() + 10  # of noise, which moves images itself


def test_a_wrapper_explores_with_the_attack_inside() -> None:
    model, x, y = scene()
    wrapped = registry.build(Attack, {"name": "bpda", "attack": {"name": "adaptive_search", "images": 4, "trial": 20}})
    assert isinstance(wrapped, WrappingAttack)
    assert wrapped.explored() == 4
    x_adv, _ = attacked(model, wrapped, x[:8], y[:8])
    assert float((x_adv - x[:8]).abs().max()) <= THREAT.eps * (1 + 1e-6)
