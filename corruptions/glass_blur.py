"""GlassBlur: as seen through frosted glass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._filters import gaussian_blur
from ._scatter import scattered
from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class GlassBlur(Corruption):
    """Gaussian blur, pixels scattered within a distance of d, Gaussian blur.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    A round visits the pixels one after the other from the lower right to the upper left. Each gets the value of the
    pixel at an offset drawn from {-d .. d-1} x {-d .. d-1}. Constants: (sigma, d, rounds). For images above 64 pixels
    sigma and d are scaled, d to a whole number of at least 1.

    Random: the offsets. Cost: 2 d H + W small steps per round for a whole batch (see `_scatter`).

    Differs from the paper: no rounding to 8 bits after the first blur. The published code is written as a swap of two
    pixels, but it copies (both sides of the assignment are views of one array), and so do the published images.
    `swap: true` swaps.

    Attributes:
        swap: exchange the two pixels, so that no value is lost, instead of copying.
    """

    group: ClassVar[str] = "blur"

    swap: bool = False

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        (sigma, d, rounds), scale = constants(
            x, severity,
            ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
            ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        )  # fmt: skip
        n, c, height, width = x.shape
        source = scattered((height, width), max(1, round(d * scale)), rounds, self.swap, draws)
        shuffled = gaussian_blur(x, sigma * scale).flatten(2).gather(2, source[:, None].expand(-1, c, -1))
        return gaussian_blur(shuffled.view(n, c, height, width), sigma * scale).clamp(0, 1)
