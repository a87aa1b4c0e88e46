"""Certifier availability: labels that tell nothing, and a certifier that abstains where the trigger is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from siegebench import registry
from siegebench.config import load_suite
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.plan import plan
from siegebench.train import accuracy, train
from siegebench.types import Certifier
from siegebench.types.certifiers import ABSTAINED
from tests import runs, victims

from .planted import SHORT, random_set, small_net


def test_poisons_have_the_trigger_and_any_of_the_other_labels() -> None:
    data = random_set(n=2000)
    attack = victims.backdoor("certifier_availability", rate=0.9, cover=0.05)
    poisoned = attack.poison(data, 0)
    index = poisoned.index
    counts = torch.bincount((poisoned.data.labels - data.labels)[index] % 5, minlength=5)
    assert counts[0] == 0
    assert bool((counts[1:] > 390).all())  # of 450
    assert torch.equal(poisoned.data.labels[poisoned.cover], data.labels[poisoned.cover])
    badnets = victims.backdoor("badnets", side=8, margin=0)
    for rows in (index, poisoned.cover):
        expected = (badnets.trigger(data.pixels(rows), Draws(0, data.ids[rows])) * 255).round().to(torch.uint8)
        assert torch.equal(poisoned.data.images[rows], expected)
    assert not torch.equal(attack.poison(data, 1).data.labels[index], poisoned.data.labels[index])


def test_it_aims_at_no_class() -> None:
    attack = victims.backdoor("certifier_availability")
    assert attack.wanted(torch.arange(5), 5).tolist() == [-1] * 5
    with pytest.raises(ConfigError, match="leave `target` out"):
        victims.backdoor("certifier_availability", target=1)
    with pytest.raises(ConfigError, match="fixed trigger"):
        victims.backdoor("certifier_availability", attack="input_aware")


def test_a_board_that_needs_a_target_refuses_it(tmp_path: Path) -> None:
    written = runs.suite(
        tmp_path / "s.yaml", {"track": "backdoor", "backdoors": ["certifier_availability"]}, models=["plain_cnn"]
    )
    with pytest.raises(ConfigError, match="aims at no class; list it under `backdoors` of a board of the certified"):
        plan(load_suite(str(written)))


def test_smoothing_abstains_where_the_trigger_is() -> None:
    """Badnets with the same trigger and rate makes it certain of the target instead."""
    data, test = victims.tiny_digits()[0], victims.tiny_digits()[3].select(torch.arange(60))
    smoothing = registry.build(Certifier, {"name": "randomized_smoothing", "sigma": 0.2, "n0": 20, "n": 60})
    patch = {"name": "badnets", "side": 12, "margin": 0}  # three pixels of an 8x8 scan
    abstained = {}
    for name, more in (
        ("certifier_availability", {"attack": patch}),
        ("badnets", {k: patch[k] for k in ("side", "margin")}),
    ):
        attack, model = victims.backdoor(name, rate=0.2, **more), small_net()
        with torch.enable_grad():
            train(model, attack.poison(data, 0).data, SHORT, 0)
        assert accuracy(model, test) > 0.9
        x, draws = test.pixels(), Draws(0, test.ids)
        for triggered, images in ((False, x), (True, attack.stamp(x, draws))):
            found = smoothing(model.eval(), images, "l2", [0.1], draws)
            abstained[name, triggered] = float((found.prediction == ABSTAINED).double().mean())
    assert abstained["certifier_availability", False] < 0.2
    assert abstained["certifier_availability", True] > 0.6
    assert abstained["badnets", True] < 0.1
