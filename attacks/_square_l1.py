"""Square in L1: the last member of AutoAttack for L1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.threat import Norm

from .square import TINY, Square, laid, tiles


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
        return ops.project_l1(x0 + tiles(x0, 1, draws), x0, eps)

    @staticmethod
    def _l2(best: Tensor, x0: Tensor, eps: float, share: float, draws: Draws, step: int) -> Tensor:
        here, there, one = laid(x0, 1, share, draws, step)
        channels = x0.shape[1]
        delta = best - x0
        old = delta * here
        new = (one + old / length(old).clamp(min=TINY)) * here
        unused = (eps - delta.abs().sum(dim=(1, 2, 3), keepdim=True)).clamp(min=0) / channels
        new = new / length(new).clamp(min=TINY) * (length(delta * (here | there)) + unused) * channels
        delta = torch.where(here, new, torch.where(there, 0.0, delta))
        return ops.project_l1(x0 + delta, x0, eps)
