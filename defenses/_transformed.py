"""A classifier behind a transform of its input: with the transform's own gradient, or with none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws

Transform = Callable[[Tensor, Draws], Tensor]


class Transformed(Wrapped):
    """f(T(x)).

    `forward` has T's own gradient if `smooth`, else a gradient of zero. `backward_model` has the same values, and its
    backward pass treats T as the identity (BPDA of Athalye et al., ICML 2018).

    Args:
        inner: f.
        transform: T, from images [n, C, H, W] and draws to images of the same shape. If it is a module, its weights are
            part of the state of the classifier.
        smooth: whether the gradient of T is useful.
    """

    def __init__(self, inner: Classifier, transform: Transform, *, smooth: bool) -> None:
        super().__init__(inner)
        self.transform, self.smooth = transform, smooth

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        # `0 * x` keeps the graph: attacks of other libraries get a zero gradient instead of an error
        seen = self.transform(x, draws) if self.smooth else self._values(x, draws) + 0 * x
        logits: Tensor = self.inner(seen, draws)
        return logits

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        return self.inner.backward_model(self._values(x, draws) + (x - x.detach()), draws)

    def features(self, x: Tensor) -> Tensor:
        draws = Draws.fresh(len(x), x.device)
        return self.inner.features(self.transform(x, draws) if self.smooth else self._values(x, draws))

    def _values(self, x: Tensor, draws: Draws) -> Tensor:
        with torch.no_grad():
            return self.transform(x, draws)
