"""Square in L1: the last member of AutoAttack for L1."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.threat import Norm

from .square import TINY, Square, window


@cache
def bump(side: int) -> Tensor:
    """Two opposite pyramids side by side, steeper than in L2, of length 1 in L1: float64 [side, side]."""

    def pyramid(height: int, width: int) -> Tensor:
        rings = max(height // 2, width // 2) + 1
        tail = torch.arange(1, rings + 1, dtype=torch.float64).pow(-4).flip(0).cumsum(0).flip(0)
        row = (torch.arange(height) - height // 2).abs()[:, None]
        value = tail[torch.maximum(row, (torch.arange(width) - width // 2).abs())]
        return value / value.sum().clamp(min=TINY)

    both = torch.cat([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
    return both / both.abs().sum()


def length(delta: Tensor) -> Tensor:
    """L1 norm of each channel, [n, C, 1, 1]."""
    return delta.abs().sum(dim=(2, 3), keepdim=True)


@dataclass(frozen=True, kw_only=True)
class SquareL1(Square):
    """Square with the perturbations of Croce, Hein, "Mind the box: L1-APGD for sparse adversarial attacks on image
    classifiers", ICML 2021, arXiv 2103.01208.

    As in L2, one window receives a bump and the budget of another window. The budget of all channels is given to each
    channel, and the image is projected onto the intersection of ball and box, which makes the perturbation sparse.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l1",)

    @staticmethod
    def _grid(x0: Tensor, eps: float, draws: Draws) -> Tensor:
        n, channels, height, width = x0.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        sign = draws.sign((channels, rows, columns), purpose="grid").to(x0.dtype)
        turned = draws.uniform((1, rows, columns), purpose="grid turned") < 0.5
        one = bump(side).to(x0)
        tiles = torch.where(turned[..., None, None], one.T, one) * sign[..., None, None]  # [n, c, rows, columns, s, s]
        delta = torch.zeros_like(x0)
        area = tiles.transpose(3, 4).reshape(n, channels, rows * side, columns * side)
        delta[:, :, top : top + rows * side, left : left + columns * side] = area
        return ops.project_l1(x0 + delta, x0, eps)

    @staticmethod
    def _l2(best: Tensor, x0: Tensor, eps: float, share: float, draws: Draws, step: int) -> Tensor:
        channels, height, width = x0.shape[1:]
        side = max(round((share * height * width) ** 0.5), 3)
        side = min(side + (side % 2 == 0), height, width)
        u = draws.uniform((5 + channels,), step, "square").to(x0.dtype)
        top, left = (u[:, :2] * (height - side + 1)).long(), (u[:, 2:4] * (width - side + 1)).long()
        here = window(top[:, 0], left[:, 0], side, height, width)
        there = window(top[:, 1], left[:, 1], side, height, width)
        delta = best - x0

        # the bump, placed on the first window
        row = (torch.arange(height, device=x0.device) - top[:, :1]).clamp(0, side - 1)[:, :, None]
        column = (torch.arange(width, device=x0.device) - left[:, :1]).clamp(0, side - 1)[:, None, :]
        turned = (u[:, 4] < 0.5)[:, None, None]
        laid = bump(side).to(x0)[torch.where(turned, column, row), torch.where(turned, row, column)][:, None]
        sign = torch.where(u[:, 5:] < 0.5, -1.0, 1.0)[:, :, None, None]

        old = delta * here
        new = (sign * laid + old / length(old).clamp(min=TINY)) * here
        unused = (eps - delta.abs().sum(dim=(1, 2, 3), keepdim=True)).clamp(min=0) / channels
        new = new / length(new).clamp(min=TINY) * (length(delta * (here | there)) + unused) * channels
        delta = torch.where(here, new, torch.where(there, 0.0, delta))
        return ops.project_l1(x0 + delta, x0, eps)
