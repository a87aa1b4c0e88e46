"""Neighbours: the weighted vote by hand, and on real digits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from siegebench.measures.neighbours import Known, vote

from siegebench import registry
from siegebench.classifier import Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Measure
from tests import victims


def test_the_vote_weighs_the_nearest() -> None:
    known = Known(F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])),
                  torch.tensor([2, 0, 0, 1]), 3)  # fmt: skip
    h = torch.tensor([[1.0, 0.0]])
    e = torch.exp(torch.tensor((0.5**0.5 - 1) / 0.5))
    torch.testing.assert_close(vote(h, known, 3, 0.5), torch.tensor([[2 * e, 0.0, 1.0]]))
    assert vote(h, known, 3, 0.5).argmax() == 0  # two at 45 degrees outvote the one that is nearest
    assert vote(h, known, 3, 0.1).argmax() == 2
    assert vote(h, known, 1, 0.5).argmax() == 2


def test_digits_have_their_class_among_their_neighbours() -> None:
    train, test = victims.tiny_digits()[0], victims.tiny_digits()[3]
    model = Network(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)), num_classes=10).eval()
    measure: Any = registry.build(Measure, {"name": "neighbours", "nearest": 5})
    threat, x, y = ThreatModel(norm="linf", eps=0.1), test.pixels(slice(0, 200)), test.labels[:200]
    streams = Draws(0, train.ids)
    lesson = measure.learn(Oracle(model, threat, streams), train, threat, streams)
    found = measure(Oracle(model, threat, Draws(0, test.ids[:200])), x, y, threat, Draws(0, test.ids[:200]), lesson)
    assert found["metrics"]["knn_accuracy"] > 0.95  # pixels are the features here
    assert found["metrics"]["knn_agreement"] < 0.5  # of a network that was not trained
    few: Any = registry.build(Measure, {"name": "neighbours", "images": 30})
    assert len(few.learn(Oracle(model, threat, streams), train, threat, streams).y) == 30
