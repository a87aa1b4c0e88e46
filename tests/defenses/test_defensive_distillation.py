"""Defensive distillation: the teacher's soft labels, and what saturation hides."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet, Size
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, accuracy
from siegebench.types import ModelSource
from tests import kit

from .grey_digits import ONE, RECIPE, defense, granted, net, robust


class RecordedTraining:
    """Stands in for `train`: keeps what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Classifier, int, object]] = []

    def __call__(self, model: Classifier, data: ImageSet, recipe: Recipe, seed: int, *, loss: object = None) -> None:
        model.eval()
        self.calls.append((model, seed, loss))


def test_the_student_is_fitted_to_the_teachers_soft_labels_at_t(
    monkeypatch: pytest.MonkeyPatch, train_set: ImageSet
) -> None:
    T = 7.0
    entry = defense("defensive_distillation", temperature=T)
    recorded = RecordedTraining()
    monkeypatch.setattr(sys.modules[type(entry).__module__], "train", recorded)
    deployed = entry.apply(Network(net(), num_classes=10, rebuild=net), granted(train=train_set), ONE)
    (teacher, seed_t, hard), (student, seed_s, soft) = recorded.calls
    assert hard is None  # cross-entropy on the labels
    assert seed_t != seed_s
    x, y = train_set.pixels(slice(0, 32)), train_set.labels[:32]
    z_t, z_s = T * teacher(x), deployed(x)  # logits are T times what the nets put out
    assert torch.allclose(z_s, T * student(x))
    assert not torch.allclose(z_t, z_s)
    q = F.softmax(z_t / T, dim=1)
    expected = -(q * F.log_softmax(z_s / T, dim=1)).sum(dim=1).mean()
    assert callable(soft)
    assert torch.allclose(soft(student(x), y, x, torch.arange(32)), expected)


def test_distillation_saturates_cross_entropy_and_nothing_else(
    cnn16: Classifier, train_set: ImageSet, test_set: ImageSet
) -> None:
    entry = defense("defensive_distillation", temperature=100, recipe=vars(RECIPE))
    data = granted(train=train_set)
    model = entry.apply(cnn16, data, ONE).requires_grad_(False)
    assert abs(accuracy(model, test_set) - accuracy(cnn16, test_set)) <= 0.03
    steps = {"name": "pgd", "steps": 20, "random_start": False}
    assert robust(model, {**steps, "loss": "ce"}, test_set) >= 0.6
    *linf, l2 = entry.adaptive
    for spec in linf:
        assert robust(model, spec, test_set) <= 0.05
    assert isinstance(l2, dict)
    short = {**l2, "steps": 150, "searches": 4}
    assert robust(model, short, test_set, n=4, eps=4, norm="l2") == 0
    # the weights come back from what was stored, at another temperature too
    cooler = defense("defensive_distillation", temperature=20, recipe=vars(RECIPE)).structure(cnn16)
    cooler.load_state_dict(model.state_dict())
    assert torch.allclose(5 * cooler(test_set.pixels()), model(test_set.pixels()), rtol=1e-4)


@dataclass(frozen=True, kw_only=True)
class Other(ModelSource):
    """A wider network, trained here or with weights of its own."""

    ready: bool = False
    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size) -> Network:
        return Network(kit.small_cnn(), num_classes=num_classes, rebuild=kit.small_cnn)

    def pretrained(self) -> bool:
        return self.ready


@pytest.mark.parametrize("ready", [False, True])
def test_a_teacher_of_another_architecture(ready: bool, monkeypatch: pytest.MonkeyPatch, train_set: ImageSet) -> None:
    own = Recipe(epochs=2)
    entry = replace(
        cast("Any", defense("defensive_distillation", temperature=5)), teacher=Other(ready=ready, recipe=own)
    )
    recorded, recipes = RecordedTraining(), []

    def recording(model: Classifier, data: ImageSet, recipe: Recipe, seed: int, **loss: object) -> None:
        recorded(model, data, recipe, seed, **loss)
        recipes.append(recipe)

    monkeypatch.setattr(sys.modules[type(entry).__module__], "train", recording)
    entry.apply(Network(net(), num_classes=10, rebuild=net), granted(train=train_set), ONE)
    x, y = train_set.pixels(slice(0, 16)), train_set.labels[:16]
    student, _, soft = recorded.calls[-1]
    assert recipes == ([] if ready else [own]) + [entry.recipe]
    if ready:  # its logits were fitted at temperature 1
        z_t = kit.small_cnn()(x) / 5
    else:  # trained as u = z / T
        z_t = recorded.calls[0][0](x)
        assert sum(p.numel() for p in recorded.calls[0][0].parameters()) != sum(p.numel() for p in student.parameters())
    expected = F.cross_entropy(student(x), F.softmax(z_t, dim=1))
    assert callable(soft)
    assert torch.allclose(soft(student(x), y, x, torch.arange(16)), expected)


def test_the_key_without_a_teacher_is_that_of_earlier_versions() -> None:
    assert "teacher" not in registry.describe("defense", "defensive_distillation")
    assert "teacher" in registry.describe("defense", {"name": "defensive_distillation", "teacher": "byobnet_tiny"})


def test_distillation_needs_a_network_that_can_be_built_anew() -> None:
    with pytest.raises(NotApplicable, match="rebuild"):
        defense("defensive_distillation").wrap(kit.linear_model())
