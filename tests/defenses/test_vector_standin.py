"""The stand-in for vectorisation: specks as scipy counts them, and outlines of known shapes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from siegebench.draws import Draws

from .grey_digits import defense

module = sys.modules[type(defense("vector_standin")).__module__]


@pytest.mark.parametrize("diagonal", [True, False])
def test_specks_are_the_small_parts_that_scipy_finds(diagonal: bool) -> None:
    ink = torch.rand(5, 20, 24, generator=torch.Generator().manual_seed(0)) < (0.3 if diagonal else 0.45)
    found = module.without_specks(ink, 5, diagonal)
    for mask, kept in zip(ink.numpy(), found.numpy(), strict=True):
        parts, count = ndimage.label(mask, np.ones((3, 3)) if diagonal else None)
        areas = np.concatenate([[0], ndimage.sum_labels(mask, parts, np.arange(1, count + 1))])
        assert np.array_equal(kept, areas[parts] > 5)


def test_a_disc_keeps_its_area_and_gets_a_smooth_edge() -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    distance = ((rows - 15.5) ** 2 + (columns - 15.5) ** 2).sqrt()
    x = (distance < 10).float().expand(1, 3, 32, 32)
    out = defense("vector_standin").transform(x, Draws.fresh(1))  # type: ignore[attr-defined]
    assert torch.equal(out[:, 0], out[:, 2])
    assert float(out[0, 0].sum()) == pytest.approx(np.pi * 100, rel=0.03)
    edge = (out[0, 0] > 0) & (out[0, 0] < 1)
    assert 20 < int(edge.sum()) < 120
    assert bool(((distance[edge] - 10).abs() < 1.5).all())


def test_holes_and_dots_of_five_pixels_go_and_grey_does_not_matter() -> None:
    x = torch.zeros(1, 1, 24, 24)
    x[..., 4:20, 4:20] = 0.8
    plain = defense("vector_standin").transform(x, Draws.fresh(1))  # type: ignore[attr-defined]
    dirty = x.clone()
    dirty[..., 10, 8:13] = 0.1  # a hole of five pixels
    dirty[..., 1, 1:6] = 0.9  # a line of five pixels
    dirty = dirty + 0.2 * torch.rand_like(dirty)
    assert torch.equal(defense("vector_standin").transform(dirty, Draws.fresh(1)), plain)  # type: ignore[attr-defined]
    dirty[..., 2, 1] = 1.0  # six pixels stay
    assert not torch.equal(defense("vector_standin").transform(dirty, Draws.fresh(1)), plain)  # type: ignore[attr-defined]
