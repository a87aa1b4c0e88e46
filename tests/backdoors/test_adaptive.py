"""Adaptive-Blend and Adaptive-Patch: weak varying triggers in training, a full one at test time."""

from __future__ import annotations

import pytest
import torch

from siegebench.errors import NotApplicable
from tests import victims

from .planted import constant, draws


def test_a_training_image_shows_half_of_the_pieces() -> None:
    attack = victims.backdoor("adaptive_blend")
    x = constant(0.0, n=8)
    t = victims.backdoor("blended", alpha=1.0).stamp(x, draws(x))
    planted = attack.stamp(x, draws(x), role="poison")
    shown = (planted != 0).any(dim=1)[:, 4::8, 4::8]  # one pixel of each of the 4 x 4 pieces
    assert shown.flatten(1).sum(dim=1).tolist() == [8] * 8
    assert not torch.equal(shown[0], shown[1])
    inside = planted != 0
    torch.testing.assert_close(planted[inside], (0.15 * t)[inside])
    torch.testing.assert_close(attack.stamp(x, draws(x)), 0.2 * t)  # the test image has the whole of it
    assert torch.equal(attack.stamp(x, draws(x), role="cover"), planted)


def test_one_of_four_patches_in_training_and_two_at_test_time() -> None:
    attack = victims.backdoor("adaptive_patch", alphas=[0.5, 0.25, 0.5, 0.25])
    x = constant(0.0, n=64)
    planted = attack.stamp(x, draws(x), role="poison")
    corners = torch.stack(
        [planted[..., rows, columns].flatten(1).amax(dim=1) for rows in (slice(0, 8), slice(24, 32))
         for columns in (slice(0, 8), slice(24, 32))], dim=1)  # fmt: skip
    assert (corners > 0).sum(dim=1).tolist() == [1] * 64
    assert sorted(set(corners.argmax(dim=1).tolist())) == [0, 1, 2, 3]
    torch.testing.assert_close(corners.amax(dim=0), torch.tensor([0.5, 0.25, 0.5, 0.25]))
    tested = attack.stamp(x, draws(x))
    lit = [
        float(tested[..., rows, columns].max())
        for rows in (slice(0, 8), slice(24, 32))
        for columns in (slice(0, 8), slice(24, 32))
    ]
    assert lit == [1.0, 0.0, 1.0, 0.0]
    assert torch.equal(attack.stamp(tested, draws(x)), tested)


def test_patches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(NotApplicable, match="do not fit"):
        victims.backdoor("adaptive_patch", side=20).stamp(constant(0.0), draws(constant(0.0)))


@pytest.mark.parametrize("name", ["adaptive_blend", "adaptive_patch"])
def test_the_trigger_scales_with_the_image(name: str) -> None:
    attack = victims.backdoor(name)
    small, large = constant(0.0), constant(0.0, size=64)
    doubled = attack.stamp(small, draws(small)).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(attack.stamp(large, draws(large)), doubled)
