"""Class images of a linear model in closed form, and a judge that is trained on the training images alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from siegebench.measures.class_images import ClassImages
from torch import Tensor, nn

from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.testing.specimens import network, planted_set
from siegebench.threat import ThreatModel
from tests import kit

from .planted import affine


def of(measure: ClassImages, model: Classifier, judge: Classifier, x: Tensor) -> tuple[dict[str, Any], Oracle]:
    threat, draws = ThreatModel(norm="l2", eps=1.0), Draws(0, torch.arange(len(x)))
    oracle = Oracle(model, threat, draws)
    return measure(oracle, x, model(x).argmax(dim=1), threat, draws, judge), oracle


def test_a_judge_accepts_what_has_its_features_and_nothing_else() -> None:
    weight = torch.eye(4, 192)  # class k is the brightness of the k-th value
    model, x = affine(weight), kit.grey_images(4)
    other = affine(torch.eye(4, 192).roll(8, dims=1))  # reads values that the ascent does not touch
    for judge, accepts in ((model, True), (other, False)):
        found, oracle = of(ClassImages(eps=0.4, step=0.1, steps=8, seeds=5), model, judge, x)
        assert found["metrics"]["own_accept"] == 1
        assert (found["metrics"]["cross_accept"] == 1) == accepts
        assert found["metrics"]["cross_chance"] < 0.7
        assert found["pictures"].shape == (4, 3, 8, 17)
        assert oracle.ledger.backwards.tolist() == [20 * 8, 0, 0, 0]
    start, image = found["pictures"][..., :8], found["pictures"][..., 9:]
    far = (image - start).flatten(1).norm(dim=1)
    assert bool((far <= 0.4 + 1e-5).all())
    assert bool((far > 0.3).all())


def test_the_judge_is_trained_and_is_not_the_victim() -> None:
    data, model = planted_set(80), network().requires_grad_(False)
    draws, threat = Draws(3, data.ids), ThreatModel()
    measure = ClassImages()
    measure = replace(measure, recipe=replace(measure.recipe, epochs=10, batch=16, lr=0.01, augment="none"))
    judge = measure.learn(Oracle(model, threat, draws), data, threat, draws)
    right = (judge(data.pixels()).argmax(dim=1) == data.labels).double().mean()
    assert float(right) > 0.5, "ten classes"
    ours, theirs = (next(m.parameters()) for m in (model, judge))
    assert not torch.equal(ours, theirs)
    assert not any(p.requires_grad for p in judge.parameters())


def test_images_of_each_start_have_their_own_noise() -> None:
    model = Network(kit.Linear(), num_classes=10).eval().requires_grad_(False)
    found, _ = of(ClassImages(steps=1, step=1e-6, seeds=1), model, model, kit.grey_images(2))
    starts = found["pictures"][..., :8].flatten(1)
    assert float(starts.mean()) == pytest.approx(0.5, abs=0.01)
    assert len({tuple(row.tolist()) for row in starts}) == len(starts)
    assert isinstance(model.net, nn.Module)
