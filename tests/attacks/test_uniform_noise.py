"""Uniform noise fills its ball evenly."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.uniform_noise import UniformNoise

from siegebench.threat import ThreatModel
from tests import kit


def test_noise_fills_its_ball_evenly() -> None:
    x = kit.grey_images(200, 8)
    threat = ThreatModel(eps=0.1, access="none")
    found, _ = kit.attack_with(UniformNoise(), kit.cnn_model(), x, torch.zeros(200, dtype=torch.long), threat)
    u = ((found - x) / 0.1).flatten()
    assert float(u.abs().max()) <= 1.0001
    assert abs(float(u.mean())) < 0.01
    assert float(u.square().mean()) == pytest.approx(1 / 3, abs=0.01)
