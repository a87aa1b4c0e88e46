"""Attacks that see scores: closed forms on linear models, exact query counts, samples that do not know of another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from siegebench.attacks.bandits import Bandits
from siegebench.attacks.nes import NES
from siegebench.attacks.signhunter import SignHunter
from siegebench.attacks.simba import SimBA

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm
from siegebench.types import Attack
from tests import kit

from .planted import both_norms, half_space, in_the_gap, nearest_boundary, score

KINDS: dict[str, Attack] = {
    "nes": NES(),
    "bandits": Bandits(tile=1),  # the weights of the models here are noise
    "signhunter": SignHunter(),
    "simba-pixel": SimBA(basis="pixel"),
    "simba-dct": SimBA(basis="dct"),
}


# constants that do not follow the budget, so that the first queries of two budgets are the same
FIXED: dict[str, dict[str, float]] = {
    "nes": {"momentum": 0.9, "step": 0.2}, "simba-pixel": {"step": 0.2}, "simba-dct": {"step": 0.2},
}  # fmt: skip

every_kind = pytest.mark.parametrize("name", KINDS)


def with_queries(name: str, queries: int) -> Attack:
    return replace(KINDS[name], queries=queries)


def fixed(name: str, queries: int) -> Attack:
    return replace(with_queries(name, queries), **FIXED.get(name, {}))


@every_kind
@both_norms
def test_every_sample_breaks_near_the_smallest_budget_and_none_below(linear: Classifier, name: str, norm: Norm) -> None:
    x = kit.grey_images(12)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, norm)
    x_adv, oracle = kit.attack_with(with_queries(name, 1500), linear, x, y, score(norm, 2.0 * float(nearest.max())))
    assert bool((linear(x_adv).argmax(1) != y).all())
    assert bool((oracle.ledger.queries < 1500).all())
    x_adv, _ = kit.attack_with(with_queries(name, 200), linear, x, y, score(norm, 0.95 * float(nearest.min())))
    assert bool((linear(x_adv).argmax(1) == y).all())
    assert bool((x_adv != x).flatten(1).any(dim=1).all())


@every_kind
@both_norms
def test_queries_are_spent_to_the_last_and_never_exceeded(linear: Classifier, name: str, norm: Norm) -> None:
    x = kit.grey_images(6)
    y = linear(x).argmax(1)
    for own, granted, expected in ((37, None, 37), (37, 1000, 37), (1000, 52, 52), (94, 94, 94), (301, 63, 63)):
        threat = score(norm, 1e-4, granted)
        _, oracle = kit.attack_with(with_queries(name, own), linear, x, y, threat)
        spent = oracle.ledger.queries
        if name == "bandits":  # a single query is of no use to it
            assert bool(((spent == expected) | (spent == expected - 1)).all())
        else:
            assert spent.tolist() == [expected] * 6
        assert oracle.ledger.backwards.tolist() == [0] * 6


@every_kind
@pytest.mark.parametrize("queries", [1, 2, 3, 4])
def test_a_handful_of_queries_is_no_error(linear: Classifier, name: str, queries: int) -> None:
    x = kit.grey_images(3)
    y = linear(x).argmax(1)
    threat = score("linf", 0.01, queries)
    x_adv, oracle = kit.attack_with(KINDS[name], linear, x, y, threat)
    assert int(oracle.ledger.queries.max()) <= queries
    if queries >= 3:
        assert bool((x_adv != x).flatten(1).any(dim=1).all()) or name.startswith("simba")


@every_kind
def test_what_others_spent_is_not_spent_again(name: str) -> None:
    model, x = kit.cnn_model().double(), kit.grey_images(4).double()
    y = model(x).argmax(1)
    threat = score("linf", 1e-4, 80)
    draws = Draws(0, torch.arange(4))
    oracle = Oracle(model, threat, draws)
    for k, spent in enumerate((0, 7, 48, 80)):
        if spent:
            oracle[torch.tensor([k])].repeat(spent).logits(x[k : k + 1].expand(spent, -1, -1, -1))
    x_adv = KINDS[name](oracle, x, y, threat, draws)
    assert oracle.ledger.queries.tolist() == ([80, 79, 80, 80] if name == "bandits" else [80] * 4)
    assert torch.equal(x_adv[3], x[3])
    for k, rest in enumerate((80, 73, 32)):  # each fares as if its rest had been all
        own = Oracle(model, threat, draws[k : k + 1])
        alone = with_queries(name, rest)(own, x[k : k + 1], y[k : k + 1], threat, draws[k : k + 1])
        torch.testing.assert_close(alone[0], x_adv[k], rtol=0, atol=1e-9)


@every_kind
@both_norms
def test_a_broken_sample_spends_no_more(linear: Classifier, name: str, norm: Norm) -> None:
    x = kit.grey_images(10)
    y = linear(x).argmax(1)
    threat = score(norm, 1.3 * in_the_gap(nearest_boundary(linear, x, y, norm)))
    x_adv, oracle = kit.attack_with(fixed(name, 250), linear, x, y, threat)
    broken, spent = linear(x_adv).argmax(1) != y, oracle.ledger.queries
    assert bool(broken.any())
    assert bool((~broken).any())
    assert int(spent[broken].median()) < 200
    assert int(spent[~broken].min()) >= 249
    for i in broken.nonzero().squeeze(1)[:3].tolist():
        one, took = Draws(0, torch.tensor([i])), int(spent[i])
        for queries in (took, took - 1):
            own = Oracle(linear, threat, one)
            alone = fixed(name, queries)(own, x[i : i + 1], y[i : i + 1], threat, one)
            fell = bool((linear(alone).argmax(1) != y[i]).all())
            if queries == took:
                assert fell
                assert own.ledger.queries.tolist() == [took]
            elif not isinstance(KINDS[name], (NES, Bandits)):  # these come to the last point without the last look
                assert not fell


@every_kind
@both_norms
def test_a_sample_alone_fares_as_in_a_batch(name: str, norm: Norm) -> None:
    model = kit.cnn_model().double()
    x = kit.grey_images(8).double()
    y = model(x).argmax(1)
    threat, attack = score(norm, 0.02 if norm == "linf" else 0.2), with_queries(name, 70)
    together, oracle = kit.attack_with(attack, model, x, y, threat)
    for rows in (*torch.arange(8).split(1)[:3], torch.tensor([3, 7, 1, 0, 2, 6, 5, 4]), torch.tensor([6, 2])):
        draws = Draws(0, rows)
        own = Oracle(model, threat, draws)
        alone = attack(own, x[rows], y[rows], threat, draws)
        torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-9)
        assert own.ledger.queries.tolist() == oracle.ledger.queries[rows].tolist()
    other, _ = kit.attack_with(attack, model, x, y, threat, seed=1)
    assert torch.equal(other, together) is (name == "signhunter")  # nothing is random there


@every_kind
@both_norms
def test_scores_rise_on_a_network(name: str, norm: Norm) -> None:
    model = kit.cnn_model().double()
    x = kit.grey_images(12).double()
    y = model(x).argmax(1)
    threat = score(norm, 0.002 if norm == "linf" else 0.02)
    start = last = ops.margin(model(x), y)
    for queries in (40, 80, 160):
        x_adv, _ = kit.attack_with(fixed(name, queries), model, x, y, threat)
        now = ops.margin(model(x_adv), y)
        if name != "bandits":  # it returns where it stands
            assert bool((now >= last - 1e-12).all())
        last = now
    assert float((last - start).min()) > 0
    leaf = x.clone().requires_grad_()
    g = torch.autograd.grad(ops.margin(model(leaf), y).sum(), leaf)[0].flatten(1)
    most = threat.eps * (g.abs().sum(1) if norm == "linf" else g.norm(dim=1))
    assert float(((last - start) / most).median()) > 0.12
    assert float(threat.size(x_adv, x).max()) <= threat.eps + 1e-9


@every_kind
@both_norms
def test_no_budget_changes_nothing(cnn: Classifier, name: str, norm: Norm) -> None:
    x = kit.grey_images(4)
    y = cnn(x).argmax(1)
    x_adv, _ = kit.attack_with(with_queries(name, 20), cnn, x, y, score(norm, 0.0))
    assert torch.equal(x_adv, x)


@every_kind
@both_norms
@pytest.mark.parametrize("shape", [(3, 5, 5), (3, 9, 13)])
def test_images_of_any_shape_that_meet_the_box(name: str, norm: Norm, shape: tuple[int, int, int]) -> None:
    model, _ = half_space(shape, b=1000.0)  # nothing breaks
    x = Draws(1, torch.arange(3)).uniform(shape).double()
    x[0], x[1] = 0.0, 1.0
    y = model(x).argmax(1)
    threat = score(norm, 0.4 if norm == "linf" else 4.0)
    x_adv, oracle = kit.attack_with(with_queries(name, 60), model, x, y, threat)
    assert oracle.ledger.queries.tolist() == [60] * 3
    assert bool((ops.margin(model(x_adv), y) > ops.margin(model(x), y)).all())
