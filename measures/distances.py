"""Distances: distribution of the distances to the nearest misclassified images, instead of one rate at one eps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import NORMS, TOLERANCE, Norm, ThreatModel
from siegebench.types import Attack, Count, Measure, Positive

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)  # multiples of the eps of the threat model, used when no list of eps is given


@dataclass(frozen=True, kw_only=True)
class Distances(Measure):
    """Quantiles of the distances that a minimum-norm attack finds, and the robust accuracy at any eps.

    One run of a minimum-norm attack gives the result for every eps at once, as in Pintor et al., "Fast minimum-norm
    adversarial attacks through adaptive norm constraints", NeurIPS 2021, arXiv 2102.12827. Distances are in the norm of
    the threat model, over correctly classified images. The q-quantile is the smallest distance within which a fraction
    q of these images is misclassified. If a fresh forward pass classifies the returned image correctly, its distance is
    infinite; infinite quantiles are left out.

    Random: only what the attack draws. For a randomised model, the prediction is the mean of `averaged` passes.

    Differs from the paper: the paper plots the curve. This measure reports five quantiles and some points of the curve
    (`held@eps`, as a fraction of the images that are correctly classified at eps 0).

    Attributes:
        attack: a minimum-norm attack.
        eps: radii at which the accuracy is reported; 1/4, 1/2, 1, 2 and 4 times the eps of the threat model when empty.
        averaged: forward passes averaged for each prediction of a randomised model.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS

    attack: Attack
    eps: tuple[Positive, ...] = ()
    averaged: Count = 9

    def __post_init__(self) -> None:
        refuse_what_does_not_minimise(self.attack, "distances")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        _, distance = nearest(self.attack, oracle, x, y, threat, draws, self.averaged)
        order, n = distance.sort().values, len(x)
        metrics = {"not_found": float(distance.isinf().double().mean())}
        for q in QUANTILES:
            value = float(order[math.ceil(q * n - 1e-9) - 1])
            if math.isfinite(value):
                metrics[f"distance_q{round(100 * q):02d}"] = value
        for eps in self.eps or tuple(times * threat.eps for times in TIMES):
            correct = distance > eps + TOLERANCE * max(1.0, eps)
            metrics[f"held@{eps:.6g}"] = float(correct.double().mean())
        return {"metrics": metrics, "flags": []}


def refuse_what_does_not_minimise(attack: Attack, who: str) -> None:
    """Check that an attack is a minimum-norm attack.

    Raises:
        ConfigError: when the attack works within an eps instead.
    """
    if not attack.minimises():
        raise ConfigError(
            f"{who}: attack {getattr(attack, '_name', type(attack).__name__)!r} works within an eps; expected a "
            "minimum-norm attack, such as fmn, cw, fab or hopskipjump"
        )


def nearest(
    attack: Attack, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, passes: int
) -> tuple[Tensor, Tensor]:
    """Run a minimum-norm attack and score its images with a fresh forward pass.

    Returns:
        The predicted labels of the returned images, and their distances; infinite where the label is the true one.

    Raises:
        NotApplicable: when the attack does not support the norm.
    """
    if threat.norm not in attack.handles():
        raise NotApplicable(f"the inner attack handles {', '.join(attack.handles())}, not {threat.norm}")
    x_adv = attack(oracle, x, y, threat, draws)
    scorer = oracle.averaged(passes) if oracle.model.randomized else oracle
    label, distance = scorer.labels(x_adv), threat.size(x_adv, x)
    return label, torch.where(label != y, distance, torch.inf)
