"""GuardedOracle: a model behind an input detector, for attacks that know the detector."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types.detectors import Score, Scorer


class GuardedOracle(Oracle):
    """An oracle that also gives the scores of a detector and their gradients.

    Scores count as forward passes of their samples, their gradients as backward passes.

    Attributes:
        spread: standard deviation of the scores of clean held-out images, a unit for scores.
        smooth: whether the scores have a gradient.
    """

    def __init__(self, model: Classifier, threat: ThreatModel, draws: Draws, detector: Score, spread: float) -> None:
        super().__init__(model, threat, draws)
        self.detector, self.spread = detector, spread
        self.smooth = isinstance(detector, Scorer)

    def scores(self, x: Tensor) -> Tensor:
        """Scores of the detector, [n], without gradient; larger is more suspicious."""
        self._check_access()
        with torch.no_grad():
            found = self.detector(x, self._pass_draws())
        self._count(backwards=False)
        return found.to(x.dtype)

    def score_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(gradient of the scores for the images, scores [n]); zeros where the detector has no gradient.

        The gradient may be that of the detector's backward model. The scores are always those that it is deployed with.
        """
        self._check_access()
        if not isinstance(self.detector, Scorer):
            return torch.zeros_like(x), self.scores(x)
        leaf, draws = x.detach().requires_grad_(True), self._pass_draws()
        with torch.enable_grad():
            found = self.detector.differentiable(leaf, draws)
            g = self._backwards(found[:, None], leaf)
        g = self._seen(g, self.rows)[:, 0]
        self._count(backwards=True)
        if self.detector.backward_model is not None:
            found = self.detector(x, draws)
            self._count(backwards=False)
        return g, found.detach().to(x.dtype)

    def _check_access(self) -> None:
        if self.threat.access != "gradient":
            raise ContractError(f"the threat model grants {self.threat.access} access; this attack asked the detector")

    def _count(self, backwards: bool) -> None:
        one = torch.ones_like(self.rows)
        self.ledger.forwards.index_add_(0, self.rows, one)
        if backwards:
            self.ledger.backwards.index_add_(0, self.rows, one)
