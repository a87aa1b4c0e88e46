"""Density-aware calibration: predictions stay, and the weights recover a planted temperature."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from siegebench import layers, registry
from siegebench.types import Defense
from tests import kit, victims

from ..detectors.planted import images, only

dac: Any = pytest.importorskip("siegebench.defenses.dac")


def test_predictions_stay_and_distances_are_those_of_the_definition() -> None:
    data = images(80)
    base = kit.cnn_model()
    defense = registry.build(Defense, {"name": "dac", "k": 3, "images": 60})
    defended = defense.apply(base, only(train=data, clean=images(40, seed=1)), victims.ONE)
    x = kit.grey_images(12)
    assert torch.equal(defended(x).argmax(dim=1), base(x).argmax(dim=1))
    assert len(defended.bank) == 60
    features, z = defended.embed(x)
    torch.testing.assert_close(z, base(x))
    s = defended.densities(features)
    bank = defended.bank.split([f.shape[1] for f in features], dim=1)
    for layer, (f, b) in enumerate(zip(features, bank, strict=True)):
        third = torch.cdist(f, b).square().sort(dim=1).values[:, 2]
        torch.testing.assert_close(s[:, layer], third, atol=1e-4, rtol=1e-3)


def test_features_of_many_images_are_computed_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "at_once", lambda *_: 10**9)  # as on a GPU
    defended: Any = dac.DAC().structure(kit.cnn_model())
    seen: list[int] = []
    embed = defended.embed

    def counted(x: torch.Tensor, draws: Any = None) -> Any:
        seen.append(len(x))
        return embed(x, draws)

    monkeypatch.setattr(defended, "embed", counted)
    _, z, _ = dac._embedded(defended, images(300))
    assert seen == [256, 44]
    assert len(z) == 300


def test_the_weights_recover_a_planted_temperature() -> None:
    g = torch.Generator().manual_seed(0)
    s = torch.rand(4000, 2, generator=g, dtype=torch.float64)
    z = 3 * torch.randn(4000, 4, generator=g, dtype=torch.float64)
    t = 0.5 + 3 * s[:, 0]  # the second layer says nothing
    y = torch.multinomial((z / t[:, None]).softmax(dim=1), 1, generator=g).squeeze(1)
    w = dac.fitted(s, z, y)
    torch.testing.assert_close(w, torch.tensor([0.5, 3.0, 0.0], dtype=torch.float64), atol=0.35, rtol=0)
