"""The frequency detector: its transform is that of SciPy, its corruptions are those listed, it finds a corruption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from siegebench.draws import Draws
from tests import kit, victims

from . import triggered
from .planted import auroc, detector, only

frequency: Any = pytest.importorskip("siegebench.detectors.frequency")


def test_the_transform_is_that_of_scipy() -> None:
    x = kit.grey_images(2)[:, :, :6]  # not square
    expected = dctn(255 * x.double().numpy(), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(frequency._DCT()(x.double()).numpy(), expected, atol=1e-3)


def test_corruptions_are_those_of_the_definition() -> None:
    x = torch.full((60, 3, 32, 32), 0.2)
    other, draws = torch.full_like(x, 0.5), Draws(0, torch.arange(60))
    only_one = {kind: frequency.corrupted(x, other, draws, (kind,)) for kind in frequency.ALL}
    area = (only_one["white_block"] == 1).sum(dim=(2, 3))[:, 0]
    assert 4 <= int(area.min()) <= int(area.max()) <= 49
    middle = torch.zeros(32, 32, dtype=torch.bool)
    middle[12:20, 12:20] = True
    assert not bool((only_one["white_block"] == 1)[:, :, middle].any())  # near a corner
    assert bool((only_one["noise_block"] != x).any(dim=1).flatten(1).any(dim=1).all())
    noise = 255 * (only_one["noise"] - x)
    assert 24 < float(noise.mean()) < 26
    assert 10 < float(noise.var()) < 70
    dark = (only_one["shadow"] - 0.1).abs() < 1e-6
    assert 0.02 < float(dark.float().mean()) < 0.3  # a random triangle covers 11/144 of a square on average
    torch.testing.assert_close(only_one["blend"], x + 0.15)


def test_a_corruption_that_it_learnt_scores_above_clean_images() -> None:
    clean, test = triggered.pictures(64), triggered.pictures(40, seed=1)
    recipe = {"epochs": 6, "batch": 32, "lr": 5e-3, "augment": "none"}
    entry = detector("frequency", corruptions=["white_block"], recipe=recipe)
    scorer = entry.fit(triggered.network(), only(clean=clean), victims.ONE)
    x, draws = test.pixels(), Draws(0, torch.arange(40))
    assert auroc(scorer(triggered.stamped(x), draws), scorer(x, draws)) > 0.9
