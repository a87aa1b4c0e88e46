"""Wrapped classifiers that several defenses share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws

Transform = Callable[[Tensor, Draws], Tensor]


class Transformed(Wrapped):
    """A classifier f behind a transform T of its input: f(T(x)).

    `forward` has T's own gradient if `smooth`, else a gradient of zero. `backward_model` has the same values. Its
    backward pass treats T as the identity (BPDA of Athalye et al., ICML 2018), or with `approximate` uses the gradient
    that T itself defines in place of a useless one.

    Args:
        inner: f.
        transform: T, from images [n, C, H, W] and draws to images of the same shape. If it is a module, its weights are
            part of the state of the classifier.
        smooth: whether T's own gradient is that of its values, and useful.
        approximate: whether T's own gradient is an approximation made for the backward model.
    """

    def __init__(
        self, inner: Classifier, transform: Transform, *, smooth: bool = False, approximate: bool = False
    ) -> None:
        super().__init__(inner)
        self.transform, self.smooth, self.approximate = transform, smooth, approximate

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        # `0 * x` keeps the graph: attacks of other libraries get a zero gradient instead of an error
        seen = self.transform(x, draws) if self.smooth else self._values(x, draws) + 0 * x
        logits: Tensor = self.inner(seen, draws)
        return logits

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        # x - x is exactly zero
        seen = self.transform(x, draws) if self.approximate else self._values(x, draws) + (x - x.detach())
        return self.inner.backward_model(seen, draws)

    def features(self, x: Tensor) -> Tensor:
        draws = Draws.fresh(len(x), x.device)
        return self.inner.features(self.transform(x, draws) if self.smooth else self._values(x, draws))

    def _values(self, x: Tensor, draws: Draws) -> Tensor:
        with torch.no_grad():
            return self.transform(x, draws)


class Scaled(Wrapped):
    """Logits times a constant."""

    def __init__(self, inner: Classifier, factor: float) -> None:
        super().__init__(inner)
        self.factor = factor

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.factor * self.inner(x, draws)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.factor * self.inner.backward_model(x, draws)


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

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        return self.inner.backward_model(self._noisy(x, draws), draws)
