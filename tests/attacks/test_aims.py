"""Attacks that learn are told the class that each image is to become."""

from __future__ import annotations

import pytest
from siegebench.attacks.conditional_generator import ConditionalGenerator

from siegebench import registry
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Attack
from tests import kit
from tests.attacks import test_conditional_generator as generator


def test_the_generator_is_told_the_goal() -> None:
    test = generator.data()[1]
    x, y, draws = test.pixels(), test.labels, Draws(0, test.ids)
    goal = (y + 3) % 10
    oracle = Oracle(generator.network(), generator.THREAT, draws, goal=goal)
    x_adv = ConditionalGenerator()(oracle, x, y, generator.THREAT, draws, generator.learnt()[0])
    assert generator.reached(generator.network(), x_adv, goal) > 0.6


def test_one_pattern_for_all_images_takes_one_class() -> None:
    model, data = kit.cnn_model(), generator.data()[0]
    patch = registry.build(Attack, {"name": "adversarial_patch", "steps": 2, "images": 20})
    draws = Draws(0, data.ids)
    for target in ("next", 3):
        threat = ThreatModel(norm="l0", eps=0.2, target=target)  # type: ignore[arg-type]
        oracle = Oracle(model, threat, draws)
        if target == 3:
            patch.learn(oracle, data, threat, draws)
        else:
            with pytest.raises(NotApplicable, match="aims at one class, a number; the threat's target is next"):
                patch.learn(oracle, data, threat, draws)
