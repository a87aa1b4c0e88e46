"""ElasticTransform: small regions stretched and contracted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._filters import gaussian_blur
from ._severity import constants
from ._warp import affine_through, sampled

LARGE = [
    [244 * fraction for fraction in row]  # 244 for images of 224 pixels, as published
    for row in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
]
SMALL = [
    [32 * fraction for fraction in row]
    for row in ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
]


@dataclass(frozen=True, kw_only=True)
class ElasticTransform(Corruption):
    """A random affine map, then a displacement of each pixel by a smooth random field; bilinear, borders mirrored.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
    after Simard, Steinkraus, Platt, "Best practices for convolutional neural networks", ICDAR 2003. The affine map
    moves three corners of a square around the centre, of side 2/3, by U(-j, j) pixels in x and y. Fields: alpha G_sigma
    * U(-1, 1), the Gaussian truncated at 3 sigma. Constants: (alpha, sigma, j), in pixels; scaled above 64 pixels.

    Random: the corners and the fields. Cost: two resamplings, and two matrix products for each field.

    As published, the severities differ in kind: the lower ones move large regions, the higher ones distort locally. The
    mean distance from the clean image falls from severity 2 to 3; at 32 pixels, from each severity to the next.

    Differs from the paper: positions are exact; OpenCV rounds those of the affine map to 1/32 pixel.
    """

    group: ClassVar[str] = "digital"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        pixels, scale = constants(x, severity, LARGE, SMALL)
        alpha, sigma, j = (length * scale for length in pixels)
        height, width = x.shape[2:]
        moved = j * (2 * draws.uniform((3, 2), purpose="corners").double() - 1)
        rows, columns = affine_through(moved, height, width)
        x = sampled(x, rows, columns, "mirror")
        if alpha:
            u = 2 * draws.uniform((2, height, width), purpose="field").double() - 1
            down, right = (alpha * gaussian_blur(u, sigma, truncate=3.0, border="reflect")).unbind(dim=1)
            rows = torch.arange(height, device=x.device)[:, None] + down
            x = sampled(x, rows, torch.arange(width, device=x.device) + right, "reflect")
        return x.clamp(0, 1)
