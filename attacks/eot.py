"""Expectation over transformation: for randomised models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import NORMS, Norm, ThreatModel
from siegebench.types import Attack, Count, Lesson, WrappingAttack


@dataclass(frozen=True, kw_only=True)
class EOT(WrappingAttack):
    """Runs the inner attack on logits and gradients averaged over several forward passes of a randomised model.

    Athalye, Engstrom, Ilyas, Kwok, "Synthesizing robust adversarial examples", ICML 2018, arXiv 1707.07397; against
    defenses: Athalye, Carlini, Wagner, ICML 2018, arXiv 1802.00420.

    Random: what the inner attack and the model draw. Cost: that of the inner attack, times `looks`. On a model that is
    not randomised nothing else changes.

    Differs from the paper: logits are averaged as well as gradients, so that every decision of the inner attack (is it
    misclassified? which class is nearest?) uses the mean. The transformation is the defense's own noise.

    Attributes:
        attack: the inner attack.
        looks: number of forward passes that are averaged.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS

    attack: Attack
    looks: Count = 20

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        return self.attack(oracle.averaged(self.looks), x, y, threat, draws, lesson)
