"""Victims are asked alone, in other company, in another order and after other images."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry, state
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.inputs import Restored, restored
from siegebench.tracks.conduct import examined
from siegebench.types import Defense
from tests import fakes, kit

CAUGHT = {
    "noise": "randomness_undeclared",
    "reseeded": "batch_dependent",
    "neighbours": "batch_dependent",
    "counter": "stateful",
    "memory": "stateful",
    "refined": "gradient_in_forward",
}


def flags(model: Classifier) -> list[str]:
    x = kit.grey_images()
    return [f.id for f in examined(restored(model.eval(), x), x, Draws(0, torch.arange(len(x))))]


@pytest.mark.parametrize("name", fakes.FAKES)
def test_fakes_whose_answers_are_no_function_of_the_image_are_named(name: str) -> None:
    found = flags(fakes.FAKES[name](kit.cnn_model()))
    assert found[:1] == [CAUGHT[name]] if name in CAUGHT else not found


@pytest.mark.parametrize("name", ["none", "jpeg", "bit_depth", "logit_scaling", "rnd"])
def test_honest_models_are_not(name: str) -> None:
    defense = registry.build(Defense, name)
    assert not flags(defense.structure(kit.cnn_model()))


def test_a_tracer_that_runs_is_put_back() -> None:
    calls: list[str] = []
    sys.setprofile(lambda frame, event, arg: calls.append(event))
    try:
        assert flags(kit.cnn_model()) == []
        calls.clear()
        kit.grey_images()
        assert calls
    finally:
        sys.setprofile(None)


class Keeps(nn.Module):
    """Keeps what it saw last, in a closure and in a list, which no later pass reads."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = inner, [0.0]
        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return count

        self.tick = tick

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        self.last[0] = float(x.mean())
        self.ticks = self.tick()
        z: Tensor = self.inner(x)
        return z


def test_state_in_lists_attributes_and_closures_is_put_back() -> None:
    model, x = Keeps(nn.Flatten()), kit.grey_images()
    before = state.summary(model)
    with state.kept(model):
        model(x)
        model(x)
        assert model.ticks == 2
        assert state.changes(before, state.summary(model))
    assert not state.changes(before, state.summary(model))
    assert model.tick() == 1
    assert not hasattr(model, "ticks")


def test_a_counter_never_counts() -> None:
    x = kit.grey_images()
    model = restored(fakes.Counter(kit.cnn_model()), x)
    assert isinstance(model, Restored)
    for _ in range(8):
        model(x)
    assert model.inner.calls == 0
