"""No defense: the model as it is."""

from __future__ import annotations

from dataclasses import dataclass

from siegebench.classifier import Classifier
from siegebench.types import Defense


@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """The model without a defense: the reference that every defense is compared with. Nothing is random."""

    def ranked_in(self, track: str) -> bool:
        return True

    def wrap(self, model: Classifier) -> Classifier:
        return model
