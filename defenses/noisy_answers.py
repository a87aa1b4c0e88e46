"""Noisy answers: random noise on the posterior, anew for each query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.types import Defense, Positive

from ._answers import ChangedAnswers, logit, within


class Noise(nn.Module):
    """Posteriors with Gaussian noise in the space of their logits, class by class."""

    def __init__(self, sigma: float, eps: float) -> None:
        super().__init__()
        self.sigma, self.eps = sigma, eps

    def forward(self, p: Tensor, x: Tensor, draws: Draws) -> Tensor:
        v = draws.normal((p.shape[1],), purpose="answers").to(p.device, p.dtype)
        noisy = torch.sigmoid(logit(p) + self.sigma * v)
        return within(p, noisy / noisy.sum(dim=1, keepdim=True), self.eps)


@dataclass(frozen=True, kw_only=True)
class NoisyAnswers(Defense):
    """Answer with y~ = sigmoid(logit(y) + sigma v), v ~ N(0, I), normalised, and at most eps from y in L1.

    The baseline with which prediction poisoning is compared in Orekondy, Schiele, Fritz, "Prediction Poisoning",
    ICLR 2020, arXiv 1906.10908. A thief that asks an image several times averages the noise away.

    Random: v, anew in every pass.

    Differs from the paper: the noise is Gaussian. An answer further than eps away is moved back on the straight line to
    y.

    Attributes:
        sigma: standard deviation of the noise on each logit.
        eps: largest L1 distance of an answer from the posterior, at most 2.
    """

    randomized: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    tracks: ClassVar[tuple[str, ...]] = ("extraction",)

    sigma: Positive = 2.0
    eps: Positive = 0.5

    def wrap(self, model: Classifier) -> Classifier:
        return ChangedAnswers(model, Noise(self.sigma, self.eps))
