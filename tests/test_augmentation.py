"""Augmentation of training images is a shifted crop, the same in any batch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from siegebench.draws import Draws
from siegebench.train import augmented

from .properties import normal, quick, seeds


def shift_of(pad: int, draws: Draws, epoch: int) -> Tensor:
    return draws.integers(2 * pad + 1, (2,), epoch, "crop")


@quick
@given(seed=seeds, epoch=st.integers(0, 100), mirrored=st.booleans())
def test_augmentation_is_a_shifted_crop_of_the_padded_image(seed: int, epoch: int, mirrored: bool) -> None:
    x = normal(seed, 6, 3, 16, 16)
    draws = Draws(seed, torch.arange(6))
    out = augmented(x, "crop_flip" if mirrored else "crop", draws, epoch)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    flips = draws.uniform((), epoch, "flip") < 0.5
    for i, (top, left) in enumerate(shift_of(2, draws, epoch).tolist()):
        expected = padded[i, :, top : top + 16, left : left + 16]
        expected = expected.flip(2) if mirrored and bool(flips[i]) else expected
        assert torch.equal(out[i], expected)


def test_augmentation_reaches_every_shift_and_both_sides() -> None:
    x = torch.arange(16.0).view(1, 1, 1, 16).expand(400, 3, 16, 16).contiguous()
    draws = Draws(0, torch.arange(400))
    out = augmented(x, "crop_flip", draws, 0)
    assert {tuple(s) for s in shift_of(2, draws, 0).tolist()} == {(i, j) for i in range(5) for j in range(5)}
    flipped = (out[:, 0, 0, 8] < out[:, 0, 0, 4]).double().mean()
    assert 0.4 < flipped < 0.6
    assert not torch.equal(out, augmented(x, "crop_flip", draws, 1))
    assert augmented(x, "none", draws, 0) is x


@quick
@given(seed=seeds)
def test_augmentation_does_not_depend_on_the_batch(seed: int) -> None:
    x, draws = normal(seed, 6, 3, 8, 8), Draws(seed, torch.arange(6))
    whole = augmented(x, "crop_flip", draws, 3)
    order = torch.tensor([4, 0, 5])
    assert torch.equal(augmented(x[order], "crop_flip", draws[order], 3), whole[order])
