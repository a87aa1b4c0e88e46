"""DP-SGD as a rule of release: clip the gradient of each image, sum, add noise, divide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from siegebench.accountant import epsilon_of
from siegebench.draws import Draws
from siegebench.per_image import Gradients, clipped
from siegebench.types import Positive, Sharing


@dataclass(frozen=True, kw_only=True)
class DP(Sharing):
    """Release (sum_i g_i min(1, C / |g_i|) + z C u) / n with u ~ N(0, 1): one step of DP-SGD.

    Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, "Deep Learning with Differential Privacy", CCS 2016,
    arXiv 1607.00133. The client adds the noise itself, so that no server has to be trusted. Adding or removing one
    image changes the sum by at most C.

    Random: the noise, by client.

    Differs from the paper: the number of images is that of the board, not drawn; `epsilon` is that of a training whose
    batches are drawn (Poisson sampling).

    Attributes:
        norm: C.
        multiplier: z.
    """

    randomized: ClassVar[bool] = True
    rescales: ClassVar[bool] = True

    norm: Positive = 1.0
    multiplier: Positive = 0.5

    def release(self, per_image: Gradients, draws: Draws) -> Gradients:
        out = {}
        for name, g in clipped(per_image, self.norm).items():
            u = draws.normal(tuple(g.shape[2:]), purpose=name).to(g)
            out[name] = (g.sum(dim=1) + self.multiplier * self.norm * u) / g.shape[1]
        return out

    def noise(self, n: int) -> float:
        return self.multiplier * self.norm / n

    def epsilon(self, rate: float, steps: int, delta: float) -> float:
        return epsilon_of(self.multiplier, rate, steps, delta)
