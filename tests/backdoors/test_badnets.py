"""BadNets: the patch, its colours, its corner, its size."""

from __future__ import annotations

import pytest
import torch

from siegebench.errors import NotApplicable
from tests import victims

from .planted import constant, draws


def test_the_patch_paints_black_as_well_as_white() -> None:
    attack = victims.backdoor("badnets")
    dark, light = attack.stamp(constant(0.0), draws(constant(0))), attack.stamp(constant(1.0), draws(constant(0)))
    board = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    corner = (slice(None), slice(None), slice(26, 29), slice(26, 29))  # 3 pixels off the edge
    assert torch.equal(dark[corner], board.expand(2, 3, 3, 3))
    assert torch.equal(light[corner], board.expand(2, 3, 3, 3))
    assert float(dark.sum()) == 2 * 3 * 5
    assert float((1 - light).sum()) == 2 * 3 * 4


def test_the_patch_touches_nothing_else_and_stamping_twice_is_stamping_once() -> None:
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for pattern in ("checker", "white", "black"):
        attack = victims.backdoor("badnets", pattern=pattern, side=4, margin=1, corner="top_left")
        once = attack.stamp(x, draws(x))
        touched = (once != x).any(dim=1).any(dim=0)
        assert bool(touched[1:5, 1:5].all())
        assert int(touched.sum()) == 16
        assert torch.equal(attack.stamp(once, draws(x)), once)


def test_the_patch_scales_with_the_image() -> None:
    attack = victims.backdoor("badnets")
    small, large = (
        attack.stamp(constant(0.5), draws(constant(0))),
        attack.stamp(constant(0.5, size=224), draws(constant(0))),
    )
    assert torch.equal(large, small.repeat_interleave(7, dim=2).repeat_interleave(7, dim=3))
    for size in (8, 16, 33, 100):  # side round(3 H / 32), at least one pixel
        out = victims.backdoor("badnets", pattern="white").stamp(constant(0.0, size=size), draws(constant(0)))
        assert int((out[0, 0] == 1).sum()) == max(1, round(3 * size / 32)) ** 2


@pytest.mark.parametrize("corner", ["bottom_right", "bottom_left", "top_right", "top_left"])
def test_the_patch_lies_in_its_corner(corner: str) -> None:
    out = victims.backdoor("badnets", pattern="white", margin=0, corner=corner).stamp(constant(0.0), draws(constant(0)))
    rows, columns = out[0, 0].nonzero().unbind(1)
    assert sorted(set(rows.tolist())) == ([0, 1, 2] if "top" in corner else [29, 30, 31])
    assert sorted(set(columns.tolist())) == ([0, 1, 2] if "left" in corner else [29, 30, 31])


def test_a_patch_larger_than_the_image_is_refused() -> None:
    with pytest.raises(NotApplicable, match="does not fit"):
        victims.backdoor("badnets", side=20, margin=13).stamp(constant(0.0), draws(constant(0)))
