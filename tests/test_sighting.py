"""Scores for "vehicle": of a classifier, and of a detector by its boxes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from siegebench.classifier import ModelCard
from siegebench.draws import Draws
from siegebench.object_detector import Found, ObjectDetector
from siegebench.oracle import Oracle
from siegebench.sighting import of_logits, seen
from siegebench.testing.camouflages import red_victim, scenes
from siegebench.threat import ThreatModel
from siegebench.types.camouflages import Stage

INSIDE, BESIDE = [3.0, 3.0, 9.0, 9.0], [0.0, 0.0, 2.0, 2.0]


class TwoBoxes(ObjectDetector):
    """The mean of the picture as the score of a box on the vehicle, a quarter more for one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.card = ModelCard("two_boxes")

    def find(self, x: Tensor) -> Found:
        score = x.mean(dim=(1, 2, 3))
        boxes = torch.tensor([INSIDE, BESIDE]).expand(len(x), 2, 4)
        return Found(boxes, torch.stack([score, score + 0.25], dim=1))


def stage(model: torch.nn.Module) -> Stage:
    maps = scenes(2)
    oracle = Oracle(model, ThreatModel(access="gradient"), Draws(0, maps.ids))  # type: ignore[arg-type]
    return Stage(maps, oracle, (1,), torch.zeros(1, 3))


def test_a_classifier_gives_the_sum_of_its_softmax_over_vehicles() -> None:
    z = torch.tensor([[1.0, 2.0, 0.5, -1.0]])
    found = of_logits(z, (1, 3))
    assert float(found.score) == pytest.approx(float(z.softmax(dim=1)[0, [1, 3]].sum()))
    sure = of_logits(torch.tensor([[0.0, 60.0]]), (1,))
    assert float(sure.hidden) == pytest.approx(-60.0)  # log(1 - s), although s rounds to 1


def test_boxes_of_a_detector_count_where_they_overlap_the_vehicle() -> None:
    on = stage(TwoBoxes())
    x = torch.full((2, 3, 12, 12), 0.4)
    torch.testing.assert_close(on.sighted(x, strict=False), torch.tensor([[0.4, 0.65]] * 2))
    strict = on.sighted(x)
    torch.testing.assert_close(strict[:, 0], torch.tensor([0.4, 0.4]))
    assert float(strict[:, 1].max()) < 1e-9
    hits, score, found = seen(TwoBoxes(), x, (1,), torch.tensor([INSIDE, [0.0] * 4]), [None])
    assert hits.tolist() == [[False, True]]  # no box of 0.5 on the vehicle; a false alarm where none is
    torch.testing.assert_close(score, torch.tensor([0.4, 0.65]))
    assert isinstance(found, Found)


@pytest.mark.parametrize("make", [red_victim, TwoBoxes])
def test_passes_are_booked(make: type) -> None:
    on = stage(make())
    x = torch.full((2, 3, 12, 12), 0.4, requires_grad=True)
    on.sighting(x).hidden.sum().backward()
    assert math.isfinite(float(x.grad.abs().sum()))  # type: ignore[union-attr]
    assert float(x.grad.abs().sum()) > 0  # type: ignore[union-attr]
    assert on.oracle.ledger.forwards.tolist() == [1, 1]
    assert on.oracle.ledger.backwards.tolist() == [1, 1]
    assert on[torch.tensor([1])].maps.ids.tolist() == [1]


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_sure_detector_still_has_a_gradient(level: float) -> None:
    on = stage(TwoBoxes())
    x = torch.full((2, 3, 12, 12), level, requires_grad=True)
    (g,) = torch.autograd.grad(on.sighting(x).logit[:, 0].sum(), x)
    assert float(g.min()) > 0
