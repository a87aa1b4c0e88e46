"""Attacks that see labels only: closed forms on linear models, exact query counts, samples that do not know another."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.boundary import Boundary
from siegebench.attacks.geoda import GeoDA
from siegebench.attacks.hopskipjump import HopSkipJump
from siegebench.attacks.rays import RayS
from siegebench.attacks.sign_opt import SignOPT
from siegebench.attacks.signflip import SignFlip
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.testing.specimens import network
from siegebench.threat import Norm
from siegebench.types import MinimalAttack
from tests import kit

from .planted import brightness, in_the_gap, label_threat, nearest_boundary

KINDS: tuple[tuple[type[MinimalAttack], Norm], ...] = (
    (RayS, "linf"),
    (SignFlip, "linf"),
    (HopSkipJump, "l2"),
    (HopSkipJump, "linf"),
    (Boundary, "l2"),
    (GeoDA, "l2"),
    (GeoDA, "linf"),
    (SignOPT, "l2"),
)


every_kind = pytest.mark.parametrize(
    ("kind", "norm"), KINDS, ids=[f"{kind.__name__.lower()}-{norm}" for kind, norm in KINDS]
)


def uneven() -> tuple[Classifier, Tensor, Tensor]:
    """(an untrained network whose answers are spread over the classes, images, its labels), float64."""
    model = network().double().requires_grad_(False)
    x = kit.grey_images(8, size=16).double()
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize(
    ("attack", "norm", "queries", "factor"),
    [
        (RayS(stop_at_eps=False), "linf", 2000, 1.1),
        (SignFlip(stop_at_eps=False), "linf", 2000, 1.3),
        (HopSkipJump(), "l2", 2000, 1.15),
        (HopSkipJump(), "linf", 2000, 1.35),
        (Boundary(), "l2", 2000, 1.1),
        (GeoDA(), "l2", 2000, 1.2),
        (GeoDA(), "linf", 2000, 1.2),
        (SignOPT(), "l2", 2000, 1.2),
    ],
    ids=lambda value: type(value).__name__.lower() if isinstance(value, MinimalAttack) else str(value),
)
def test_the_distance_comes_near_the_closed_form(
    linear: Classifier, attack: MinimalAttack, norm: Norm, queries: int, factor: float
) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, norm)
    x_adv, oracle = kit.attack_with(attack, linear, x, y, label_threat(norm, queries=queries))
    assert bool((linear(x_adv).argmax(1) != y).all())
    ratio = ops.size(x_adv - x, norm) / nearest
    assert float(ratio.min()) > 1 - 1e-4
    assert float(ratio.median()) < factor
    assert oracle.ledger.queries.tolist() == [queries] * 8


@every_kind
def test_queries_are_spent_to_the_last_and_never_exceeded(
    linear: Classifier, kind: type[MinimalAttack], norm: Norm
) -> None:
    x = kit.grey_images(5)
    y = linear(x).argmax(1)
    for own, granted, expected in ((37, None, 37), (1000, 2, 2), (1, None, 1), (301, 301, 301), (37, 100, 37)):
        attack = kind(queries=own, stop_at_eps=False)
        _, oracle = kit.attack_with(attack, linear, x, y, label_threat(norm, queries=granted))
        assert oracle.ledger.queries.tolist() == [expected] * 5
        assert oracle.ledger.backwards.tolist() == [0] * 5


@every_kind
def test_what_others_spent_is_not_spent_again(linear: Classifier, kind: type[MinimalAttack], norm: Norm) -> None:
    linear.double()
    x = kit.grey_images(4).double()
    y = linear(x).argmax(1)
    threat = label_threat(norm, queries=150)
    draws = Draws(0, torch.arange(4))
    oracle = Oracle(linear, threat, draws)
    for k in (0, 1, 2):  # sample k has spent 150, 127, 60, 0 before
        oracle[torch.tensor([k])].repeat((150, 127, 60)[k]).labels(x[k].expand((150, 127, 60)[k], -1, -1, -1))
    x_adv = kind(stop_at_eps=False)(oracle, x, y, threat, draws)
    assert oracle.ledger.queries.tolist() == [150] * 4
    assert torch.equal(x_adv[0], x[0])
    # the others fare as they would have alone, with what they had left
    for k, left in ((1, 23), (2, 90), (3, 150)):
        own = Draws(0, torch.tensor([k]))
        less = label_threat(norm, queries=left)
        alone = kind(stop_at_eps=False)(Oracle(linear, less, own), x[k : k + 1], y[k : k + 1], less, own)
        torch.testing.assert_close(alone[0], x_adv[k], rtol=0, atol=1e-9)


@every_kind
def test_more_queries_find_smaller_perturbations(kind: type[MinimalAttack], norm: Norm) -> None:
    model, x, y = uneven()
    far = []
    for queries in (12, 600):
        x_adv, _ = kit.attack_with(kind(queries=queries, stop_at_eps=False), model, x, y, label_threat(norm))
        broken = model(x_adv).argmax(1) != y
        assert bool((broken | (x_adv == x).flatten(1).all(1)).all())  # broken, or left as it was
        far.append(torch.where(broken, ops.size(x_adv - x, norm), torch.inf))
    assert bool(torch.isfinite(far[1]).all())
    assert bool((far[1] < far[0]).all())
    assert float((far[1] / far[0]).median()) < 0.75


@every_kind
def test_stopping_at_eps(kind: type[MinimalAttack], norm: Norm) -> None:
    model, x, y = uneven()
    x_adv, _ = kit.attack_with(kind(queries=400, stop_at_eps=False), model, x, y, label_threat(norm))
    eps = in_the_gap(ops.size(x_adv - x, norm))
    inside = ops.size(x_adv - x, norm) <= eps
    attack = kind(queries=400, stop_at_eps=True)
    assert not attack.minimises()
    assert kind(stop_at_eps=False).minimises()
    x_adv, oracle = kit.attack_with(attack, model, x, y, label_threat(norm, eps))
    broken = model(x_adv).argmax(1) != y
    assert torch.equal(broken, inside)  # the same search, cut short
    assert torch.equal(x_adv[~broken], x[~broken])
    assert bool((ops.size(x_adv - x, norm)[broken] > 0).all())
    assert bool((oracle.ledger.queries[~broken] == 400).all())
    assert bool((oracle.ledger.queries[broken] < 400).any())


@every_kind
def test_a_sample_alone_fares_as_in_a_batch(kind: type[MinimalAttack], norm: Norm) -> None:
    model, x, y = uneven()
    attack = kind(queries=167, stop_at_eps=False)
    together, oracle = kit.attack_with(attack, model, x, y, label_threat(norm))
    for rows in (torch.tensor([6]), torch.tensor([3, 1, 0, 7, 2, 6, 5, 4])):
        draws = Draws(0, rows)
        own = Oracle(model, label_threat(norm), draws)
        alone = attack(own, x[rows], y[rows], label_threat(norm), draws)
        torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-9)
        assert own.ledger.queries.tolist() == oracle.ledger.queries[rows].tolist()
    other, _ = kit.attack_with(attack, model, x, y, label_threat(norm), seed=1)
    assert torch.equal(other, together) == (kind is RayS)  # nothing in it is random


@every_kind
def test_a_model_that_never_errs_is_asked_to_the_end(kind: type[MinimalAttack], norm: Norm) -> None:
    x = kit.grey_images(3)
    y = torch.zeros(3, dtype=torch.long)
    x_adv, oracle = kit.attack_with(kind(queries=90, stop_at_eps=False), brightness(2.0), x, y, label_threat(norm))
    assert torch.equal(x_adv, x)
    assert oracle.ledger.queries.tolist() == [90] * 3


@every_kind
def test_images_need_not_be_square(kind: type[MinimalAttack], norm: Norm) -> None:
    x = torch.full((2, 3, 5, 9), 0.5)
    y = torch.zeros(2, dtype=torch.long)
    x_adv, _ = kit.attack_with(kind(queries=200, stop_at_eps=False), brightness(0.1), x, y, label_threat(norm))
    assert bool((brightness(0.1)(x_adv).argmax(1) == 1).all())
