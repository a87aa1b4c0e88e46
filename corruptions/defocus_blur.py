"""DefocusBlur: out of focus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._filters import disk, filtered
from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class DefocusBlur(Corruption):
    """x' = D_r * G_s * x: every point becomes a disk of radius r, whose edge is smoothed by a small Gaussian.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Constants: (r, s). Above 64 pixels r is scaled; s, which smooths the edge of the disk on the pixel grid, is not.
    Nothing is random. Cost: a convolution with (2r + 3)^2 weights.

    Differs from the paper: every kernel has sum 1. At 224 pixels the published code mirrors the kernels for r = 8 and
    10 where they touch the edge of their square, which makes the image 1.3 % and 1.1 % brighter.
    """

    group: ClassVar[str] = "blur"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        (r, s), scale = constants(
            x, severity,
            ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
            ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        )  # fmt: skip
        return filtered(x, disk(r * scale, s)).clamp(0, 1)
