"""Distances: how far away the nearest misclassified images lie, as a distribution instead of one rate at one eps."""

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

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)  # the eps of the threat, where no list is given


@dataclass(frozen=True, kw_only=True)
class Distances(Measure):
    """Quantiles of the distances that a minimum-norm attack finds, and the accuracy at any eps read off them.

    One run of an attack that minimises answers for every eps at once, as in Pintor et al., "Fast minimum-norm
    adversarial attacks through adaptive norm constraints", NeurIPS 2021, arXiv 2102.12827. Distances are in the norm
    of the threat, over correctly classified images. The q-quantile is the smallest distance within which a share of q
    of them is broken. An image that is right at a fresh look counts as infinitely far; what is infinite is left out.

    Random: only what the attack draws. A randomised model is judged by its mean answer over `averaged` looks.

    Differs from the paper: it plots the curve; here are five quantiles and some points (`held@eps`, of the images that
    are right at eps 0).

    Attributes:
        attack: one that looks for the smallest perturbation.
        eps: radii at which the accuracy is read off; 1/4, 1/2, 1, 2 and 4 times the eps of the threat when empty.
        averaged: looks behind a verdict on a randomised model.
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
        for share in SHARES:
            value = float(order[math.ceil(share * n - 1e-9) - 1])
            if math.isfinite(value):
                metrics[f"distance_q{round(100 * share):02d}"] = value
        for eps in self.eps or tuple(times * threat.eps for times in TIMES):
            held = distance > eps + TOLERANCE * max(1.0, eps)
            metrics[f"held@{eps:.6g}"] = float(held.double().mean())
        return {"metrics": metrics, "flags": []}


def refuse_what_does_not_minimise(attack: Attack, who: str) -> None:
    """Raises:
    ConfigError: when the attack keeps to an eps.
    """
    if not attack.minimises():
        raise ConfigError(
            f"{who}: attack {getattr(attack, '_name', type(attack).__name__)!r} keeps to an eps; expected one that "
            "looks for the smallest perturbation, such as fmn, cw, fab or hopskipjump"
        )


def nearest(
    attack: Attack, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, looks: int
) -> tuple[Tensor, Tensor]:
    """(labels of what the attack returns, at a fresh look; its distances, infinite where the label is the true one).

    Raises:
        NotApplicable: when the attack does not handle the norm.
    """
    if threat.norm not in attack.handles():
        raise NotApplicable(f"the attack inside handles {', '.join(attack.handles())}, not {threat.norm}")
    x_adv = attack(oracle, x, y, threat, draws)
    judge = oracle.averaged(looks) if oracle.model.randomized else oracle
    label, distance = judge.labels(x_adv), threat.size(x_adv, x)
    return label, torch.where(label != y, distance, torch.inf)
