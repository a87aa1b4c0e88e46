"""Expectation over transformation: the attack for models that answer differently at every look."""

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
    """Runs the attack inside on answers averaged over fresh looks at a randomised model.

    Athalye, Engstrom, Ilyas, Kwok, "Synthesizing robust adversarial examples", ICML 2018, arXiv 1707.07397; against
    defenses: Athalye, Carlini, Wagner, ICML 2018, arXiv 1802.00420.

    Random: what the attack inside and the model draw. Cost: that of the attack inside, times `looks`; nothing else
    changes on a model that is not randomised.

    Differs from the paper: logits are averaged as well as gradients, so that every decision inside (is it broken? which
    class is nearest?) is taken on the mean; the transformation is the defense's own noise.

    Attributes:
        attack: what runs inside.
        looks: fresh passes behind each answer.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS

    attack: Attack
    looks: Count = 20

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        return self.attack(oracle.averaged(self.looks), x, y, threat, draws, lesson)
