"""Networks with hidden counterexamples, and what verifiers, certifiers and attacks say of them."""

from siegebench.soundness.planting import SETS, Planted, Planting, planted
from siegebench.soundness.trials import Contender, Row, by_attack, by_certifier, by_command, trial

__all__ = [
    "SETS",
    "Contender",
    "Planted",
    "Planting",
    "Row",
    "by_attack",
    "by_certifier",
    "by_command",
    "planted",
    "trial",
]
