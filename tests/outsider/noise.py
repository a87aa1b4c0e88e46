from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.types import Defense, Positive


class Noisy(Wrapped):
    def __init__(self, inner: Classifier, sigma: float) -> None:
        super().__init__(inner)
        self.sigma, self.randomized = sigma, True

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws if draws is not None else Draws.fresh(len(x), x.device)
        return self.inner(x + self.sigma * draws.normal(tuple(x.shape[1:]), 0, "noise").to(x.dtype))


@dataclass(frozen=True, kw_only=True)
class Noise(Defense):
    """Gaussian noise on every look."""

    randomized: ClassVar[bool] = True

    sigma: Positive = 0.1

    def wrap(self, model: Classifier) -> Classifier:
        return Noisy(model, self.sigma)
