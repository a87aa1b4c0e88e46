"""Control: the victim itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from siegebench.classifier import Classifier, copied
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Access
from siegebench.types import Attacker, Theft


@dataclass(frozen=True, kw_only=True)
class SelfCopy(Theft):
    """Return a copy of the victim, which no thief can reach: the largest agreement that the measurement can show.

    It agrees with a deterministic victim on every image, and with a randomised one as often as two runs of the victim
    agree. Nothing is random.
    """

    needs: ClassVar[Access] = "none"
    trains: ClassVar[bool] = False

    def run(self, oracle: Oracle, attacker: Attacker, draws: Draws) -> Classifier:
        return copied(oracle.model).eval()
