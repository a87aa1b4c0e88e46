"""The median filter is that of scipy, and attacks that know it break it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws

from .grey_digits import defense, robust


@pytest.mark.parametrize("window", [2, 3, 4, 5, 15])
@pytest.mark.parametrize("size", [(9, 12), (3, 4)])
def test_the_values_are_those_of_scipy(window: int, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = defense("median_filter", window=window).transform(x, Draws.fresh(2))  # type: ignore[attr-defined]
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, window, window), mode="reflect")
    assert np.array_equal(found.numpy(), expected)


def test_a_single_pixel_changes_nothing_and_gets_no_gradient(cnn16: Classifier, test_set: ImageSet) -> None:
    model = defense("median_filter").wrap(cnn16)
    x = torch.full((1, 3, 16, 16), 0.5)
    spot = x.clone()
    spot[..., 7, 7] = 1.0
    assert torch.equal(model(spot), model(x))
    leaf = spot.requires_grad_(True)
    (g,) = torch.autograd.grad(ops.margin(model(leaf), torch.zeros(1, dtype=torch.long)).sum(), leaf)
    assert float(g[..., 7, 7].abs().sum()) == 0
    assert float(g.abs().sum()) > 0


def test_the_backward_model_treats_the_filter_as_the_identity(cnn16: Classifier, test_set: ImageSet) -> None:
    entry, x, y = defense("median_filter"), test_set.pixels(slice(0, 6)), test_set.labels[:6]
    model, loss = entry.wrap(cnn16), partial(ops.margin, y=y)
    leaf, filtered = x.clone().requires_grad_(True), entry.transform(x, Draws.fresh(6)).requires_grad_(True)  # type: ignore[attr-defined]
    z = model.backward_model(leaf)
    assert torch.equal(z, model(x))
    (g,) = torch.autograd.grad(loss(z).sum(), leaf)
    (expected,) = torch.autograd.grad(loss(cnn16(filtered)).sum(), filtered)
    assert torch.equal(g, expected)


def test_its_adaptive_attacks_break_it(cnn16: Classifier, test_set: ImageSet) -> None:
    model = defense("median_filter").wrap(cnn16)
    left = [robust(model, spec, test_set) for spec in defense("median_filter").adaptive]
    assert min(left) <= 0.1
