"""Logit scaling fools cross-entropy and nothing else."""

from __future__ import annotations

import torch

from siegebench.classifier import Classifier
from siegebench.data import ImageSet

from .grey_digits import defense, robust


def test_logit_scaling_fools_cross_entropy_only(cnn16: Classifier, test_set: ImageSet) -> None:
    model = defense("logit_scaling").wrap(cnn16)
    assert torch.allclose(model(test_set.pixels()), 100 * cnn16(test_set.pixels()))
    steps = {"name": "pgd", "steps": 20, "random_start": False}
    assert robust(cnn16, {**steps, "loss": "ce"}, test_set) <= 0.05
    assert robust(model, {**steps, "loss": "ce"}, test_set) >= 0.6
    for spec in defense("logit_scaling").adaptive:
        assert robust(model, spec, test_set) <= 0.05
