"""The area pattern: elements with a phase of their own that cover exactly the budget."""

from __future__ import annotations

import math

import pytest
import torch
from siegebench.attacks.adversarial_patch import AdversarialPatch
from siegebench.attacks.area_patch import AreaPatch

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from tests import kit

from .patches import SIZE, STILL, changed, held, l0, resnet20, scores, taught


def test_elements_repeat_and_have_a_phase_of_their_own() -> None:
    attack = AreaPatch(element=5, **STILL)
    texture, x = torch.rand(3, 5, 5), torch.full((8, 3, 17, 20), 0.5)
    out = attack.wear(1.0, texture, x, Draws(0, torch.arange(8)), 0)
    torch.testing.assert_close(out[:, :, 5:], out[:, :, :-5])
    torch.testing.assert_close(out[:, :, :, 5:], out[:, :, :, :-5])
    assert float((out[0] - out[1]).abs().max()) > 0.01
    one = attack.wear(1.0, torch.full((3, 5, 5), 0.3), x, Draws(0, torch.arange(8)), 0)
    torch.testing.assert_close(one, torch.full_like(x, 0.3))
    # bilinear over the seam: the mean over a whole period is that of the element
    torch.testing.assert_close(out[:, :, :5, :5].mean((2, 3)), texture.mean((1, 2)).expand(8, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eps", [1 / 100, 1 / 20, 1 / 5, 2 / 5, 1.0])
def test_the_area_is_exactly_the_budget(eps: float) -> None:
    x = torch.full((100, 3, 20, 30), 0.5)
    out = AreaPatch(element=4).wear(eps, torch.rand(3, 4, 4) * 0.3, x, Draws(0, torch.arange(100)), 0)
    assert changed(out, x).flatten(1).sum(1).tolist() == [math.floor(eps * 600 + 1e-6)] * 100


def test_more_area_does_more_and_an_optimised_element_more_than_a_random_one() -> None:
    w = 0.01 * torch.tensor([1.0, -1.0, 1.0])[:, None, None].expand(3, SIZE, SIZE)
    model, last = scores(w, 5.0), -torch.inf
    x, y = kit.grey_images(40, SIZE), torch.zeros(40, dtype=torch.long)
    for eps in (1 / 100, 1 / 20, 1 / 10, 1 / 5, 2 / 5, 1.0):
        found = {}
        for optimise in (True, False):
            attack = AreaPatch(optimise=optimise, element=4, steps=60, lr=0.03)
            texture, oracle = taught(attack, model, eps)
            assert (int(oracle.ledger.forwards.sum()) > 0) is optimise
            x_adv, _ = kit.attack_with(attack, model, x, y, l0(eps), lesson=texture)
            found[optimise] = float(ops.margin(model(x_adv), y).mean())
        assert found[True] > last
        assert found[True] > found[False]
        last = found[True]


@pytest.mark.slow
def test_area_on_resnet20() -> None:
    model, x, y, train = resnet20()
    course: dict[bool, list[float]] = {True: [], False: []}
    draws = Draws(0, train.ids)
    for eps in (1 / 100, 1 / 20, 1 / 10, 1 / 5, 2 / 5, 1.0):
        for optimise in (True, False):
            attack = AreaPatch(optimise=optimise, steps=64, images=256)
            texture = attack.learn(Oracle(model, l0(eps), draws), train, l0(eps), draws)
            poses = [
                held(model, kit.attack_with(attack, model, x, y, l0(eps), seed, texture)[0], y) for seed in range(3)
            ]
            course[optimise].append(sum(poses) / 3)
            print(f"area {eps:.2f} {'learnt' if optimise else 'random'}: {poses} of 64 hold")
    for optimise in (True, False):
        assert course[optimise] == sorted(course[optimise], reverse=True)
    for mine, control in list(zip(course[True], course[False], strict=True))[1:4]:
        assert mine < control
    patch = AdversarialPatch(steps=64, images=256)
    picture = patch.learn(Oracle(model, l0(0.1), draws), train, l0(0.1), draws)
    poses = [held(model, kit.attack_with(patch, model, x, y, l0(0.1), seed, picture)[0], y) for seed in range(3)]
    print(f"one picture, area 0.10: {poses} of 64 hold")
