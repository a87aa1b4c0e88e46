"""SpikeGradient: runs an attack with another derivative of the spikes than the victim was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.spikes import Rule, Ruled
from siegebench.threat import NORMS, Norm, ThreatModel
from siegebench.types import Attack, Lesson, WrappingAttack


@dataclass(frozen=True, kw_only=True)
class SpikeGradient(WrappingAttack):
    """Runs the inner attack with a rule for the derivative of spikes; the answers of the victim are unchanged.

    Potential-dependent surrogate gradients (`pdsg`): Lun, Feng, Ni, Liang, Wang, Li, Yu, Cui, "Towards Effective and
    Sparse Adversarial Attack on Spiking Neural Networks via Breaking Invisible Surrogate Gradients", CVPR 2025, arXiv
    2503.03272.
        pdsg        density of N(sigma / 2, sigma) at u, the potential minus the threshold; sigma is the standard
                    deviation of the potentials of the channel, over space and the steps so far
        others      see siegebench/spikes.py: `atan`, `triangle`, `rect`, `sigmoid`, `ste` (one everywhere), `zero`,
                    which shows a blind attack, and `pdsg_centred`, without the shift of sigma / 2

    Random: what the inner attack and the model draw. Cost: that of the inner attack.

    Differs from the paper: sigma is that of each sample, where the paper takes it over the batch; an outcome must not
    depend on the other images of its batch. The reset of a neuron passes no gradient.

    Attributes:
        attack: the inner attack; it must use gradients.
        rule: derivative of a spike in backward passes.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS

    attack: Attack
    rule: Rule = "pdsg"

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        return self.attack(oracle.of(Ruled(oracle.model, self.rule)), x, y, threat, draws, lesson)
