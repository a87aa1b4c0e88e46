"""Attacks that know a detector: they evade a planted one where attacks that do not know it are caught."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from siegebench import ops, registry
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.guarded import GuardedOracle
from siegebench.threat import ThreatModel
from siegebench.types import Attack, Scorer
from tests import kit

EPS = 0.1
THREAT = ThreatModel(norm="linf", eps=EPS, access="gradient")


def guarded(smooth: bool = True) -> tuple[GuardedOracle, Tensor, Tensor, Scorer]:
    """A linear model behind a detector whose score rises along the steepest ascent of its margin, and elsewhere."""
    model, x = kit.linear_model(), kit.grey_images(12)
    y = model(x).argmax(dim=1)
    leaf = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(ops.margin(model(leaf), y).sum(), leaf)
    weight = 0.5 * g.sign() + 0.5 * torch.randn(g.shape, generator=torch.Generator().manual_seed(0))

    scorer = Scorer(lambda z, _: ((z - x[: len(z)]) * weight[: len(z)]).flatten(1).sum(dim=1))
    detector = scorer if smooth else scorer.score
    return GuardedOracle(model, THREAT, Draws(0, torch.arange(12)), detector, 1.0), x, y, scorer


def caught(name: str, smooth: bool = True, **parameters: object) -> tuple[float, float]:
    """(fraction misclassified, mean score of those) under an attack."""
    oracle, x, y, scorer = guarded(smooth)
    attack = registry.build(Attack, {"name": name, **parameters})
    out = attack(oracle, x, y, THREAT, Draws(0, torch.arange(12)))
    broken = oracle.model(out).argmax(dim=1) != y
    return float(broken.double().mean()), float(scorer(out, oracle.draws)[broken].mean())


@pytest.mark.parametrize("name", ["orthogonal_pgd", "orthogonal_pgd.select", "joint_pgd"])
def test_attacks_that_know_the_detector_evade_it(name: str) -> None:
    plain = caught("pgd", steps=20, loss="margin", early_stop=False, random_start=False)
    aware = caught(name, steps=20)
    assert plain[0] == aware[0] == 1.0
    assert plain[1] > 0  # the threshold: every image of the plain attack is rejected
    assert aware[1] < 0 < plain[1]


def test_orthogonal_steps_for_one_loss_leave_the_other_as_it_is() -> None:
    from siegebench.attacks.orthogonal_pgd import _without  # type: ignore[import-not-found]

    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(5, 3, 4, 4, generator=g), torch.randn(5, 3, 4, 4, generator=g)
    left = _without(a, b)
    torch.testing.assert_close((left * b).flatten(1).sum(dim=1), torch.zeros(5), atol=1e-4, rtol=0)
    assert torch.equal(_without(a, torch.zeros_like(b)), a)


def test_without_a_gradient_of_the_detector_images_of_large_confidence_are_tried() -> None:
    oracle, x, y, _ = guarded(smooth=False)
    assert not oracle.smooth
    g, scores = oracle.score_gradient(x)
    assert not bool(g.any())
    torch.testing.assert_close(scores, oracle.scores(x))
    attack = registry.build(Attack, {"name": "orthogonal_pgd", "steps": 10})
    out = attack(oracle, x, y, THREAT, Draws(0, torch.arange(12)))
    assert bool((oracle.model(out).argmax(dim=1) != y).all())


def test_images_are_compared_by_the_deployed_score_not_by_its_backward_model() -> None:
    oracle, x, _, scorer = guarded()
    oracle.detector = Scorer(scorer.score, lambda x, draws: 5 - 2 * scorer.score(x, draws))
    g, scores = oracle.score_gradient(x)
    torch.testing.assert_close(scores, scorer(x, oracle.draws))
    leaf = x.clone().requires_grad_(True)
    (own,) = torch.autograd.grad(scorer.score(leaf, oracle.draws).sum(), leaf)
    torch.testing.assert_close(g, -2 * own)
    assert oracle.ledger.forwards.tolist() == [2] * 12  # both are counted


def test_what_is_asked_of_the_detector_is_counted_and_needs_access() -> None:
    oracle, x, _, _ = guarded()
    oracle.score_gradient(x)
    oracle[:3].scores(x[:3])
    assert oracle.ledger.forwards.tolist() == [2] * 3 + [1] * 9
    assert oracle.ledger.backwards.tolist() == [1] * 12
    threat = ThreatModel(norm="linf", eps=EPS, access="score", queries=10)
    blind = GuardedOracle(oracle.model, threat, Draws(0, torch.arange(12)), oracle.detector, 1.0)
    with pytest.raises(ContractError, match="asked the detector"):
        blind.scores(x)
