"""Rules of sharing in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from siegebench import registry
from siegebench.accountant import epsilon_of
from siegebench.draws import Draws
from siegebench.per_image import flat
from siegebench.testing.sharings import M, N, gradients
from siegebench.types import Sharing


def released(spec: Any, seed: int = 0) -> torch.Tensor:
    return flat(registry.build(Sharing, spec)(gradients(), Draws(seed, torch.arange(M))))


MEAN = flat({k: g.mean(dim=1) for k, g in gradients().items()})


def test_plain_is_the_mean() -> None:
    assert torch.equal(released("plain"), MEAN)


@pytest.mark.parametrize("law", ["gaussian", "laplacian"])
def test_noise_has_its_spread(law: str) -> None:
    noise = torch.stack([released({"name": "noise", "sigma": 0.3, "law": law}, seed) - MEAN for seed in range(100)])
    assert abs(float(noise.std()) / 0.3 - 1) < 0.03
    assert abs(float(noise.mean())) < 0.01
    fourth = float((noise / noise.std()).pow(4).mean())
    assert fourth == pytest.approx(3 if law == "gaussian" else 6, rel=0.1)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_pruning_keeps_the_largest_entries(share: float) -> None:
    found = released({"name": "prune", "share": share})
    gone = round(share * MEAN.shape[1])
    assert (found == 0).sum(dim=1).tolist() == [gone] * M
    assert torch.equal(found[found != 0], MEAN[found != 0])
    for row, mean in zip(found, MEAN, strict=True):
        if 0 < gone < len(mean):
            assert mean[row == 0].abs().max() < mean[row != 0].abs().min()


def test_no_image_contributes_more_than_the_norm() -> None:
    each = {k: g[:, :1] for k, g in gradients().items()}
    rule = registry.build(Sharing, {"name": "clip", "norm": 0.7})
    alone = flat(rule(each, Draws(0, torch.arange(M))))
    own = flat({k: g[:, 0] for k, g in each.items()})
    assert torch.allclose(alone.norm(dim=1), own.norm(dim=1).clamp(max=0.7), rtol=1e-5)
    assert torch.allclose(torch.cosine_similarity(alone, own), torch.ones(M))
    assert torch.allclose(released({"name": "clip", "norm": 1e9}), MEAN)


def test_dp_is_clipping_and_noise_in_proportion() -> None:
    clipped = released({"name": "clip", "norm": 2.0})
    spec = {"name": "dp", "norm": 2.0, "multiplier": 0.5}
    noise = torch.stack([released(spec, seed) - clipped for seed in range(100)])
    assert abs(float(noise.std()) / (0.5 * 2.0 / N) - 1) < 0.03
    rule = registry.build(Sharing, spec)
    assert rule.epsilon(0.01, 100, 1e-5) == epsilon_of(0.5, 0.01, 100, 1e-5)
    assert math.isfinite(rule.noise(1))
    assert registry.build(Sharing, "noise").epsilon(0.01, 100, 1e-5) is None
