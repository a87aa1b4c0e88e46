"""Abstention: for how many images an attacker can make a certifier abstain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from siegebench import ops, registry
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Certifier, Count, Measure, Positive
from siegebench.types.certifiers import ABSTAINED


@dataclass(frozen=True, kw_only=True)
class Abstention(Measure):
    """An attack on the availability of a certifier: images within eps on which it abstains, or certifies nothing.

    With the logits z of what the certifier deploys, and their two largest values:

        min over |x' - x| <= eps  of  z_(1)(x') - z_(2)(x')

    by projected gradient descent with a step that falls to zero. The certifier gets the last iterate and not the best
    one: the gap of a smoothed classifier is an estimate from few samples, and the smallest of many estimates is
    unreliable. Randomised smoothing abstains where no class has more than half of the probability. The goal is not a
    wrong answer: attacks for that pass the point where the certifier abstains. If the certifier abstains, its users
    need a fallback, such as a person.

    Metrics, as fractions of the images given, which the model without the certifier classifies correctly:
        abstained_clean, abstained       no class is named, without and with the attack
        certified_clean, certified       the label is certified at radius eps, without and with the attack
        answered_wrong                   the attacked image gets another class instead; that is no abstention

    An abstention is not a success of the defense: read `certified` and `abstained` together.

    Random: the noise of the certifier and of a randomised model.

    Cost: `steps` forward and backward passes of what is deployed (times `averaged` if it is randomised) and two
    certificates, per image.

    Differs from the paper: the idea is the test-time variant of Lorenz, Kwiatkowska, Fritz, AISec 2023, arXiv
    2108.11299, of which only the abstract was read; the attack is our design.

    Attributes:
        certifier: is made to abstain.
        steps: of the descent.
        averaged: passes averaged for each step, of a randomised predictor.
        step: first step as a multiple of eps; it falls linearly to zero.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    certifier: Certifier = field(default_factory=lambda: registry.build(Certifier, "randomized_smoothing"))
    steps: Count = 20
    averaged: Count = 4
    step: Positive = 0.25

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        if threat.norm not in self.certifier.norms:
            able = ", ".join(sorted(self.certifier.norms))
            raise NotApplicable(f"abstention: {self.certifier!r} certifies {able}; the threat is {threat.norm}")
        deployed = oracle.of(self.certifier.predictor(oracle.model).eval()).as_attacked(self.averaged)
        metrics: dict[str, float] = {}
        for name, images in (("_clean", x), ("", self.unsure(deployed, x, threat))):
            found = self.certifier(oracle.model, images, threat.norm, [threat.eps], draws.child("certify"))
            abstained, right = found.prediction == ABSTAINED, found.prediction == y
            metrics[f"abstained{name}"] = float(abstained.double().mean())
            metrics[f"certified{name}"] = float((found.holds[0] & right).double().mean())
        metrics["answered_wrong"] = float((~abstained & ~right).double().mean())
        return {"metrics": metrics, "flags": []}

    def unsure(self, deployed: Oracle, x: Tensor, threat: ThreatModel) -> Tensor:
        """Images within eps with a small gap between the two largest logits: the last iterate."""
        z = x
        for t in range(self.steps):
            g, _, _ = deployed.gradient(z, closer)
            size = self.step * threat.eps * (1 - t / self.steps)
            z = threat.project(z + size * ops.normalise(g, threat.norm), x)
        return z


def closer(z: Tensor) -> Tensor:
    """Minus the gap between the two largest logits, [n]."""
    top = z.topk(2, dim=1).values
    return top[:, 1] - top[:, 0]
