"""Calibration errors by hand, and of probabilities that are right by construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from siegebench import registry
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Measure
from tests import kit

calibration: Any = pytest.importorskip("siegebench.measures.calibration")


def test_errors_by_hand() -> None:
    confidence, right = np.array([0.95, 0.85, 0.65, 0.55]), np.array([True, False, True, True])
    # ten bins of equal width hold one image each; two bins of equal size hold two
    assert calibration.ece(confidence, right, 10) == pytest.approx((0.05 + 0.85 + 0.35 + 0.45) / 4)
    assert calibration.adaptive_ece(confidence, right, 2) == pytest.approx((0.8 + 0.8) / 4)
    p = np.array([[0.8, 0.2], [0.4, 0.6]])
    found = calibration.figures(p, np.array([0, 0]), 15)
    assert found["brier"] == pytest.approx((0.08 + 0.72) / 2)
    assert found["nll"] == pytest.approx(-np.log([0.8, 0.4]).mean())
    assert found["confidence_auroc"] == 1.0


def test_honest_probabilities_lie_at_the_floor_and_sharpened_ones_above() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), size=600)
    y = np.array([rng.choice(5, p=row) for row in p])
    honest = calibration.figures(p, y, 15)
    sharp = calibration.figures(p**4 / (p**4).sum(axis=1, keepdims=True), y, 15)
    assert honest["ece_low"] <= honest["ece"] <= honest["ece_high"]
    assert honest["ece"] < 1.6 * honest["ece_floor"]
    assert sharp["ece"] > 3 * sharp["ece_floor"]
    assert sharp["overconfidence"] > 0.1 > abs(honest["overconfidence"])


def test_all_images_count_and_each_condition_has_its_figures() -> None:
    model, x = kit.linear_model(), kit.grey_images(12)
    y = model(x).argmax(dim=1)
    y[:4] = (y[:4] + 1) % 10  # misclassified
    measure = registry.build(Measure, {"name": "calibration", "corruption": "contrast", "attack": "fgsm"})
    threat, draws = ThreatModel(norm="linf", eps=0.1, access="gradient"), Draws(0, kit.torch.arange(12))
    found = measure(Oracle(model, threat, draws), x, y, threat, draws)["metrics"]
    assert measure.every
    assert found["accuracy_clean"] == pytest.approx(8 / 12)
    assert found["accuracy_attacked"] < found["accuracy_clean"]
    near = ThreatModel(norm="linf", eps=1e-4, access="gradient")  # deepfool leaves the ball: nothing was found in it
    minimal = registry.build(Measure, {"name": "calibration", "attack": "deepfool"})
    outside = minimal(Oracle(model, near, draws), x, y, near, draws)["metrics"]
    assert outside["accuracy_attacked"] == outside["accuracy_clean"]
    assert {"ece_clean", "ece_corrupted", "ece_attacked", "ece_floor_clean"} <= set(found)
