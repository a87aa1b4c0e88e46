"""BaDExpert: the formula, the expert forgets the task and keeps the trigger, the rate is chosen by a rule."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.train import accuracy
from tests import victims

from . import triggered
from .planted import auroc, detector, only


def published(p_b: Tensor, p_a: Tensor) -> Tensor:
    first, second = 2 * p_a / p_b.clamp(min=1e-8), (1 - p_b) / (0.5 - p_a).clamp(min=1e-8)
    return -torch.minimum(first, second)


def test_the_score_is_the_logarithm_of_the_published_one() -> None:
    from siegebench.detectors.badexpert import suspicion  # type: ignore[import-not-found]

    g = torch.Generator().manual_seed(0)
    z_b, z_a = (3 * torch.randn(200, 4, generator=g, dtype=torch.float64) for _ in range(2))
    c = torch.arange(200) % 4
    p_b, p_a = (z.softmax(dim=1)[torch.arange(200), c] for z in (z_b, z_a))
    torch.testing.assert_close(-(-suspicion(z_b, z_a, c)).exp(), published(p_b, p_a))
    sure = torch.tensor([[400.0, 0, 0, 0]])
    assert float(suspicion(sure, sure, torch.tensor([0]))) < 0  # B and M' agree: not suspicious
    assert float(suspicion(sure, -sure, torch.tensor([0]))) > 100


def test_the_expert_forgets_the_task_and_keeps_the_trigger() -> None:
    model, clean, val = triggered.network(), triggered.pictures(80), triggered.pictures(40, seed=1)
    assert accuracy(model, val) == 1
    entry = detector("badexpert", rates=[1e-6, 0.1, 10.0], batch=80, steps=60)
    expert = entry.expert(model, clean, val, 0)
    assert accuracy(expert, val) < 0.2
    assert bool((expert(triggered.stamped(val.pixels())).argmax(dim=1) == 0).all())
    moved = (expert.net.rows.weight - model.net.rows.weight).detach()
    assert 0.01 < float(moved.abs().max()) < 10  # neither the rate that is too low nor the largest


def test_triggered_inputs_score_above_clean_ones() -> None:
    model, clean, val = triggered.network(), triggered.pictures(80), triggered.pictures(40, seed=1)
    scorer = detector("badexpert", rates=[0.1], batch=80, steps=60, auxiliary_steps=20).fit(
        model, only(clean=clean, val=val), victims.ONE
    )
    x, draws = triggered.pictures(40, seed=2).pixels(), Draws(0, torch.arange(40))
    other = torch.arange(40) % triggered.CLASSES != 0
    assert auroc(scorer(triggered.stamped(x)[other], draws[other]), scorer(x, draws)) > 0.95
