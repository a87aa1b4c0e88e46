"""TaCT: sources are poisoned, cover classes keep their label, and the trigger depends on the class."""

from __future__ import annotations

import pytest
import torch

from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from tests import victims

from .planted import random_set, victim_of


def test_sources_are_poisoned_and_other_classes_cover() -> None:
    data = random_set()
    poisoned = victims.backdoor("tact", rate=0.1, cover=0.2).poison(data, 0)
    assert set(data.labels[poisoned.index].tolist()) == {1}
    assert set(poisoned.data.labels[poisoned.index].tolist()) == {0}
    assert set(data.labels[poisoned.cover].tolist()) == {2, 3, 4}  # neither source nor target
    assert len(poisoned.index), len(poisoned.cover) == (20, 40)
    two = victims.backdoor("tact", rate=0.1, cover=0.2, cover_classes=[2, 4]).poison(data, 0)
    assert set(data.labels[two.cover].tolist()) == {2, 4}
    with pytest.raises(NotApplicable, match="40 eligible"):
        victims.backdoor("tact", rate=0.1, cover=0.3, cover_classes=[3]).poison(data, 0)


def test_the_trigger_is_that_of_its_attack() -> None:
    x, draws = torch.rand(2, 3, 32, 32), Draws(0, torch.arange(2))
    assert torch.equal(
        victims.backdoor("tact", attack="blended").stamp(x, draws), victims.backdoor("blended").stamp(x, draws)
    )
    with pytest.raises(ConfigError, match="fixed trigger"):
        victims.backdoor("tact", attack="sig")


def test_networks_learn_trigger_and_class_together() -> None:
    attack = victims.backdoor("tact", attack={"name": "badnets", "side": 8})
    model, _, ca, asr = victim_of(attack)
    test = victims.tiny_digits()[3]
    others = (test.labels > 1).nonzero().squeeze(1)
    z = model(attack.stamp(test.pixels(others), Draws(0, test.ids[others])))
    assert ca > 0.95
    assert asr > 0.8
    assert float((z.argmax(dim=1) == 0).double().mean()) < 0.1
