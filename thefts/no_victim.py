"""Control: a network trained on the attacker's own labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Access
from siegebench.types import Attacker, Theft


@dataclass(frozen=True, kw_only=True)
class NoVictim(Theft):
    """Without queries: train the copy's network on the images that are held out of the training set, with true labels.

    It shows what labelled images of the victim's data are worth without the victim. It is the same for every budget.

    Random: the weights before training and the order of the batches.
    """

    needs: ClassVar[Access] = "none"

    def run(self, oracle: Oracle, attacker: Attacker, draws: Draws) -> Classifier:
        own = attacker.own.clean
        return attacker.fit(own.pixels(), F.one_hot(own.labels, oracle.num_classes), draws.seed, True)
