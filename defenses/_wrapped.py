"""Wrapped classifiers that several defenses share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws


class Preprocessed(Wrapped):
    """A classifier f preceded by a transform T whose own gradient is useless.

    `forward` is the deployed computation f(T(x)); its gradient is zero. `surrogate` has the same values, and its
    backward pass uses the approximate gradient that T defines (BPDA of Athalye et al., ICML 2018).

    Args:
        inner: f.
        transform: T, exact values with an approximate gradient.
    """

    def __init__(self, inner: Classifier, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner)
        self.transform = transform

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        # `0 * x` keeps the graph: attacks of other libraries get a zero gradient instead of an error
        logits: Tensor = self.inner(self.transform(x.detach()) + 0 * x, draws)
        return logits

    def surrogate(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner.surrogate(self.transform(x), draws)

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(self.transform(x.detach()))


class Scaled(Wrapped):
    """Logits times a constant."""

    def __init__(self, inner: Classifier, factor: float) -> None:
        super().__init__(inner)
        self.factor = factor

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.factor * self.inner(x, draws)

    def surrogate(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.factor * self.inner.surrogate(x, draws)


class NoisyInput(Wrapped):
    """f(x + nu v), v ~ N(0, I) drawn anew for every image and forward pass, in eval mode too."""

    def __init__(self, inner: Classifier, nu: float) -> None:
        super().__init__(inner)
        self.nu, self.randomized = nu, True

    def _noisy(self, x: Tensor, draws: Draws) -> Tensor:
        return x + self.nu * draws.normal(tuple(x.shape[1:]), purpose="input noise").to(x.dtype)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        logits: Tensor = self.inner(self._noisy(x, draws), draws)
        return logits

    def surrogate(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        return self.inner.surrogate(self._noisy(x, draws), draws)
