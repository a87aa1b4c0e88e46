"""Backward pass differentiable approximation: the attack for defenses that cut the gradient."""

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
    """Runs the attack inside with the gradients of the defense's differentiable backward model.

    Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018, arXiv 1802.00420.

    Random: what the attack inside and the model draw. Cost: that of the attack inside. Where a defense is
    differentiable its backward model is the defense itself, and nothing changes.

    Differs from the paper: the approximation is the defense's own (`Classifier.backward_model`), so it is as good as
    the author of the defense made it; often the identity on the backward pass.

    Attributes:
        attack: what runs inside; one that uses gradients.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS

    attack: Attack

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        return self.attack(oracle.backward_model(), x, y, threat, draws, lesson)
