"""Detectors of backdoors end to end: 8x8 digits, a 2x2 patch, a small network trained on the poisoned set."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.train import Recipe, accuracy, train
from siegebench.types import Poisoned
from tests import victims

from .planted import auroc, detector

ATTACK = victims.backdoor("badnets", side=8, margin=0, rate=0.05)  # sides are in pixels of a 32-pixel image
CLEAN = slice(0, 150)


@cache
def model(poison: bool = True) -> tuple[Classifier, Poisoned]:
    sets = victims.tiny_digits()
    poisoned, net = ATTACK.poison(sets[0], 0), victims.tiny_net()
    train(net, poisoned.data if poison else sets[0], Recipe(epochs=10, batch=64, augment="none"), 0)
    return net.requires_grad_(False), poisoned


def input_scores(name: str, poison: bool = True) -> tuple[Tensor, Tensor]:
    """(scores of triggered, of clean test images)"""
    sets, (net, poisoned) = victims.tiny_digits(), model(poison)
    given = victims.granted(poisoned if poison else None, sets, "train", "clean", "val")
    small = {"strip": {"overlays": 50}, "sentinet": {"overlays": 20}, "frequency": {"recipe": {"epochs": 2}}}
    small["badexpert"] = {"auxiliary_steps": 150, "auxiliary_batch": 32}
    scorer = detector(name, **small.get(name, {})).fit(net, given, victims.ONE)
    hit = scorer(*victims.stamped(ATTACK, sets[3], 150))
    return hit, scorer(sets[3].pixels(CLEAN), Draws(0, sets[3].ids[CLEAN]))


@pytest.mark.slow
def test_the_backdoor_is_learnt() -> None:
    sets, (net, _) = victims.tiny_digits(), model()
    assert accuracy(net, sets[3]) > 0.95
    assert victims.success_rate(net, ATTACK, sets[3]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("strip", 0.9), ("badexpert", 0.95), ("scale_up", 0.0)])
def test_triggered_inputs_are_found(name: str, least: float) -> None:
    """Scaling saturates digits, so nothing is expected of SCALE-UP here."""
    assert auroc(*input_scores(name)) > least


@pytest.mark.slow
@pytest.mark.parametrize("name", ["badexpert", "scale_up", "ibd_psc", "frequency", "sentinet", "nap", "strip"])
def test_a_clean_model_gives_scores(name: str) -> None:
    hit, clean = input_scores(name, poison=False)
    assert bool(torch.isfinite(torch.cat([hit, clean])).all())


@pytest.mark.slow
def test_poisoned_training_images_are_found() -> None:
    sets, (net, poisoned) = victims.tiny_digits(), model()
    given = victims.granted(poisoned, sets, "train", "clean")
    bad = torch.zeros(len(poisoned.data), dtype=torch.bool)
    bad[poisoned.index] = True
    wrong, target = bad & (sets[0].labels != poisoned.data.labels), poisoned.data.labels == 0
    clusters = detector("activation_clustering").score(net, given, victims.ONE)
    assert float((clusters[wrong] > 0).double().mean()) > 0.8
    for name in ("spectral_signatures", "spectre"):
        score = detector(name).score(net, given, victims.ONE)
        assert auroc(score[wrong], score[target & ~bad]) > 0.6, name
    score = detector("scan").score(net, given, victims.ONE)
    assert auroc(score[wrong], score[~bad]) > 0.9
