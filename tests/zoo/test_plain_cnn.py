"""The networks of verified training: their sizes, and that nothing in them is without bounds."""

from __future__ import annotations

import pytest
import torch

from siegebench import registry
from siegebench.bounds import Ball, intervals, values
from siegebench.errors import ModelError
from siegebench.traced import operations
from siegebench.types import ModelSource


@pytest.mark.parametrize(
    ("layout", "weights"), [("small", 470_918), ("medium", 1_188_906), ("large", 5_721_802), ("perceptron", 855_050)]
)
def test_sizes_and_bounds(layout: str, weights: int) -> None:
    model = registry.build(ModelSource, {"name": "plain_cnn", "layout": layout}).build(num_classes=10, size=32)
    assert sum(p.numel() for p in model.parameters()) == weights
    x = torch.rand(1, 3, 32, 32)
    ops = operations(model, x)
    with torch.no_grad():
        torch.testing.assert_close(values(ops, x), model(x))
        l, u = intervals(ops, Ball(x, "linf", 1e-3))[-1]
        assert bool((l < model(x)).all())
        assert bool((model(x) < u).all())


def test_small_images_are_refused() -> None:
    with pytest.raises(ModelError, match="needs 16 or more"):
        registry.build(ModelSource, "plain_cnn").build(num_classes=10, size=8)
