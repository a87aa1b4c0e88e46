"""Statistics of scores and rates, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

Vector = np.ndarray[Any, Any]


def auroc(*, positive: Vector, negative: Vector) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative; ties count half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.sum() / (2 * len(negative) * len(positive)))


def oscr(*, unknown: Vector, known: Vector, right: Vector) -> float:
    """Open-set classification rate (Dhamija, Guenther, Boult, NeurIPS 2018), as the area under its curve.

    The curve is the fraction of the known images that are correctly classified and score below a threshold, over the
    fraction of the unknown ones that score below it. Its area is the accuracy times the AUROC of the unknown images
    against the correctly classified ones.

    Args:
        unknown, known: scores; higher means more suspicious.
        right: which of the known images are correctly classified.
    """
    return float(right.mean()) * auroc(positive=unknown, negative=known[right]) if right.any() else 0.0


def auroc_interval(*, positive: Vector, negative: Vector) -> tuple[float, float]:
    """95 % interval of the AUROC from its variance over positives and negatives (DeLong et al., Biometrics 1988).

    At an AUROC of 0 or 1 that variance is 0; then the Wilson interval of as many trials as the smaller of the groups.
    """
    value, z = auroc(positive=positive, negative=negative), 1.959963984540054
    if value in (0.0, 1.0):
        far = z * z / (z * z + min(len(positive), len(negative)))
        return (0.0, far) if value == 0 else (1 - far, 1.0)
    up, down = np.sort(positive), np.sort(negative)
    of_positives = (np.searchsorted(down, up, "left") + np.searchsorted(down, up, "right")) / (2 * len(down))
    of_negatives = 1 - (np.searchsorted(up, down, "left") + np.searchsorted(up, down, "right")) / (2 * len(up))
    spread = [float(v.var(ddof=1)) / len(v) if len(v) > 1 else 0.25 for v in (of_positives, of_negatives)]
    half = z * float(np.sqrt(sum(spread)))
    return max(0.0, value - half), min(1.0, value + half)


def fidelity(asr_bd: float, asr: float, ca_bd: float, ca: float) -> float:
    """Signed fidelity in [-1, 1]: fraction of the ASR removed times fraction of the clean accuracy kept."""
    gone = min(1.0, max(-1.0, (asr_bd - asr) / asr_bd)) if asr_bd > 0 else 0.0
    return gone * min(1.0, max(0.0, ca / ca_bd)) if ca_bd > 0 else 0.0


def der(asr_bd: float, asr: float, ca_bd: float, ca: float) -> float:
    """Defense effectiveness rating, for comparison only: a model at chance level scores above 0.5."""
    return (max(0.0, asr_bd - asr) - max(0.0, ca_bd - ca) + 1) / 2
