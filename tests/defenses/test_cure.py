"""CURE: which weights a step leaves alone, what is revised, and where it starts."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from siegebench.defenses._adversarial import solve
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.errors import ConfigError
from siegebench.train import Recipe, train

from .two_features import EPS, ONE, RECIPE, SHORT, against_the_other_class, build, granted, model, two_features

STEP = {
    "epochs": 1, "batch": 64, "optimiser": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "augment": "none",
}  # fmt: skip


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))


def prominent(*args: Any) -> list[Tensor]:
    found: list[Tensor] = sys.modules[type(build("cure")).__module__].prominent(*args)
    return found


@pytest.mark.parametrize(("a", "expected"), [(1.0, [False, False, True, True]), (0.0, [True, True, False, False])])
def test_the_weights_with_the_lowest_prominence_are_conserved(a: float, expected: list[bool]) -> None:
    w = torch.ones(4, requires_grad=True)
    natural, adversarial = (w * torch.tensor([1.0, -2, 3, -4])).sum(), (w * torch.tensor([-4.0, 3, 2, 1])).sum()
    (mask,) = prominent(natural, adversarial, [w], a, 0.5)
    assert mask.tolist() == expected


def test_a_step_leaves_the_conserved_fraction_of_each_tensor_as_it_was() -> None:
    given = Network(net(), num_classes=2, rebuild=net).fresh(1)
    entry = build("cure", conserve=0.3, eps=0.1, step=0.05, steps=2, recipe=STEP)
    trained = entry.apply(given, granted(two_features(64)), ONE)
    for (name, after), before in zip(trained.named_parameters(), given.parameters(), strict=True):
        kept = int((after == before).sum())
        assert kept >= int(0.3 * before.numel()), name
        assert kept < before.numel(), name


def test_the_revision_follows_slowly_and_is_part_of_the_loss() -> None:
    data, beta, gamma = two_features(64), 2.0, 3.0
    entry = build("cure", revise=1.0, decay=0.9, beta=beta, gamma=gamma, recipe={**STEP, "epochs": 40})
    now = model()
    before = {k: v.clone() for k, v in now.state_dict().items()}
    this = entry.problem(now, granted(data), 0)
    x, y = data.pixels(), data.labels
    x_adv = (x + 0.1).clamp(0, 1)

    def expected(revision: Network) -> Tensor:
        def kl(p: Tensor, z: Tensor) -> Tensor:
            return F.kl_div(z.log_softmax(dim=1), p.softmax(dim=1), reduction="batchmean")

        revised = kl(revision(x), now(x)) + kl(revision(x_adv), now(x_adv))
        return F.cross_entropy(now(x), y) + beta * kl(now(x), now(x_adv)) + gamma * revised

    revision = model()
    now.load_state_dict(now.fresh(9).state_dict())
    assert torch.allclose(this.outer(now, x, y, x_adv, now(x_adv)), expected(revision), atol=1e-5)
    assert this.gradients is not None
    this.gradients()
    moved = {k: 0.9 * v + 0.1 * now.state_dict()[k] for k, v in before.items()}
    revision.load_state_dict(moved)
    assert torch.allclose(this.outer(now, x, y, x_adv, now(x_adv)), expected(revision), atol=1e-5)


@pytest.mark.parametrize(("steps", "d"), [(1, 0.0), (100, 1 - 8 / 10.1), (800, 1 - 8 / 80.1), (78_000, 0.999)])
def test_the_default_decay_averages_over_a_part_of_the_revisions_at_any_length(steps: int, d: float) -> None:
    entry = build("cure")
    revisions = entry.revise * (steps + 1) / 2
    assert entry.averaging(revisions) == pytest.approx(d, abs=3e-5)
    assert 1 / (1 - entry.averaging(revisions)) <= max(1, revisions)


def test_a_decay_that_leaves_the_second_network_natural_is_refused() -> None:
    entry = build("cure", decay=0.999, recipe=STEP)
    with pytest.raises(ConfigError, match=r"decay 0\.999 averages over more revisions than this training expects"):
        entry.apply(model(), granted(two_features(64)), ONE)
    with pytest.raises(ConfigError, match="never revised"):
        build("cure", revise=0)
    assert entry.quick().decay is None


def test_the_second_network_is_near_the_trained_one_in_the_end() -> None:
    data, given = two_features(256), model()
    before = {k: v.clone() for k, v in given.state_dict().items()}
    this = build("cure", eps=EPS, step=EPS, steps=1, recipe=SHORT).problem(given, granted(data), 0)
    revision = inspect.getclosurevars(this.outer).nonlocals["revision"]
    solve(this, given, granted(data), 0)
    after, w = given.state_dict(), "net.1.weight"
    assert float((revision.state_dict()[w] - after[w]).norm()) < 0.5 * float((before[w] - after[w]).norm())


def test_it_makes_a_natural_network_robust() -> None:
    data, natural = two_features(), model()
    train(natural, data, Recipe(**RECIPE), 0)  # type: ignore[arg-type]
    assert against_the_other_class(natural, data, EPS) < 0.2
    entry = build("cure", eps=EPS, step=EPS, steps=2, recipe=SHORT)
    assert against_the_other_class(entry.apply(natural, granted(data), ONE), data, EPS) > 0.85
