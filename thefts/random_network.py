"""Control: an untrained network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Access
from siegebench.types import Attacker, Theft


@dataclass(frozen=True, kw_only=True)
class RandomNetwork(Theft):
    """Without queries and without training: the copy's network with random weights.

    Random: the weights.
    """

    needs: ClassVar[Access] = "none"
    trains: ClassVar[bool] = False

    def run(self, oracle: Oracle, attacker: Attacker, draws: Draws) -> Classifier:
        return attacker.blank(draws.seed).eval()
