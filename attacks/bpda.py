"""Backward pass differentiable approximation: for defenses without a useful gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import NORMS, Norm, ThreatModel
from siegebench.types import Attack, Lesson, WrappingAttack


@dataclass(frozen=True, kw_only=True)
class BPDA(WrappingAttack):
    """Runs the inner attack with the gradients of the defense's differentiable backward model.

    Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018, arXiv 1802.00420.

    Random: what the inner attack and the model draw. Cost: that of the inner attack. The backward model of a
    differentiable defense is the defense itself; there nothing changes.

    Differs from the paper: the approximation is the defense's own (`Classifier.backward_model`), so its quality depends
    on the author of the defense. Often it is the identity in the backward pass.

    Attributes:
        attack: the inner attack; it must use gradients.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS

    attack: Attack

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        return self.attack(oracle.backward_model(), x, y, threat, draws, lesson)
