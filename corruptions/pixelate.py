"""Pixelate: downsampled and enlarged again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._filters import along, box_matrix
from ._severity import constants


@dataclass(frozen=True, kw_only=True)
class Pixelate(Corruption):
    """Shrink each side to a fraction c by box means, and enlarge again by repeating pixels.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    x' = (U_H D_H) x (U_W D_W)^T, D and U the matrices of Pillow's box filter from n to floor(c n) pixels and back.
    c is not scaled with the image size. Nothing is random. Cost: two matrix products.

    Differs from the paper: no rounding to 8 bits between the steps.
    """

    group: ClassVar[str] = "digital"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        c, _ = constants(x, severity, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65))
        rows, columns = (box_matrix(m, n) @ box_matrix(n, m) for n in x.shape[2:] for m in (max(1, int(n * c)),))
        return along(x, rows, columns).clamp(0, 1)
