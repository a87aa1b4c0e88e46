"""Bit-depth reduction: round pixels to fewer levels before the network sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.types import Count, Defense


class Preprocessed(Wrapped):
    """A classifier f behind a transform T whose own gradient is useless.

    `forward` is the deployed computation f(T(x)), and its gradient is zero. `surrogate` has the same values, and passes
    the gradient that T approximates for itself (BPDA of Athalye et al., ICML 2018).

    Args:
        inner: f.
        transform: T, exact values with an approximate gradient.
    """

    def __init__(self, inner: Classifier, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner)
        self.transform = transform

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        # the zero keeps a graph: attacks of other libraries meet a gradient of zero instead of an error
        logits: Tensor = self.inner(self.transform(x.detach()) + 0 * x, draws)
        return logits

    def surrogate(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner.surrogate(self.transform(x), draws)

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(self.transform(x.detach()))


@dataclass(frozen=True, kw_only=True)
class BitDepth(Defense):
    """Round every pixel to 2^b levels: T(x) = round(x (2^b - 1)) / (2^b - 1).

    Xu, Evans, Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", NDSS 2018; studied as a
    defense by Guo et al., ICLR 2018. The gradient of a rounding is zero, which stops attacks that follow autograd, and
    none that replaces it by the identity. Nothing is random.

    Differs from the paper: used alone, as a preprocessing; the detector that compares squeezers is another entry.

    Attributes:
        bits: b; the authors use 4 or 5 for colour images.
    """

    differentiable: ClassVar[bool] = False
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "bpda", "attack": {"name": "pgd", "loss": "margin", "steps": 50}},
        {"name": "bpda", "attack": {"name": "apgd", "loss": "ce"}},
    )

    bits: Annotated[Count, Field(le=8)] = 4

    def transform(self, x: Tensor) -> Tensor:
        """Images on the grid of 2^bits levels; the gradient of the identity."""
        top = 2**self.bits - 1
        rounded = (x.detach() * top).round() / top
        return rounded + (x - x.detach())  # x - x is exactly zero

    def wrap(self, model: Classifier) -> Classifier:
        return Preprocessed(model, self.transform)
