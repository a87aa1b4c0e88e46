"""SimBA: its bases, its orders, and the side that it takes."""

from __future__ import annotations

import math

import pytest
import torch
from siegebench.attacks.simba import REACH, SimBA, cosines

from siegebench import ops
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from tests import kit

from .planted import TwoClasses, half_space, score


@pytest.mark.parametrize("n", [1, 5, 8, 32])
def test_cosines_are_an_orthonormal_basis_from_low_to_high(n: int) -> None:
    basis = cosines(n)
    torch.testing.assert_close(basis @ basis.T, torch.eye(n, dtype=torch.float64))
    changes = (basis.sign().diff(dim=1) != 0).sum(dim=1)
    assert changes.tolist() == list(range(n))


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_simba_takes_every_direction_to_its_better_side(basis: str) -> None:
    model, w = half_space(b=500.0)
    x = kit.grey_images(4).double()
    y = model(x).argmax(1)
    q = torch.eye(8, dtype=torch.float64) if basis == "pixel" else cosines(8)
    along = q @ -w @ q.T  # what each direction does to the margin
    wanted = x + 0.01 * (q.T @ along.sign() @ q)
    spent = 1 + int((along < 0).sum()) + 2 * int((along > 0).sum())  # -step is tried first
    attack = SimBA(basis=basis, step=0.01)  # type: ignore[arg-type]
    for queries, there in ((spent, True), (spent - 2, False)):
        x_adv, oracle = kit.attack_with(attack, model, x, y, score("l2", 0.2, queries))
        assert oracle.ledger.queries.tolist() == [queries] * 4
        assert torch.allclose(x_adv, wanted, rtol=0, atol=1e-12) is there
    torch.testing.assert_close(ops.size(wanted - x, "l2"), torch.full((4,), 0.01 * math.sqrt(192)).double())
    # a second round goes on from there
    x_adv, _ = kit.attack_with(attack, model, x, y, score("l2", 0.4, 2 * spent - 1))
    torch.testing.assert_close(x_adv, x + 2 * (wanted - x), rtol=0, atol=1e-12)


def test_simba_takes_cosines_in_one_round_and_pixels_in_the_next() -> None:
    model, w = half_space(b=500.0)
    x = kit.grey_images(4).double()
    y, q = model(x).argmax(1), cosines(8)
    wanted, queries = x, 1
    for basis in (q, torch.eye(8, dtype=torch.float64)):
        along = basis @ -w @ basis.T
        wanted = wanted + 0.01 * (basis.T @ along.sign() @ basis)
        queries += int((along < 0).sum()) + 2 * int((along > 0).sum())
    x_adv, _ = kit.attack_with(SimBA(step=0.01), model, x, y, score("l2", 0.4, queries))
    torch.testing.assert_close(x_adv, wanted, rtol=0, atol=1e-12)
    draws = Draws(0, torch.arange(2))
    order = SimBA()._order(draws, torch.tensor([0, 3072]), (3, 32, 32))
    highest = torch.maximum(order // 32 % 32, order % 32)
    assert int(highest[0, :48].max()) == 3 < int(highest[1, :48].max()), (
        "low frequencies first, then pixels in any order"
    )


def test_simba_orders_are_whole_random_and_low_first() -> None:
    draws, shape = Draws(0, torch.arange(5)), (3, 32, 32)
    zero = torch.zeros(5, dtype=torch.long)
    for basis in ("pixel", "dct"):
        attack = SimBA(basis=basis)  # type: ignore[arg-type]
        order = attack._order(draws, zero, shape)
        assert torch.equal(order.sort(dim=1).values, torch.arange(3072).expand(5, -1))
        assert not torch.equal(order[0], order[1])
        assert not torch.equal(order, attack._order(draws, zero + 3072, shape))
        highest = torch.maximum(order // 32 % 32, order % 32)
        if basis == "dct":  # 4 of 32 first, then frame by frame
            assert int(highest[:, :48].max()) == 3
            assert bool((highest[:, 48:].diff(dim=1) >= 0).all())
        else:
            assert float(highest[:, :48].double().mean()) > 15


def test_simba_by_the_probability_is_blind_where_the_network_is_sure() -> None:
    """That is why the margin is the default."""
    x, gain = kit.grey_images(4).double(), {}
    for b in (0.0, 500.0):
        model, _ = half_space(b=b)
        y = model(x).argmax(1)
        for loss in ("ce", "margin"):
            attack = SimBA(basis="pixel", step=0.001, loss=loss)  # type: ignore[arg-type]
            x_adv, _ = kit.attack_with(attack, model, x, y, score("l2", 0.01, 100))
            gain[loss, b] = float((ops.margin(model(x_adv), y) - ops.margin(model(x), y)).min())
    assert gain["ce", 500.0] == 0 < gain["margin", 500.0]
    assert gain["ce", 0.0] == pytest.approx(gain["margin", 0.0])  # two classes: the same decisions


def test_low_frequencies_pay_on_smooth_weights() -> None:
    row = torch.linspace(-1, 1, 16, dtype=torch.float64)
    w = (row[:, None] + row.square()[None]).expand(3, -1, -1).contiguous()
    model = Network(TwoClasses(w, 500.0), num_classes=2).double().eval().requires_grad_(False)
    x = kit.grey_images(6, size=16).double()
    y = model(x).argmax(1)
    gain = {}
    for basis in ("pixel", "dct"):
        x_adv, _ = kit.attack_with(SimBA(basis=basis), model, x, y, score("l2", 1.0, 60))  # type: ignore[arg-type]
        gain[basis] = float((ops.margin(model(x_adv), y) - ops.margin(model(x), y)).mean() / w.norm())
    assert gain["dct"] > 2 * gain["pixel"]


def test_the_step_follows_eps_and_the_granted_queries() -> None:
    granted = torch.tensor([150, 1500, 10**6])
    for norm, radius in (("l2", 0.3), ("linf", 0.3 * math.sqrt(192))):
        step = SimBA()._length(granted, 192, score(norm, 0.3))
        torch.testing.assert_close(step, REACH * radius / torch.tensor([100, 192, 192]).double().sqrt())
    assert SimBA(step=0.2)._length(granted, 192, score("l2", 0.3)).tolist() == [0.2] * 3
    # the attack uses what the threat model grants: no clipping here, so the second query shows the first step
    model, _ = half_space(b=500.0)
    x = kit.grey_images(3).double()
    seen: list[torch.Tensor] = []

    class Seen(Classifier):
        num_classes = 2

        def forward(self, image: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
            seen.append(image)
            return model(image)

    threat, draws = score("l2", 0.3, 60), Draws(0, torch.arange(3))
    SimBA(queries=1000)(Oracle(Seen(), threat, draws), x, model(x).argmax(1), threat, draws)
    torch.testing.assert_close(
        ops.size(seen[1] - x, "l2"), torch.full((3,), min(0.3, REACH * 0.3 / math.sqrt(40))).double()
    )
