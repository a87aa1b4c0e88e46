"""Square: exact query counts, a search that only improves, samples that do not know of one another."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.square import Square, bump, window
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit

from .planted import nearest_boundary


def margins(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    return ops.margin(model(x), y)


@pytest.mark.parametrize(("norm", "factor"), [("linf", 1.5), ("l2", 3.0)])
def test_square_breaks_every_sample_near_the_smallest_budget(linear: Classifier, norm: str, factor: float) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, norm)
    threat = ThreatModel(norm=norm, eps=factor * float(nearest.max()), access="score")
    x_adv, oracle = kit.attack_with(Square(queries=3000), linear, x, y, threat)
    assert bool((linear(x_adv).argmax(1) != y).all())
    assert bool((oracle.ledger.queries < 3000).all())
    # and none below the smallest budget
    threat = ThreatModel(norm=norm, eps=0.95 * float(nearest.min()), access="score")
    x_adv, _ = kit.attack_with(Square(queries=300), linear, x, y, threat)
    assert bool((linear(x_adv).argmax(1) == y).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_queries_are_counted_exactly(linear: Classifier, norm: str) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    for own, granted, expected in ((37, None, 37), (37, 1000, 37), (1000, 12, 12), (1, None, 1), (5, 5, 5)):
        threat = ThreatModel(norm=norm, eps=1e-4, access="score", queries=granted)
        _, oracle = kit.attack_with(Square(queries=own), linear, x, y, threat)
        assert oracle.ledger.queries.tolist() == [expected] * 8
        assert oracle.ledger.backwards.tolist() == [0] * 8


def test_what_others_spent_is_not_spent_again(linear: Classifier) -> None:
    x = kit.grey_images(4)
    y = linear(x).argmax(1)
    threat = ThreatModel(eps=1e-4, access="score", queries=10)
    draws = Draws(0, torch.arange(4))
    oracle = Oracle(linear, threat, draws)
    for k in range(4):  # sample k has spent 0, 4, 8, 10 (all) before
        for _ in range((0, 4, 8, 10)[k]):
            oracle[torch.tensor([k])].logits(x[k : k + 1])
    x_adv = Square()(oracle, x, y, threat, draws)
    assert oracle.ledger.queries.tolist() == [10] * 4
    assert torch.equal(x_adv[3], x[3])
    for k, rest in enumerate((10, 6, 2)):  # each fares as if its rest had been all
        own = Oracle(linear, threat, draws[k : k + 1])
        alone = Square(queries=rest)(own, x[k : k + 1], y[k : k + 1], threat, draws[k : k + 1])
        assert torch.equal(alone[0], x_adv[k])


def test_a_broken_sample_spends_no_more(linear: Classifier) -> None:
    x = kit.grey_images(32)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, "linf")
    threat = ThreatModel(eps=float(nearest.median()), access="score")
    attack = Square(queries=200, rescale=False)  # so that the first queries of two budgets are the same
    x_adv, oracle = kit.attack_with(attack, linear, x, y, threat)
    broken = linear(x_adv).argmax(1) != y
    assert bool(broken.any())
    assert bool((~broken).any())
    assert bool((oracle.ledger.queries[~broken] == 200).all())
    # with one query less than it took, none of the broken ones is broken
    for i in broken.nonzero().squeeze(1)[:6].tolist():
        took = int(oracle.ledger.queries[i])
        for queries, expected in ((took, True), (took - 1, False)):
            if queries:
                again = Oracle(linear, threat, Draws(0, torch.tensor([i])))
                shorter = Square(queries=queries, rescale=False)
                part = shorter(again, x[i : i + 1], y[i : i + 1], threat, Draws(0, torch.tensor([i])))
                assert bool((linear(part).argmax(1) != y[i]).all()) is expected


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_never_lower_the_margin(cnn: Classifier, norm: str) -> None:
    x = kit.grey_images(16)
    y = cnn(x).argmax(1)
    threat = ThreatModel(norm=norm, eps=0.003 if norm == "linf" else 0.02, access="score")
    last = margins(cnn, x, y) - 1
    for queries in (1, 5, 25, 125):
        x_adv, _ = kit.attack_with(Square(queries=queries, rescale=False), cnn, x, y, threat)
        now = margins(cnn, x_adv, y)
        assert bool((now >= last - 1e-6).all())
        last = now
    assert float((last - margins(cnn, x, y)).min()) > 0
    assert float(threat.size(x_adv, x).max()) <= threat.eps + 1e-6


def test_every_pixel_spends_its_budget(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    threat = ThreatModel(eps=0.001, access="score")
    x_adv, _ = kit.attack_with(Square(queries=100), linear, x, y, threat)
    torch.testing.assert_close((x_adv - x).abs(), torch.full_like(x, 0.001), rtol=0, atol=1e-7)
    threat = ThreatModel(norm="l2", eps=0.01, access="score")
    x_adv, _ = kit.attack_with(Square(queries=100), linear, x, y, threat)
    torch.testing.assert_close(threat.size(x_adv, x), torch.full((8,), 0.01), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sample_alone_fares_as_in_a_batch(norm: str) -> None:
    model = kit.cnn_model().double()
    x = kit.grey_images(8).double()
    y = model(x).argmax(1)
    threat = ThreatModel(norm=norm, eps=0.02 if norm == "linf" else 0.2, access="score")
    together, oracle = kit.attack_with(Square(queries=60), model, x, y, threat)
    for rows in (*torch.arange(8).split(1), torch.tensor([3, 7, 1, 0, 2, 6, 5, 4])):
        draws = Draws(0, rows)
        own = Oracle(model, threat, draws)
        alone = Square(queries=60)(own, x[rows], y[rows], threat, draws)
        torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-9)
        assert own.ledger.queries.tolist() == oracle.ledger.queries[rows].tolist()
    other, _ = kit.attack_with(Square(queries=60), model, x, y, threat, seed=1)
    assert not torch.equal(other, together)


def test_windows_are_squares_anywhere_in_the_image() -> None:
    top, left = torch.tensor([0, 2, 5]), torch.tensor([3, 0, 5])
    mask = window(top, left, 3, 8, 8)
    assert mask.shape == (3, 1, 8, 8)
    for k in range(3):
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[top[k] : top[k] + 3, left[k] : left[k] + 3] = True
        assert torch.equal(mask[k, 0], expected)
    # single pixels reach every place, the last row and column included
    x = torch.full((400, 3, 4, 4), 0.5)
    draws = Draws(0, torch.arange(400))
    changed = Square._linf(x, x, 0.1, 0.01, draws, 1) != x
    assert changed.flatten(1).sum(1).tolist() == [3] * 400
    assert bool(changed.any(dim=1).sum(0).min() > 5)


def test_schedule_and_bumps_are_those_of_the_reference() -> None:
    reference = pytest.importorskip("pyautoattack.square")
    for queries, rescale in ((10_000, False), (5000, False), (777, True)):
        theirs = reference.SquareAttack(None, n_queries=queries, p_init=0.8, resc_schedule=rescale, device="cpu")
        ours = Square(queries=queries, p=0.8, rescale=rescale)
        shares = [ours.share(k, torch.tensor([queries])).item() for k in range(queries)]
        assert shares == [theirs.p_selection(k) for k in range(queries)]
    theirs = reference.SquareAttack(None, norm="L2", device="cpu")
    with torch.random.fork_rng(devices=[]):
        for side in range(1, 30):
            expected, ours = theirs.eta(side), bump(side, 2).float()
            assert torch.allclose(ours, expected, atol=1e-6) or torch.allclose(ours.T, expected, atol=1e-6), side


def test_the_schedule_follows_the_granted_queries(linear: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (1000, 4000, 10_000, 20_000)
    for part in (0.0, 0.03, 0.3, 0.7, 0.99):  # of the budget: the same size whatever is granted
        for attack in (Square(), Square(rescale=True)):
            shares = {float(attack.share(int(part * n), torch.tensor([n]))) for n in counts}
            assert len(shares) == 1, part
    few, all_sizes = torch.tensor([100]), 0.8 / 2**9
    assert float(Square().share(9999, torch.tensor([10_000]))) == float(Square().share(999, torch.tensor([1000])))
    assert float(Square(rescale=True).share(99, few)) == all_sizes
    assert float(Square().share(99, few)) == float(Square().share(99, torch.tensor([1000]))) == 0.8 / 2**4
    assert float(Square(rescale=False).share(99, few)) == 0.8 / 2**2
    # the sizes that are tried, where the threat model grants fewer queries than the attack has
    x, propose = kit.grey_images(2), Square._linf
    for rescale, expected in (
        (None, [2, 4, 15, 30, 48, 0, 0, 0, 0, 0]),
        (True, [1, 0, 2, 3, 5, 10, 20, 20, 20, 18]),
        (False, [11, 40, 48, 0, 0, 0, 0, 0, 0, 0]),
    ):
        seen: list[float] = []
        monkeypatch.setattr(Square, "_linf", lambda *a, seen=seen: seen.append(a[4]) or propose(*a[1:]))
        threat = ThreatModel(eps=1e-4, access="score", queries=100)
        kit.attack_with(Square(queries=10_000, rescale=rescale), linear, x, linear(x).argmax(1), threat)
        assert [seen.count(0.8 / 2**k) for k in range(10)] == expected


def test_a_first_image_that_is_wrong_costs_one_query(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    threat = ThreatModel(eps=0.5, access="score")
    x_adv, oracle = kit.attack_with(Square(), linear, x, y, threat)
    assert bool((linear(x_adv).argmax(1) != y).all())
    assert int(oracle.ledger.queries.min()) == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_budget_changes_nothing(cnn: Classifier, norm: str) -> None:
    x = kit.grey_images(4)
    y = cnn(x).argmax(1)
    threat = ThreatModel(norm=norm, eps=0.0, access="score")
    x_adv, _ = kit.attack_with(Square(queries=10), cnn, x, y, threat)
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 9, 13)])
def test_images_of_any_shape(norm: str, shape: tuple[int, ...]) -> None:
    x = torch.full((3, *shape), 0.5)
    draws = Draws(0, torch.arange(3))
    start = Square._stripes if norm == "linf" else Square._grid
    propose = Square._linf if norm == "linf" else Square._l2
    best = start(x, 0.1, draws)
    threat = ThreatModel(norm=norm, eps=0.1)
    for share in (0.8, 0.1, 0.001):
        best = propose(best, x, 0.1, share, draws, 1)
        torch.testing.assert_close(threat.size(best, x), torch.full((3,), 0.1), rtol=1e-4, atol=0)
