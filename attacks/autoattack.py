"""AutoAttack: four attacks in a row, each on the samples that survived the ones before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Best
from siegebench.threat import TOLERANCE, Norm, ThreatModel
from siegebench.types import Attack, Count

from .apgd import APGD
from .fab import FAB
from .square import Square

LOOKS = 20  # at a randomised model, for each gradient


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """The standard cascade APGD-CE, targeted APGD, targeted FAB, Square: the worst case of each sample.

    Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    ICML 2020, arXiv 2003.01690. A sample leaves the cascade when a forward pass on the image that a component returned
    says it is misclassified within eps. `rand`, for randomised models, is APGD-CE and APGD-DLR with every gradient and
    every decision averaged over 20 looks.

    Random: the starting points of APGD, the places and colours of Square. Cost of a sample that nothing breaks, with
    the defaults and 10 classes: 7,816 forwards and 1,910 backwards.

    Differs from the paper: components stop at the first image that breaks a sample (see apgd, fab, square), and the
    attempt with the highest margin is returned where nothing breaks it. Targeted DLR is not defined for 3 classes,
    where untargeted DLR takes its place, nor for 2, where the margin does. FAB and targeted APGD try at most all wrong
    classes.

    Attributes:
        variant: `standard`, or `rand` for randomised models.
        steps: of APGD and FAB.
        queries: of Square.
        targets: wrong classes that targeted APGD and FAB try.
    """

    variant: Literal["standard", "rand"] = "standard"
    steps: Count = 100
    queries: Count = 5000
    targets: Count = 9

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        if self.variant == "rand":
            oracle = oracle.averaged(LOOKS)
        best = Best(x)
        for number, component in enumerate(self.components(oracle.num_classes, oracle.goal is not None)):
            left = best.left()
            if not len(left):
                break
            view, x0, labels = oracle[left], x[left], y[left]
            found = component.run(view, x0, labels, threat, draws[left].child("autoattack", number))
            z = view.logits(found)
            inside = threat.size(found, x0) <= threat.eps + TOLERANCE
            margin = torch.where(inside, ops.gain(z, labels, view.goal), -torch.inf)
            best.keep(left, found, margin, inside & ops.hit(z.argmax(dim=1), labels, view.goal))
        return best.point

    def components(self, num_classes: int, aims: bool = False) -> Iterator[Attack]:
        """The cascade for a model with this many classes, for a threat with or without a target."""
        untargeted: Literal["dlr", "margin"] = "dlr" if num_classes > (3 if aims else 2) else "margin"
        if self.variant == "rand":
            yield APGD(steps=self.steps, loss="ce", early_stop=False)
            yield APGD(steps=self.steps, loss=untargeted, early_stop=False)
            return
        yield APGD(steps=self.steps, loss="ce")
        if num_classes > 3:
            yield APGD(steps=self.steps, loss="targeted_dlr", targets=self.targets)
        else:
            yield APGD(steps=self.steps, loss=untargeted)
        yield FAB(steps=self.steps, targets=self.targets, stop_at_eps=True)
        yield Square(queries=self.queries)
