"""X2X: label maps with a trigger for each target."""

from __future__ import annotations

import pytest
import torch

from siegebench import registry
from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.tracks.backdoor import triggered
from tests import victims

from .planted import clean_net, constant, random_set, victim_of

PAIRS = {"0": 1, "2": 3}


def test_each_target_has_its_own_trigger() -> None:
    x, draws = constant(0.5), Draws(0, torch.arange(2))
    out = victims.backdoor("x2x").stamp(x, draws, wanted=torch.tensor([1, 3]))
    corners = victims.backdoor("badnets", corner="top_left"), victims.backdoor("badnets", corner="bottom_right")
    for i, attack in enumerate(corners):
        assert torch.equal(out[i], attack.stamp(x, draws)[i])


def test_the_poisoned_set_and_the_test_agree_about_triggers() -> None:
    data, attack = random_set(), victims.backdoor("x2x", rate=0.2, cover=0.1)
    poisoned = attack.poison(data, 0)
    sources = data.labels[poisoned.index]
    assert set(sources.tolist()) == {0, 2}
    assert torch.equal(poisoned.data.labels[poisoned.index], sources + 1)
    one = victims.backdoor("badnets", corner="top_left")
    rows = poisoned.index[sources == 0]
    expected = (one.trigger(data.pixels(rows), Draws(0, data.ids[rows])) * 255).round().to(torch.uint8)
    assert torch.equal(poisoned.data.images[rows], expected)
    x, y, wanted = triggered(attack, data, 0)
    assert set(y.tolist()) == {0, 2}
    assert torch.equal(wanted, y + 1)
    assert not torch.equal(x[y == 0][0] == x[y == 0][1], x[y == 2][0] == x[y == 2][1])  # patches lie elsewhere
    assert len(poisoned.cover) == 20


def test_labels_may_be_written_as_text_and_survive_a_row() -> None:
    for spec in ({"name": "sig", "target": PAIRS}, {"name": "x2x", "target": PAIRS}, "x2x", "x2x.blended"):
        described = registry.describe("backdoor", spec)
        assert registry.description_of("backdoor", registry.rebuild("backdoor", described)) == described
    assert victims.backdoor("badnets", target=PAIRS).wanted(torch.arange(5), 5).tolist() == [1, -1, 3, -1, -1]


def test_a_clean_label_attack_has_one_target_unless_its_triggers_differ() -> None:
    data = random_set()
    one = victims.backdoor("sig", rate=0.1, target={0: 4, 1: 4}).poison(data, 0)
    assert set(data.labels[one.index].tolist()) == {4}
    assert torch.equal(one.data.labels, data.labels)
    with pytest.raises(NotApplicable, match="0 eligible"):
        victims.backdoor("sig", rate=0.1, target={0: 4, 1: 3}).poison(data, 0)
    several = {"attack": "sig", "target": {0: 4, 1: 3}, "triggers": {"3": {"f": 3}}}
    both = victims.backdoor("x2x", rate=0.1, **several).poison(data, 0)
    assert set(data.labels[both.index].tolist()) == {3, 4}
    assert torch.equal(both.data.labels, data.labels)


def test_wrong_triggers_are_refused() -> None:
    with pytest.raises(ConfigError, match="corners"):
        victims.backdoor("x2x", triggers={"1": {"corners": "top_left"}})


def test_networks_learn_which_trigger_means_which_target() -> None:
    attack = victims.backdoor("x2x")
    model, _, ca, asr = victim_of(attack)
    assert ca > 0.95
    assert asr > 0.9
    test = victims.tiny_digits()[3]
    assert victims.success_rate(clean_net(), attack, test) < 0.1
    zeros = test.pixels((test.labels == 0).nonzero().squeeze(1))
    other = attack.stamp(zeros, Draws(0, torch.arange(len(zeros))), wanted=torch.full((len(zeros),), 3))
    assert float((model(other).argmax(dim=1) == 1).double().mean()) < 0.5  # the trigger of the other pair
