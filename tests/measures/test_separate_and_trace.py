"""Separate and trace on planted tracers: who is named, and how often by chance."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from siegebench.attacks.fmn import FMN
from siegebench.attacks.hopskipjump import HopSkipJump
from siegebench.attacks.pgd import PGD
from siegebench.measures.separate_and_trace import SeparateAndTrace, Tracers, _Copies, _Together, permutations
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.testing.specimens import planted_set
from siegebench.threat import Norm, ThreatModel
from tests import kit

from .planted import affine, built, measured, prepared_resnet20


class Planted(nn.Module):
    """A tracer whose outputs each follow a direction of their own: T_0(x) = tanh(3 A (x - 0.5)), A orthonormal."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(7)
        rows = torch.linalg.qr(torch.randn(192, 10, generator=g))[0].T
        self.weight = nn.Parameter(3 * rows, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return ((x - 0.5).flatten(1) @ self.weight.T).tanh()


# copy i reads its classes 0 and 1 off outputs 2i and 2i + 1, which no other copy reads there
APART = torch.stack([torch.arange(10).roll(-2 * i) for i in range(5)])


def traced(
    model: Classifier, x: Tensor, y: Tensor, norm: Norm = "l2", *, orders: Tensor = APART, **parameters: Any
) -> tuple[dict[str, float], Oracle]:
    """(metrics, oracle) with planted tracers."""
    entry = SeparateAndTrace(**{"copies": len(orders), "attack": PGD(), **parameters})
    return measured(entry, model, x, y, norm, lesson=Tracers(Planted(), orders, entry.alpha, {}))


def undecided(n: int = 30) -> tuple[Classifier, Tensor, Tensor]:
    """(a classifier that slightly prefers class 0 to 1 everywhere, images near grey, labels): tracers alone move."""
    z = torch.zeros(10)
    z[0], z[1] = 5.1, 5.0
    x = 0.5 + 0.01 * (kit.grey_images(n) - 0.5)
    return affine(torch.zeros(10, 192), z), x, torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize(("classes", "copies"), [(10, 10), (43, 5), (5, 4), (2, 2)])
def test_permutations_agree_in_one_place_at_most(classes: int, copies: int) -> None:
    orders = permutations(classes, copies, 0)
    assert (orders.sort(dim=1).values == torch.arange(classes)).all()
    same = (orders[:, None] == orders).sum(dim=2)
    assert int((same - classes * torch.eye(copies, dtype=torch.long)).max()) <= 1
    assert torch.equal(orders, permutations(classes, copies, 0))
    assert classes < 5 or not torch.equal(orders, permutations(classes, copies, 1))


def test_more_copies_than_permutations_are_refused() -> None:
    with pytest.raises(NotApplicable, match="found 2 permutations of 2 outputs"):
        permutations(2, 3, 0)
    for spec in ({"copies": 1}, {"copies": 2, "collude": True}):
        with pytest.raises(ConfigError, match="needed to tell copies apart"):
            built("separate_and_trace", **spec)


@pytest.mark.parametrize(
    ("attack", "norm", "least"), [(PGD(), "linf", 1.0), (FMN(), "l2", 1.0), (HopSkipJump(queries=500), "l2", 0.9)]
)
def test_what_moves_one_tracer_alone_is_traced(attack: Any, norm: Norm, least: float) -> None:
    model, x, y = undecided()
    got, oracle = traced(model, x, y, norm, attack=attack)
    assert got["kept_right"] == 1
    assert got["found"] == 1
    assert got["tracing_accuracy"] >= least
    assert got["transfer_rate"] <= 1 - least
    asked = 500 if isinstance(attack, HopSkipJump) else 2
    assert int(oracle.ledger.forwards.min()) >= asked + 2  # the seller looks before and after


def test_equal_copies_are_named_by_chance() -> None:
    model, x, y = undecided()
    same = torch.arange(10).expand(5, 10)
    got, _ = traced(model, x, y, "linf", orders=same)
    assert got["found"] == 1
    assert got["tracing_accuracy"] == pytest.approx(1 / 5)
    assert got["transfer_rate"] == got["transferred"] == 1
    assert got["tracing_accuracy_transferred"] == pytest.approx(1 / 5)
    got, _ = traced(model, x, y, "linf", orders=same, collude=True)
    assert got["tracing_accuracy"] == pytest.approx(2 / 5)


def test_colluders_fool_both_and_either_is_named() -> None:
    model, x, y = undecided()
    got, _ = traced(model, x, y, collude=True, attack=FMN())
    assert got["found"] == 1
    assert got["tracing_accuracy"] == got["tracing_accuracy_both"] == 1
    assert got["transfer_rate"] == 0


def test_together_means_that_every_copy_is_wrong() -> None:
    model, x, y = undecided(60)
    moved = (x + 0.1 * Draws(0, torch.arange(60)).normal((3, 8, 8))).clamp(0, 1)
    t, p = Planted()(moved), model(moved).softmax(dim=1)
    wrong = torch.stack([(p + 0.15 * t[:, APART[i]]).argmax(dim=1) != y for i in (0, 1)])
    assert 0 < int(wrong.all(dim=0).sum()) < int(wrong.any(dim=0).sum()) < 60
    joint = _Together(_Copies(model, Planted(), APART[:2], 0.15), ThreatModel(), Draws(0, torch.arange(60)), y)
    assert torch.equal(joint.labels(moved) != y, wrong.all(dim=0))
    back = torch.arange(59, -1, -1)
    assert torch.equal(joint[back].labels(moved[back]) != y[back], wrong.all(dim=0)[back])
    assert joint.ledger.forwards.tolist() == [2] * 60


def test_images_that_a_copy_has_wrong_are_not_attacked() -> None:
    model, x, y = undecided()
    got, _ = traced(model, x, y, "linf", alpha=1000.0)
    assert got["kept_right"] < 0.5
    assert got["found"] < 0.5


def test_the_tracer_is_turned_by_noise_as_far_as_it_shall() -> None:
    data = planted_set(320, 8)
    cosine = {}
    for theta in (20.0, 75.0):
        entry = SeparateAndTrace(theta=theta, noise=0.1, epochs=60, lr=1e-2, width=8, copies=3, attack=PGD())
        model = kit.cnn_model()
        threat, draws = ThreatModel(), Draws(0, data.ids)
        taught = entry.learn(Oracle(model, threat, draws), data, threat, draws)
        x = data.pixels()
        t = taught.tracer(x)
        assert float(t.abs().max()) <= 1
        noisy = (x + 0.1 * draws.normal((3, 8, 8), purpose="other noise")).clamp(0, 1)
        cosine[theta] = float(F.cosine_similarity(t, taught.tracer(noisy)).mean())
    print(cosine)
    assert cosine[20.0] == pytest.approx(math.cos(math.radians(20)), abs=0.15)
    assert cosine[75.0] == pytest.approx(math.cos(math.radians(75)), abs=0.15)


def test_a_second_training_gives_the_same_copies() -> None:
    data, model = planted_set(60, 8), kit.cnn_model()
    threat, draws = ThreatModel(), Draws(0, data.ids)
    x = data.pixels()

    def answers(seed: int = 0, **parameters: Any) -> Tensor:
        own = Draws(seed, data.ids)
        taught = built("separate_and_trace", epochs=2, **parameters).learn(
            Oracle(model, threat, own), data, threat, own
        )
        assert 0 <= taught.known["training_acc"] <= 1
        return taught.tracer(x)[:, taught.orders]

    first = answers()
    torch.manual_seed(99)
    assert torch.equal(first, answers())
    assert not torch.equal(first, answers(theta=15))
    assert not torch.equal(first, answers(seed=1))
    with pytest.raises(ContractError, match="call learn first"):
        built("separate_and_trace")(Oracle(model, threat, draws), x, data.labels, threat, draws)


@cache
def tracers() -> Tracers:
    """Trained once a process; what it is attacked with is chosen later."""
    model, train_set, _ = prepared_resnet20()
    entry = SeparateAndTrace(images=4000, epochs=4, copies=6, attack=PGD())
    threat, own = ThreatModel(norm="l2", eps=1.0), Draws(0, train_set.ids)
    return entry.learn(Oracle(model, threat, own), train_set, threat, own)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("collude", [False, True], ids=["alone", "colluding"])
@pytest.mark.parametrize(
    ("attack", "norm", "count"),
    [({"name": "hopskipjump", "queries": 500}, "l2", 100), ({"name": "pgd"}, "linf", 100),
     ({"name": "fmn", "steps": 40}, "l2", 50)],
    ids=["hopskipjump", "pgd", "fmn"],
)  # fmt: skip
def test_tracing_copies_of_resnet20(attack: dict[str, Any], norm: Norm, count: int, collude: bool) -> None:
    model, _, test = prepared_resnet20()
    buyer: Any = registry.build("attack", attack)
    copies = 6 if collude else 5
    entry = SeparateAndTrace(copies=copies, collude=collude, attack=buyer)
    lesson = replace(tracers(), orders=tracers().orders[:copies])
    x, y, draws = test.pixels(slice(count)), test.labels[:count], Draws(0, test.ids[:count])
    threat = ThreatModel(norm=norm, eps=2 / 255 if norm == "linf" else 1.0)
    got = entry(Oracle(model, threat, draws), x, y, threat, draws, lesson)["metrics"]
    print(attack["name"], "colluding" if collude else "alone", {k: round(v, 4) for k, v in got.items()})
    assert got["training_acc_copies"] > got["training_acc"] - 0.02
    assert got["found"] > 0.5
    if attack["name"] == "hopskipjump" and not collude:
        # at the very boundary of its copy an image scores less there than at any other copy that it fools likewise
        assert got["tracing_accuracy_transferred"] < 0.1
    if attack["name"] == "fmn" and not collude:
        assert got["tracing_accuracy"] > 0.5
