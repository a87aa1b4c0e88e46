"""Calibration: whether confidences are probabilities, on clean, corrupted and attacked images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.stats import auroc
from siegebench.threat import ThreatModel
from siegebench.types import Attack, Corruption, Count, Measure

Vector = np.ndarray[Any, Any]
RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Calibration(Measure):
    """NLL, Brier score and calibration errors of the softmax, on all images, those misclassified included.

    ECE = sum_b (n_b / n) |accuracy_b - confidence_b| over bins of equal width of the largest probability (Guo, Pleiss,
    Sun, Weinberger, ICML 2017, arXiv 1706.04599); `adaptive_ece` over bins of equal size; `classwise_ece` the mean over
    the classes of the same for the probability of each class. Brier: mean |p - onehot|^2. `overconfidence`: mean
    confidence minus accuracy. `confidence_auroc`: how well the confidence separates right from wrong answers. ECE is
    biased upwards on few images: `ece_floor` is its mean when labels are drawn from p itself, so that only what lies
    above it is miscalibration; `ece_low` and `ece_high` are a 95 % bootstrap interval.

    Random: what the model and the attack draw; the resampled labels and the bootstrap have a fixed seed.

    Cost: one forward pass per image and condition, and the attack.

    Attributes:
        bins: number of bins.
        corruption: also measure on images of this corruption; names end in `_corrupted`.
        severity: of the corruption.
        attack: also measure on images of this attack; names end in `_attacked`.

    Differs from the paper: nothing is fitted; the floor is ours.
    """

    every: ClassVar[bool] = True

    bins: Count = 15
    corruption: Corruption | None = None
    severity: Count = 3
    attack: Attack | None = None

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        metrics = self._of(oracle, x, y, "clean")
        if self.corruption is not None:
            metrics |= self._of(oracle, self.corruption(x, self.severity, draws.child("corrupted")), y, "corrupted")
        if self.attack is not None:
            if self.attack.learning() or self.attack.exploring():
                raise NotApplicable("attacks that learn or explore first cannot run inside a measure; give another")
            right = (oracle.logits(x).argmax(dim=1) == y).nonzero().squeeze(1)
            moved = x.clone()
            if len(right):
                inner = draws[right].child("attacked")
                found = self.attack(oracle[right], x[right], y[right], threat, inner)
                inside = threat.size(found, x[right]) <= threat.limit  # minimum-norm attacks may end outside
                moved[right] = torch.where(ops.over(inside, found), found, x[right])
            metrics |= self._of(oracle, moved, y, "attacked")
        return {"metrics": metrics, "flags": []}

    def _of(self, oracle: Oracle, x: Tensor, y: Tensor, condition: str) -> dict[str, float]:
        p = oracle.logits(x).double().softmax(dim=1).cpu().numpy()
        return {f"{name}_{condition}": v for name, v in figures(p, y.cpu().numpy(), self.bins).items()}


def figures(p: Vector, y: Vector, bins: int) -> dict[str, float]:
    """All figures of probabilities [n, classes] and labels [n]."""
    n, classes = p.shape
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    onehot = np.eye(classes)[y]
    rng = np.random.default_rng(0)
    picked = rng.integers(n, size=(RESAMPLES, n))
    low, high = np.percentile([ece(confidence[i], right[i], bins) for i in picked], [2.5, 97.5])
    honest = rng.random((RESAMPLES, n)) < confidence  # whether the answer is right if the label is drawn from p
    value = ece(confidence, right, bins)
    out = {
        "accuracy": float(right.mean()),
        "nll": float(-np.log(p[np.arange(n), y].clip(1e-12)).mean()),
        "brier": float(((p - onehot) ** 2).sum(axis=1).mean()),
        "ece": value,
        "ece_low": float(min(low, value)),
        "ece_high": float(max(high, value)),
        "ece_floor": float(np.mean([ece(confidence, h, bins) for h in honest])),
        "adaptive_ece": adaptive_ece(confidence, right, bins),
        "classwise_ece": float(np.mean([ece(p[:, c], y == c, bins) for c in range(classes)])),
        "overconfidence": float(confidence.mean() - right.mean()),
        "images": float(n),
    }
    if right.any() and not right.all():
        out["confidence_auroc"] = auroc(positive=confidence[right], negative=confidence[~right])
    return out


def ece(confidence: Vector, right: Vector, bins: int) -> float:
    """Expected calibration error over bins of equal width."""
    return _gap(confidence, right, np.minimum((confidence * bins).astype(int), bins - 1), bins)


def adaptive_ece(confidence: Vector, right: Vector, bins: int) -> float:
    """The same over bins that hold equally many images."""
    rank = np.argsort(np.argsort(confidence, kind="stable"), kind="stable")
    return _gap(confidence, right, rank * bins // len(confidence), bins)


def _gap(confidence: Vector, right: Vector, which: Vector, bins: int) -> float:
    gaps = np.bincount(which, weights=right.astype(float) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
