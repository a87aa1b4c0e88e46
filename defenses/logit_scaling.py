"""Logit scaling: a planted fake defense that every sound evaluation must detect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from siegebench.classifier import Classifier
from siegebench.types import Defense, Positive

from ._wrapped import Scaled


@dataclass(frozen=True, kw_only=True)
class LogitScaling(Defense):
    """Multiply the logits by a large constant: same predictions, but no gradient left in the cross-entropy.

    A positive control, never a contribution. In float32 the softmax of the scaled logits is exactly one-hot, so the
    gradient of the cross-entropy is zero, and attacks that maximise it do not move (Carlini & Wagner, "Towards
    Evaluating the Robustness of Neural Networks", S&P 2017, explain distillation by the same effect). The gradient of
    every difference of logits keeps its direction.

    Random: nothing.

    Attributes:
        factor: the constant.
    """

    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 50},
        {"name": "apgd", "loss": "targeted_dlr"},
    )

    factor: Positive = 100.0

    def wrap(self, model: Classifier) -> Classifier:
        return Scaled(model, self.factor)
