"""Scores of a single input from the logits alone: max softmax, entropy, DeepGini, energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types import InputDetector, Positive, Scorer


@dataclass(frozen=True, kw_only=True)
class SoftmaxScore(InputDetector):
    """How uncertain the prediction p = softmax(z / T) is; uncertain inputs are suspicious.

    `max`: -max p (Hendrycks & Gimpel, ICLR 2017, arXiv 1610.02136). `entropy`: -sum p log p. `gini`: 1 - sum p^2, the
    DeepGini of Feng et al. (ISSTA 2020, arXiv 1903.00661). `energy`: -T log sum exp(z / T) (Liu et al., NeurIPS 2020,
    arXiv 2010.03759), the only one of them that sees a shift of all logits.

    Random: only the model. Cost: one forward pass per image.

    Attributes:
        of: which score.
        temperature: T.

    Differs from the paper: no threshold is chosen and no temperature tuned; the energy is not trained with outliers.
    """

    of: Literal["max", "entropy", "gini", "energy"] = "max"
    temperature: Positive = 1.0

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        def score(x: Tensor, draws: Draws) -> Tensor:
            return self.of_logits(model(x, draws if model.randomized else None))

        def backward_model(x: Tensor, draws: Draws) -> Tensor:
            return self.of_logits(model.backward_model(x, draws if model.randomized else None))

        return Scorer(score, backward_model)

    def of_logits(self, z: Tensor) -> Tensor:
        """Scores [n] of logits [n, classes]."""
        log_p = (z / self.temperature).log_softmax(dim=1)
        if self.of == "energy":
            return -self.temperature * (z / self.temperature).logsumexp(dim=1)
        if self.of == "entropy":
            return -(log_p.exp() * log_p).sum(dim=1)
        if self.of == "gini":
            return 1 - log_p.exp().square().sum(dim=1)
        return -log_p.amax(dim=1).exp()
