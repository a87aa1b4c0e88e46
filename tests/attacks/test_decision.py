"""What label attacks share: bisection to the boundary, the way to it, votes, starts from noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from siegebench.attacks._decision import bisect, noise, start, to_boundary
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.threat import Norm
from tests import kit

from .planted import asking, brightness


def test_bisect_ends_at_the_boundary_with_the_fewest_queries() -> None:
    model, x = brightness(0.1), torch.full((3, 3, 4, 4), 0.5)
    ask = asking(model, x, "linf", 100)
    rows = torch.tensor([2, 0])
    high = bisect(
        ask, rows, lambda at, r: x[rows[at]] + ops.over(r, x), torch.tensor([0.5, 0.25]), torch.tensor([0.5 / 64] * 2)
    )
    assert bool(((high >= 0.1) & (high <= 0.1 + 0.5 / 64)).all())
    assert ask.left.tolist() == [95, 100, 94]
    assert ask.distance[1] == torch.inf
    torch.testing.assert_close(ask.distance[rows], high)


def test_bisect_ends_where_the_numbers_end() -> None:
    model, x = brightness(0.1), torch.full((1, 3, 4, 4), 0.5)
    ask = asking(model, x, "linf", 1000)
    rows = torch.tensor([0])
    bisect(ask, rows, lambda at, r: x[at] + ops.over(r, x), torch.ones(1), torch.zeros(1))
    assert int(ask.left) > 940


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_way_to_the_boundary(norm: Norm) -> None:
    model, x = brightness(0.1), torch.full((2, 3, 4, 4), 0.5)
    far = x.clone()
    far[0] += 0.4  # every pixel alike
    far[1, :, :2] += 0.5  # half of the image
    ask = asking(model, x, norm, 100)
    got = to_boundary(ask, torch.arange(2), far, 1e-4) - x
    assert bool((model(x + got).argmax(1) == 1).all())
    torch.testing.assert_close(got[0], torch.full_like(x[0], 0.1), rtol=0, atol=1e-4)
    torch.testing.assert_close(got[1, :, :2], torch.full((3, 2, 4), 0.2), rtol=0, atol=1e-4)
    assert float(got[1, :, 2:].abs().max()) == 0


def test_votes_are_counted_row_by_row() -> None:
    model, x = brightness(0.1), torch.full((4, 3, 4, 4), 0.5)
    ask = asking(model, x, "l2", 5)
    rows = torch.tensor([3, 0, 1])
    points = x[rows][:, None].repeat(1, 7, 1, 1, 1)
    points[:, ::2] += 0.2
    votes = ask.votes(rows, points, torch.tensor([2, 0, 7]))
    assert votes.tolist() == [[1, -1, 0, 0, 0, 0, 0], [0] * 7, [1, -1, 1, -1, 1, 0, 0]]
    assert ask.left.tolist() == [5, 0, 5, 3]
    assert ask.oracle.ledger.queries.tolist() == [0, 5, 0, 2]


def test_noise_that_keeps_the_label_gives_way_to_coarser_noise() -> None:
    # the mean of fine noise is a half; only few cells or one colour lie far from it
    model, x = brightness(0.2), torch.full((8, 3, 16, 16), 0.5)
    ask = asking(model, x, "l2", 500)
    rows, points = start(ask, Draws(0, torch.arange(8)), 1e-4)
    assert rows.tolist() == list(range(8))
    assert bool((model(points).argmax(1) == 1).all())
    torch.testing.assert_close((points - x).flatten(1).mean(1).abs(), torch.full((8,), 0.2), rtol=0, atol=1e-3)


def test_more_directions_start_nearer(linear: Classifier) -> None:
    x = kit.grey_images(16)
    far = []
    for directions in (1, 30):
        ask = asking(linear, x, "l2", 500)
        rows, points = start(ask, Draws(0, torch.arange(16)), 1e-3, directions)
        assert len(rows) == 16
        far.append(ops.size(points - x, "l2"))
    assert bool((far[1] <= far[0]).all())
    assert float((far[1] / far[0]).median()) < 0.9


def test_the_number_of_directions_follows_the_granted_queries(
    linear: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: dict[int, set[int]] = {}

    def counting(like: Tensor, draws: Draws, number: int) -> Tensor:
        for k in draws.ids.tolist():
            tried.setdefault(k, set()).add(number)
        return noise(like, draws, number)

    monkeypatch.setattr("siegebench.attacks._decision.noise", counting)
    x = kit.grey_images(4)
    for chosen, share, expected in ((None, 2, [100, 100, 60, 20]), (None, 5, [100, 80, 24, 8]), (7, 2, [7] * 4)):
        tried.clear()
        ask = asking(linear, x, "l2", 1000)
        ask.granted = torch.tensor([1000, 400, 120, 40])  # what the samples were granted
        start(ask, Draws(0, torch.arange(4)), 1e-3, chosen, share)
        assert [len(tried[k]) for k in range(4)] == expected


def test_a_worse_direction_costs_one_query_and_only_the_nearest_is_searched_to_the_end() -> None:
    model, x = brightness(0.1), torch.full((1, 3, 4, 4), 0.5)
    spent = []
    for tolerance in (0.5, 1e-3, 1e-6):
        ask = asking(model, x, "linf", 1000)
        start(ask, Draws(0, torch.arange(1)), tolerance, 30)
        spent.append(1000 - int(ask.left))
    # from a tenth of the distance on, ten queries for each factor of a thousand, once
    assert spent[0] < spent[1] < spent[2] == spent[1] + 10


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_results_lie_across_the_boundary_and_within_eps(norm: Norm) -> None:
    model, x = brightness(0.1), torch.full((3, 3, 4, 4), 0.5)
    ask = asking(model, x, norm, 100)
    ask.threat = replace(ask.threat, eps=float(ops.size(torch.full_like(x[:1], 0.2), norm)))
    ask.wrong(torch.arange(2), x[:2] + torch.tensor([0.1001, 0.2]).view(2, 1, 1, 1))
    moved = ask.result() - x
    for at, far in ((0, 0.1001 * 1.0002), (1, 0.2)):
        torch.testing.assert_close(moved[at], torch.full_like(x[0], far), rtol=1e-6, atol=1e-7)
    assert float(ops.size(moved, norm).max()) <= ask.threat.eps * (1 + 1e-6)
    assert torch.equal(ask.result()[2], x[2])


def test_noise_has_cells_of_every_size() -> None:
    x = torch.zeros(2, 3, 5, 8)
    draws = Draws(0, torch.arange(2))
    for number, different in ((0, 40), (1, 12), (2, 4), (3, 1), (4, 40)):
        image = noise(x, draws, number)
        assert image.shape == x.shape
        assert len(image[0, 0].unique()) == different
    assert not torch.equal(noise(x, draws, 0), noise(x, draws, 4))
