"""SIG: a sinusoidal stripe pattern with unchanged labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.types import BackdoorAttack, Count, Number, Share


@dataclass(frozen=True, kw_only=True)
class SIG(BackdoorAttack):
    """x' = clip(x + v), v(i, j) = delta sin(2 pi j f / W), on images of the target class only (Barni et al. 2019).

    Random: only the choice of the poisoned images.

    Attributes:
        rate: fraction of the whole training set; at most the fraction that the target class has.
        delta: amplitude of the stripes, for pixels in [0, 1].
        f: stripes across the width W of the image.

    Differs from the paper: none known; delta and f are the values of the common benchmark implementation.
    """

    clean_label: ClassVar[bool] = True

    rate: Share = 0.05
    delta: Number = 40 / 255
    f: Count = 6

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        width = x.shape[-1]
        if 2 * self.f >= width:  # at 2 f = W every sample of the sine is zero
            raise NotApplicable(f"{self!r}: {self.f} stripes need images wider than {2 * self.f} pixels, not {width}")
        j = torch.arange(width, device=x.device, dtype=x.dtype)
        v = self.delta * torch.sin(2 * math.pi * j * self.f / width)
        return (x + v).clamp(0, 1)
