"""AutoAttack: four attacks in sequence, each on the samples that the previous ones did not break."""

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
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Count

from ._persistent import Persistent
from ._square_l1 import SquareL1
from .apgd import APGD
from .fab import FAB
from .square import Square

PROBE = 50  # one query in so many goes to the random search that gradients must outdo in `plus`
PASSES = 20  # of a randomised model, averaged for each gradient
RESTARTS_L1, TARGETS_L1 = 5, 5  # of APGD-CE, and classes of targeted APGD


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """The standard ensemble APGD-CE, targeted APGD, targeted FAB, Square: the worst case for each sample.

    Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    ICML 2020, arXiv 2003.01690. A sample is not attacked further once a forward pass on the returned image shows that
    it is misclassified within eps. `rand`, for randomised models, consists of APGD-CE and APGD-DLR with every gradient
    and every decision averaged over 20 forward passes.

    `plus` spends the passes of the standard ensemble where they pay. After APGD-CE and the first targeted runs, which
    are those of `standard`, more targeted runs follow: half of them towards the class that came nearest, from random
    points, and half mostly towards the next ones, from the best point so far. FAB and Square run only where a short
    random search gets nearer than all gradients did. It searches in the spirit of Liu, Cheng, Gao, Liu, Zhang, Song,
    "Practical Evaluation of Adversarial Robustness via Adaptive Auto Attack", CVPR 2022, arXiv 2203.05154.

    L1: the same four attacks (Croce, Hein, "Mind the box: L1-APGD for sparse adversarial attacks on image classifiers",
    ICML 2021, arXiv 2103.01208): APGD-CE with five restarts, targeted APGD with at most five classes, FAB, and the L1
    version of Square.

    Random: the starting points of APGD, the positions and colours of Square. Cost per sample that is never
    misclassified, with the defaults and 10 classes: 7,816 forward and 1,910 backward passes (L1: 7,836 and 1,930).

    Differs from the paper: each attack stops at the first misclassified image of a sample (see apgd, fab, square). A
    sample that is never misclassified returns the attempt with the highest margin. Targeted DLR is not defined for 3
    classes, where untargeted DLR replaces it, nor for 2 classes, where the margin replaces it. FAB and targeted APGD
    try at most all wrong classes.

    Attributes:
        variant: `standard`; `plus`, at most as many passes; or `rand` for randomised models.
        steps: steps of APGD and FAB.
        queries: queries of Square.
        targets: number of wrong classes that targeted APGD and FAB try.
    """

    variant: Literal["standard", "plus", "rand"] = "standard"
    steps: Count = 100
    queries: Count = 5000
    targets: Count = 9

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        if self.variant == "rand":
            oracle = oracle.averaged(PASSES)
        best = Best(x)
        members = self.components(oracle.num_classes, oracle.goal is not None, threat.norm)
        for number, component in enumerate(members):
            left = best.left()
            if not len(left):
                break
            view, x0, labels = oracle[left], x[left], y[left]
            found = component.run(view, x0, labels, threat, draws[left].child("autoattack", number))
            z = view.logits(found)
            inside = threat.size(found, x0) <= threat.limit
            margin = torch.where(inside, ops.gain(z, labels, view.goal), -torch.inf)
            best.keep(left, found, margin, inside & ops.hit(z.argmax(dim=1), labels, view.goal))
        return best.point

    def components(self, num_classes: int, aims: bool = False, norm: Norm = "linf") -> Iterator[Attack | Persistent]:
        """The attacks for a model with this many classes and a threat with or without a target."""
        restarts, targets = (RESTARTS_L1, min(self.targets, TARGETS_L1)) if norm == "l1" else (1, self.targets)
        untargeted: Literal["dlr", "margin"] = "dlr" if num_classes > (3 if aims else 2) else "margin"
        if self.variant == "rand":
            yield APGD(steps=self.steps, loss="ce", early_stop=False)
            yield APGD(steps=self.steps, loss=untargeted, early_stop=False)
            return
        square = SquareL1 if norm == "l1" else Square
        fab = FAB(steps=self.steps, targets=self.targets, stop_at_eps=True)
        second = APGD(steps=self.steps, loss="targeted_dlr" if num_classes > 3 else untargeted, targets=targets)
        yield APGD(steps=self.steps, loss="ce", restarts=restarts)
        if self.variant == "plus":
            wrong, probe = min(self.targets, num_classes - 1), max(1, self.queries // PROBE)
            yield Persistent(
                apgd=second, targets=wrong, probe=square(queries=probe),
                passes=(2 * min(targets, wrong) + 3 * wrong) * self.steps + self.queries - probe,
                otherwise=(fab, square(queries=max(1, self.queries - probe), rescale=False)),
            )  # fmt: skip
            return
        yield second
        yield fab
        yield square(queries=self.queries, rescale=False)
