"""What iterative attacks keep track of: the best points, the queries left, the samples that go on."""

from __future__ import annotations

import torch

from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Best, Budget, keep
from siegebench.threat import ThreatModel
from tests import kit


def test_a_misclassified_point_beats_any_other_and_among_equals_the_higher_loss_does() -> None:
    best = Best(torch.zeros(3, 1, 1, 1))
    rows = torch.arange(3)
    steps = [  # (value of the points, losses, hits)
        (1.0, [0.5, 2.0, float("nan")], [False, False, False]),
        (2.0, [0.5, 1.0, 0.0], [False, True, False]),
        (3.0, [0.7, 9.0, -1.0], [True, False, False]),
        (4.0, [0.6, 1.5, 3.0], [True, True, False]),
    ]
    points = []
    for value, loss, hit in steps:
        best.keep(rows, torch.full((3, 1, 1, 1), value), torch.tensor(loss), torch.tensor(hit))
        points.append(best.point.flatten().tolist())
    assert points == [[1, 1, 0], [1, 2, 2], [3, 2, 2], [3, 4, 4]]
    assert best.hit.tolist() == [True, True, False]
    assert best.left().tolist() == [2]
    best.keep(torch.tensor([2]), torch.full((1, 1, 1, 1), 5.0), torch.tensor([4.0]), torch.tensor([True]))
    assert best.point.flatten().tolist() == [3, 4, 5]
    assert len(best.left()) == 0


def test_a_budget_is_what_the_attack_asks_for_or_what_the_threat_leaves() -> None:
    model, x = kit.cnn_model(), kit.grey_images(3)
    y = model(x).argmax(1)
    threat = ThreatModel(access="score", queries=5)
    oracle = Oracle(model, threat, Draws(0, torch.arange(3)))
    oracle[:1].logits(x[:1])
    assert Budget(oracle, y, 3).left.tolist() == [3, 3, 3]
    budget = Budget(oracle, y, 9)
    assert budget.left.tolist() == [4, 5, 5]
    rows = torch.tensor([0, 2])
    z = budget.logits(rows, x[rows].repeat_interleave(2, 0))
    torch.testing.assert_close(z, model(x[[0, 0, 2, 2]]))
    assert budget.left.tolist() == [2, 5, 3]
    assert oracle.ledger.queries.tolist() == [3, 0, 2]
    assert budget.rows(least=3).tolist() == [1, 2]
    assert budget.open(rows, least=3).tolist() == [False, True]


def test_all_rows_stay_as_they_are() -> None:
    a, b = torch.arange(3), torch.rand(3, 2)
    assert keep(torch.tensor([True, True, True]), a, b) == (a, b)
    left, right = keep(torch.tensor([True, False, True]), a, b)
    assert left.tolist() == [0, 2]
    assert torch.equal(right, b[[0, 2]])
