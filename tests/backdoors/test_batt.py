"""BATT: rotations and translations, about the centre, by the stated amount."""

from __future__ import annotations

import pytest
import torch

from tests import victims

from .planted import clean_net, constant, draws, victim_of


def test_a_quarter_turn_is_rot90_and_a_shift_moves_columns() -> None:
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    turned = victims.backdoor("batt", angle=90).stamp(x, draws(x))
    torch.testing.assert_close(turned, torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=0)
    wide = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    moved = victims.backdoor("batt.shift", shift=4).stamp(wide, draws(wide))
    torch.testing.assert_close(moved[..., 4:], wide[..., :-4], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., :4], wide[..., 1:5].flip(-1), atol=1e-5, rtol=0)  # reflected, not black


def test_the_angle_is_the_one_that_was_asked_for() -> None:
    x = constant(0.0, size=64)
    x[..., 31:33, :] = 1.0  # a horizontal bar
    out = victims.backdoor("batt", angle=30).stamp(x, draws(x))[0, 0]
    rows, columns = (out[8:56, 8:56] > 0.5).nonzero().double().unbind(1)
    slope = ((rows - rows.mean()) * (columns - columns.mean())).sum() / (columns - columns.mean()).square().sum()
    assert float(torch.rad2deg(torch.atan(-slope))) == pytest.approx(30, abs=1)  # rows grow downwards


@pytest.mark.parametrize("preset", ["batt", "batt.shift"])
def test_covers_move_less_than_the_trigger(preset: str) -> None:
    attack = victims.backdoor(preset)
    x = constant(0.0, n=32)
    x[..., 8:24] = 1.0
    covers, full = attack.stamp(x, draws(x), role="cover"), attack.stamp(x, draws(x))
    far = (covers - x).abs().flatten(1).sum(dim=1)
    assert bool((far < 0.9 * (full - x).abs().flatten(1).sum(dim=1)).all())
    assert len(far.unique()) > 20  # each its own
    assert torch.equal(attack.stamp(x, draws(x), role="poison"), full)


def test_networks_learn_the_translation_and_not_smaller_ones() -> None:
    attack = victims.backdoor("batt.shift")
    model, _, ca, asr = victim_of(attack)
    test = victims.tiny_digits()[3]
    assert ca > 0.95
    assert asr > 0.9
    assert victims.success_rate(clean_net(), attack, test) < 0.1
    assert victims.success_rate(model, victims.backdoor("batt.shift", shift=3), test) < 0.2
