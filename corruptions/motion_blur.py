"""MotionBlur: blur from a fast camera movement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._motion import motion_blur
from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class MotionBlur(Corruption):
    """Weighted mean along a line at an angle of U(-45, 45) degrees, with half of a Gaussian as weights.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Constants: (radius, sigma) of ImageMagick's motion blur, see `_motion`; both are scaled above 64 pixels.
    Random: the angle, one for each image. Cost: one look-up for each pixel and each of 2 radius + 1 points of the line.

    Differs from the paper: no rounding to 8 bits; weights beyond 7 sigma are left out.
    """

    group: ClassVar[str] = "blur"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        (radius, sigma), scale = constants(
            x, severity,
            ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
            ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
        )  # fmt: skip
        angle = 90 * draws.uniform(purpose="angle") - 45
        return motion_blur(x, angle, radius * scale, sigma * scale).clamp(0, 1)
