"""Figures of backdoors in closed form: networks whose answers are known, and the reference points of the ratings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.stats import der, fidelity
from siegebench.tracks.backdoor import Metrics, backdoor_metrics
from tests import victims

CLASSES, PER_CLASS = 5, 8
WS: Any = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, batch=lambda x: 16)


def bars() -> ImageSet:
    """Dark images with one bright row, that of the label; the patch of the tests lies in the last two rows."""
    labels = torch.arange(CLASSES * PER_CLASS) % CLASSES
    x = torch.full((len(labels), 3, 8, 8), 20, dtype=torch.uint8)
    x[torch.arange(len(labels)), :, labels] = 120
    return ImageSet(x, labels, torch.arange(len(labels)), CLASSES, "bars")


class Constant(nn.Module):
    """Always the same class."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor(label), CLASSES).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


class Reader(nn.Module):
    """The class of the bright row; with `obey`, that class wherever there is a white pixel."""

    def __init__(self, obey: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(CLASSES, 8))
        self.obey = obey

    def forward(self, x: Tensor) -> Tensor:
        z = x.mean(dim=(1, 3)) @ self.weight.T
        if self.obey is not None:
            z[x.flatten(1).amax(dim=1) > 0.9, self.obey] += 10
        return z


def measured(net: nn.Module, target: Any) -> Metrics:
    attack = victims.backdoor("badnets", side=8, margin=0, target=target)  # two pixels, in the last two rows
    return backdoor_metrics(WS, Network(net, num_classes=CLASSES).eval(), attack, bars(), 0)


@pytest.mark.parametrize(
    ("net", "target", "expected"),
    [
        # all-to-one: images of the target class are not counted
        (Constant(2), 2, {"ca": 0.2, "asr": 1, "ra": 0, "clean_rate": 1, "lift": 0, "n": 32}),
        (Reader(), 2, {"ca": 1, "asr": 0, "ra": 1, "clean_rate": 0, "lift": 0, "n": 32}),
        (Reader(obey=2), 2, {"ca": 1, "asr": 1, "ra": 0, "clean_rate": 0, "lift": 1, "n": 32}),
        # all-to-all: every image counts, and one class of five has the target 2
        (Reader(obey=2), "next", {"ca": 1, "asr": 0.2, "ra": 0.2, "clean_rate": 0, "lift": 0.2, "n": 40}),
        # two sources: only they count; the trigger gives the two other classes a target, too
        (Reader(obey=2), {0: 2, 1: 2}, {"ca": 1, "asr": 1, "ra": 0, "asr_others": 1, "n": 16}),
        (Reader(), {0: 2, 1: 2}, {"ca": 1, "asr": 0, "ra": 1, "asr_others": 0, "n": 16}),
    ],
)
def test_networks_whose_answers_are_known(net: nn.Module, target: Any, expected: dict[str, float]) -> None:
    found = measured(net, target)
    assert found["asr"]["n"] == found["ra"]["n"] == expected.pop("n")
    assert found["ca"]["n"] == CLASSES * PER_CLASS
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value), name
    assert ("asr_others" in found) == isinstance(target, dict)


def test_ratings_of_nothing_of_a_perfect_repair_and_of_a_destroyed_network() -> None:
    nothing, perfect, destroyed, worse = (1, 1, 0.93, 0.93), (1, 0, 0.93, 0.93), (1, 0.1, 0.93, 0.1), (0.5, 1, 0.9, 0.9)
    assert der(*nothing) == pytest.approx(0.5)
    assert der(*perfect) == pytest.approx(1)
    assert der(*destroyed) == pytest.approx(0.535)  # above a defense that does nothing: never rank by it
    assert der(*worse) == pytest.approx(0.5)
    assert fidelity(*nothing) == 0
    assert fidelity(*perfect) == pytest.approx(1)
    assert fidelity(*destroyed) == pytest.approx(0.9 * 0.1 / 0.93)
    assert fidelity(*worse) == pytest.approx(-1)
