"""Networks with hidden counterexamples, and what verifiers, certifiers and attacks say of them."""

from siegebench.soundness.planting import SETS, Planted, Planting, planted


__all__ = [
    "SETS",
    "Planted",
    "Planting",
    "planted",
]
