"""Planted features, glyphs and cues, and planted colours: what the sources promise, counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from siegebench import registry
from siegebench.errors import ConfigError, DataError
from siegebench.types import DataSource

features: Any = pytest.importorskip("siegebench.zoo.planted_features")
cues: Any = pytest.importorskip("siegebench.zoo.planted_cues")
shortcut: Any = pytest.importorskip("siegebench.zoo.shortcut")
glyphs: Any = pytest.importorskip("siegebench.zoo.planted_glyphs")


def source(name: str, **parameters: Any) -> DataSource:
    return registry.build(DataSource, {"name": name, **parameters})


def test_predictivity_is_that_of_the_latents() -> None:
    for core, cue in ((0.9, 0.7), (0.75, 0.95)):
        data = source("planted_features", core=core, cue=cue, count=4000, noise=0.01)
        train, probes = data.load("train"), data.load("core")
        x = features.SCALE * (train.pixels().flatten(1) - 0.5)
        axes = features.Draws(features.derive_seed(0, "axes"), torch.arange(100)).normal((2 * features.WIDTH,))
        w = torch.linalg.qr(axes.double())[0].float()
        for i, share in ((0, core), (features.WIDTH, cue)):
            said = (x @ w[:, i] > 0).long()
            assert float((said == train.labels).double().mean()) == pytest.approx(share, abs=0.02)
        z = features.SCALE * (probes.pixels().flatten(1) - 0.5) @ w
        # in a tenth of the probes rounding and noise decide the sign of a small latent
        opposite = ((z[:, 0] > 0) != (z[:, features.WIDTH] > 0)).double().mean()
        assert float(opposite) > 0.9
        ideal, trusted = data.load("ideal").labels, data.load("core" if core > cue else "cue").labels
        assert float((ideal == trusted).double().mean()) > 0.6


def test_a_written_feature_has_variance_one_at_any_depth() -> None:
    z = 2**0.5 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    for layers in (0, 1, 3):
        v = features.written(z, layers, 5)
        assert v.shape == (4000, features.WIDTH)
        assert float(v.var(dim=0).sum()) == pytest.approx(1, abs=0.1)
    assert int((features.written(z, 0, 5).abs().sum(dim=0) > 0).sum()) == 1


def test_glyphs_say_what_the_splits_say() -> None:
    data = source("planted_glyphs", core=1.0, cue=1.0, noise=0.0, core_side=9, cue_side=13, count=200)
    train, core, cue = (data.load(s) for s in ("train", "core", "cue"))
    assert torch.equal(core.images, cue.images)
    assert torch.equal(core.labels, 1 - cue.labels)
    lit = (train.pixels() > 0.5).sum(dim=(1, 2, 3))
    # 3 rows of 9 pixels, and a ring or a disc of nearly equal area
    area = [int(glyphs.disc(torch.tensor([s]), 13).sum()) for s in (0, 1)]
    assert sorted({int(n) - 27 for n in lit.unique()}) == sorted(set(area))
    assert abs(area[0] - area[1]) <= 12
    for name, value in (("core", 0.5), ("cue_side", 16)):
        with pytest.raises(ConfigError, match=name):
            source("planted_glyphs", **{name: value})


def test_cues_agree_in_training_and_never_apart() -> None:
    data = source("planted_cues", count=600)
    train, apart = data.load("train"), [data.load(c) for c in cues.CUES]
    assert train.labels.bincount().tolist() == [200, 200, 200]
    levels = torch.stack([a.labels for a in apart], dim=1)
    assert not bool((levels == levels[:, :1]).all(dim=1).any())
    assert all(torch.equal(a.images, apart[0].images) for a in apart)
    # the colour of the brightest pixel is that of the level
    for part, label in ((train, train.labels), (apart[0], levels[:, 0])):
        x = part.pixels()
        brightest = x.amax(dim=1).flatten(1).argmax(dim=1)
        assert torch.equal(x.flatten(2)[torch.arange(len(x)), :, brightest].argmax(dim=1), label)
    # sprites grow with the scale
    lit = (apart[0].pixels().amax(dim=1) > 0.5).sum(dim=(1, 2)).float()
    assert lit[levels[:, 2] == 0].mean() < lit[levels[:, 2] == 1].mean() < lit[levels[:, 2] == 2].mean()


def test_a_remedy_adds_images_of_one_cue_only() -> None:
    plain, cured = source("planted_cues", count=600), source("planted_cues", count=600, remedy="angle", remedied=0.5)
    a, b = plain.load("train"), cured.load("train")
    changed = (a.images != b.images).flatten(1).any(dim=1)
    assert 0.4 < float(changed.double().mean()) < 0.6
    assert torch.equal(plain.load("test").images, cured.load("test").images)


@pytest.mark.parametrize("cue", ["tint", "border", "corner"])
def test_planted_colours_say_the_class_as_often_as_they_shall(cue: str) -> None:
    data = source("shortcut", data="digits", cue=cue, predictivity=0.8, strength=0.5)
    digits = source("digits")
    train, core, colour = data.load("train"), data.load("core"), data.load("cue")
    at = train.pixels()[:, :, 0, 0] - (0.5 * digits.load("train").pixels()[:, :, 0, 0] if cue == "tint" else 0)
    said = torch.cdist(at / (0.5 if cue == "tint" else 1), shortcut.colours(10)).argmin(dim=1)
    assert float((said == train.labels).double().mean()) == pytest.approx(0.8, abs=0.04)
    assert torch.equal(core.images, colour.images)
    assert torch.equal(core.labels, digits.load("test").labels)
    assert not bool((core.labels == colour.labels).any())


def test_colours_of_many_classes_differ_and_grey_images_are_refused() -> None:
    for classes in (2, 10, 43, 100):
        assert len(shortcut.colours(classes).unique(dim=0)) == classes
    with pytest.raises(DataError, match="needs 3"):
        source("shortcut", data={"name": "digits", "channels": 1}).load("train")
    with pytest.raises(DataError, match="covers images"):
        source("shortcut", data="digits", cue="border", size=16).load("test")
