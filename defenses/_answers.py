"""A classifier whose posteriors are changed before they are returned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws

LEAST = 1e-12  # probability below which the logarithm stops


class ChangedAnswers(Wrapped):
    """Logits log(p~), where p~ is what `change` makes of the posteriors p of a classifier.

    `forward` has a gradient of zero. `backward_model` has the same values and the gradient of the logits inside.

    Args:
        inner: the classifier.
        change: module that maps (posteriors [n, classes], images, draws) to non-negative numbers [n, classes], which
            are divided by their sum.
    """

    def __init__(self, inner: Classifier, change: nn.Module) -> None:
        super().__init__(inner)
        self.change = change

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        z = self.inner(x, draws)
        return self._answers(z, x, draws) + 0 * z

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        z = self.inner.backward_model(x, draws)
        return self._answers(z, x, draws) + (z - z.detach())

    @torch.no_grad()
    def _answers(self, z: Tensor, x: Tensor, draws: Draws) -> Tensor:
        p = self.change(z.softmax(dim=1), x, draws)
        return (p / p.sum(dim=1, keepdim=True).clamp(min=LEAST)).clamp(min=LEAST).log()


def logit(p: Tensor) -> Tensor:
    """The inverse of the sigmoid, finite at 0 and 1."""
    return torch.logit(p, eps=1e-6)


def within(p: Tensor, other: Tensor, eps: float, most: float = 1.0) -> Tensor:
    """The point on the way from posteriors p to others [n, classes] that is at most eps from p in L1.

    Args:
        most: the largest part of the way.
    """
    far = (other - p).abs().sum(dim=1, keepdim=True)
    return p + (eps / far.clamp(min=1e-12)).clamp(max=most) * (other - p)
