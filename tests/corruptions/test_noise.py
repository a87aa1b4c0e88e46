"""The noises have the published distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from siegebench.corruptions._poisson import poisson
from siegebench.corruptions.gaussian_noise import GaussianNoise
from siegebench.corruptions.impulse_noise import ImpulseNoise
from siegebench.corruptions.shot_noise import ShotNoise

from .pictures import draws


def grey(value: float, side: int, n: int = 4) -> torch.Tensor:
    return torch.full((n, 3, side, side), value)


@pytest.mark.parametrize(("side", "severity", "sigma"), [(32, 1, 0.04), (64, 5, 0.10), (80, 1, 0.08), (80, 3, 0.18)])
def test_gaussian_noise_has_mean_zero_and_sigma(side: int, severity: int, sigma: float) -> None:
    x = grey(0.5, side, 8)
    noise = (GaussianNoise()(x, severity, draws(8)) - x).flatten().numpy()
    inside = np.abs(noise) < 0.499  # what was clipped is left out on both sides
    law = stats.truncnorm(-0.499 / sigma, 0.499 / sigma, scale=sigma)
    assert stats.kstest(noise[inside], law.cdf).pvalue > 1e-3
    assert noise.std() == pytest.approx(sigma, rel=0.02 if sigma < 0.15 else 0.05)


@pytest.mark.parametrize("c", [3, 12, 60, 500])
@pytest.mark.parametrize("value", [0.0, 1 / 255, 0.1234, 0.5, 200 / 255, 0.99999, 1.0])
def test_photons_follow_poissons_law(c: int, value: float) -> None:
    k = poisson(torch.full((16, 3, 32, 32), value), c, draws(16)).flatten().numpy()
    mean = c * value
    if mean == 0:
        assert not k.any()
        return
    n = len(k)
    assert abs(k.mean() - mean) < 4.5 * np.sqrt(mean / n)
    assert abs(k.var() - mean) < 4.5 * np.sqrt((mean + 2 * mean**2) / n)  # the variance of the sample variance
    counts = np.bincount(k.astype(int), minlength=int(mean + 12 * np.sqrt(mean) + 12))
    expected = n * stats.poisson.pmf(np.arange(len(counts)), mean)
    fit = expected > 8
    observed = np.append(counts[fit], n - counts[fit].sum())
    wanted = np.append(expected[fit], n - expected[fit].sum())
    if wanted[-1] < 8:
        observed, wanted = np.append(observed[:-2], observed[-2:].sum()), np.append(wanted[:-2], wanted[-2:].sum())
    assert stats.chisquare(observed, wanted, sum_check=False).pvalue > 1e-3


def test_table_of_photons_is_poissons_distribution_function() -> None:
    from siegebench.corruptions._poisson import _table

    for c in (3, 60, 500):
        table = _table(c)
        own = (table - torch.arange(256)[:, None]).numpy()
        true = stats.poisson.cdf(np.arange(table.shape[1]), np.arange(256)[:, None] * c / 255)
        assert np.abs(own - true).max() < 1e-12
        assert bool((table.view(-1).diff() >= 0).all())


def test_shot_noise_counts_photons() -> None:
    x = grey(0.4, 32)
    for severity, c in enumerate((500, 250, 100, 75, 50), 1):
        out = ShotNoise()(x, severity, draws(4))
        counts = out * c
        assert float((counts - counts.round()).abs().max()) < 1e-4
        assert float(out.mean()) == pytest.approx(0.4, abs=0.004)
        assert float(out.var()) == pytest.approx(0.4 / c, rel=0.06)


@pytest.mark.parametrize(("side", "severity", "share"), [(48, 1, 0.01), (48, 5, 0.07), (100, 1, 0.03), (100, 5, 0.27)])
def test_impulses_have_their_share_half_salt(side: int, severity: int, share: float) -> None:
    out = ImpulseNoise()(grey(0.5, side, 8), severity, draws(8))
    n = out.numel()
    salt, pepper = int((out == 1).sum()), int((out == 0).sum())
    assert int((out == 0.5).sum()) == n - salt - pepper
    assert stats.binomtest(salt + pepper, n, share).pvalue > 1e-3
    assert stats.binomtest(salt, salt + pepper, 0.5).pvalue > 1e-3
    channels = (out[:, 0] != 0.5) & (out[:, 1] != 0.5)  # channels are hit independently
    assert stats.binomtest(int(channels.sum()), channels.numel(), share**2).pvalue > 1e-3
