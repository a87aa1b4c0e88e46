"""The conditional generator: it reaches the class it is told on its surrogate, and its perturbations are bounded."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from siegebench.attacks.conditional_generator import ConditionalGenerator, Generator, changed, targets
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.oracle import Oracle
from siegebench.testing.specimens import planted_set
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, train
from tests import kit

THREAT = ThreatModel(norm="linf", eps=0.3)
SMALL = {"images": 200, "epochs": 10, "batch": 20, "lr": 3e-3, "width": 8, "blocks": 2}


@cache
def data() -> tuple[ImageSet, ImageSet]:
    """Classes of one colour each, (train, test), 8x8."""
    every = planted_set(600, 8)
    return every.select(torch.arange(400)), every.select(torch.arange(400, 600))


@cache
def network(seed: int = 0) -> Classifier:
    model = Network(kit.small_cnn(), num_classes=10, rebuild=kit.small_cnn).fresh(seed)
    train(model, data()[0], Recipe(epochs=20, batch=32, lr=5e-3, augment="none"), seed)
    return model.requires_grad_(False)


@cache
def learnt(**parameters: Any) -> tuple[Generator, Oracle]:
    own = data()[0]
    draws = Draws(0, own.ids)
    oracle = Oracle(network(), THREAT, draws)
    return ConditionalGenerator(**{**SMALL, **parameters}).learn(oracle, own, THREAT, draws), oracle


def test_it_reaches_the_class_it_is_told_on_its_surrogate_and_on_another_network() -> None:
    test = data()[1]
    x, y, draws = test.pixels(), test.labels, Draws(0, test.ids)
    wanted, oracle = targets(y, 10, draws), Oracle(network(), THREAT, draws)
    x_adv = ConditionalGenerator()(oracle, x, y, THREAT, draws, learnt()[0])
    assert reached(network(), x_adv, wanted) > 0.65
    assert reached(network(), THREAT.project(x + 0.3 * draws.sign((3, 8, 8)), x), wanted) < 0.2
    other = network(1)  # trained anew, with other weights
    assert reached(other, x, y) > 0.95
    assert reached(other, x_adv, wanted) > 0.55
    assert int(oracle.ledger.forwards.sum()) == 0  # one pass of the generator is all


def reached(model: Classifier, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


def test_learning_costs_three_passes_an_epoch_for_each_image() -> None:
    _, oracle = learnt(epochs=2, images=30)
    for counts in (oracle.ledger.forwards, oracle.ledger.backwards):
        assert sorted(counts.unique().tolist()) == [0, 6]
        assert int((counts == 6).sum()) == 30


def test_the_class_decides_the_perturbation() -> None:
    net = learnt()[0]
    x = data()[1].pixels()[:50]
    one, other = (net(x, torch.full((50,), c)) for c in (3, 7))
    assert float(ops.size(one - other, "linf").min()) > 0.2
    assert float(max(one.abs().max(), other.abs().max())) <= 1.0 + 1e-6


def test_the_condition_enters_by_the_code_and_by_attention() -> None:
    x, c, d = (
        torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 0]),
        torch.tensor([1, 1]),
    )
    for silent in ("code", "tokens"):
        net = Generator(4, 4, 2).eval()
        with torch.no_grad():
            if silent == "code":
                for level, inputs in zip(net.levels, (3, 4, 8), strict=True):
                    first = next(m for m in level.modules() if isinstance(m, torch.nn.Conv2d))
                    first.weight[:, inputs:] = 0
            else:
                net.tokens[0].weight.zero_()
            assert not torch.allclose(net(x, c), net(x, d)), f"without the {silent} the class is not heard"


@pytest.mark.parametrize("size", [(16, 16), (15, 18), (9, 22)])
def test_any_size_comes_back_within_one(size: tuple[int, int]) -> None:
    net = Generator(5, 4, 4).eval()
    with torch.no_grad():
        net.decoder[-1].bias += 100.0  # tanh at its end
        out = net(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4]))
    assert out.shape == (2, 3, *size)
    assert float(out.abs().max()) <= 1.0 + 1e-6
    torch.testing.assert_close(out[:, :, 1:-1, 1:-1], torch.ones_like(out[:, :, 1:-1, 1:-1]))  # the blur sums to 1


def test_targets_are_any_class_but_the_true_one() -> None:
    y = torch.arange(6000) % 6
    wanted = targets(y, 6, Draws(0, torch.arange(6000)))
    assert bool((wanted != y).all())
    for c in range(6):
        share = wanted[y == c].bincount(minlength=6).double() / 1000
        assert share[c] == 0
        assert float((share[share > 0] - 0.2).abs().max()) < 0.05


def test_changes_keep_to_the_box_and_leave_some_images_grey() -> None:
    x = Draws(1, torch.arange(500)).uniform((3, 12, 12))
    seen = changed(x, Draws(0, torch.arange(500)), 0)
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    grey = (seen.amax(dim=1) - seen.amin(dim=1)).flatten(1).amax(dim=1) < 1e-6
    assert 0.14 < float(grey.double().mean()) < 0.28
    part = torch.tensor([7, 3, 400])
    torch.testing.assert_close(changed(x[part], Draws(0, part), 0), seen[part])
    assert not torch.equal(changed(x, Draws(0, torch.arange(500)), 1), seen)


def test_it_must_learn_first() -> None:
    test = data()[1]
    draws = Draws(0, test.ids)
    with pytest.raises(ContractError, match="call learn first"):
        ConditionalGenerator()(Oracle(network(), THREAT, draws), test.pixels(), test.labels, THREAT, draws)
