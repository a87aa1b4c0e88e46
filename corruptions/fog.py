"""Fog: blends the image with a plasma fractal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._plasma import plasma
from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class Fog(Corruption):
    """x' = clip((x + c f) m / (m + c)), f a plasma fractal in [0, 1], m the largest value of the image.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Constants: (c, decay), the decay from one octave of the fractal to the next (see `_plasma`). The map covers the next
    power of two above the larger side, as published (256 for 224 pixels, 32 for 32), so nothing else is scaled.
    Random: the fractal. Cost: about five passes over the map.

    Differs from the paper: values are not truncated to 8 bits, which darkens by half a grey level on average.
    """

    group: ClassVar[str] = "weather"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        (c, decay), _ = constants(
            x, severity,
            ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
            ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
        )  # fmt: skip
        f = plasma((x.shape[2], x.shape[3]), decay, draws, "fog").to(x.dtype)[:, None]
        m = x.amax(dim=(1, 2, 3), keepdim=True)
        return ((x + c * f) * m / (m + c)).clamp(0, 1)
