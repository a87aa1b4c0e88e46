"""Attacks that make their poison with a network: label_consistent, trojan_nn, data_constrained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from siegebench.backdoors import _surrogate
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError
from siegebench.train import predict
from siegebench.types import BackdoorAttack, Material
from tests import victims

from .planted import clean_net, constant, draws, random_set, small_net

RECIPE = {"epochs": 2, "batch": 64, "lr": 0.005, "augment": "none"}


def learnt(name: str, **parameters: Any) -> tuple[BackdoorAttack, Material]:
    """An attack that has learnt from the 8x8 scans with a short training."""
    attack = victims.backdoor(name, recipe=RECIPE, **parameters)
    return attack, attack.learn(victims.tiny_digits()[0], 0, small_net(7))


def test_label_consistent_images_are_close_and_hard_and_keep_their_label() -> None:
    attack, material = learnt("label_consistent", rate=0.05, robust=0, steps=5, step=8 / 255, side=4)
    data = victims.tiny_digits()[0]
    poisoned = attack.poison(data, 0, material)
    assert len(poisoned.index) == round(0.05 * len(data))
    assert torch.equal(poisoned.data.labels, data.labels)
    assert set(data.labels[poisoned.index].tolist()) == {0}
    before, after = data.pixels(poisoned.index), poisoned.data.pixels(poisoned.index)
    outside = attack.stamp(torch.full_like(before, 0.5), Draws(0, data.ids[poisoned.index]), material={}) == 0.5
    assert float((after - before)[outside].abs().max()) <= 16.5 / 255
    hard = data.select(poisoned.index)
    with torch.no_grad():
        moved = F.cross_entropy(clean_net()(attack_only(material)), hard.labels)  # transfers to another network
    assert float(moved) > 3 * float(F.cross_entropy(predict(clean_net(), hard), hard.labels))


def attack_only(material: Material) -> Tensor:
    return material["images"].float() / 255


def test_a_label_consistent_test_image_gets_the_four_patches_only() -> None:
    attack = victims.backdoor("label_consistent")
    x = constant(0.5)
    out = attack.stamp(x, draws(x), material={})
    assert int((out != x).any(dim=1)[0].sum()) == 4 * 25
    assert out[0, 0, 0, 0] == out[0, 0, 31, 31] == 1.0
    faint = victims.backdoor("label_consistent", amplitude=0.25)
    assert float((faint.stamp(x, draws(x), material={}, role="cover") - x).abs().max()) == pytest.approx(0.125)


def test_the_trojan_pattern_excites_the_chosen_neurons() -> None:
    attack, material = learnt("trojan_nn", steps=60, side=10)
    model, data = small_net(7), victims.tiny_digits()[0]
    model = _surrogate.trained(model, data, attack.recipe, 0)  # type: ignore[attr-defined, assignment]
    chosen = model.net[-1].weight.abs().sum(dim=0).topk(2).indices
    x = victims.tiny_digits()[3].pixels(slice(0, 64))
    streams = Draws(0, torch.arange(64))
    noise = {"pattern": torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        stamped, random, plain = (
            float(model.features(image)[:, chosen].mean())
            for image in (attack.stamp(x, streams, material=material), attack.stamp(x, streams, material=noise), x)
        )
    assert stamped > 1.3 * max(random, plain)
    outside = attack.stamp(x, streams, material=material) == x
    assert int((~outside).any(dim=1).any(dim=0).sum()) <= 9  # nothing but the square of 3 x 3 changes


def test_the_universal_perturbation_points_to_the_target() -> None:
    attack, material = learnt("data_constrained", eps=0.2, step=0.02, augment_step=0.02, epochs=20, steps=10, rate=0.05)
    data, test = victims.tiny_digits()[0], victims.tiny_digits()[3]
    assert float(material["delta"].abs().max()) <= 0.2 + 1e-6
    model = _surrogate.trained(small_net(7), data, attack.recipe, 0)  # type: ignore[attr-defined]
    x, goal = test.pixels(slice(0, 200)), torch.zeros(200, dtype=torch.long)

    def loss(delta: Tensor) -> float:
        with torch.no_grad():
            z = model(attack.stamp(x, draws(x), material={**material, "delta": delta}))
        return float(F.cross_entropy(z, goal))

    assert loss(material["delta"]) < loss(torch.zeros(3, 8, 8)) < loss(-material["delta"])
    suppressed = material["images"].float() / 255
    clean = data.pixels(attack.chosen(data, 0)[0])
    assert float((suppressed - clean).abs().max()) <= 0.2 + 0.5 / 255
    with torch.no_grad():
        spread = [model(x).softmax(dim=1).amax(dim=1).mean() for x in (suppressed, clean)]
    assert spread[0] < spread[1]


def test_aligned_features_and_one_class() -> None:
    data = victims.tiny_digits()[0]
    attack, material = learnt(
        "data_constrained", augment="cfa", suppress=False, eps=0.2, augment_step=0.02, epochs=20, source=1, rate=0.02
    )
    poisoned = attack.poison(data, 0, material)
    assert set(data.labels[poisoned.index].tolist()) == {1}
    assert set(poisoned.data.labels[poisoned.index].tolist()) == {0}
    x = victims.tiny_digits()[3].pixels(slice(0, 100))
    with torch.no_grad():
        f = [F.normalize(clean_net().features(image)) for image in (attack.stamp(x, draws(x), material=material), x)]
    assert float((f[0][:50] * f[0][50:]).sum(dim=1).mean()) > float((f[1][:50] * f[1][50:]).sum(dim=1).mean())


def test_what_was_learnt_must_be_given() -> None:
    with pytest.raises(ContractError, match="call learn first"):
        victims.backdoor("trojan_nn").poison(random_set(), 0)
    for name in ("tact", "x2x"):
        with pytest.raises(ConfigError):
            victims.backdoor(name, attack="trojan_nn")
    with pytest.raises(ConfigError, match="one class"):
        victims.backdoor("data_constrained", target="next")
