"""Defenses that train, side by side on small digits: pytest -s -m slow prints the table that the pages quote."""

from __future__ import annotations

import pytest

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.train import accuracy

from .grey_digits import EPS, ONE, defense, granted, robust

RECIPE = {"epochs": 25, "batch": 64, "lr": 5e-3, "augment": "none"}
BALL = {"eps": EPS, "step": EPS / 2, "steps": 3, "recipe": RECIPE}
WITH_GROWTH = {**BALL, "eps_warmup": 0.5}
DEFENSES = {
    "pgd_at": WITH_GROWTH,
    "trades": WITH_GROWTH,
    "mart": WITH_GROWTH,
    "awp": {"defense": {"name": "pgd_at", **WITH_GROWTH}},
    "fast_at": {"eps": EPS, "recipe": RECIPE, "eps_warmup": 0.5},
    "free_at": {"eps": EPS, "replays": 4, "recipe": {**RECIPE, "epochs": 15}},
    "ltd": {**WITH_GROWTH, "temperature": 5},
    "cure": WITH_GROWTH,
    "likelihood_flattening": {**WITH_GROWTH, "weight": 1.0},
    "encouraging_loss": {"recipe": RECIPE},
    "encouraging_loss.recommended": {"recipe": RECIPE},
    "encouraging_loss.cautious": {"recipe": RECIPE},
}
ATTACKS = {
    "pgd": {"name": "pgd", "steps": 20},
    "margin": {"name": "pgd", "loss": "margin", "steps": 50, "restarts": 2},
    "autoattack": {"name": "autoattack", "steps": 20, "targets": 3, "queries": 100},
}
IMAGES = 100


def row(name: str, model: Classifier, data: ImageSet) -> dict[str, float]:
    """Accuracies in percent: clean on the test set, and of IMAGES correctly classified images under each attack."""
    model.requires_grad_(False)
    found = {"clean": 100 * accuracy(model, data)}
    found |= {attack: 100 * robust(model, spec, data, n=IMAGES) for attack, spec in ATTACKS.items()}
    print(f"| {name} | " + " | ".join(f"{v:.0f} %" for v in found.values()) + " |", flush=True)
    return found


@pytest.mark.slow
def test_adversarial_trainings_withstand_autoattack_and_the_encouraging_loss_does_not(
    cnn16: Classifier, train_set: ImageSet, test_set: ImageSet
) -> None:
    print("\n| defense | clean | pgd | pgd (margin) | autoattack |\n|---|---|---|---|---|")
    plain = row("none", cnn16, test_set)
    found = {}
    for name, numbers in DEFENSES.items():
        trained = defense(name, **numbers).apply(cnn16, granted(train=train_set), ONE)
        found[name] = row(name, trained, test_set)
    for name in ("pgd_at", "trades", "mart", "awp", "fast_at", "free_at", "ltd", "cure"):
        assert found[name]["autoattack"] >= plain["autoattack"] + 30, name
    for name in ("encouraging_loss", "encouraging_loss.recommended", "encouraging_loss.cautious"):
        assert found[name]["autoattack"] <= plain["autoattack"] + 10, name
