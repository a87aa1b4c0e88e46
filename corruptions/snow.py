"""Snow: falling flakes over a whitened image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._grey import as_channels
from ._motion import motion_blur
from ._severity import constants
from ._zoom import cropped, enlarged


@dataclass(frozen=True, kw_only=True)
class Snow(Corruption):
    """x' = clip(b x + (1 - b) max(x, 1.5 grey(x) + 0.5) + s + rot180(s)), s a layer of flakes.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    s: noise N(mean, sigma) enlarged z times, 0 below the threshold, clipped to [0, 1], with motion blur (radius, blur)
    at an angle of U(-135, -45) degrees. Constants: (mean, sigma, z, threshold, radius, blur, b); above 64 pixels z (at
    least 1), radius and blur are scaled.

    Random: the noise and the angle. Cost: 2 radius + 1 look-ups for each pixel of one channel.

    Differs from the paper: no rounding to 8 bits.
    """

    group: ClassVar[str] = "weather"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        (mean, sigma, z, threshold, radius, blur, b), scale = constants(
            x, severity,
            (
                (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
                (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
                (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
                (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
                (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
            ),
            (
                (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
        )  # fmt: skip
        size = (x.shape[2], x.shape[3])
        z = max(1.0, z * scale)
        noise = draws.normal((1, cropped(size[0], z), cropped(size[1], z)), purpose="flakes").to(x.dtype)
        s = enlarged(mean + sigma * noise, size, z)
        s = torch.where(s < threshold, 0, s).clamp(0, 1)
        s = motion_blur(s, 90 * draws.uniform(purpose="angle") - 135, radius * scale, blur * scale)
        grey = as_channels(x, 1)
        whitened = b * x + (1 - b) * torch.maximum(x, 1.5 * grey + 0.5)
        return (whitened + s + s.flip((2, 3))).clamp(0, 1)
