"""Blended: a mixture with one fixed image."""

from __future__ import annotations

from dataclasses import replace

import torch

from siegebench.draws import Draws
from tests import victims

from .planted import constant, draws


def test_blended_is_a_mixture_with_one_fixed_image() -> None:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    t = victims.backdoor("blended", alpha=1.0).stamp(x, draws(x))
    assert bool((t == t[0]).all())
    assert 0.45 < float(t.mean()) < 0.55
    assert 0.25 < float(t.std()) < 0.33  # uniform noise: 0.289
    torch.testing.assert_close(victims.backdoor("blended").stamp(x, draws(x)), 0.8 * x + 0.2 * t)
    assert torch.equal(victims.backdoor("blended", alpha=0.0).stamp(x, draws(x)), x)


def test_the_blended_image_depends_on_its_seed_alone() -> None:
    attack = victims.backdoor("blended", alpha=1.0)
    small, large = constant(0.0), constant(0.0, size=64)
    t = attack.stamp(small, draws(small))
    assert torch.equal(t, attack.stamp(small, Draws(9, torch.arange(5, 7))))  # not on the seed of the evaluation
    assert torch.equal(attack.stamp(large, draws(large))[..., ::2, ::2], t)  # not on the size
    other = replace(attack, pattern_seed=1).stamp(small, draws(small))  # type: ignore[type-var]
    assert float((other - t).abs().mean()) > 0.25  # independent uniform noise: 1/3
