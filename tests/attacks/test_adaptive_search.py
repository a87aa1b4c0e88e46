"""Adaptive search: planted fakes keep no more images than the network inside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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
    assert found <= bare() + 2
    hides = name in ("probabilities", "steps", "detached", "no_grad", "high_frequency", "quantised", "nan_gradients")
    assert ("hidden_gradients" in flags) or not hides


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "detached": lambda x: x.detach(),
    "rounded": lambda x: (x * 15).round() / 15,
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
