"""Control: a network trained on the pool with its true labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.oracle import Oracle
from siegebench.threat import Access
from siegebench.types import Attacker, Theft


@dataclass(frozen=True, kw_only=True)
class OwnLabels(Theft):
    """Without queries: train the copy's network on the images that knockoff queries, with their true labels.

    Only for a pool of the victim's own data. There a network can agree with the victim because both are correct. Only
    the agreement of a theft beyond that of this control comes from the answers.

    Random: the order of the pool, the weights before training and the order of the batches.
    """

    needs: ClassVar[Access] = "none"
    pooled: ClassVar[bool] = True
    labelled: ClassVar[bool] = True

    def run(self, oracle: Oracle, attacker: Attacker, draws: Draws) -> Classifier:
        if attacker.pool is None:
            raise ContractError(f"{self!r} needs a pool of images")
        index = Draws(draws.seed, attacker.pool.ids).order("pool")[: len(oracle)]
        answers = F.one_hot(attacker.pool.labels[index], oracle.num_classes)
        return attacker.fit(attacker.pool.pixels(index), answers, draws.seed, True)
