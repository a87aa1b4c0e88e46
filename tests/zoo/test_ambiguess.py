"""AmbiGuess: latent points between two planted classes, and images that lie between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from siegebench import registry
from siegebench.draws import Draws
from siegebench.types import DataSource

ambiguess: Any = pytest.importorskip("siegebench.zoo.ambiguess")


def test_a_trained_coder_separates_the_classes_and_points_lie_between_them() -> None:
    g = torch.Generator().manual_seed(0)
    side = torch.arange(256) % 2
    x = (0.2 + 0.6 * side[:, None] + 0.05 * torch.randn(256, 12, generator=g)).clamp(0, 1)
    coder = ambiguess.train(x, side, 60, 0)
    _, apart = ambiguess.quality(coder, x, side, 1)
    assert apart > 0.9
    source = registry.build(DataSource, {"name": "ambiguess", "data": "digits", "pairs": 1, "epochs": 1})
    z, p = ambiguess._points(coder, source, Draws(0, torch.arange(40)))
    assert bool(((2 * p - 1).abs() < source.tau).all())
    assert bool((z[:, 0].abs() < 1.0 + 1e-6).all())
    between = coder.decode(z).mean(dim=1)
    assert float(between.min()) > 0.15
    assert 0.25 < float(between.mean()) < 0.75
