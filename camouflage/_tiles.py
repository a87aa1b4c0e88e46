"""An element that is repeated over a share of a period; the rest is grey."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types.camouflages import GREY


def places(draws: Draws, tiles: int, covered: float) -> Tensor:
    """Which of tiles x tiles places carry the element, bool; a larger share contains a smaller one."""
    order = draws.uniform((tiles**2,), purpose="places")[0].argsort()
    there = torch.zeros(tiles**2, dtype=torch.bool)
    there[order[: round(covered * tiles**2)]] = True
    return there.view(tiles, tiles)


def tiled(element: Tensor, there: Tensor) -> Tensor:
    """The texture of one period, with the element [3, k, k] at its places [tiles, tiles] and grey elsewhere."""
    k = element.shape[1]
    mask = there.to(element.device).repeat_interleave(k, 0).repeat_interleave(k, 1)
    return torch.where(mask, element.repeat(1, *there.shape), element.new_tensor(GREY))
