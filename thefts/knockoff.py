"""Knockoff: a copy trained on the victim's answers to images of another source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.oracle import Oracle
from siegebench.threat import Access
from siegebench.types import Attacker, Count, Theft


@dataclass(frozen=True, kw_only=True)
class Knockoff(Theft):
    """Query images of a pool, drawn without replacement, and train a copy on the answers.

    Orekondy, Schiele, Fritz, "Knockoff Nets: Stealing Functionality of Black-Box Models", CVPR 2019, arXiv 1812.02766.
    The policy is their `random` one. The copy minimises the soft cross-entropy to the victim's posteriors. With
    `labels` it uses only the victim's top-1 class; with `repeat` each image is queried several times and the answers
    are averaged, which removes noise that a victim adds to them.

    Random: the order of the pool, the weights of the copy before training, and the order of its batches.

    Differs from the paper: the recipe is that of the copy's network, the same for all thefts of a board, and the copy
    starts from random weights; theirs starts from ImageNet weights. Their policy `adaptive` is left out. `labels` and
    `repeat` are ours.

    Attributes:
        labels: use only the victim's top-1 class.
        repeat: number of queries for each image; the budget then suffices for fewer images.
    """

    pooled: ClassVar[bool] = True

    labels: bool = False
    repeat: Count = 1

    def access(self) -> Access:
        return "label" if self.labels else "score"

    def images(self, queries: int) -> int:
        return queries // self.repeat

    def run(self, oracle: Oracle, attacker: Attacker, draws: Draws) -> Classifier:
        if attacker.pool is None:
            raise ContractError(f"{self!r} needs a pool of images")
        pool, count = attacker.pool, len(oracle) // self.repeat
        index = Draws(draws.seed, pool.ids).order("pool")[:count]
        x = pool.pixels(index)
        answers = self.ask(oracle[: count * self.repeat], x.repeat_interleave(self.repeat, dim=0))
        mean = answers.view(count, self.repeat, -1).mean(dim=1)
        return attacker.fit(x, self.taught(mean, draws), draws.seed, True)

    def taught(self, answers: Tensor, draws: Draws) -> Tensor:
        """What the copy is trained on, made of the answers [n, classes]."""
        return answers
