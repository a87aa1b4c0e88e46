"""Reverse sigmoid: misleading scores with the same top-1 class for most images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.types import Defense, Positive

from ._answers import ChangedAnswers, logit


class Reversed(nn.Module):
    """y - beta (sigmoid(gamma logit(y)) - 1/2), zero where that is negative."""

    def __init__(self, beta: float, gamma: float) -> None:
        super().__init__()
        self.beta, self.gamma = beta, gamma

    def forward(self, p: Tensor, x: Tensor, draws: Draws) -> Tensor:
        return (p - self.beta * (torch.sigmoid(self.gamma * logit(p)) - 0.5)).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class ReverseSigmoid(Defense):
    """Answer with y - beta (sigmoid(gamma logit(y)) - 1/2), normalised.

    Lee, Edwards, Molloy, Su, "Defending Against Neural Network Model Stealing Attacks Using Deceptive Perturbations",
    IEEE Security and Privacy Workshops 2019, arXiv 1806.00054. Large and small probabilities move towards each other,
    so that a score no longer says how sure the network is. Nothing is random.

    Differs from the paper: negative values become 0 before the answer is normalised. The defaults are the usual ones of
    later work; beta = gamma = 1 changes nearly all decisions.

    Attributes:
        beta: size of the change.
        gamma: slope of the sigmoid.
    """

    differentiable: ClassVar[bool] = False
    tracks: ClassVar[tuple[str, ...]] = ("extraction",)

    beta: Positive = 0.7
    gamma: Positive = 0.2

    def wrap(self, model: Classifier) -> Classifier:
        return ChangedAnswers(model, Reversed(self.beta, self.gamma))
