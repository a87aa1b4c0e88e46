"""Patterns learnt for all images: poses, gradients through them, what learning costs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from siegebench.attacks import _patterns as patterns
from siegebench.attacks.adversarial_patch import AdversarialPatch
from siegebench.attacks.area_patch import AreaPatch
from torch import nn

from siegebench import ops
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.testing.specimens import planted_set
from siegebench.types import Attack
from tests import kit

from .patches import SIZE, grey, l0, scores, taught


@pytest.mark.parametrize("attack", [AdversarialPatch(steps=150), AreaPatch(steps=150, lr=0.03, element=4)])
def test_a_colour_is_learnt_whatever_the_pose(attack: Attack) -> None:
    """Weights that differ by channel only: the best pattern is one colour, wherever and however it is worn."""
    w = torch.tensor([0.01, -0.01, 0.01])[:, None, None].expand(3, SIZE, SIZE)
    pattern, _ = taught(attack, scores(w, 5.0), 1 / 4)
    middle = pattern[:, pattern.shape[1] // 4 : -pattern.shape[1] // 4, pattern.shape[2] // 4 : -pattern.shape[2] // 4]
    # a light below 1 dims white; black stays black
    assert float(middle[[0, 2]].min()) > 0.95
    assert float(middle[1].max()) < 0.05


def test_a_turned_picture_is_turned() -> None:
    """A quarter turn of all poses is a quarter turn of the picture."""
    x, picture = torch.full((1, 3, 8, 8), 0.5), torch.rand(3, 8, 8)
    down, right = patterns.around(x, torch.tensor([4.0]), Draws(0, torch.zeros(1, dtype=torch.long)), 0)
    seen = {}
    for angle in (0.0, 90.0):
        d, r = patterns.turned(down, right, torch.tensor([angle]))
        grid = torch.stack([r, d], dim=3) / 4
        seen[angle] = nn.functional.grid_sample(picture[None], grid, align_corners=False)[0]
    torch.testing.assert_close(seen[0.0], picture)
    turned = [torch.rot90(picture, k, (1, 2)) for k in (1, 3)]
    assert min(float((seen[90.0] - t).abs().max()) for t in turned) < 1e-4


@pytest.mark.parametrize("attack", [AdversarialPatch(), AdversarialPatch(shape="square"), AreaPatch(element=3)])
def test_the_way_back_through_the_pose_is_the_derivative(attack: AdversarialPatch | AreaPatch) -> None:
    pattern = 0.2 + 0.5 * torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    x = kit.grey_images(2, 7).double()
    worn = partial(attack.wear, 0.4, x=x, draws=Draws(0, torch.arange(2)), step=3)
    assert torch.autograd.gradcheck(lambda p: worn(p), pattern.requires_grad_(True))


@pytest.mark.parametrize(
    "attack", [AdversarialPatch(steps=5, batch=7, images=30), AreaPatch(steps=5, batch=7, images=30)]
)
def test_what_learning_costs(attack: AdversarialPatch | AreaPatch) -> None:
    model = kit.cnn_model()
    pattern, oracle = taught(attack, model, 0.1)
    assert int(oracle.ledger.forwards.sum()) == 30 + 5 * 7
    assert int(oracle.ledger.backwards.sum()) == 5 * 7
    assert int((oracle.ledger.forwards > 0).sum()) == 30
    x = kit.grey_images(4, SIZE)
    _, oracle = kit.attack_with(attack, model, x, model(x).argmax(1), l0(0.1), lesson=pattern)
    assert int(oracle.ledger.forwards.sum()) == 0
    assert torch.equal(pattern, taught(attack, model, 0.1)[0])


@pytest.mark.parametrize("attack", [AdversarialPatch(), AreaPatch()])
def test_nothing_is_worn_before_it_is_learnt(attack: Attack) -> None:
    x, y = grey(1)
    with pytest.raises(ContractError, match="learn"):
        kit.attack_with(attack, kit.cnn_model(), x, y, l0(0.1))


def test_a_learnt_pattern_breaks_what_a_random_one_does_not() -> None:
    model = kit.cnn_model().double()
    x = planted_set(40, 16).pixels(slice(None), torch.float64)
    y = model(x).argmax(1)
    wrong = {}
    for name, attack in {
        "random": AreaPatch(optimise=False, element=8),
        "area": AreaPatch(element=8, steps=80, lr=0.05),
        "picture": AdversarialPatch(steps=80, resolution=12),
    }.items():
        pattern, _ = taught(attack, model, 1 / 4, 16)
        x_adv, _ = kit.attack_with(attack, model, x, y, l0(1 / 4), lesson=pattern)
        wrong[name] = float(ops.margin(model(x_adv), y).mean())
    assert wrong["area"] > wrong["random"]
    assert wrong["picture"] > wrong["random"]
