"""AutoAttack: who goes on to which attack, what it costs, and what it finds against closed forms and the reference."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from siegebench.attacks._square_l1 import SquareL1
from siegebench.attacks.apgd import APGD
from siegebench.attacks.autoattack import PASSES, AutoAttack
from siegebench.attacks.fab import FAB
from siegebench.attacks.square import Square, bump
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit

from .planted import few_classes, in_the_gap, nearest_boundary


class Noisy(Wrapped):
    """Adds noise to the logits."""

    def __init__(self, inner: Classifier, sigma: float) -> None:
        super().__init__(inner)
        self.randomized, self.sigma = True, sigma

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws or Draws.fresh(len(x))
        return self.inner(x) + self.sigma * draws.normal((self.num_classes,))


SMALL = AutoAttack(steps=10, queries=20, targets=3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_breaks_exactly_what_can_be_broken(linear: Classifier, norm: str) -> None:
    x = kit.grey_images(32)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, norm)
    threat = ThreatModel(norm=norm, eps=in_the_gap(nearest))
    x_adv, _ = kit.attack_with(AutoAttack(steps=30, queries=50), linear, x, y, threat)
    assert torch.equal(linear(x_adv).argmax(1) != y, nearest < threat.eps)
    assert float(threat.size(x_adv, x).max()) <= threat.eps + 1e-6


def test_autoattack_costs_what_it_says(linear: Classifier) -> None:
    x = kit.grey_images(4)
    y = linear(x).argmax(1)
    _, oracle = kit.attack_with(SMALL, linear, x, y, ThreatModel(eps=1e-5))
    s, t, q = 10, 3, 20
    apgd, targeted, fab = s + 1, 1 + t * (s + 1), 1 + t * 2 * s
    assert oracle.ledger.forwards.tolist() == [apgd + targeted + fab + q + 4] * 4
    assert oracle.ledger.backwards.tolist() == [s + 1 + t * (s + 1) + t * s] * 4
    # the figures in the docstring
    assert (101 + 910 + 1801 + 5000 + 4, 101 + 909 + 900) == (7816, 1910)


@pytest.mark.parametrize("queries", [20, 200])  # too few for an additional run, and enough
def test_plus_costs_no_more_than_the_standard_ensemble(linear: Classifier, queries: int) -> None:
    x = kit.grey_images(4)
    y = linear(x).argmax(1)
    spent = {}
    for variant in ("standard", "plus"):
        attack = replace(SMALL, variant=variant, queries=queries)
        _, oracle = kit.attack_with(attack, linear, x, y, ThreatModel(eps=1e-5))
        spent[variant] = oracle.ledger.forwards + oracle.ledger.backwards
    assert bool((spent["plus"] <= spent["standard"]).all())
    assert bool((spent["plus"] > 0.9 * spent["standard"]).all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_plus_begins_with_the_same_runs_and_breaks_as_many(norm: str, classes: int) -> None:
    model = few_classes(classes) if classes < 4 else kit.linear_model()
    x = kit.grey_images(24)
    y = model(x).argmax(1)
    threat = ThreatModel(norm=norm, eps=in_the_gap(nearest_boundary(model, x, y, norm)))
    broken = {}
    for variant in ("standard", "plus"):
        x_adv, _ = kit.attack_with(AutoAttack(variant=variant, steps=10, queries=50), model, x, y, threat)
        broken[variant] = model(x_adv).argmax(1) != y
    assert bool((broken["plus"] | ~broken["standard"]).all())


class Rounded(Wrapped):
    """Rounds its input, which cuts the gradient, and gives a small wrong one in its place."""

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner((x * 50).round() / 50 + 1e-3 * (x.detach() - x))


def test_plus_leaves_samples_with_misleading_gradients_to_random_search(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    threat = ThreatModel(eps=3 * float(nearest_boundary(linear, x, y, "linf").max()))
    model = Rounded(linear)
    by_gradients, _ = kit.attack_with(APGD(steps=20), model, x, y, threat)
    assert not bool((model(by_gradients).argmax(1) != y).all())
    attack = AutoAttack(variant="plus", steps=10, targets=3, queries=300)
    x_adv, _ = kit.attack_with(attack, model, x, y, threat)
    assert bool((model(x_adv).argmax(1) != y).all())


def test_only_survivors_go_on(linear: Classifier) -> None:
    x = kit.grey_images(32)
    y = linear(x).argmax(1)
    threat = ThreatModel(eps=in_the_gap(nearest_boundary(linear, x, y, "linf")))
    x_adv, oracle = kit.attack_with(SMALL, linear, x, y, threat)
    broken = linear(x_adv).argmax(1) != y
    draws = Draws(0, torch.arange(32))
    first = APGD(steps=10).run(Oracle(linear, threat, draws), x, y, threat, draws.child("autoattack", 0))
    by_first = linear(first).argmax(1) != y
    assert bool(by_first.any())
    assert bool((broken | ~by_first).all())
    assert torch.equal(x_adv[by_first], first[by_first])
    assert bool((oracle.ledger.forwards[by_first] <= 11 + 1).all())
    full = 11 + (1 + 3 * 11) + (1 + 3 * 20) + 20 + 4
    assert bool((oracle.ledger.forwards[~broken] == full).all())


def test_a_component_outside_eps_does_not_count(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, "linf")
    threat = ThreatModel(eps=float(nearest.min()) * 0.9)  # FAB finds images outside for all
    x_adv, _ = kit.attack_with(SMALL, linear, x, y, threat)
    assert float(threat.size(x_adv, x).max()) <= threat.eps + 1e-6
    assert bool((linear(x_adv).argmax(1) == y).all())
    assert bool((ops.margin(linear(x_adv), y) > ops.margin(linear(x), y)).all())


def test_scaled_logits_hide_nothing() -> None:
    model, x = kit.linear_model(scale=100.0), kit.grey_images(32)
    y = model(x).argmax(1)
    threat = ThreatModel(eps=1.3 * float(nearest_boundary(model, x, y, "linf").max()))
    fooled, _ = kit.attack_with(APGD(), model, x, y, threat)
    assert float((model(fooled).argmax(1) == y).float().mean()) > 0.3, "cross-entropy should saturate here"
    x_adv, _ = kit.attack_with(AutoAttack(steps=20, queries=20), model, x, y, threat)
    assert bool((model(x_adv).argmax(1) != y).all())


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("variant", ["standard", "rand"])
def test_few_classes(classes: int, variant: str) -> None:
    model, x = few_classes(classes), kit.grey_images(8)
    y = model(x).argmax(1)
    nearest = nearest_boundary(model, x, y, "linf")
    attack = AutoAttack(variant=variant, steps=20, queries=20)
    losses = [c.loss for c in attack.components(classes) if isinstance(c, APGD)]
    second = {2: "margin", 3: "dlr", 4: "targeted_dlr" if variant == "standard" else "dlr"}[classes]
    assert losses == ["ce", second]
    x_adv, _ = kit.attack_with(attack, model, x, y, ThreatModel(eps=in_the_gap(nearest)))
    assert torch.equal(model(x_adv).argmax(1) != y, nearest < in_the_gap(nearest))


def test_the_standard_cascade_is_the_published_one() -> None:
    assert list(AutoAttack().components(10)) == [
        APGD(steps=100, restarts=1, rho=0.75, loss="ce"),
        APGD(steps=100, restarts=1, rho=0.75, loss="targeted_dlr", targets=9),
        FAB(steps=100, targets=9, alpha_max=0.1, eta=1.05, beta=0.9, stop_at_eps=True),
        Square(queries=5000, p=0.8, rescale=False),
    ]


def test_the_l1_cascade_is_the_published_one(linear: Classifier) -> None:
    assert list(AutoAttack().components(10, norm="l1")) == [
        APGD(steps=100, restarts=5, loss="ce"),
        APGD(steps=100, restarts=1, loss="targeted_dlr", targets=5),
        FAB(steps=100, targets=9, alpha_max=0.1, eta=1.05, beta=0.9, stop_at_eps=True),
        SquareL1(queries=5000, p=0.8, rescale=False),
    ]
    x = kit.grey_images(2)
    _, oracle = kit.attack_with(SMALL, linear, x, linear(x).argmax(1), ThreatModel(norm="l1", eps=1e-4))
    s, t, q = 10, 3, 20
    assert oracle.ledger.forwards.tolist() == [5 * (s + 3) + 1 + t * (s + 3) + 1 + t * 2 * s + q + 4] * 2
    assert oracle.ledger.backwards.tolist() == [5 * (s + 3) + t * (s + 3) + t * s] * 2
    # the figures in the docstring
    assert (5 * 103 + 1 + 5 * 103 + 1801 + 5000 + 4, 5 * 103 + 5 * 103 + 900) == (7836, 1930)


def test_the_bump_of_l1_is_two_opposite_pyramids() -> None:
    for side in (1, 3, 5, 6):
        assert float(bump(side, 1).abs().sum()) == pytest.approx(1)
    five = bump(5, 1)
    assert bool((five[:2] > 0).all())
    assert bool((five[2:] < 0).all())
    assert float(five[:2].sum()) == pytest.approx(0.5)
    assert float(five.min()) == float(five[3, 2])  # the steepest point of the larger half


@pytest.mark.parametrize("eps", [0.5, 4.0, 20.0])
def test_square_in_l1_stays_inside_and_uses_its_budget(linear: Classifier, eps: float) -> None:
    x = kit.grey_images(6, size=8)
    y = linear(x).argmax(1)
    threat = ThreatModel(norm="l1", eps=eps, access="score", queries=40)
    x_adv, oracle = kit.attack_with(SquareL1(queries=40), linear, x, y, threat)
    assert float(threat.size(x_adv, x).max()) <= eps * (1 + 1e-6)
    assert int(oracle.ledger.queries.max()) <= 40
    assert float(threat.size(x_adv, x).min()) > 0.9 * min(eps, 3.0)
    assert bool((ops.margin(linear(x_adv), y) > ops.margin(linear(x), y)).all())


def test_rand_averages_twenty_looks_and_does_not_trust_a_lucky_one(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, "linf")
    model = Noisy(linear, sigma=1.0)
    _, oracle = kit.attack_with(AutoAttack(variant="rand", steps=5), model, x, y, ThreatModel(eps=1e-4))
    far = nearest > nearest.median()
    assert bool((oracle.ledger.forwards[far] == 2 * PASSES * (6 + 1)).all())
    threat = ThreatModel(eps=1.5 * float(nearest.max()))
    x_adv, _ = kit.attack_with(AutoAttack(variant="rand", steps=20), model, x, y, threat)
    looks = torch.stack([model(x_adv, Draws(9, torch.arange(16)).at(k)).argmax(1) != y for k in range(9)])
    assert bool((looks.sum(0) >= 5).all())


@pytest.mark.parametrize(
    "attack",
    [APGD(steps=9), APGD(steps=9, loss="targeted_dlr", targets=2), SMALL],
    ids=["apgd", "apgd targeted", "autoattack"],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_budget_changes_nothing(cnn: Classifier, attack: APGD, norm: str) -> None:
    x = kit.grey_images(4)
    y = cnn(x).argmax(1)
    x_adv, _ = kit.attack_with(attack, cnn, x, y, ThreatModel(norm=norm, eps=0.0))
    assert torch.equal(x_adv, x)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("eps", ["8/255", "1/255", "0.5/255"])
def test_autoattack_agrees_with_the_reference(eps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyautoattack")
    if not os.environ.get("SIEGEBENCH_DATA"):
        pytest.skip("needs cifar10_jpeg and the ResNet-20 weights: set SIEGEBENCH_DATA to their folder")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    bench, conformance = importlib.import_module("bench"), importlib.import_module("conformance")
    contest = next(c for c in conformance.contests() if c.name == f"autoattack {eps}")
    ours, reference = conformance.hold(contest, bench.Scene.load("cifar_resnet20", "cifar10_jpeg", 200)).rows
    gap = ours.robust - reference.robust
    assert gap <= 0.5, (ours, reference)
    assert abs(gap) <= 1, (ours, reference)
    assert reference.differ <= 4, (ours, reference)
    if eps == "8/255":
        assert ours.robust == 0, ours
        assert reference.cpu >= 5 * ours.cpu, (ours, reference)
