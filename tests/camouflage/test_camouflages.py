"""Textures find planted optima, and the losses have their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from siegebench.camouflage._optimise import SPREAD, attack_loss, camouflage_loss, g, output_augmented, smooth_loss

from siegebench import registry
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.render.compose import compose
from siegebench.testing.camouflages import red_victim, scenes
from siegebench.threat import ThreatModel
from siegebench.types import Camouflage, Defense
from siegebench.types.camouflages import GREY, Stage, Texture

ONE = Draws(0, torch.zeros(1, dtype=torch.long))
PALETTE = torch.tensor([[0.2, 0.3, 0.1], [0.5, 0.6, 0.3]])


def painted(name: str, **parameters: object) -> Texture:
    """A texture made on the tiny stage of the contract tests, whose victim sees red paint as a vehicle."""
    entry = registry.build(Camouflage, {"name": name, **parameters})
    maps = scenes()
    oracle = Oracle(red_victim(), ThreatModel(access=entry.needs), Draws(0, maps.ids))
    return entry(Stage(maps, oracle, (1,), PALETTE), ONE)


@pytest.mark.parametrize("name", ["dta", "active.strong", "area_camouflage"])
def test_gradient_finds_the_planted_optimum(name: str) -> None:
    pixels = painted(name, texels=2, steps=30, scenes=4, lr=0.5).pixels
    assert float(pixels[0].max()) < 0.1  # no red
    assert float(pixels[2].min()) > 0.9  # all blue


def test_active_without_its_other_losses_is_adam_on_the_loss_of_one_scene() -> None:
    one, steps, lr = scenes()[:1], 20, 0.3
    bare = {"restarts": 1, "candidates": 1, "shift": 0.0, "scale": 0.0, "texels": 4, "steps": steps, "lr": lr}
    entry = registry.build(Camouflage, {"name": "active.strong", **bare})
    found = entry(Stage(one, Oracle(red_victim(), ThreatModel(), Draws(0, one.ids)), (1,), PALETTE), ONE).pixels
    w = (SPREAD * ONE.normal((3, 4, 4), purpose="start")[0]).requires_grad_(True)
    adam = torch.optim.Adam([w], lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr / 10 + 0.9 * lr * (1 + math.cos(math.pi * step / steps)) / 2
        score = red_victim()(compose(one, w.sigmoid(), 4.0)).softmax(dim=1)[:, 1]
        adam.zero_grad()
        g(score).mean().backward()
        adam.step()
    assert float((w.detach().sigmoid() - 0.5).abs().max()) > 0.3  # it moved
    assert torch.allclose(found, w.detach().sigmoid(), atol=1e-3)


def test_against_jpeg_a_texture_needs_the_backward_model() -> None:
    """A bare oracle of a defense that rounds has no gradient: the texture keeps its first colours, and each pass is
    counted as blind."""
    maps, jpeg = scenes(), registry.build(Defense, "jpeg").wrap(red_victim())
    entry = registry.build(Camouflage, {"name": "active.strong", "texels": 2, "steps": 30, "scenes": 4, "lr": 0.5})
    bare = Oracle(jpeg, ThreatModel(), Draws(0, maps.ids))
    through = Oracle(jpeg, ThreatModel(), Draws(0, maps.ids)).as_attacked(1)
    kept, learnt = (entry(Stage(maps, oracle, (1,), PALETTE), ONE).pixels for oracle in (bare, through))
    assert float((kept - 0.5).abs().max()) < 0.15
    assert int(bare.ledger.blind.sum()) == int(bare.ledger.backwards.sum()) > 0
    assert float(learnt[0].max()) < 0.1
    assert float(learnt[2].min()) > 0.9
    assert int(through.ledger.blind.sum()) == 0


def test_dta_lies_on_the_screen_and_active_on_the_surface() -> None:
    assert painted("dta", steps=1).projection == "screen"
    assert painted("dta", steps=1).pixels.shape == (3, 16, 16)
    assert painted("active", steps=1).projection == "triplanar"


def test_the_camouflage_loss_draws_the_texture_to_the_colours_of_the_backgrounds() -> None:
    only = painted("active", texels=4, steps=80, alpha=0.0, beta=0.0, gamma=1.0)
    far = (only.pixels.flatten(1).T[:, None] - PALETTE).abs().mean(dim=2).amin(dim=1)
    assert float(far.max()) < 0.02


def test_losses_in_closed_form() -> None:
    assert float(g(torch.tensor(0.5))) == pytest.approx(math.log(2))
    assert torch.isfinite(g(torch.tensor(1.0)))
    flat = torch.full((3, 4, 5), 0.3)
    assert float(smooth_loss(flat)) == 0.0
    step = flat.clone()
    step[:, :, 0] = 0.7  # two edges along x in each row, the second where the texture repeats
    assert float(smooth_loss(step)) == pytest.approx(2 / 5 * -math.log(0.6), rel=1e-5)
    assert float(smooth_loss(step.roll(2, 2))) == pytest.approx(float(smooth_loss(step)))
    there = PALETTE[0].view(3, 1, 1).expand(3, 2, 2)
    assert float(camouflage_loss(there, PALETTE)) == 0.0
    assert float(camouflage_loss(there + 0.05, PALETTE)) == pytest.approx(-math.log(0.95), rel=1e-5)
    hidden = torch.tensor([[-3.0, -1.0, -2.0], [-0.5, -4.0, 0.0]])
    assert float(attack_loss(hidden)) == 3.5
    assert float(attack_loss(hidden, candidates=2)) == pytest.approx((2.5 + 2.25) / 2)


def test_the_descent_under_which_fewest_vehicles_are_seen_is_kept() -> None:
    """With steps that move nothing, the descents are their first colours; blue hides, red does not."""
    maps, palette = scenes(), torch.tensor([[0.7, 0.3, 0.2], [0.2, 0.3, 0.7], [0.6, 0.4, 0.3]])
    for restarts, expected in ((1, [0.5, 0.5, 0.5]), (2, [0.5, 0.5, 0.5]), (3, [0.2, 0.3, 0.7]), (9, [0.2, 0.3, 0.7])):
        entry = registry.build(Camouflage, {"name": "dta", "restarts": restarts, "steps": 2, "lr": 1e-6, "texels": 4})
        stage = Stage(maps, Oracle(red_victim(), ThreatModel(), Draws(0, maps.ids)), (1,), palette)
        found = entry(stage, ONE).pixels.mean(dim=(1, 2)).tolist()
        assert found == pytest.approx(expected, abs=0.03)
        chosen = 4 * min(restarts, 4) if restarts > 1 else 0
        assert int(stage.oracle.ledger.forwards.sum()) == 2 * 4 * min(restarts, 4) + chosen


def test_boxes_follow_the_augmented_picture() -> None:
    x = torch.zeros(6, 3, 40, 60)
    x[:, :, 10:20, 15:45] = 1
    boxes = torch.tensor([[15.0, 10.0, 45.0, 20.0]]).repeat(6, 1)
    out, moved = output_augmented(x, boxes, ONE, 0, 0.5, 0.0, (1.0, 1.0))
    for picture, box in zip(out, moved, strict=True):
        y, column = (picture[0] > 0.5).nonzero().unbind(1)
        found = torch.tensor([column.min(), y.min(), column.max() + 1, y.max() + 1]).float()
        assert float((found - box).abs().max()) <= 1.0
    assert not torch.equal(moved[0], moved[1])


def test_area_camouflage_covers_its_share_and_a_larger_area_contains_a_smaller_one() -> None:
    grey = torch.tensor(GREY)
    covered = []
    for share in (0.0, 0.25, 0.5, 1.0):
        texture = painted("random_elements", covered=share, tiles=4, texels=2)
        there = (texture.pixels - grey).abs().amax(dim=0) > 1e-6
        assert texture.covered == share
        assert float(there.float().mean()) == share
        covered.append(there)
    assert bool((covered[1] <= covered[2]).all() & (covered[2] <= covered[3]).all())
    whole = painted("area_camouflage", tiles=3, texels=2, steps=3).pixels
    assert torch.equal(whole, whole[:, :2, :2].repeat(1, 3, 3))  # one element, repeated


def test_controls() -> None:
    assert painted("flat").pixels.flatten().tolist() == pytest.approx([GREY] * 3)
    assert painted("flat.red").pixels.flatten().tolist() == [1.0, 0.0, 0.0]
    first, second = painted("random_texture").pixels, painted("random_texture.second").pixels
    assert first.shape == (3, 16, 16)
    assert not torch.equal(first, second)
    mosaic = painted("background_colours").pixels.flatten(1).T
    assert {tuple(c) for c in mosaic.tolist()} == {tuple(c) for c in PALETTE.tolist()}
