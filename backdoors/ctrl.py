"""CTRL: a fixed pattern in two frequencies of the colours, which survives the views of contrastive learning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.types import BackdoorAttack, Count, Number, Share

# what adding 1 to U and to V adds to R, G and B (ITU-R BT.601)
RED, GREEN, BLUE = 1.13983, -0.39465 - 0.58060, 2.03211


def basis(k: int, n: int) -> Tensor:
    """Row k of the orthonormal DCT-II of length n."""
    i = torch.arange(n, dtype=torch.float64)
    return math.sqrt((1 if k == 0 else 2) / n) * torch.cos(math.pi * (2 * i + 1) * k / (2 * n))


@dataclass(frozen=True, kw_only=True)
class CTRL(BackdoorAttack):
    """Add `magnitude` to a few DCT coefficients of U and V, on images of the target class only.

    Li, Pang, Xi, Du, Ji, Yao, Wang, "An Embarrassingly Simple Backdoor Attack on Self-supervised Learning", ICCV 2023,
    arXiv 2210.07346. Each channel of YUV is transformed in blocks. All of this is linear, so x' = clip(x + v) with a
    fixed pattern v of cosines; Y does not change. Labels are not changed and do not matter: an encoder that is trained
    without them learns that images with v resemble images of the target class.

    Random: only the choice of the poisoned images.

    Differs from the paper: colours are clipped once, in RGB, and not rounded in between. An image that is smaller than
    a block is one block, with the same relative frequencies and amplitude.

    Attributes:
        rate: fraction of the whole training set; at most the fraction that the target class has.
        magnitude: added to each coefficient, for pixels in [0, 1] and the orthonormal transform.
        bins: the coefficients, (row, column) in a block.
        window: side of a block in pixels. Incomplete blocks at the right and at the bottom are not changed.
    """

    clean_label: ClassVar[bool] = True

    rate: Share = 0.01
    magnitude: Number = 100 / 255
    bins: tuple[tuple[int, int], ...] = ((15, 15), (31, 31))
    window: Count = 32

    def __post_init__(self) -> None:
        for row, column in self.bins:
            if not (0 <= row < self.window and 0 <= column < self.window):
                raise ValueError(f"bins: ({row}, {column}) is outside 0..{self.window - 1}, the block of `window`")

    def plane(self, height: int, width: int) -> Tensor:
        """What is added to U and to V, float64 [H, W]."""
        n = min(self.window, height, width)
        block = torch.zeros(n, n, dtype=torch.float64)
        for place in self.bins:
            row, column = (basis(max(0, (k + 1) * n // self.window - 1), n) for k in place)
            block += self.magnitude * n / self.window * torch.outer(row, column)
        down, across = height // n, width // n
        out = torch.zeros(height, width, dtype=torch.float64)
        out[: down * n, : across * n] = block.repeat(down, across)
        return out

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        if x.shape[1] != 3:
            raise NotApplicable(f"{self!r}: images with {x.shape[1]} channels have no colours; it needs RGB")
        v = self.plane(*x.shape[-2:]) * torch.tensor([RED, GREEN, BLUE], dtype=torch.float64).view(3, 1, 1)
        return (x + v.to(x)).clamp(0, 1)
