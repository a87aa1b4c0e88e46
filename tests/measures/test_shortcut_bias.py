"""Shortcut bias: classifiers that follow one feature by construction, and networks that are trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import DataError
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, train
from siegebench.types import DataSource, Measure, ModelSource


def measured(model: Classifier, data: dict[str, Any], protocol: str = "conflict") -> tuple[dict[str, float], list[str]]:
    entry = registry.build(Measure, {"name": "shortcut_bias", "data": data, "protocol": protocol})
    test = registry.build(DataSource, data).load("test").select(torch.arange(4))
    threat, draws = ThreatModel(), Draws(0, test.ids)
    found = entry(Oracle(model, threat, draws), test.pixels(), test.labels, threat, draws)
    return found["metrics"], [f["id"] for f in found["flags"]]


class Follows(nn.Module):
    """Answers what a table says for each image of a source, by the image itself."""

    def __init__(self, parts: list[tuple[ImageSet, Tensor]], classes: int) -> None:
        super().__init__()
        self.seen = torch.cat([p.pixels().flatten(1) for p, _ in parts])
        self.said = torch.cat([said for _, said in parts])
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.flatten(1), self.seen).argmin(dim=1)
        return nn.functional.one_hot(self.said[nearest], self.classes).float()


def follower(data: dict[str, Any], split: str) -> Classifier:
    """A classifier that is right on `test` and on one of the splits of images apart."""
    source = registry.build(DataSource, data)
    test, apart = source.load("test"), source.load(split)
    model = Network(
        Follows([(test, test.labels), (apart, apart.labels)], test.num_classes), num_classes=test.num_classes
    )
    model.kind = test.kind
    return model.eval()


@pytest.mark.parametrize(
    "data", [{"name": "planted_features", "count": 400}, {"name": "planted_glyphs", "count": 400},
             {"name": "shortcut", "data": "digits", "predictivity": 1}], ids=lambda d: d["name"]
)  # fmt: skip
def test_one_who_follows_the_core_or_the_cue(data: dict[str, Any]) -> None:
    core, cue = (measured(follower(data, split), data)[0] for split in ("core", "cue"))
    assert (core["core"], core["cue"], core["reliance"]) == (1, 0, -1)
    assert (cue["core"], cue["cue"], cue["reliance"]) == (0, 1, 1)
    assert core["acc"] == cue["acc"] == 1
    assert cue["bias"] - core["bias"] == pytest.approx(2)
    assert cue["bias_low"] <= cue["bias"] <= cue["bias_high"]


def test_the_best_decision_has_no_bias() -> None:
    for name in ("planted_features", "planted_glyphs"):
        data = {"name": name, "count": 400}
        found, flags = measured(follower(data, "ideal"), data)
        assert found["bias"] == 0
        assert found["reliance"] == found["reliance_ideal"]
        assert not flags


def test_one_who_follows_one_of_five_cues() -> None:
    data = {"name": "planted_cues", "count": 300}
    found, _ = measured(follower(data, "shape"), data, "wcst")
    assert found["acc_shape"] == found["preferred"] == 1
    assert all(0.15 < found[f"acc_{cue}"] < 0.5 for cue in ("colour", "scale", "angle", "texture"))
    assert found["entropy"] < 0.5


def test_one_who_has_learnt_nothing_is_flagged() -> None:
    data = {"name": "planted_features", "count": 400}
    test = registry.build(DataSource, data).load("test")
    constant = Network(Follows([(test, torch.zeros_like(test.labels))], 2), num_classes=2).eval()
    constant.kind = test.kind
    found, flags = measured(constant, data)
    assert flags == ["nothing_learnt"]
    assert found["reliance"] == 0


def test_data_without_the_splits_is_refused() -> None:
    with pytest.raises(DataError, match="needs core and cue"):
        registry.build(Measure, {"name": "shortcut_bias", "data": "digits"})
    with pytest.raises(DataError, match="a split for each cue"):
        registry.build(Measure, {"name": "shortcut_bias", "data": "digits", "protocol": "wcst"})
    ten = Network(nn.Sequential(nn.Flatten(), nn.Linear(100, 10)), num_classes=10).eval()
    with pytest.raises(DataError, match="2 classes, the network 10"):
        measured(ten, {"name": "planted_features", "count": 40})


def bias_of(data: dict[str, Any], hidden: int) -> float:
    """The bias of a network that is trained with few small steps."""
    data = {"name": "planted_features", "count": 2000, **data}
    images = registry.build(DataSource, data).load("train")
    model = registry.build(ModelSource, {"name": "mlp", "hidden": hidden}).build_for(images).fresh(0)
    train(model, images, Recipe(epochs=10, optimiser="sgd", lr=0.05, batch=64, augment="none"), 0)
    found, flags = measured(model.requires_grad_(False), data)
    assert not flags
    return found["bias"]


def test_trained_networks_follow_what_is_more_available() -> None:
    assert abs(bias_of({}, 0)) < 0.15
    assert bias_of({"availability": 4.0}, 0) > 0.3
    assert bias_of({"availability": 0.25}, 0) < -0.1  # the roles are swapped
    assert bias_of({"availability": 4.0, "nesting": 2}, 1) > bias_of({"availability": 4.0}, 1) + 0.05


def test_a_randomised_model_is_asked_several_times() -> None:
    """Noise that changes one answer in five hardly changes the mean of nine."""
    data = {"name": "planted_glyphs", "count": 400}

    class Noisy(Wrapped):
        def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
            assert draws is not None
            z: Tensor = self.inner(x)
            return torch.where(draws.uniform((1,), purpose="noise") < 1 / 5, z.roll(1, dims=1), z)

    noisy = Noisy(follower(data, "core")).eval()
    noisy.randomized = True
    assert measured(noisy, data)[0]["core"] > 0.93
