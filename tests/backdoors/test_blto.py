"""BLTO: the bound, the images that are poisoned, and a similarity to the target class that rises."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from siegebench import artifacts
from siegebench.store import Store
from siegebench.types import BackdoorAttack, Material
from tests import victims

from .planted import draws, small_net


@cache
def learnt() -> tuple[BackdoorAttack, Material]:
    attack = victims.backdoor("blto", eps=0.2, target=1, rounds=10, renew=5, inner=2, outer=8, batch=48, lr=0.01)
    return attack, attack.learn(victims.tiny_digits()[0], 0, small_net(7))


def test_triggered_images_come_closer_to_the_target_class() -> None:
    _, material = learnt()
    reached = material["similarity"]
    assert len(reached) == 10
    for life in reached.split(5):  # of a surrogate
        assert float(life[-1]) > float(life[0])
    assert float(reached[5:].mean()) > float(reached[:5].mean())  # what was learnt serves the next surrogate


def test_the_bound_holds_and_each_image_has_its_own_trigger() -> None:
    attack, material = learnt()
    x = victims.tiny_digits()[3].pixels(slice(0, 40))
    change = attack.stamp(x, draws(x), material=material) - x
    assert 0.1 < float(change.abs().max()) <= 0.2 + 1e-6
    assert not torch.equal(change[0].sign(), change[1].sign())


def test_images_of_the_target_class_are_poisoned_and_no_label_changes() -> None:
    attack, material = learnt()
    data = victims.tiny_digits()[0]
    poisoned = attack.poison(data, 0, material)
    assert len(poisoned.index) == round(0.01 * len(data))
    assert set(data.labels[poisoned.index].tolist()) == {1}
    assert torch.equal(poisoned.data.labels, data.labels)
    assert float((poisoned.data.pixels() - data.pixels()).abs().max()) <= 0.2 + 0.5 / 255


def test_the_trigger_is_the_same_from_a_stored_artifact(tmp_path: Path) -> None:
    attack, material = learnt()
    x = victims.tiny_digits()[3].pixels(slice(0, 8))
    for _ in range(2):  # written, then read
        kept = artifacts.made(Store(tmp_path), {"kind": "material"}, lambda: material)
        assert torch.equal(attack.stamp(x, draws(x), material=kept), attack.stamp(x, draws(x), material=material))
