"""Noise: Gaussian or Laplacian noise on the mean gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from siegebench.draws import Draws
from siegebench.per_image import Gradients
from siegebench.types import Positive, Sharing


@dataclass(frozen=True, kw_only=True)
class Noise(Sharing):
    """Release g + sigma * u, where g is the mean gradient and u has variance 1 in each entry.

    Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935, section 5.1. Without clipping this
    is not differential privacy: the gradient of an image can be arbitrarily long.

    Random: the noise, by client.

    Differs from the paper: nothing known; sigma is the standard deviation of both distributions.

    Attributes:
        sigma: standard deviation.
        law: gaussian or laplacian.
    """

    randomized: ClassVar[bool] = True

    sigma: Positive = 0.01
    law: Literal["gaussian", "laplacian"] = "gaussian"

    def release(self, per_image: Gradients, draws: Draws) -> Gradients:
        out = {}
        for name, g in per_image.items():
            shape = tuple(g.shape[2:])
            if self.law == "gaussian":
                u = draws.normal(shape, purpose=name)
            else:  # of variance 1: scale 1 / sqrt(2)
                v = draws.uniform(shape, purpose=name) - 0.5
                u = -v.sign() * torch.log1p(-2 * v.abs().clamp(max=0.5 - 2.0**-26)) / 2**0.5
            out[name] = g.mean(dim=1) + self.sigma * u.to(g)
        return out

    def noise(self, n: int) -> float:
        return self.sigma
