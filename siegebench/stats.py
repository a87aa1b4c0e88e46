"""Statistics of scores, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

Vector = np.ndarray[Any, Any]


def auroc(*, positive: Vector, negative: Vector) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative; ties count half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.sum() / (2 * len(negative) * len(positive)))
