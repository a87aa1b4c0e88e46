"""Learning from perturbations: who is taught by what, on planted colours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import GREY, ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, accuracy, train
from siegebench.types import Measure

CLASSES = 4
RECIPE = {"epochs": 15, "batch": 32, "lr": 0.01, "augment": "none"}


def faint(n: int, seed: int) -> ImageSet:
    """Each class has a faint pattern of its own over the same grey: features that hold, and that are easy to add."""
    y = torch.arange(n) % CLASSES
    pattern = Draws(9, torch.arange(CLASSES)).sign((1, 6, 6))
    x = 0.5 + 0.06 * pattern[y] + 0.05 * Draws(seed, torch.arange(n)).normal((1, 6, 6))
    return ImageSet(GREY.store(x.clamp(0, 1)), y, torch.arange(n), CLASSES, "faint", kind=GREY)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))


@pytest.fixture(scope="module")
def victim() -> Classifier:
    net = Network(linear(), num_classes=CLASSES, mean=(0.5,), std=(0.1,), rebuild=linear).fresh(0)
    net.kind = GREY
    train(net, faint(320, 0), Recipe(**RECIPE), 0)  # type: ignore[arg-type]
    assert accuracy(net, faint(200, 1)) > 0.95
    return net.requires_grad_(False)


def measured(victim: Classifier, eps: float = 1.0, **parameters: Any) -> tuple[dict[str, float], Oracle]:
    spec = {"name": "learning_from_perturbations", "recipe": RECIPE, "images": 320, **parameters}
    entry, threat, own, given = (
        registry.build(Measure, spec),
        ThreatModel(norm="l2", eps=eps),
        faint(320, 0),
        faint(200, 1),
    )
    oracle = Oracle(victim, threat, Draws(0, own.ids))
    lesson = entry.learn(oracle, own, threat, Draws(0, own.ids))
    draws = Draws(0, given.ids)
    return entry(Oracle(victim, threat, draws), given.pixels(), given.labels, threat, draws, lesson)["metrics"], oracle


def test_perturbations_teach_what_labels_do_not(victim: Classifier) -> None:
    found, oracle = measured(victim)
    assert found["target_hit"] > 0.95
    assert found["acc"] > 0.9  # although no label was right
    assert found["acc_control"] < 0.2
    assert found["pairs"] == 320
    assert int(oracle.ledger.backwards.min()) >= 20


def test_without_a_budget_there_is_nothing_to_learn_from(victim: Classifier) -> None:
    found, _ = measured(victim, eps=0.0)
    assert found["acc"] == found["acc_control"]
    assert found["target_hit"] < 0.05


def test_the_next_class_is_taught_by_labels_and_the_true_one_by_perturbations(victim: Classifier) -> None:
    weak, _ = measured(victim, eps=0.05, targets="next")
    strong, _ = measured(victim, eps=2.0, targets="next")
    assert weak["acc_next"] > 0.8 > 0.1 > weak["acc"]
    assert weak["acc_next_control"] > 0.9
    assert strong["acc"] > weak["acc"]


def test_noise_teaches_too(victim: Classifier) -> None:
    found, _ = measured(victim, eps=2.0, source="noise")
    assert found["acc"] > 0.6
    assert found["acc_control"] < 0.5


def test_what_cannot_aim_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot aim"):
        registry.build(Measure, {"name": "learning_from_perturbations", "attack": "deepfool"})
    with pytest.raises(ConfigError, match="noise has no true class"):
        registry.build(Measure, {"name": "learning_from_perturbations", "source": "noise", "targets": "next"})
