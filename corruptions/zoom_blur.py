"""ZoomBlur: blur from a camera movement towards the object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._severity import constants
from ._zoom import zoomed


@dataclass(frozen=True, kw_only=True)
class ZoomBlur(Corruption):
    """x' = (x + sum_k Z_k x) / (K + 1), Z_k the zoom into the centre by z_k = 1, 1 + s, ..., 1 + (K - 1) s.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Constants: (K, s); zooms are relative to the image and are not scaled. Nothing is random. Cost: K resizings.

    Differs from the paper: the clean image counts twice, as in the published code (z_0 = 1) but not in the paper's
    text.
    """

    group: ClassVar[str] = "blur"

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        (K, s), _ = constants(
            x, severity,
            ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)),
            ((7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)),
        )  # fmt: skip
        out = 2 * x
        step = (1 + s) - 1  # as in numpy's arange: its last bit decides how sizes at exactly one half are rounded
        for k in range(1, K):
            out += zoomed(x, 1 + k * step)
        return (out / (K + 1)).clamp(0, 1)
