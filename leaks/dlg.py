"""Deep Leakage from Gradients: find images and labels whose gradient is the released one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Count, Leak, Recovered, Shared

from ._lbfgs import lbfgs
from ._matching import best_of, distance, total_variation

Start = Literal["grey", "normal"]


@dataclass(frozen=True, kw_only=True)
class DLG(Leak):
    """min over images x and labels l of |grad_w CE(f(x), softmax(l)) - g|^2 by L-BFGS.

    Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935. The gradient of that distance needs
    second derivatives, which networks of ReLUs do not have.

    It adapts to the rule of sharing: only released entries are compared; if a rule rescales, directions are compared;
    and under noise of standard deviation s the total variation of the image is added with the weight tv s^2.

    Random: the starts, by client.

    Differs from the paper: a step of L-BFGS that does not lower the distance is halved; without that, on real signs,
    the image diverges to where the sigmoids are flat. Starts are near grey, which needs a fraction of the steps; the
    authors' x, l ~ N(0, 1) is `start: normal`. `restarts`, chosen by the distance; the adaptation; evaluations are
    counted one by one (the authors take 300 times 20). The image is clipped to the box in the end.

    Attributes:
        steps: evaluations of the distance by L-BFGS.
        start: `grey` is x = 1/2 + u / 10, l = u / 10 with u ~ N(0, 1); `normal` is x, l = u.
        restarts: starts, of which the one with the smallest distance is kept.
        tv: weight of the total variation under noise.
    """

    steps: Count = 600
    start: Start = "grey"
    restarts: Count = 2
    tv: float = 1000.0

    def run(self, shared: Shared, draws: Draws) -> Recovered:
        m, n, k = len(shared), shared.n, shared.model.num_classes
        pixels = n * math.prod(shared.shape)
        target = next(iter(shared.released.values()))
        starts = [self._start(draws.normal((pixels + n * k,), r, "start").to(target), pixels)
                  for r in range(self.restarts)]  # fmt: skip
        of = distance(shared, self.restarts, cosine=False)
        weight = self.tv * shared.sharing.noise(n) ** 2

        def parts(v: Tensor) -> tuple[Tensor, Tensor]:
            return v[:, :pixels].reshape(-1, n, *shared.shape), v[:, pixels:].reshape(-1, n, k)

        def losses(v: Tensor) -> Tensor:
            x, label = parts(v)
            far = of(x, label.softmax(dim=2))
            return far + weight * total_variation(x) if weight else far

        found, loss = lbfgs(losses, torch.cat(starts), self.steps)
        x, label = parts(best_of(self.restarts, found, loss))
        kind = shared.model.kind
        return Recovered(x.clamp(kind.low, kind.high).reshape(m, n, *shared.shape), label.softmax(dim=2))

    def _start(self, u: Tensor, pixels: int) -> Tensor:
        """Images and logits of the labels to start from, of normal numbers [m, pixels + rest]."""
        if self.start == "normal":
            return u
        u = u / 10
        u[:, :pixels] += 0.5
        return u
