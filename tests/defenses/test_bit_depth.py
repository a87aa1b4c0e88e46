"""Bit depth rounds to the nearest level."""

from __future__ import annotations

import pytest
import torch

from siegebench.draws import Draws

from .grey_digits import defense


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_bit_depth_rounds_to_the_nearest_level(bits: int) -> None:
    x = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = defense("bit_depth", bits=bits).transform(x, Draws.fresh(len(x)))  # type: ignore[attr-defined]
    levels = torch.arange(2**bits, dtype=torch.float64) / (2**bits - 1)
    nearest = levels[(x[..., None] - levels).abs().argmin(dim=-1)]
    assert torch.allclose(out, nearest, rtol=0, atol=1e-15)


def test_eight_bits_change_no_image() -> None:
    x = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16).float() / 255
    assert torch.equal(defense("bit_depth", bits=8).transform(x, Draws.fresh(len(x))), x)  # type: ignore[attr-defined]
