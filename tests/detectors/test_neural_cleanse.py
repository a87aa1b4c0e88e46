"""Neural Cleanse finds the planted target, treats each target alone, leaves the model as found."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, accuracy, train
from siegebench.types import Verdict
from tests import victims

from .planted import detector, images, only


class Regions(nn.Module):
    """Logit t is the mean brightness of region t of the picture, scaled: its smallest trigger grows with the region."""

    def __init__(self, widths: list[int], size: int = 10) -> None:
        super().__init__()
        weight = torch.zeros(len(widths), size * size)
        start = 0
        for t, width in enumerate(widths):
            weight[t, start : start + width] = 1 / width
            start += width
        self.weight = nn.Parameter(40 * weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1).flatten(1) @ self.weight.T


PLANTED, HONEST = [14, 16, 15, 2, 17, 13], [14, 16, 15, 12, 17, 13]


def regions(widths: list[int]) -> Network:
    return Network(Regions(widths), num_classes=len(widths))


def dark(n: int = 40) -> ImageSet:
    return images(n, size=10, high=60, classes=6)


def cleanse(model: Network, **parameters: Any) -> Verdict:
    verdict = detector("neural_cleanse", batch=8, **parameters).judge(model, only(clean=dark()), victims.ONE)
    assert isinstance(verdict, Verdict)
    return verdict


def test_neural_cleanse_finds_the_planted_target() -> None:
    verdict = cleanse(regions(PLANTED))
    assert verdict.backdoored
    assert verdict.targets == (3,)
    assert sorted(verdict.triggers) == [*range(6)]
    painted = (verdict.triggers[3] - 0.5).abs().amax(dim=0).flatten()
    assert set(painted.topk(2).indices.tolist()) == {45, 46}  # the picture shows the two planted pixels


def test_neural_cleanse_inverts_triggers_of_the_right_place_and_size() -> None:
    nc = detector("neural_cleanse", batch=8)
    sizes, masks, _ = nc._invert(regions(PLANTED), dark(), torch.arange(6), 0)
    torch.testing.assert_close(masks.flatten(1).sum(1).double(), sizes)
    weight = Regions(PLANTED).weight > 0
    inside = (masks.flatten(1) * weight).sum(1) / masks.flatten(1).sum(1)
    assert float(inside.min()) > 0.8  # hardly anything is painted outside the target's region
    assert bool((sizes <= weight.sum(1)).all())  # and less than the whole region is needed
    order = torch.tensor(PLANTED).argsort()[:2]
    assert sizes.argsort()[0] == order[0]


def test_neural_cleanse_treats_each_target_alone() -> None:
    model, clean = regions(PLANTED), dark()
    together = detector("neural_cleanse", batch=8, steps=40).inverted(model, clean, 7)[0]
    alone = detector("neural_cleanse", batch=8, steps=40, together=1).inverted(model, clean, 7)[0]
    assert bool((together < 100).all())
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-3)


def test_finished_targets_leave_the_batch() -> None:
    rows: list[int] = []

    class Counting(Regions):
        def forward(self, x: Tensor) -> Tensor:
            rows.append(len(x))
            return super().forward(x)

    def run(stall: int) -> tuple[Tensor, int]:
        rows.clear()
        model = Network(Counting(PLANTED), num_classes=6)
        return detector("neural_cleanse", batch=8, stall=stall).inverted(model, dark(), 0)[0], sum(rows)

    full, cost = run(1000)
    assert cost == 300 * 6 * 8
    early, cheaper = run(40)
    assert cheaper < 0.9 * cost
    torch.testing.assert_close(early, full, rtol=0.25, atol=0.5)


def test_neural_cleanse_on_a_model_that_no_trigger_moves() -> None:
    class Stubborn(Regions):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * super().forward(x) + torch.tensor([9.0, 0, 0, 0, 0, 0])

    nc = detector("neural_cleanse", batch=8, steps=20)
    sizes = nc.inverted(Network(Stubborn(PLANTED), num_classes=6), dark(), 0)[0]
    assert bool((sizes[1:] == 100).all())  # the whole picture
    verdict = nc.judge(Network(Stubborn(PLANTED), num_classes=6), only(clean=dark()), victims.ONE)
    assert math.isfinite(verdict.score)


def test_neural_cleanse_leaves_the_model_as_found() -> None:
    model = regions(PLANTED).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cleanse(model, steps=5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_neural_cleanse_needs_three_classes() -> None:
    with pytest.raises(NotApplicable, match="at least 3"):
        cleanse(regions([5, 6]))


@pytest.mark.slow
def test_neural_cleanse_on_trained_networks() -> None:
    # 8x8 digits. Ten classes make the median absolute deviation, and with it the index, a noisy number: what is safe is
    # the order of the sizes, and that a backdoored model stands out further than its clean twin
    sets = victims.tiny_digits()
    attack = victims.backdoor("badnets", side=8, margin=0)  # 2x2 pixels
    poisoned = attack.poison(sets[0], 0)
    recipe = Recipe(epochs=10, batch=64, augment="none")
    bad, good = victims.tiny_net(), victims.tiny_net()
    train(bad, poisoned.data, recipe, 0)
    train(good, sets[0], recipe, 0)
    assert accuracy(bad, sets[3]) > 0.95
    assert victims.success_rate(bad, attack, sets[3]) > 0.9
    nc, clean = detector("neural_cleanse"), sets[1]
    caught = nc.judge(bad, only(clean=clean), victims.ONE)
    assert caught.backdoored
    assert 0 in caught.targets
    assert caught.score > 2.5
    assert nc.judge(good, only(clean=clean), victims.ONE).score < caught.score
    sizes, twins = nc.inverted(bad, clean, 1)[0], nc.inverted(good, clean, 1)[0]
    assert int(sizes.argmin()) == 0
    assert float(sizes[0]) < 0.5 * float(sizes[1:].min())
    assert float(sizes[0]) < 0.5 * float(twins.min())
