"""Bit-depth reduction: round pixels to fewer levels before the network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.types import Count, Defense

from ._wrapped import Transformed


@dataclass(frozen=True, kw_only=True)
class BitDepth(Defense):
    """Round every pixel to 2^b levels: T(x) = round(x (2^b - 1)) / (2^b - 1).

    Xu, Evans, Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", NDSS 2018; studied as a
    defense by Guo et al., ICLR 2018. The gradient of rounding is zero. This stops attacks that use the gradient from
    autograd, but not attacks that replace it by the gradient of the identity.

    Random: nothing.

    Differs from the paper: used alone, as preprocessing; the detector that compares squeezers is another entry.

    Attributes:
        bits: b; the authors use 4 or 5 for colour images.
    """

    differentiable: ClassVar[bool] = False
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "bpda", "attack": {"name": "pgd", "loss": "margin", "steps": 100}},
        {"name": "bpda", "attack": {"name": "apgd", "loss": "ce"}},
    )

    bits: Annotated[Count, Field(le=8)] = 4

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        """Images [n, C, H, W] rounded to 2^bits levels; `draws` is not used."""
        top = 2**self.bits - 1
        return (x * top).round() / top

    def wrap(self, model: Classifier) -> Classifier:
        return Transformed(model, self.transform)
